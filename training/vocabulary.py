"""The tokenizer: a byte-level BPE for Python source.

A line break and the indentation after it are one piece, so a block's depth is a single token; a word takes one
preceding sign or space with it (` return`, `.join`, `_name`, `(self`); digits go by twos at most, so that tables of
numbers do not fill the vocabulary. Every byte has a token of its own: any text survives encoding and decoding.

The token that ends a text also starts one: encoding a prompt puts it in front, as the training text has it before
every file. Without it a prompt could stand anywhere in a file, and the model would guess its indentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
PIECES = (
    r"\n+[ \t]*"  # line breaks with the indentation that follows
    r"|[^\s\p{L}\p{N}]?\p{L}+"  # a word and the one sign before it
    r"| \p{L}+"
    r"| ?\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+"  # runs of signs: `):`, ` ==`, three quotes
    r"|[^\S\n]+(?!\S)"  # spaces inside a line, but for the last one before a word
    r"|[^\S\n]+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE on `texts`; id 0 ends a text, id 1 pads, the 256 bytes and the merges follow."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the corpus gave {tokenizer.get_vocab_size()} tokens, expected {vocab_size}: lower vocab_size"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return tokenizer


def write_tokenizer(source: Path, folder: Path, *, context: int) -> None:
    """Copy `tokenizer.json` into `folder` and write the `tokenizer_config.json` that names its special tokens."""
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
