"""The decoder's verbs on MLX arrays; what each must compute is said in `coterie.models.backend`.

Everything is lazy up to `to_numpy`; attention hands what has been asked for so far to the device, so that it computes
while Python asks for the rest, and no graph grows with the length of a prompt.
"""

import sys
from typing import Any

from coterie.backends.mlx.decoder.attention import attend
from coterie.backends.mlx.decoder.elementwise import clip, rms_norm, rotary, softcap
from coterie.backends.mlx.decoder.latent import attend_latent
from coterie.backends.mlx.decoder.matrices import adopt, embed, join, linear, linears
from coterie.backends.mlx.decoder.verbs import glu, moe, route, to_numpy

from coterie.backends.mlx.decoder import row_by_row  # isort: skip (it takes the verbs from here)

__all__ = [
    "adopt",
    "attend",
    "attend_latent",
    "clip",
    "embed",
    "glu",
    "join",
    "linear",
    "linears",
    "moe",
    "rms_norm",
    "rotary",
    "route",
    "row_by_row",
    "softcap",
    "to_numpy",
    "verbs",
]


def verbs(_precision: str = "default") -> Any:
    """The verbs: this module. MLX computes with one precision."""
    return sys.modules[__name__]
