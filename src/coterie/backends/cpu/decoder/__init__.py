"""The decoder's verbs on NumPy arrays; what each must compute is said in `coterie.models.backend`.

The expert path (route, moe, glu) and products with packed matrices are the CPU back end's own.
"""

from coterie.backends.cpu.decoder.verbs import RowByRow, Verbs

__all__ = ["RowByRow", "Verbs", "verbs"]


def verbs(precision: str = "default") -> Verbs:
    """The verbs whose products are computed with `precision`, "default" or "exact"."""
    return Verbs(precision)
