"""The verbs on CUDA tensors of PyTorch, as Triton kernels. Nothing waits for the device, so that calls can be captured
in a CUDA graph; every sum has one order, so that runs repeat to the bit.
"""
