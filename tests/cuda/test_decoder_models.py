"""Whole decoders on a GPU: logits beside the CPU's in f32, and texts, batches and prompt caches token by token.

Where Triton's interpreter stands in, models are tiny and texts short; the others are for machines with a GPU.
"""

import copy
import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.errors import NumericError
from coterie.models.decoder import Decoder
from coterie.runtime import Model, load
from coterie.runtime.cache import KeyValueCache
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler
from models import tiny
from models.parity import CUDA, CUDA_DEFAULT, EXACT, Mode, decoder, relative_error

pytest.importorskip("torch")
pytest.importorskip("triton")

FORM = "4 bits g64"
IDS = tiny.token_ids(21)
PORTIONS = [17, 1, 1, 2]
"""Longer than the sliding window of 16."""

QUICK = {"qwen3_moe": (2, [3, 1]), "gemma4": (2, [16, 1, 1]), "deepseek_v3": (2, [4, 1])}
"""So many of the first layers, and tokens in such portions, for whoever waits for the interpreter."""

CASES = [pytest.param(name, form, marks=pytest.mark.cuda) for name in tiny.MODELS for form in tiny.FORMATS]


def logits(made: Decoder, portions: list[int]) -> np.ndarray:
    cache = KeyValueCache(made.architecture, chunk=max(portions), limit=sum(portions))
    ends = np.cumsum(portions)
    return np.concatenate(
        [made.logits(made.hidden(IDS[e - n : e], cache)) for n, e in zip(portions, ends, strict=True)]
    )


def first_layers(made: Decoder, n: int) -> Decoder:
    """The decoder without the layers behind the first n."""
    layers = made.architecture.layers[:n]
    return Decoder(replace(made.architecture, layers=layers), made.weights, made.backend)


@pytest.mark.parametrize("name", QUICK)
def test_logits_of_a_few_layers_are_those_of_the_cpu(name: str) -> None:
    n, portions = QUICK[name]
    folder = tiny.checkpoint(name, FORM)
    found, expected = (logits(first_layers(decoder(folder, mode), n), portions) for mode in (CUDA, EXACT))
    assert relative_error(found, expected) < CUDA.bound


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_are_those_of_the_cpu(name: str, form: str) -> None:
    folder = tiny.checkpoint(name, form)
    found, expected = (logits(decoder(folder, mode), PORTIONS) for mode in (CUDA, EXACT))
    assert relative_error(found, expected) < CUDA.bound


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_logits_of_rounded_activations(name: str) -> None:
    folder = tiny.checkpoint(name, FORM)
    found, expected = (logits(first_layers(decoder(folder, mode), 2), [4]) for mode in (CUDA_DEFAULT, EXACT))
    assert 1e-4 < relative_error(found, expected) < CUDA_DEFAULT.bound


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("mode", [CUDA, CUDA_DEFAULT])
@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gpt_oss"])
def test_logits_by_the_kernels_for_single_rows(name: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes: the first finds out in which orders activations are wanted, and the others make them so."""
    from coterie.backends.cuda import single

    joined, multiply_together = 0, single.multiply_together

    def counted(*arguments: Any) -> None:
        nonlocal joined
        joined += 1
        multiply_together(*arguments)

    monkeypatch.setattr(single, "multiply_together", counted)
    folder = tiny.checkpoint(name, FORM)
    # Matrices remember which kernels multiply them: those of other tests are not to be met here.
    made = decoder.__wrapped__(folder, mode)
    found, expected = (logits(first_layers(one, 2), [3, 1, 1]) for one in (made, decoder(folder)))
    assert joined > 0
    assert relative_error(found, expected) < mode.bound


def test_logits_where_rows_are_many_and_launches_leave_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda.decoder import attention, elementwise

    folder = tiny.checkpoint("qwen3_moe", FORM)
    few, expected = (logits(first_layers(decoder(folder, mode), 2), [4]) for mode in (CUDA_DEFAULT, EXACT))
    for module in (attention, elementwise):
        monkeypatch.setattr(module, "FEW", 0)
    found = logits(first_layers(decoder(folder, CUDA_DEFAULT), 2), [4])
    assert relative_error(found, expected) < CUDA_DEFAULT.bound
    assert (found != few).any()


@pytest.fixture
def quick_products(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interpreter runs, matrices are multiplied by PyTorch."""
    from coterie.backends.cuda.decoder import Verbs
    from cuda import plain_products

    if device == "cpu":
        for name in ("linears", "run_slots", "run_dense"):
            monkeypatch.setattr(sys.modules[Verbs.__module__], name, getattr(plain_products, name))


@functools.cache
def model(name: str, device: str = "cuda", precision: str = "exact") -> Model:
    made = load(tiny.checkpoint(name, FORM), device=device, precision=precision)
    made._decoder = first_layers(made._decoder, 2)
    return made


def tokens(made: Model, ids: list[int], **options: Any) -> tuple[int, ...]:
    return made.generate(ids, **options).token_ids


@pytest.mark.usefixtures("quick_products")
@pytest.mark.parametrize("options", [{}, {"temperature": 5.0, "seed": 3, "top_k": 50, "top_p": 0.9}, {"logprobs": 1}])
def test_texts_are_those_of_the_cpu(options: dict[str, Any]) -> None:
    found, expected = (
        tokens(model("qwen3_moe", device), IDS[:3], max_tokens=4, **options) for device in ("cuda", "cpu")
    )
    assert found == expected


@pytest.mark.usefixtures("quick_products")
def test_a_prompt_cache_is_that_of_the_cpu_once_it_has_gone_through_a_file(tmp_path: Path) -> None:
    made, other = model("gemma4"), model("gemma4", "cpu")
    ids = IDS[:9]
    expected = tokens(other, ids, max_tokens=3)
    cache = made.prompt_cache()
    made.generate(ids[:-2], max_tokens=2, cache=cache)
    assert len(cache.token_ids) == len(ids) - 2 + 1
    cache.save(tmp_path / "cache")
    for device in (made, other):
        found = device.generate(ids, max_tokens=3, cache=device.prompt_cache(tmp_path / "cache"))
        assert (found.token_ids, found.n_cached_tokens) == (expected, len(ids) - 2)


@pytest.mark.usefixtures("quick_products")
@pytest.mark.parametrize("precision", ["exact", pytest.param("default", marks=pytest.mark.cuda)])
def test_a_batch_gives_the_texts_of_its_prompts_alone(precision: str) -> None:
    made, prompts = model("qwen3_moe", precision=precision), [IDS[:3], IDS[3:4], IDS[2:4]]
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 4.0, "seed": 1}
    batch = made.generate_batch(prompts, max_batch_size=2, **options)
    assert [text.token_ids for text in batch] == [tokens(made, prompt, **options) for prompt in prompts]


