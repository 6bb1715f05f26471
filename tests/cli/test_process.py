"""The command line as a process of its own: signals, pipes, terminals, what an import costs."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
PREAMBLE = """
import itertools, time
import coterie
from cli.fakes import FakeModel, FakeStream
from coterie.cli import main

class Model(FakeModel):
    def stream(self, prompt, **options):
        return FakeStream(pieces())
"""
ENDLESS = """
def pieces():
    for index in itertools.count():
        yield f"word{index} "
        time.sleep(0.01)
"""
SWALLOWED = """
def pieces():
    yield "word0 "
    try:
        yield "word1 "
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    yield from (f"word{index} " for index in itertools.count(2))
"""
TURNED_INTO_AN_ERROR = """
def pieces():
    yield "word0 "
    try:
        yield "word1 "
        time.sleep(60)
    except KeyboardInterrupt:
        raise RuntimeError("half compiled")
"""


def start(
    pieces: str = ENDLESS, *, prompt: str = "prompt", stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """`coterie generate` with a model that streams `pieces`."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{PREAMBLE}\n{pieces}\ncoterie.load = Model().load\nmain()", "generate", prompt],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]])},
    )


def test_ctrl_c_ends_cleanly_and_keeps_the_text() -> None:
    with start() as process:
        assert process.stdout is not None
        head = process.stdout.read(len("word0 word1 "))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert head == b"word0 word1 "
    assert (head + rest).endswith(b" ")
    assert b"interrupted" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize("pieces", [SWALLOWED, TURNED_INTO_AN_ERROR], ids=["swallowed", "turned into an error"])
def test_ctrl_c_counts_wherever_it_strikes(pieces: str) -> None:
    with start(pieces) as process:
        assert process.stdout is not None
        process.stdout.read(len("word0 word1 "))
        time.sleep(0.5)  # until it sleeps inside of its try block; a strike before that is the ordinary case
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(rest) < len("word2 word3 ")
    assert b"error" not in errors


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 141
    assert errors == b""


def test_a_terminal_is_left_as_it_was() -> None:
    """Whatever hides the cursor while the model loads must show it again, after Ctrl-C too."""
    ours, theirs = pty.openpty()
    with start(stderr=theirs) as process:
        os.close(theirs)
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    screen = os.read(ours, 65536)
    os.close(ours)
    assert process.returncode == 130
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") > 0
    assert screen.rindex(b"\x1b[?25l") < screen.rindex(b"\x1b[?25h")


def test_on_a_terminal_the_text_follows_its_prompt_and_neither_can_steer_it() -> None:
    ours, theirs = pty.openpty()
    pieces = 'def pieces():\n    yield "one\\x1b[2Jtwo"'
    with start(pieces, prompt="say\x1b[1m:", stdout=theirs, stderr=theirs):
        os.close(theirs)
        screen = b""
        while chunk := read_terminal(ours):
            screen += chunk
    os.close(ours)
    assert b"say\\x1b[1m:" in screen
    assert screen.index(b"say") < screen.index(b"one\\x1b[2Jtwo\r\n") < screen.index(b"prompt tokens")


def read_terminal(descriptor: int) -> bytes:
    """What is on its way; nothing once the other side is closed."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], *([name, "--help"] for name in ("generate", "chat", "convert", "inspect"))],
)
def test_help_and_version_are_quick_to_start(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom coterie.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "coterie" in result.stdout
    assert set(result.stderr.split()) & {"numpy", "numba", "torch", "mlx", "tokenizers", "huggingface_hub"} == set()


def test_python_m_coterie_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "coterie", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("coterie 0.")
