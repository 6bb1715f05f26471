"""Which machine may run Metal kernels, and how one is launched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import mlx.core as mx

Template = dict[str, mx.Dtype | int | bool]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel by name: the body `kernels/<name>.metal`, after the sources `shared/<shared>.metal`."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("out",)
    shared: tuple[str, ...] = ()


def usable() -> bool:
    """True where MLX's default device is a GPU of Apple's."""
    return mx.default_device().type == mx.gpu and mx.metal.is_available()


def run(
    kernel: Kernel,
    inputs: Sequence[mx.array],
    template: Template,
    *,
    grid: tuple[int, int],
    threadgroup: tuple[int, int],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    """The outputs of `kernel`, lazily. `grid` counts threads, not threadgroups; inputs are copied if not contiguous."""
    outputs: list[mx.array] = compiled(kernel)(
        inputs=list(inputs),
        template=list(template.items()),
        grid=(*grid, 1),
        threadgroup=(*threadgroup, 1),
        output_shapes=list(shapes),
        output_dtypes=list(dtypes),
    )
    return outputs


def optional(array: mx.array | None) -> mx.array:
    """What to pass for an input that is not there, as none can be left out; the kernel does not look at it."""
    return mx.zeros(1) if array is None else array


@cache
def compiled(kernel: Kernel) -> Any:
    """MLX's function for the kernel; it writes the signature, and Apple's compiler is called at the first launch.

    Math is "safe": the kernels count on infinities and NaN.
    """
    return mx.fast.metal_kernel(
        name=f"coterie_{kernel.name}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=source(f"kernels/{kernel.name}.metal"),
        header="".join(source(f"shared/{name}.metal") for name in kernel.shared),
        compile_options={"math_mode": "safe"},
    )


def source(path: str) -> str:
    """The text of a source file of this folder."""
    return resources.files(__package__).joinpath(path).read_text("utf-8")
