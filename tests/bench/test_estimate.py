"""The limit of decoding: the bandwidth is a median of real reads, and the bytes are those of a token."""

import itertools

import pytest

import coterie
from coterie.bench import estimate as estimates
from coterie.bench.estimate import Bandwidth, estimate, measure_bandwidth
from coterie.errors import ArgumentError
from coterie.runtime import describe
from coterie.runtime.loading import read_architecture


def test_the_bandwidth_is_the_median_of_passes() -> None:
    ticks = itertools.count()
    checks = []
    found = measure_bandwidth(lambda: checks.append(1), seconds=0.0, clock=lambda: float(next(ticks)), buffer=4 << 20)
    # Every pass reads the whole buffer and takes one tick of this clock.
    assert found.byte_rate == 4 << 20
    assert found.measured is not None
    assert found.measured.n == len(checks) == 5
    assert found.n_threads is not None
    assert found.n_threads >= 1


def test_a_check_that_raises_ends_the_measurement() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_bandwidth(interrupted, buffer=4 << 20)


def test_the_bundled_model_after_some_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "last_level_cache", lambda: 0)
    architecture, description = read_architecture(), describe()
    near, far = (estimate(architecture, description, Bandwidth(1e9), context) for context in (1, 1000))
    # Per token: six layers of 2 x 64 with a window of 256, two full ones of 1 x 128; keys and values, f32.
    assert near.cache_bytes == 8 * 128 * 2 * 4
    assert far.cache_bytes == (6 * 256 + 2 * 1000) * 128 * 2 * 4
    assert far.weight_bytes == description.nbytes_per_token
    assert far.tokens_per_second == 1e9 / (far.weight_bytes + far.cache_bytes)
    assert not far.fits_cache


@pytest.mark.parametrize("context", [0, -1, 1025])
def test_a_context_that_the_model_lacks_is_refused(context: int) -> None:
    with pytest.raises(ArgumentError) as refused:
        estimate(read_architecture(), describe(), Bandwidth(1e9), context)
    assert refused.value.code == "context"


def test_the_architecture_is_that_of_the_model() -> None:
    assert read_architecture().vocab_size == coterie.load().describe().vocab_size
