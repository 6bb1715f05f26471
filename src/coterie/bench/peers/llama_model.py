"""llama.cpp on the same model: a GGUF file with the same weights, run by a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coterie.bench.entrants import RefusedError

_ROUND = 256
"""llama.cpp's caches hold multiples of so many tokens."""
_END_SECONDS = 10.0


class LlamaModel:
    """A llama.cpp process with a model loaded at the settings that were fastest for it; `note` names them."""

    label = "llama.cpp"

    def __init__(self, process: "subprocess.Popen[str]", log: Any) -> None:
        self._process, self._log = process, log
        self.note = ""

    def load(
        self, path: Path, n_threads: int, prompt: Sequence[int], ids: Sequence[int], n_context: int
    ) -> dict[str, Any]:
        """Load the file and find the best settings; they are returned and kept in `note`."""
        rounded = -(-n_context // _ROUND) * _ROUND
        found: dict[str, Any] = self._ask(
            "load", path=str(path), n_context=rounded, n_threads=n_threads, prompt=list(prompt), ids=list(ids)
        )
        attention = f"flash attention {'on' if found['flash_attention'] else 'off'}"
        self.note = (
            f"the same weights, int8 activations, f16 cache; {attention}, {found['ubatch']} tokens a pass, "
            f"{found['threads']} threads to decode"
        )
        return found

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from a prompt's ids to the logits of its last token, with an empty cache."""
        return float(self._ask("prefill", ids=list(ids)))

    def decode(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[float, list[float]]:
        """Seconds of the prompt's pass, and of each step; both end with logits."""
        first, steps = self._ask("decode", prompt=list(prompt), ids=list(ids))
        return first, steps

    def last_logits(self, ids: Sequence[int]) -> list[float]:
        """The logits that follow `ids`."""
        return list(self._ask("logits", ids=list(ids)))

    def peak_memory(self) -> int:
        """Bytes of the process at its fullest moment."""
        return int(self._ask("memory"))

    def _ask(self, action: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": action, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RefusedError(self._last_words()) from None
        line = self._process.stdout.readline()
        if not line:
            raise RefusedError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(f"{answer['error']} {self._logged()}".strip())
        return answer["result"]

    def _last_words(self) -> str:
        return f"its process ended with code {self._process.wait()} {self._logged()}".strip()

    def _logged(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"({lines[-1]})" if lines else ""


@contextmanager
def running() -> Iterator[LlamaModel]:
    """A process without a model yet, ended at the end."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if find_spec(module) is None:
            raise ImportError(f"No module named {module!r}; pip install {package}")
    command = [sys.executable, "-P", "-m", "coterie.bench.peers.llama_worker"]
    # Where it ends the process it would call a debugger first.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
            env=environment,
        )  # fmt: skip
        try:
            yield LlamaModel(process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
