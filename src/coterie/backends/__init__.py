"""The same verbs for different machines: `get` one by name, or ask what is `available` and why the others are not."""

from coterie.ops.dispatch import available, get

__all__ = ["available", "get"]
