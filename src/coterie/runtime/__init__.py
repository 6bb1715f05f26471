"""From a loaded model to text: caches, sampling, generation, tokenizer. Knows no network and no protocol."""

from coterie.runtime.chat_template import ChatTemplate
from coterie.runtime.generation import Generation, Stream
from coterie.runtime.loading import describe, load
from coterie.runtime.model import Model
from coterie.runtime.tokenizer import Tokenizer
from coterie.runtime.warming import warmup

__all__ = ["ChatTemplate", "Generation", "Model", "Stream", "Tokenizer", "describe", "load", "warmup"]
