"""Write a trained model as a checkpoint that transformers and MLX's tools both read.

    python checkpoint.py --weights OUT --data DATA --stdlib LIBRARY --target FOLDER

In: what `train.py` and `data.py` wrote. Out: a folder with the bfloat16 weights in transformers' names, `config.json`,
`generation_config.json`, the tokenizer, and the licence of the library that the model was trained on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARD_BYTES = 14 * 2**20
NOT_STORED = ("lm_head.weight",)  # tied to the embedding


def write_weights(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Save the state in bfloat16, in shards of at most SHARD_BYTES (or one tensor), with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(state.items()):
        if name in NOT_STORED:
            continue
        tensor = tensor.to(torch.bfloat16).contiguous()
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    placed: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def main() -> None:
    from model import END_OF_TEXT_ID, PAD_ID, config_fields
    from vocabulary import write_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--target", type=Path, required=True)
    arguments = parser.parse_args()
    settings = json.loads((arguments.weights / "run.json").read_text())["settings"]
    context = settings["data"]["context"]
    arguments.target.mkdir(parents=True, exist_ok=True)
    for file in sorted(arguments.weights.glob("model*")):
        shutil.copyfile(file, arguments.target / file.name)
    shutil.copyfile(arguments.stdlib / "LICENSE.txt", arguments.target / "LICENSE.txt")
    config = config_fields(settings["model"], context)
    (arguments.target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PAD_ID,
        "do_sample": False,
    }
    (arguments.target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_tokenizer(arguments.data / "tokenizer.json", arguments.target, context=context)


if __name__ == "__main__":
    main()
