"""Tokens and ratios as labels: nothing in a token can steer a terminal, break a page or vanish."""

import unicodedata

_NAMED = {"\n": "⏎", "\t": "⇥", " ": "␣"}
_JOINERS = "\u200c\u200d"
"""Format characters that several scripts need."""


def label(text: str, limit: int = 24) -> str:
    """A token on one line: blanks, tabs and line ends as signs, control and format characters spelled out, cut short.

    A run of more than four blanks is "␣×8", and a token of no text "∅".
    """
    if not text:
        return "∅"
    shown = _runs("".join(_NAMED.get(c) or spelled(c) for c in text))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def spelled(text: str) -> str:
    """`text` with control and format characters (escapes, bidirectional marks, surrogates) spelled out."""
    return "".join(c.encode("unicode_escape").decode("ascii") if _steers(c) else c for c in text)


def flow(text: str) -> str:
    """A token inside of running text: line ends stay, with a sign, and so do blanks and tabs."""
    return "".join(c if c in " \t" else "⏎\n" if c == "\n" else spelled(c) for c in text)


def times(ratio: float) -> str:
    """A ratio as people say it: 0.31×, 2.4×, 17×."""
    return f"{ratio:.2f}×" if ratio < 0.995 else f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:,.0f}×"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and character not in _JOINERS


def _runs(shown: str) -> str:
    for count in range(len(shown), 4, -1):
        shown = shown.replace("␣" * count, f"␣×{count}")
    return shown
