"""From a loaded model to text: caches, sampling, generation, tokenizer. Knows no network and no protocol."""
