"""What is measured: the experts layers of well-known models, and the formats of their weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.errors import ArgumentError
from coterie.formats import Format


@dataclass(frozen=True, slots=True)
class Shape:
    """One model's experts layer: `hidden` (H) in and out, `intermediate` (I) inside, `top_k` of `n_experts` a token."""

    name: str
    title: str
    hidden: int
    intermediate: int
    n_experts: int
    top_k: int
    activation: str

    def flops(self, n_tokens: int) -> int:
        """Multiplications and additions of a call: gate, up and down for every routed row."""
        return 2 * 3 * n_tokens * self.top_k * self.hidden * self.intermediate


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("gemma4", "Gemma-4-26B-A4B", 2816, 704, 128, 8, "gelu_tanh"),
        Shape("qwen3", "Qwen3-30B-A3B", 2048, 768, 128, 8, "silu"),
        Shape("mixtral", "Mixtral-8x7B", 4096, 14336, 8, 2, "silu"),
        Shape("gpt-oss", "gpt-oss-20b", 2880, 2880, 32, 4, "swiglu_clamped"),
    )
}

FORMATS = {
    "4bit": Format.resolve("affine", 4, 64),
    "8bit": Format.resolve("affine", 8, 64),
    "mxfp4": Format.resolve("mxfp4"),
}

TOKENS = (1, 64, 512)


def chosen(text: str, known: Mapping[str, object], what: str) -> list[str]:
    """The names in a comma-separated list, each of which must be known; "all" is every one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"{what} {unknown[0]!r} is not known" if unknown else f"no {what} was named"
        raise ArgumentError(f"{found}; expected all, or some of {', '.join(known)}", code="bench")
    return list(dict.fromkeys(names))


def token_counts(text: str) -> list[int]:
    """The numbers of tokens in a comma-separated list."""
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= 65536:
            raise ArgumentError(
                f"tokens are {text!r}, expected numbers from 1 to 65536, such as 1,64,512", code="bench"
            )
        counts.append(int(part))
    return list(dict.fromkeys(counts))
