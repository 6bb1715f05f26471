"""What changed its name between Triton 3.6 and 3.9: a barrier of a program, and copies into shared memory."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

barrier = getattr(gl, "thread_barrier", None) or gl.barrier
copy_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
