"""`coterie chat` at a real terminal, with a model that is not there."""

import json
import time
from pathlib import Path

from cli.terminal import Terminal

PREAMBLE = """
import itertools, time
import coterie, coterie.errors
from cli.fakes import FakeChatModel
from coterie.cli import main

class Endless(FakeChatModel):
    def stream(self, prompt, **options):
        self.pieces = pieces()
        return super().stream(prompt, **options)

def pieces():
    for index in itertools.count():
        yield f"word{index} "
        time.sleep(0.01)
"""


def chat(model: str, *arguments: str, stdout: object = None) -> Terminal:
    """`coterie chat` with the model that the expression `model` makes."""
    code = f"{PREAMBLE}\ncoterie.load = {model}.load\nmain()"
    return Terminal(code, "chat", *arguments, stdout=stdout)


def test_a_conversation(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with chat('FakeChatModel("on\\x1b[2Je\\r\\u202e")') as terminal:
        terminal.expect("/help for the commands")
        terminal.answer("hello\n")
        between = terminal.expect("on\\x1b[2Je\\r\\u202e\r\n")
        assert "\x1b[2J" not in between
        terminal.expect("3 prompt tokens")
        terminal.answer('"""\n')
        terminal.answer("two\n", "\n. ")
        terminal.answer('lines\n"""\n', "\n. ")
        terminal.expect("3 prompt tokens")
        terminal.answer("/nope\n")
        terminal.expect("error [chat_command]")
        terminal.answer(f"/save {tmp_path}/no/folder\n")
        terminal.expect("error [")
        terminal.answer(f"/save {file}\n")
        terminal.expect("4 messages")
        terminal.answer("\x04")
        assert terminal.end() == 0
    screen = terminal.screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") > 0
    assert screen.rindex("\x1b[?25l") < screen.rindex("\x1b[?25h")
    contents = [message["content"] for message in json.loads(file.read_text("utf-8"))["messages"]]
    assert contents == ["hello", "on\x1b[2Je\r\u202e", "two\nlines", "on\x1b[2Je\r\u202e"]


def test_ctrl_c_stops_the_reply_and_keeps_what_came(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with chat("Endless()", "--history", str(file)) as terminal:
        terminal.answer("one\n")
        terminal.expect("word3 ")
        terminal.type("\x03")
        terminal.expect("interrupted")
        terminal.answer("two\n")
        terminal.expect("word2 ")
        terminal.type("\x03")
        terminal.expect("interrupted")
        terminal.answer("half of a li")
        terminal.expect("half of a li")
        time.sleep(0.5)  # CPython does not hear a signal that comes just before it waits for a key
        terminal.type("\x03")
        terminal.expect("Ctrl-D or /quit ends")
        terminal.answer("/quit\n")
        assert terminal.end() == 0
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].startswith("word0 word1 word2 word3 ")
    assert "Traceback" not in terminal.screen


def test_an_error_ends_the_reply_and_not_the_conversation(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with chat('FakeChatModel("a", failure=coterie.errors.NumericError("overflow"))') as terminal:
        terminal.answer("one\n")
        terminal.expect("error [numeric] overflow")
        terminal.answer(f"/save {file}\n")
        terminal.expect("0 messages")
        terminal.answer("\x04")
        assert terminal.end() == 0
    assert json.loads(file.read_text())["messages"] == []


def test_a_line_can_be_called_back_and_replies_may_go_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "replies").open("wb") as replies, chat('FakeChatModel("re", "ply")', stdout=replies) as terminal:
        terminal.answer("one\n")
        terminal.expect("prompt tokens")
        terminal.answer("\x04")
        assert terminal.end() == 0
    assert (tmp_path / "replies").read_bytes() == b"reply\n"
    with chat('FakeChatModel("reply")') as terminal:
        terminal.answer("something\n")
        terminal.expect("prompt tokens")
        terminal.answer("\x1b[A")
        terminal.expect("something")
        terminal.type("\n")
        terminal.expect("prompt tokens")
        terminal.answer("/quit\n")
        assert terminal.end() == 0
