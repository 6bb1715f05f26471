"""From token ids to text, one id at a time, without ever handing on half a character.

A token stands for bytes, and only the bytes of several tokens may make a character. How a token spells its bytes is
read from the decoder in tokenizer.json:

    ByteLevel       each character of the token stands for one byte (Radford et al., 2019: printable stand-ins)
    ByteFallback    "<0x0A>" is the byte 0x0A; other tokens are UTF-8 text, after Replace (a blank for U+2581)

Bytes that can never become UTF-8 turn into U+FFFD; bytes that are still missing their rest at the end are left out.
"""

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import UnsupportedError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens spell bytes. replacements apply to tokens that are text, in this order."""

    byte_level: bool
    byte_fallback: bool
    replacements: tuple[tuple[str, str], ...]

    def bytes_of(self, token: str) -> bytes:
        """The bytes that `token` adds to the text."""
        if self.byte_level:
            try:
                return bytes(map(_BYTE_OF.__getitem__, token))
            except KeyError:
                # An added token with characters outside of the alphabet is text as it stands.
                return token.encode()
        if self.byte_fallback:
            match = _BYTE.fullmatch(token)
            if match is not None:
                return bytes.fromhex(match[1])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level alphabet: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def spelling(decoder: Mapping[str, Any] | None) -> Spelling:
    """The spelling that the `decoder` of a tokenizer.json describes; `UnsupportedError` for any other kind.

    What a decoder strips from the start of a text is not stripped: the text continues a prompt.
    """
    parts = _parts(decoder)
    kinds = {part.get("type") for part in parts}
    replacements = tuple(pair for part in parts for pair in _replacements(part))
    unknown = kinds - {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"}
    if unknown or not kinds & {"ByteLevel", "ByteFallback", "Metaspace"} or None in replacements:
        raise UnsupportedError(
            f"tokenizer.json: the decoder is {', '.join(map(str, kinds)) or 'missing'}; Coterie streams text from the "
            "decoders ByteLevel, ByteFallback and Metaspace",
            code="unsupported_tokenizer",
        )
    return Spelling("ByteLevel" in kinds, "ByteFallback" in kinds, tuple(pair for pair in replacements if pair))


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    inner = decoder.get("decoders")
    return [part for part in inner if isinstance(part, Mapping)] if isinstance(inner, list) else []


def _replacements(part: Mapping[str, Any]) -> list[tuple[str, str] | None]:
    """What a part of the decoder replaces in tokens; None for a replacement that is not of one text by another."""
    if part.get("type") == "Metaspace":
        return [(str(part.get("replacement", "\u2581")), " ")]
    if part.get("type") != "Replace":
        return []
    pattern, content = part.get("pattern"), part.get("content")
    old = pattern.get("String") if isinstance(pattern, Mapping) else None
    return [(old, content)] if isinstance(old, str) and old and isinstance(content, str) else [None]


class Detokenizer:
    """One stream of tokens."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        """`bytes_of` gives the bytes of a token id: none for a special token."""
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._utf8.decode(self._bytes_of(token_id))
