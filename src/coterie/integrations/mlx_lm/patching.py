"""`patch` and `unpatch`: modules of a loaded model change their class, and nothing else of theirs."""

from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

from coterie.errors import ArgumentError, BackendUnavailableError, UnsupportedError

MOST_ROWS_OF_LOGITS = 16
"""Positions of which the head's logits are computed at once, unless those of all positions are asked for."""


@dataclass(slots=True)
class Patch:
    """What `patch` did to a model; used as a context manager, it is undone at the end.

    swapped: the kind of module that stood at each path. left: paths of modules that stay as they were, with the reason.
    """

    model: Any
    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def n_experts_layers(self) -> int:
        """Layers of experts that run on our kernels."""
        return sum(kind == "SwitchGLU" for kind in self.swapped.values())

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unpatch(self.model)


def patch(model: Any, *, linears: bool = True, all_logits: bool = False) -> Patch:
    """Let the expert layers of a model that mlx-lm has loaded compute with this library's kernels.

    model: an `mlx.nn.Module`, changed in place. Weights are not copied; outputs are those of mlx-lm up to the rounding
    of their dtype. `unpatch` undoes it; a second call starts anew.

    linears: on the CPU, quantised linear layers and embeddings too, and expert layers of kinds that are not fused.
    all_logits: the head computes the logits of all positions at once. Otherwise more than 16 positions are left to MLX,
    which computes them only where they are read: mlx-lm drops the logits of a prompt.

    `ArgumentError` for something else than a module; `UnsupportedError` where there is nothing to swap;
    `BackendUnavailableError` without mlx-lm. For inference: a module that trains does what it did before, and on the
    CPU gradients through one in evaluation mode are refused.
    """
    swaps = _swaps()
    if not isinstance(model, swaps.nn.Module):
        found = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ArgumentError(f"model is {found}, expected a module of MLX, as mlx_lm.load returns it", code="model_kind")
    unpatch(model)
    report = Patch(model)
    vocabularies = _vocabularies(model, swaps)
    fused: tuple[str, ...] = ()
    for path, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        if not path or path.startswith(fused) or type(module) not in swaps.SWAPS:
            continue
        is_layer = type(module) is swaps.SwitchGLU
        if not (is_layer or linears):
            continue
        reason = swaps.why_not_experts(module) if is_layer else swaps.why_not_packed(module)
        if reason is not None:
            report.left[path] = reason
            continue
        if is_layer:
            fused += (f"{path}.",)
        report.swapped[path] = type(module).__name__
        _swap(module, swaps, _most_rows(module, vocabularies, swaps, all_logits))
    if not report.swapped:
        reasons = "".join(f"; {path}: {reason}" for path, reason in list(report.left.items())[:1])
        raise UnsupportedError(
            "found neither expert layers nor quantised linear layers that could be swapped in this model"
            f"{reasons}; mlx-lm runs it as it is",
            code="nothing_to_patch",
        )
    return report


def unpatch(model: Any) -> None:
    """Give every module of the model its own class back; nothing happens to a model that was not patched."""
    swaps = _swaps()
    for _, module in model.named_modules():
        if type(module) in swaps.SWAPS.values():
            module.__class__ = type(module).stands_for
            del module._coterie


def _swap(module: Any, swaps: Any, most_rows: int | None) -> None:
    module._coterie = swaps.records.State(most_rows)
    module.__class__ = swaps.SWAPS[type(module)]


def _vocabularies(model: Any, swaps: Any) -> set[int]:
    kinds = (swaps.nn.Embedding, swaps.nn.QuantizedEmbedding)
    return {module["weight"].shape[0] for _, module in model.named_modules() if isinstance(module, kinds)}


def _most_rows(module: Any, vocabularies: set[int], swaps: Any, all_logits: bool) -> int | None:
    """The limit of a head, which is a matrix with a row for each token of the vocabulary."""
    is_head = isinstance(module, swaps.nn.QuantizedLinear | swaps.nn.QuantizedEmbedding)
    return MOST_ROWS_OF_LOGITS if is_head and not all_logits and module["weight"].shape[0] in vocabularies else None


def _swaps() -> ModuleType:
    try:
        from coterie.integrations.mlx_lm import swaps
    except ImportError as cause:
        raise BackendUnavailableError(
            f"mlx-lm cannot be imported ({cause}); pip install 'mlx-lm>=0.32', on Linux with 'mlx[cpu]'", code="mlx_lm"
        ) from cause
    return swaps
