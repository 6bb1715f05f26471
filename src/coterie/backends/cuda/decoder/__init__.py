"""The decoder's verbs on CUDA tensors; what each must compute is said in `coterie.models.backend` and
`coterie.models.launches`. Nothing waits for the device but `to_numpy`.
"""

from coterie.backends.cuda.decoder.verbs import Verbs

__all__ = ["Verbs", "verbs"]


def verbs(precision: str = "default") -> Verbs:
    """The verbs whose products are computed with `precision`, "default" or "exact"."""
    return Verbs(precision)
