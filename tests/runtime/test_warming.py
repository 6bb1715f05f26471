"""`coterie.warmup` compiles what it is asked for and refuses what does not exist."""

import pytest

import coterie
from coterie.errors import ArgumentError


def test_one_format_is_warmed() -> None:
    coterie.warmup(formats=(("affine", 4, 64),), scale_dtypes=("float32",))


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ArgumentError, match="mode 'ggml'"):
        coterie.warmup(formats=(("ggml", 4, 64),))
