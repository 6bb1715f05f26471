"""Every kind of error has one exit code and one report, and no error can write to the terminal what it likes."""

import pytest
import typer

from coterie import errors
from coterie.cli.console import visible
from coterie.cli.failures import Exit, exit_code, guarded


def kinds() -> list[type[errors.CoterieError]]:
    found = [errors.CoterieError]
    for kind in found:
        found += kind.__subclasses__()
    return found[1:]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_error_has_an_exit_code_of_its_own_kind(kind: type[errors.CoterieError]) -> None:
    assert exit_code(kind("m")) not in (Exit.DONE, Exit.INTERNAL, Exit.USAGE)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ascii", "plain ascii"),
        ("naïve ☕ 漢字", "naïve ☕ 漢字"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nerror [forged] all is well", "a\\nerror [forged] all is well"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udc80", "\\udc80"),
        ("\x9b2J", "\\x9b2J"),
        ("\u2028", "\\u2028"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_message_stays_on_one_line_where_nobody_wraps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), guarded():
        raise errors.CheckpointError("word " * 60 + "end", code="hole")
    report = capsys.readouterr().err
    assert report.startswith("error [hole] word word")
    assert report.count("\n") == 1


def test_square_brackets_in_a_message_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), guarded():
        raise errors.ArgumentError("found [red]shape[/red] [3, 4] :smile:")
    assert "found [red]shape[/red] [3, 4] :smile:" in capsys.readouterr().err
