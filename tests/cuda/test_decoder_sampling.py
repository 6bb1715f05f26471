"""Tokens chosen on a GPU are those that the host chooses from the same logits with the same seed."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

Logits = Callable[[np.random.Generator, int], np.ndarray]
KINDS: dict[str, Logits] = {
    "normal": lambda rng, n: 3 * rng.standard_normal(n),
    "many are equal": lambda rng, n: np.round(2 * rng.standard_normal(n)) / 2,
    "all are equal, zeros of both signs": lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, -0.0),
}
REQUESTS = [
    Request(temperature=0.0, seed=1),
    Request(temperature=0.8, seed=2),
    Request(temperature=1.3, top_k=3, seed=3),
    Request(temperature=1.0, top_p=0.7, seed=4),
    Request(temperature=1.0, min_p=0.2, seed=5),
    Request(temperature=2.0, top_k=40, top_p=0.5, min_p=0.05, seed=6),
    Request(temperature=1e-300, seed=7),
    Request(temperature=1.0, top_k=1, top_p=1e-9, seed=8),
]


def chosen(requests: Sequence[Request], logits: Sequence[np.ndarray], device: str) -> tuple[list[list[int]], list[int]]:
    """Tokens of each step, logits [B, V] each, with one row more that nobody asks about; and the positions at last."""
    from coterie.backends.cuda.decoder.sampling import Chooser

    n_rows = len(requests) + 1
    chooser = Chooser([Sampler(request).draw(len(logits)) for request in requests], n_rows, torch.device(device))
    found, ids = torch.zeros((2, n_rows), dtype=torch.int64, device=device)
    positions = torch.arange(n_rows, device=device)
    positions[-1] = -1
    tokens = []
    for step in logits:
        rows = np.concatenate((step, step[:1]))
        chooser.choose(torch.from_numpy(rows).to(device), found, ids, positions)
        tokens.append(found[:-1].tolist())
        assert ids[:-1].tolist() == [max(token, 0) for token in tokens[-1]]
    return tokens, positions.tolist()


@pytest.mark.parametrize(("vocabulary", "kind"), list(zip((1025, 1025, 40), KINDS, strict=True)))
def test_every_way_to_draw(rng: np.random.Generator, device: str, kind: str, vocabulary: int) -> None:
    shape = (len(REQUESTS), vocabulary)
    logits = [KINDS[kind](rng, shape).astype(np.float32)]  # type: ignore[arg-type]
    samplers = [Sampler(request) for request in REQUESTS]
    expected = [[sampler.pick(row) for sampler, row in zip(samplers, step, strict=True)] for step in logits]
    tokens, positions = chosen(REQUESTS, logits, device)
    assert tokens == expected
    assert positions == [*range(1, 1 + len(REQUESTS)), -1]


@pytest.mark.parametrize("vocabulary", [1, 2, 1024, 3000])
def test_the_likeliest(rng: np.random.Generator, device: str, vocabulary: int) -> None:
    logits = rng.standard_normal((1, vocabulary)).astype(np.float32)
    logits[0, rng.integers(vocabulary, size=3)] = 9.0
    assert chosen(REQUESTS[:1], [logits], device)[0] == [[int(np.argmax(logits))]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_no_token(rng: np.random.Generator, device: str, bad: float) -> None:
    logits = rng.standard_normal((2, 1500)).astype(np.float32)
    logits[1, 1400] = bad
    tokens, _ = chosen(REQUESTS[:2], [logits], device)
    assert tokens == [[int(np.argmax(logits[0])), -1]]


def test_what_has_been_drawn_does_not_depend_on_who_looks_ahead(rng: np.random.Generator) -> None:
    request = Request(temperature=1.0, seed=11)
    ahead, plain = Sampler(request), Sampler(request)
    numbers = ahead.draw(6)
    assert numbers is not None
    for step in range(6):
        logits = rng.standard_normal(50).astype(np.float32)
        if step % 2:
            ahead.accept(plain.pick(logits))
        else:
            assert ahead.pick(logits) == plain.pick(logits)
    assert np.array_equal(numbers.uniforms, np.random.Generator(np.random.PCG64(11)).random(6))


@pytest.mark.parametrize(
    "request_", [Request(logprobs=0), Request(logit_bias=((1, 2.0),)), Request(repetition_penalty=1.1)]
)
def test_who_needs_the_logits_draws_on_the_host(request_: Request) -> None:
    assert Sampler(request_).draw(3) is None
