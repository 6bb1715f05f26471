"""Decoders with random weights: real dimensions, formats as a conversion chooses them, values that stay sensible."""

import numpy as np
import pytest

from bench.tiny_models import TINY
from coterie.bench.random_model import RandomCheckpoint, weight_bytes
from coterie.bench.real_models import REAL_MODELS
from coterie.bench.shapes import FORMATS
from coterie.bench.subjects import from_shape, layers_that_fit
from coterie.errors import CapacityError
from coterie.formats import Packed
from coterie.models.families import family_of
from coterie.runtime.cache import KeyValueCache

GIB = 1 << 30
OTHERS = (("mixtral-8x7b", 46.7), ("olmoe-1b-7b", 6.92), ("gpt-oss-20b", 20.9))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("format_name", FORMATS)
def test_bytes_are_known_before_weights_are_made(name: str, format_name: str) -> None:
    config = TINY[name].config_with(3)
    family = family_of(config)
    architecture = family.architecture(config)
    subject = from_shape(TINY[name], 3, FORMATS[format_name], format_name)
    assert weight_bytes(architecture, family, config, FORMATS[format_name]) == subject.description.nbytes


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-4-26b-a4b"])
def test_the_router_has_its_own_format(name: str) -> None:
    subject = from_shape(TINY[name], 2, FORMATS["4bit"], "4bit")
    bits = {path: weight.bits for path, weight in subject.decoder.weights.items() if isinstance(weight, Packed)}
    routers = [path for path in bits if path.endswith(("mlp.gate", "router.proj"))]
    assert [bits[path] for path in routers] == [8, 8]
    assert {width for path, width in bits.items() if path not in routers} == {4}


class Chosen:
    """An observer that remembers who was chosen."""

    def __init__(self) -> None:
        self.taken = []

    def routed(self, layer, logits, spec, routing):  # noqa: ARG002
        self.taken.append(routing.ids)
        return routing


@pytest.mark.parametrize("name", TINY)
def test_logits_are_finite_and_every_expert_is_taken(name: str) -> None:
    subject, chosen = from_shape(TINY[name], 4, FORMATS["4bit"], "4bit"), Chosen()
    made, ids = subject.decoder, np.random.default_rng(0).integers(0, 512, 200).tolist()
    hidden = made.hidden(ids, KeyValueCache(made.architecture, chunk=200, limit=200), chosen)
    assert 0.1 < made.logits(hidden[-1:]).std() < 10
    assert len(chosen.taken) == 4
    for ids in chosen.taken:
        assert len(np.unique(ids)) == 8
        assert len(np.unique(np.sort(ids), axis=0)) > 20


def test_the_same_seed_gives_the_same_weights() -> None:
    config = TINY["qwen3-30b-a3b"].config_with(1)
    family = family_of(config)
    architecture = family.architecture(config)
    first, again, other = (
        RandomCheckpoint(architecture, family, config, FORMATS["4bit"], seed=seed).tensors for seed in (1, 1, 2)
    )
    name = "model.layers.0.mlp.switch_mlp.gate_proj.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


# How many layers fit -------------------------------------------------------------------------------------------------


def test_real_models_have_their_published_sizes() -> None:
    """Billions of parameters, by the models' names."""
    from coterie.models.weights import slots

    for name, billions in (("qwen3-30b-a3b", 30.5), ("qwen3-235b-a22b", 235.1), ("gemma-4-26b-a4b", 25.2), *OTHERS):
        model = REAL_MODELS[name]
        config = model.config_with(model.n_layers)
        architecture = family_of(config).architecture(config)
        found = sum(np.prod(slot.shape, dtype=np.int64) for slot in slots(architecture))
        assert found / 1e9 == pytest.approx(billions, rel=0.02), name


def test_as_many_layers_as_memory_allows() -> None:
    qwen, gemma = REAL_MODELS["qwen3-30b-a3b"], REAL_MODELS["gemma-4-26b-a4b"]
    assert layers_that_fit(qwen, FORMATS["4bit"], 1, None, 100 * GIB).n_layers == 48
    alone = layers_that_fit(qwen, FORMATS["4bit"], 1, None, 10 * GIB)
    together = layers_that_fit(qwen, FORMATS["4bit"], 2, None, 10 * GIB)
    assert 6 * GIB < alone.needed <= 7 * GIB
    assert 6 * GIB < together.needed <= 7 * GIB
    assert together.n_layers < alone.n_layers
    assert layers_that_fit(gemma, FORMATS["4bit"], 1, None, 10 * GIB).n_layers % 6 == 0
    assert layers_that_fit(qwen, FORMATS["4bit"], 1, 3, 10 * GIB).n_layers == 3


@pytest.mark.parametrize(("wanted", "memory"), [(40, 10 * GIB), (None, GIB // 4)])
def test_what_does_not_fit_is_refused(wanted: int | None, memory: int) -> None:
    with pytest.raises(CapacityError, match="layers fit"):
        layers_that_fit(REAL_MODELS["qwen3-30b-a3b"], FORMATS["4bit"], 1, wanted, memory)
