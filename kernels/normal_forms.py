"""Unicode's normal forms, in bounded time.

Python's normalisation takes quadratic time in a run of combining marks, and holds up every other thread meanwhile
(40,000 of them take a second), so longer runs than the Unicode standard's Stream-Safe Text Format allows are refused.
"""

from __future__ import annotations

import re
import unicodedata

MARK_LIMIT = 30
"""Longest run of combining marks in a text (Unicode Standard Annex 15, section 13, Stream-Safe Text Format)."""


def nfc_of(text: str) -> str:
    """*text* in NFC (Unicode Standard Annex 15).

    Raises:
        ValueError: more than `MARK_LIMIT` combining marks in a row.
    """
    if text.isascii():
        return text
    if run := _LONG_RUN_OF_MARKS.search(text):
        raise ValueError(f"more than {MARK_LIMIT} combining marks in a row at character {run.start()}; shorten the run")
    return unicodedata.normalize("NFC", text)


def _long_run_of_marks() -> re.Pattern[str]:
    """Too many characters in a row whose decomposition starts with a combining mark; all lie in planes 0 and 1."""
    marks = [
        chr(code)
        for code in range(0x300, 0x20000)
        if unicodedata.combining(chr(code)) or unicodedata.combining(unicodedata.normalize("NFD", chr(code))[0])
    ]
    return re.compile(f"[{''.join(marks)}]{{{MARK_LIMIT + 1}}}")


# Built here, in 20 ms, and not when the first text needs it: that would be on the event loop.
_LONG_RUN_OF_MARKS = _long_run_of_marks()
