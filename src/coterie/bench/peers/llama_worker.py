"""llama.cpp in a process of its own: requests and answers are lines of JSON on standard input and output.

A process of its own has its own peak of memory, and llama.cpp ends a process where something is wrong with a file.

    {"do": "load", "path", "n_context", "n_threads", "prompt", "ids"}  ->  the settings that were fastest
    {"do": "prefill", "ids"}             ->  seconds
    {"do": "decode", "prompt", "ids"}    ->  [seconds of the prompt, [seconds of each step]]
    {"do": "logits", "ids"}              ->  the logits that follow the last id
    {"do": "memory"}                     ->  bytes at the fullest moment
"""

import ctypes
import itertools
import json
import os
import statistics
import sys
import time
from typing import Any

from coterie.runtime.memory import peak_memory

_UBATCHES = (512, 128)
_ERROR_LEVEL = 4
_TRIAL_STEPS = 12


class _Worker:
    def __init__(self) -> None:
        import llama_cpp

        self._c = llama_cpp
        self._log = llama_cpp.llama_log_callback(_log_errors)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model: Any = None
        self._context: Any = None

    def load(self, path: str, n_context: int, n_threads: int, prompt: list[int], ids: list[int]) -> dict[str, Any]:
        """Load the file and try settings: flash attention, tokens a pass and threads, each on the work to come."""
        c = self._c
        params = c.llama_model_default_params()
        params.n_gpu_layers, params.load_mode = 0, c.LLAMA_LOAD_MODE_NONE
        self._model = c.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError("llama.cpp does not load the file")
        tried: dict[tuple[int, int], float] = {}
        flash_attention = (c.LLAMA_FLASH_ATTN_TYPE_DISABLED, c.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        for settings in itertools.product(flash_attention, _UBATCHES):
            self._open(n_context, n_threads, *settings)
            self.prefill(prompt[: settings[1]])
            tried[settings] = self.prefill(prompt)
        best = min(tried, key=lambda settings: tried[settings])
        self._open(n_context, n_threads, *best)
        steps = {
            threads: self._step(prompt, ids, threads, n_threads) for threads in {n_threads, max(1, n_threads // 2)}
        }
        threads = min(steps, key=lambda count: steps[count])
        c.llama_set_n_threads(self._context, threads, n_threads)
        return {"flash_attention": bool(best[0]), "ubatch": best[1], "threads": threads, "prefill_threads": n_threads}

    def _step(self, prompt: list[int], ids: list[int], threads: int, n_threads: int) -> float:
        self._c.llama_set_n_threads(self._context, threads, n_threads)
        return statistics.median(self.decode(prompt[:16], ids[:_TRIAL_STEPS])[1])

    def _open(self, n_context: int, n_threads: int, flash_attention: int, ubatch: int) -> None:
        c = self._c
        if self._context:
            c.llama_free(self._context)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_context, n_context, ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = flash_attention
        self._context = c.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context for the model")

    def prefill(self, ids: list[int]) -> float:
        """Seconds from a prompt's ids to the logits of its last token, with an empty cache."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), False)
        return self._pass(ids)

    def decode(self, prompt: list[int], ids: list[int]) -> tuple[float, list[float]]:
        """Seconds of the prompt's pass and of each step."""
        return self.prefill(prompt), [self._pass([token]) for token in ids]

    def logits(self, ids: list[int]) -> list[float]:
        """The logits that follow the last id."""
        self.prefill(ids)
        size = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))
        return list(self._c.llama_get_logits_ith(self._context, -1)[:size])

    def memory(self) -> int:
        """Bytes at the fullest moment."""
        return peak_memory()

    def _pass(self, ids: list[int]) -> float:
        c = self._c
        tokens = (c.llama_token * len(ids))(*ids)
        start = time.perf_counter()
        status = c.llama_decode(self._context, c.llama_batch_get_one(tokens, len(ids)))
        c.llama_get_logits_ith(self._context, -1)
        seconds = time.perf_counter() - start
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return seconds


def _log_errors(level: int, text: bytes, _data: Any) -> None:
    if level == _ERROR_LEVEL:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    # llama.cpp prints to standard output here and there: that goes to where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: _Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        try:
            worker = worker or _Worker()
            answer = {"result": getattr(worker, action)(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
