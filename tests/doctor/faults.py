"""The table: each rule with ways to make it speak, and the format of the checkpoint that is broken for it."""

from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint import write_safetensors
from doctor.sick import (
    EXPERTS,
    ROUTER,
    Break,
    config,
    every,
    fill,
    in_shards,
    quantization,
    settings,
    shards,
    tensors,
    text,
    tokenizer,
)

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
NORM = "model.layers.0.input_layernorm.weight"
TEMPLATE = "chat_template.jinja"
ROUTERS = [f"model.layers.{i}.mlp.gate" for i in (0, 2)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def declare(path: str, **entry: Any) -> Break:
    return quantization(lambda value: value.update({path: entry}))


def add(name: str, *shape: int) -> Break:
    return tensors(lambda held: held.update({name: np.ones(shape, np.float32)}))


def without(*names: str) -> Break:
    return tensors(lambda held: [held.pop(name) for name in names])


def cast(name: str, dtype: Any) -> Break:
    return tensors(lambda held: held.update({name: held[name].astype(dtype)}))


def same(name: str, other: str) -> Break:
    """The tensors of one module under the name of another."""

    def change(held: dict[str, np.ndarray]) -> None:
        for leaf in ("weight", "scales", "biases"):
            held[f"{other}.{leaf}"] = held[f"{name}.{leaf}"].copy()

    return tensors(change)


def dead(module: str, rows: Any) -> Break:
    """What a quantiser writes for rows of zeros."""

    def change(held: dict[str, np.ndarray]) -> None:
        for leaf, value in (("weight", 0), ("scales", -1e-7), ("biases", 0)):
            held[f"{module}.{leaf}"][rows] = value

    return tensors(change)


def dead_bytes(held: dict[str, np.ndarray]) -> None:
    held[f"{EXPERTS}.weight"][3] = 0
    held[f"{EXPERTS}.scales"][3] = 127


def twin(held: dict[str, np.ndarray]) -> None:
    for leaf in ("weight", "scales", "biases"):
        held[f"{EXPERTS}.{leaf}"][5] = held[f"{EXPERTS}.{leaf}"][2]


def plain_matrix(path: str, shape: tuple[int, ...]) -> Break:
    """A quantised matrix takes its unquantised form."""

    def change(held: dict[str, np.ndarray]) -> None:
        for leaf in ("scales", "biases"):
            del held[f"{path}.{leaf}"]
        held[f"{path}.weight"] = np.random.default_rng(1).standard_normal(shape, np.float32)

    return tensors(change)


def without_entries(value: dict[str, Any]) -> None:
    for path in [path for path, entry in value.items() if isinstance(entry, dict)]:
        del value[path]


def experts_alone(held: dict[str, np.ndarray]) -> None:
    """Everything else takes its unquantised form."""
    for name in [name for name in held if name.endswith(".scales") and ".switch_mlp." not in name]:
        path = name.removesuffix(".scales")
        rows, groups = held.pop(name).shape
        is_affine = held.pop(f"{path}.biases", None) is not None
        shape = (rows, groups * (64 if is_affine else 32))
        held[f"{path}.weight"] = np.random.default_rng(list(path.encode())).standard_normal(shape, np.float32)


def repacked(path: str, *, bits: int, group_size: int, entry: bool) -> Break:
    """One matrix in another affine format; `entry` declares it."""
    from coterie import quantize

    def change(held: dict[str, np.ndarray]) -> None:
        rows, groups = held[f"{path}.scales"].shape[:-1], held[f"{path}.scales"].shape[-1]
        weights = np.random.default_rng(1).standard_normal((*rows, 64 * groups), np.float32)
        codes, scales, biases = quantize(weights, bits=bits, group_size=group_size)
        held.update({f"{path}.weight": codes, f"{path}.scales": scales, f"{path}.biases": biases})

    def declare(value: dict[str, Any]) -> None:
        value.pop(path, None)
        if entry:
            value[path] = {"bits": bits, "group_size": group_size}

    return every(tensors(change), quantization(declare))


def unpadded(folder: Path) -> None:
    """The header one byte longer: the data behind it is at odd addresses."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :])


def remarked(folder: Path) -> None:
    """Another format in the metadata."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"format":"mlx"', b'"format":"pt" ', 1))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def in_both(folder: Path) -> None:
    """A tensor of the first shard in the last one, too, and an index that does not mind."""
    from safetensors.numpy import load_file

    first, *_, last = shards(folder)
    held = dict(load_file(last))
    held[NORM] = load_file(first)[NORM]
    write_safetensors(last, held)


def stale(folder: Path) -> None:
    def swap(value: dict[str, Any]) -> None:
        files = sorted(set(value["weight_map"].values()))
        value["weight_map"][NORM] = files[-1]

    config(swap, INDEX)(folder)


def stray_shard(folder: Path) -> None:
    (folder / "model-00009-of-00009.safetensors").write_bytes(shards(folder)[0].read_bytes())


def bare_source(held: dict[str, np.ndarray]) -> None:
    """The experts of each layer one by one, as they are published."""
    for name in [name for name in held if ".switch_mlp." in name]:
        for i, weight in enumerate(held.pop(name)):
            held[name.replace(".switch_mlp.", f".experts.{i}.")] = weight


def with_bpe_token(made: Any) -> None:
    made.add_tokens(["<one-more>"])


def with_turns(made: Any) -> None:
    del made


def chat_token(definition: dict[str, Any]) -> None:
    """A token of the vocabulary is spelled as the start of a turn."""
    vocabulary = definition["model"]["vocab"]
    token = next(iter(vocabulary))
    vocabulary["<|im_start|>"] = vocabulary.pop(token)


def fewer_tokens(definition: dict[str, Any]) -> None:
    vocabulary = definition["model"]["vocab"]
    for token in list(vocabulary)[-5:]:
        del vocabulary[token]


def new_spelling(value: dict[str, Any]) -> None:
    value["rope_parameters"] = {"rope_type": "default", "rope_theta": value.pop("rope_theta")}


def other_bits(value: dict[str, Any]) -> None:
    value["quantization_config"] = {**value["quantization_config"], "bits": 8}


def undeclare(value: dict[str, Any]) -> None:
    del value["quantization"], value["quantization_config"]


def only_the_second_key(value: dict[str, Any]) -> None:
    del value["quantization"]


FAULTS: list[tuple[str, str, Break]] = [
    ("weights_missing", "affine", every(*(remove(name) for name in ("model.safetensors", INDEX)))),
    ("file_refused", "affine", cut),
    ("file_refused", "affine", text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
    ("file_refused", "affine", text("model.safetensors", b"")),
    ("shard_missing", "affine", in_shards(lambda folder: shards(folder)[-1].unlink())),
    ("shard_missing", "affine", in_shards(lambda folder: [(folder / INDEX).unlink(), shards(folder)[0].unlink()])),
    ("shard_stray", "affine", in_shards(stray_shard)),
    ("index_refused", "affine", text(INDEX, '{"weight_map": 5}')),
    ("index_refused", "affine", text(INDEX, "{")),
    ("index_refused", "affine", text(INDEX, '{"weight_map": {"a": 5}}')),
    ("index_stale", "affine", in_shards(stale)),
    ("index_size", "affine", config(lambda value: value["metadata"].update(total_size=7), INDEX)),
    ("index_size", "affine", config(lambda value: value["metadata"].update(total_size="\x1b[2J"), INDEX)),
    ("tensor_in_two_files", "affine", in_shards(in_both)),
    ("adapter_ignored", "affine", text("adapters.safetensors", b"")),
    ("download_unfinished", "affine", text("model.safetensors.incomplete", b"")),
    ("file_unused", "affine", text("consolidated.00.pth", b"")),
    ("file_unused", "affine", text("modeling_own.py", "raise SystemExit")),
    ("metadata_format", "affine", remarked),
    ("tensors_unaligned", "affine", unpadded),
    ("config_refused", "affine", settings(auto_map={"AutoModel": "own.Model"})),
    ("config_refused", "affine", text("config.json", '{"model_type": "qwen3_moe", "model_type": "qwen3_moe"}')),
    ("config_refused", "affine", lambda folder: (folder / "config.json").unlink()),
    ("family_refused", "affine", settings(model_type="some_other")),
    ("family_refused", "affine", settings(hidden_size=-1)),
    ("family_refused", "affine", settings(num_experts_per_tok=100)),
    ("family_refused", "affine", settings(unheard_of=1)),
    ("family_refused", "affine", settings(unheard_of=1, neither=2)),
    ("family_refused", "affine", settings(use_sliding_window=True)),
    ("published_key_missing", "affine", config(new_spelling)),
    ("dtype_differs", "affine", settings(torch_dtype="bfloat16")),
    ("rope_kind_dropped", "affine", settings(rope_scaling={**YARN, "original_max_position_embeddings": 4096})),
    ("rope_setting_dropped", "affine", settings(rope_scaling={**YARN, "truncate": False})),
    ("rope_setting_dropped", "affine", settings(rope_scaling={**YARN, "attention_factor": 1.5})),
    ("rope_setting_dropped", "affine", settings(rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5})),
    ("rope_context", "affine", settings(rope_scaling={**YARN, "factor": 2.0})),
    ("quantization_refused", "affine", quantization(lambda value: value.update(bits=7))),
    ("quantization_refused", "affine", quantization(lambda value: value.update({"model.layers.0": 5}))),
    ("quantization_refused", "affine", quantization(lambda value: value.update(quant_method="awq"))),
    ("quantization_contradiction", "affine", config(other_bits)),
    ("quantization_key_missing", "affine", config(only_the_second_key)),
    ("quantization_absent", "plain", settings(quantization={"bits": 4, "group_size": 64})),
    ("quantization_absent", "affine", config(undeclare)),
    ("override_without_mode", "mxfp4", declare(EXPERTS, bits=4, group_size=32)),
    ("override_unused", "affine", declare("model.layers.0.no.such", bits=4)),
    ("override_unused", "affine", declare("nosuch", bits=4)),
    ("format_undeclared", "affine", repacked("model.layers.0.self_attn.q_proj", bits=8, group_size=32, entry=False)),
    ("matrix_unquantized", "affine", plain_matrix("model.layers.0.self_attn.q_proj", (128, 128))),
    ("matrix_unquantized", "mxfp4", every(tensors(experts_alone), quantization(without_entries))),
    ("router_bits", "affine", every(*(repacked(path, bits=4, group_size=64, entry=False) for path in ROUTERS))),
    ("router_formats", "affine", repacked(ROUTER, bits=8, group_size=32, entry=True)),
    ("quantization_leftovers", "plain", add(f"{ROUTER}.biases", 8, 2)),
    ("weights_unconverted", "plain", tensors(bare_source)),
    ("tensor_missing", "affine", without(NORM)),
    ("tensor_missing", "affine", without(*(f"lm_head.{leaf}" for leaf in ("weight", "scales", "biases")))),
    ("tensor_stray", "affine", add("model.layers.7.odd", 3)),
    ("tensor_stray", "affine", add("lm_head.bias", 256)),
    ("tensor_refused", "affine", settings(num_experts=4)),
    ("tensor_refused", "affine", tensors(lambda held: held.update({NORM: np.ones(64, np.float32)}))),
    ("tensor_refused", "plain", cast("lm_head.weight", np.int64)),
    ("tensor_dtype", "affine", cast(NORM, np.int64)),
    ("tied_head_stored", "affine", settings(tie_word_embeddings=True)),
    ("head_repeats_embedding", "affine", same("model.embed_tokens", "lm_head")),
    ("not_finite", "affine", fill(NORM, np.nan, 5)),
    ("not_finite", "affine", fill(f"{EXPERTS}.scales", np.inf, (3, 1, 0))),
    ("not_finite", "mxfp4", fill(f"{EXPERTS}.scales", 255, (3, 1, 0))),
    ("scales_zero", "affine", fill(f"{EXPERTS}.scales", 0)),
    ("scales_denormal", "affine", fill(f"{EXPERTS}.scales", 1e-40, (0, 0, 0))),
    ("values_absurd", "affine", fill(f"{EXPERTS}.scales", 1e8, (0, 0, 0))),
    ("values_absurd", "mxfp4", fill(f"{EXPERTS}.scales", 200, (0, 0, 0))),
    ("norm_zero", "affine", fill(NORM, 0)),
    ("expert_dead", "affine", dead(EXPERTS, 3)),
    ("expert_dead", "plain", fill(f"{EXPERTS}.weight", 0, 3)),
    ("expert_dead", "mxfp4", tensors(dead_bytes)),
    ("router_row_dead", "affine", dead(ROUTER, 3)),
    ("tensors_identical", "affine", same("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj")),
    ("experts_identical", "affine", tensors(twin)),
    ("tokenizer_missing", "affine", lambda folder: (folder / "tokenizer.json").unlink()),
    ("tokenizer_refused", "affine", text("tokenizer.json", "{")),
    ("tokenizer_refused", "affine", text("tokenizer.json", '{"model": {}}')),
    ("tokenizer_ids", "affine", tokenizer(with_bpe_token)),
    ("embedding_rows_spare", "affine", tokenizer(with_turns, fewer_tokens)),
    ("added_tokens_differ", "affine", settings(TOKENIZER_CONFIG, added_tokens_decoder={"900": {"content": "<odd>"}})),
    ("tokenizer_truncates", "affine", tokenizer(lambda made: made.enable_truncation(4))),
    ("generation_config_refused", "affine", text(GENERATION, "[]")),
    ("generation_config_refused", "affine", text(TOKENIZER_CONFIG, "{")),
    ("eos_missing", "affine", config(lambda value: value.pop("eos_token_id"))),
    ("token_id_range", "affine", settings(eos_token_id=[0, 256])),
    ("token_id_range", "affine", settings(pad_token_id=-1)),
    ("token_id_range", "affine", settings(bos_token_id="2")),
    ("special_ids_differ", "affine", every(settings(bos_token_id=3), settings(GENERATION, bos_token_id=2))),
    ("eos_token_differs", "affine", settings(TOKENIZER_CONFIG, eos_token="Z")),
    ("sampling_absurd", "affine", settings(GENERATION, temperature=-1)),
    ("sampling_absurd", "affine", settings(GENERATION, top_p="high")),
    ("chat_template_missing", "affine", tokenizer(with_turns, chat_token)),
    ("chat_template_refused", "affine", text(TEMPLATE, "{% for %}")),
    ("chat_template_refused", "affine", text("chat_template.json", "{")),
    ("chat_template_refused", "affine", every(text("chat_template.json", "{"), text(TEMPLATE, "x"))),
    ("chat_template_refused", "affine", text(TEMPLATE, b"\xff\xfe")),
    ("chat_template_refused", "affine", settings(TOKENIZER_CONFIG, chat_template=5)),
    ("chat_template_refused", "affine", text(TEMPLATE, "{{" + "(" * 5000)),
    ("chat_templates_differ", "affine", every(text(TEMPLATE, "a"), settings(TOKENIZER_CONFIG, chat_template="b"))),
]  # fmt: skip

TOGETHER: dict[str, set[str]] = {
    "rope_setting_dropped": {"rope_kind_dropped", "family_refused"},
    "rope_kind_dropped": {"family_refused"},
    "rope_context": {"rope_kind_dropped", "family_refused"},
}
"""What else a fault breaks, because it is one thing with two consequences; the key's own code always comes."""
