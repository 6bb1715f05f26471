"""What kernels agree on whose softmax meets its scores block by block; these are in units of log 2."""

import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Where the highest score begins: finite, so that rows that have seen nothing yet make no NaN."""

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
