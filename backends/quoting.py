"""What others sent, as messages and logs quote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shorten(value: Any, limit: int = 60) -> str:
    """What a sender sent, as error messages quote it: escaped, and never at length."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    elif isinstance(value, dict):
        return "an object"
    text = _listed(value, limit) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _listed(values: Sequence[Any], limit: int) -> str:
    """*values* without what is in lists among them: these may be long, and no other thread runs while `repr` works."""
    return f"[{', '.join(_brief(value, limit) for value in values[:limit])}]"


def _brief(value: Any, limit: int) -> str:
    match value:
        case str() | bytes():
            return repr(value[: limit + 1])
        case dict():
            return "{…}" if value else "{}"
        case Sequence():
            return "[…]" if value else "[]"
        case _:
            return repr(value)
