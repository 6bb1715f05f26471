"""The CPU back end: the library's verbs on NumPy arrays, compiled by Numba for the machine at hand.

Arguments come checked from `coterie.ops`: dense arrays in a canonical shape, indices in range.
"""

from coterie.backends.cpu.glu import glu, glu_fused
from coterie.backends.cpu.isa import describe
from coterie.backends.cpu.layer import moe
from coterie.backends.cpu.linear import gather_mm, gather_qmm, matvec, quantized_matmul
from coterie.backends.cpu.pool import set_num_threads

__all__ = ["describe", "gather_mm", "gather_qmm", "glu", "glu_fused", "matvec", "moe", "quantized_matmul", "set_num_threads"]
