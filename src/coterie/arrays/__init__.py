"""Which kind of array is this, and the same memory as another library sees it; nothing is imported that the user has
not imported, except PyTorch where arrays of JAX or CuPy on a GPU are computed on.
"""

from coterie.arrays.bridges import (
    as_numpy,
    as_torch,
    from_numpy,
    from_torch,
    numpy_as_torch,
    octets,
    torch_as_numpy,
)
from coterie.arrays.kinds import (
    FLOAT_DTYPES,
    ON_A_GPU,
    Array,
    Kind,
    bfloat16,
    common_kind,
    device_of,
    dtype_name,
    kind_of,
    mixed_kinds,
)

__all__ = [
    "FLOAT_DTYPES",
    "ON_A_GPU",
    "Array",
    "Kind",
    "as_numpy",
    "as_torch",
    "bfloat16",
    "common_kind",
    "device_of",
    "dtype_name",
    "from_numpy",
    "from_torch",
    "kind_of",
    "mixed_kinds",
    "numpy_as_torch",
    "octets",
    "torch_as_numpy",
]
