"""Attention over latents against float64, both ways of computing it, every kind of weight, both forms of the keys."""

import ml_dtypes
import numpy as np
import pytest

from coterie.backends.cpu.decoder import latent
from coterie.formats import Format, Packed
from coterie.formats.codec import quantize
from models.plain_backend import PlainBackend

EPS = float(np.finfo(np.float32).eps)
PLAIN = PlainBackend()
SHAPES = [
    # tokens, heads, numbers of a query that are plain, turned; of a value; of a latent; start; made of the latents?
    (1, 1, 64, 2, 64, 64, 0, False),
    (1, 16, 128, 64, 128, 512, 77, False),
    (3, 4, 64, 16, 64, 128, 5, False),
    (48, 4, 64, 32, 64, 128, 9, False),
    (40, 3, 64, 16, 64, 512, 0, False),
    (80, 3, 64, 16, 64, 512, 0, True),
    (200, 2, 128, 64, 128, 512, 130, True),
    (7, 5, 64, 16, 192, 128, 3, False),
]


def weight_of(values: np.ndarray, kind: str) -> Packed | np.ndarray:
    """The matrices as a checkpoint holds them."""
    if kind in ("float32", "bfloat16", "float16"):
        return values.astype(getattr(ml_dtypes, kind, kind))
    fmt = Format.resolve("mxfp4") if kind == "mxfp4" else Format.resolve("affine", int(kind[0]), 64)
    return Packed(*quantize(values, fmt), fmt.bits, fmt.group_size, fmt.mode)


def case(shape: tuple[int, ...], kind: str, transposed: bool, rng: np.random.Generator) -> dict:
    """Arguments of the verb; slots that no query may look at hold NaN."""
    n_tokens, heads, plain, turned, value, rank, start = shape
    capacity = start + n_tokens + 3
    stores = [rng.standard_normal((1, capacity, dims)).astype(np.float32) for dims in (rank, turned)]
    for store in stores:
        store[:, start + n_tokens :] = np.nan
    key_shape = (heads, rank, plain) if transposed else (heads, plain, rank)
    return {
        "queries": rng.standard_normal((n_tokens, heads, plain + turned)).astype(np.float32)[..., :plain],
        "turned": rng.standard_normal((n_tokens, heads, turned)).astype(np.float32),
        "latents": stores[0],
        "keys": stores[1],
        "key_up": weight_of(rng.standard_normal(key_shape).astype(np.float32) / rank**0.5, kind),
        "value_up": weight_of(rng.standard_normal((heads, value, rank)).astype(np.float32) / rank**0.5, kind),
        "start": start,
        "scale": (plain + turned) ** -0.5,
        "key_transposed": transposed,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "4 bits", "8 bits", "mxfp4"])
def test_both_ways(
    shape: tuple, transposed: bool, kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    expanded = latent._expanded
    monkeypatch.setattr(latent, "_expanded", lambda *a: made.append(True) or expanded(*a))
    arguments = case(shape[:-1], kind, transposed, rng)
    kept = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}
    found = latent.attend_latent(**arguments)
    expected = PLAIN.attend_latent(**arguments)
    assert bool(made) == shape[-1]
    for name, value in kept.items():
        assert np.array_equal(value, arguments[name], equal_nan=value.dtype == np.float32), f"{name} was changed"
    error = np.abs(found - expected).max(axis=-1) / np.sqrt(np.mean(expected**2, axis=-1))
    # A score is a sum over the latent of sums over a key; an error e in it changes a share by a factor exp(e).
    assert error.max() < 16 * EPS * np.sqrt(shape[5])


@pytest.mark.parametrize("kind", ["float32", "4 bits"])
def test_the_two_ways_agree(kind: str, rng: np.random.Generator) -> None:
    arguments = case((90, 2, 64, 16, 64, 512, 4), kind, True, rng)
    whole = latent.attend_latent(**arguments)
    steps = [
        latent.attend_latent(**{**arguments, "queries": q[None], "turned": t[None], "start": 4 + i})
        for i, (q, t) in enumerate(zip(arguments["queries"], arguments["turned"], strict=True))
    ]
    np.testing.assert_allclose(np.concatenate(steps), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
