"""The benchmarks of GPUs: the same tables as the CPU's, of work that is recorded as a CUDA graph and timed by events.

Without a GPU, where Triton's interpreter runs the kernels, work is called as it is and timed by the host.
"""
