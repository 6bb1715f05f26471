"""Run `coterie generate` as a user does, twice: the text must be the same, must be Python, and must come soon.

usage: check_generate.py PATH_TO_COTERIE
"""

import subprocess
import sys
import time

PROMPT = "def read_lines(path):"
FIRST_TOKEN_LIMIT_S = 2.0
"""From the start of the process to the first character of text, once the kernels are in Numba's cache."""


def first_text_and_all(command: list[str]) -> tuple[float, str]:
    """(seconds until the first byte of standard output, the whole text)."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        text = (first + process.stdout.read()).decode()
    if process.returncode != 0:
        sys.exit(f"{command} ended with {process.returncode}")
    return seconds, text


def main() -> None:
    """Fail with a sentence, or print the two times."""
    command = [sys.argv[1], "generate", "--max-tokens", "64", PROMPT]
    runs = [first_text_and_all(command) for _ in range(3)]
    texts = {text for _, text in runs}
    if len(texts) != 1:
        sys.exit(f"greedy decoding gave different texts: {texts}")
    text = texts.pop()
    if "\n    " not in text or not any(word in text for word in ("return", "with open", "for ", "if ")):
        sys.exit(f"the text does not look like the body of a Python function: {text!r}")
    best = min(seconds for seconds, _ in runs)
    if best > FIRST_TOKEN_LIMIT_S:
        sys.exit(f"the first text came after {best:.2f} s, expected at most {FIRST_TOKEN_LIMIT_S} s")
    print("first text after", ", ".join(f"{seconds:.2f} s" for seconds, _ in runs))


if __name__ == "__main__":
    main()
