"""The decoder's verbs on NumPy arrays; what each must compute is said in `coterie.models.backend`.

The expert path (route, moe, glu) and products with packed matrices are the CPU back end's own.
"""

from coterie.backends.cpu.decoder.attention import attend
from coterie.backends.cpu.decoder.elementwise import clip, rms_norm, rotary, softcap
from coterie.backends.cpu.decoder.latent import attend_latent
from coterie.backends.cpu.decoder.matrices import adopt, embed, join, linear
from coterie.backends.cpu.decoder.verbs import glu, moe, route, to_numpy

from coterie.backends.cpu.decoder import row_by_row  # isort: skip (it takes the verbs from here)

__all__ = [
    "adopt",
    "attend",
    "attend_latent",
    "clip",
    "embed",
    "glu",
    "join",
    "linear",
    "moe",
    "rms_norm",
    "rotary",
    "route",
    "row_by_row",
    "softcap",
    "to_numpy",
]
