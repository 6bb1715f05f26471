"""Kernels of our own for GPUs of Apple's, through `mx.fast.metal_kernel`: what MLX does in several steps, in one.

The sources are in `kernels/`, one body each, and what they share in `shared/`. A function here brings a call into the
shape that its kernel expects; which kernels stand in for what is said in docs/metal.md.
"""