@pytest.mark.usefixtures("quick_products")
def test_a_text_that_is_left_leaves_in_its_cache_what_was_taken_of_it() -> None:
    made = model("qwen3_moe")
    cache = made.prompt_cache()
    stream = made.stream(IDS[:2], max_tokens=6, temperature=6.0, seed=2, cache=cache)
    for _ in zip(stream, range(2), strict=False):
        pass
    stream.close()
    assert cache.token_ids == (*IDS[:2], *stream.generation.token_ids)[: len(cache.token_ids)]
    assert len(cache.token_ids) == 2 + len(stream.generation.token_ids) - 1


@pytest.mark.usefixtures("quick_products")
def test_logits_that_are_not_finite_end_a_text_with_an_error() -> None:
    made = copy.copy(decoder(tiny.checkpoint("qwen3_moe", FORM), CUDA))
    cache = KeyValueCache(made.architecture, chunk=1, limit=8)
    request = Request()
    made._final_norm = made._final_norm * float("nan")
    steps = made.steps([cache])
    found = steps.tokens([3], [Sampler(request).draw(4)])  # type: ignore[list-item]
    assert found is not None
    assert next(found) == [-1]
    steps.close()
    assert cache.length == 1
    with pytest.raises(NumericError, match="NaN or infinite"):
        Sampler(request).accept(-1)


def test_memory_and_fingerprint() -> None:
    made = model("qwen3_moe")
    assert made.memory().gpu is not None
    assert made.memory().weights_resident in (0, None)
    assert made.fingerprint == model("qwen3_moe", "cpu").fingerprint


def test_copying_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    made = load(tiny.checkpoint("qwen3_moe", FORM), device="cuda", progress=lambda *bytes_: told.append(bytes_))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] >= made.describe().nbytes


@pytest.mark.cuda
@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("precision", ["exact", "default"])
def test_a_recorded_step_has_the_bits_of_a_pass(name: str, precision: str) -> None:
    made = load(tiny.checkpoint(name, FORM), device="cuda", precision=precision)._decoder
    caches = [KeyValueCache(made.architecture, chunk=4, limit=100) for _ in range(2)]
    for cache in caches:
        made.hidden(IDS[:4], cache)
    steps = made.steps(caches[:1])
    # The stores grow on the way, and windows wrap.
    for token_id in (IDS * 4)[:90]:
        expected = made.logits(made.hidden([token_id], caches[1]))
        assert np.array_equal(steps.logits([token_id]), expected)
    steps.close()


@pytest.mark.cuda
def test_the_bundled_model_writes_what_it_writes_on_the_cpu() -> None:
    prompt = "def read_lines(path):"
    on_cpu, on_gpu = load(device="cpu", precision="exact"), load(device="cuda", precision="exact")
    expected = on_cpu.generate(prompt, max_tokens=200).token_ids
    assert len(expected) > 100
    assert on_gpu.generate(prompt, max_tokens=200).token_ids == expected


@pytest.mark.cuda
def test_where_rounded_activations_write_something_else_the_two_tokens_were_nearly_tied() -> None:
    on_cpu, on_gpu = load(device="cpu", precision="exact"), load(device="cuda")
    ids = on_cpu.tokenizer.encode("def read_lines(path):")
    expected, found = (tokens(made, ids, max_tokens=200) for made in (on_cpu, on_gpu))
    differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b]
    if differing:
        first = differing[0]
        exact, rounded = (made.logits([*ids, *expected[:first]])[-1] for made in (on_cpu, on_gpu))
        assert relative_error(rounded, exact) < CUDA_DEFAULT.bound
        assert exact[expected[first]] - exact[found[first]] <= 2 * np.abs(rounded - exact).max()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("precision", ["exact", "default"])
def test_a_large_batch_gives_the_texts_of_its_prompts_alone(name: str, precision: str) -> None:
    made = load(tiny.checkpoint(name, FORM), device="cuda", precision=precision)
    prompts = [tiny.token_ids(1 + 7 * i % 40, seed=i) for i in range(40)]
    each: Any = [{"seed": i, "max_tokens": 2 + 5 * i % 31, "temperature": 5.0 * (i % 3 > 0)} for i in range(40)]
    for size in (3, 33):
        batch = made.generate_batch(prompts, each=each, max_batch_size=size)
        alone = [tokens(made, prompt, **options) for prompt, options in zip(prompts, each, strict=True)]
        assert [text.token_ids for text in batch] == alone
