"""Mixture-of-experts models in MLX's format, on the machine you have.

Everything public is here and is found on first use, so that importing the package costs next to nothing: the operations
on arrays (`quantize` to `matvec`), the layer (`Experts`, `moe`), and whole models (`load`).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie.errors import CoterieError
    from coterie.formats import Packed
    from coterie.moe import Experts, moe
    from coterie.ops import (
        Groups,
        Routing,
        accumulate,
        dequantize,
        gather_mm,
        gather_qmm,
        gather_topk_weights,
        glu,
        glu_fused,
        group,
        matvec,
        quantize,
        quantized_matmul,
        route,
        weighted_sum,
    )
    from coterie.runtime import ChatTemplate, Generation, Model, load, warmup

__all__ = [
    "ChatTemplate",
    "CoterieError",
    "Experts",
    "Generation",
    "Groups",
    "Model",
    "Packed",
    "Routing",
    "accumulate",
    "dequantize",
    "gather_mm",
    "gather_qmm",
    "gather_topk_weights",
    "glu",
    "glu_fused",
    "group",
    "load",
    "matvec",
    "moe",
    "quantize",
    "quantized_matmul",
    "route",
    "warmup",
    "weighted_sum",
]

_ROOMS = {
    "CoterieError": "coterie.errors",
    "Packed": "coterie.formats",
    "Experts": "coterie.moe",
    "moe": "coterie.moe",
    "ChatTemplate": "coterie.runtime",
    "Generation": "coterie.runtime",
    "Model": "coterie.runtime",
    "load": "coterie.runtime",
    "warmup": "coterie.runtime",
}
"""Where a public name lives; whatever is not listed lives in `coterie.ops`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("coterie")
    if name not in __all__:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    value = getattr(import_module(_ROOMS.get(name, "coterie.ops")), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Package(ModuleType):
    """Keeps `coterie.moe` the function: importing the module of that name would bind the module here instead."""

    @property
    def moe(self) -> Any:
        return __getattr__("moe")

    @moe.setter
    def moe(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
