"""The rules, one file for each part of a checkpoint; importing this registers them all."""

from coterie.doctor.rules import config, files, quantization, rope, tensors, text, tokenizer, values

__all__ = ["config", "files", "quantization", "rope", "tensors", "text", "tokenizer", "values"]
