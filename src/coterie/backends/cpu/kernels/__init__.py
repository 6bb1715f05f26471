"""The inner loops, emitted as LLVM vectors for a layout and compiled by Numba as parts of the jobs."""
