"""Texts that are tables or records, laid out for a reader, within bounds.

What is laid out is what was sent: numbers keep their digits, and a document in which a name stands twice is left as it
is, since a table would hide one of the two. A text that says nothing of being a table (`text/plain`) is taken for one
where every line of three or more has equally many cells; beside any table the text itself can be seen.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_ROWS = 200
MAX_COLUMNS = 24
MAX_CELL_CHARACTERS = 300

_MAX_DEPTH = 32  # an indented document grows with the square of its depth
_DELIMITERS = (",", ";", "\t", "|")
_PLAIN_ROWS = 3  # fewer lines with equally many commas may be any text
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can name and no encoding can hold
_PIECE = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+)')

# Any: JSON.
_Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, as texts.

    Attributes:
        columns: headings; none of a record, whose rows are a name and a value.
        rows: each as long as the first.
        of_rows, of_columns: how many there are, of which those are the first.
        is_cut: the text that it was read from goes on, so that even that is not all.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    of_rows: int
    of_columns: int
    is_cut: bool = False


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


class _NamedTwice(ValueError):
    """A name stands twice in an object."""


def read_json(text: str) -> tuple[str, Table | None] | None:
    """*text* indented, and as a table where it is one; None where it is no JSON, or too deep to be indented."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        json.loads(text, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):
        return None
    indented = _indented(text)
    return None if indented is None else (indented, _json_table(text))


def read_separated(text: str, *, is_declared: bool, is_cut: bool) -> Table | None:
    """*text* as a table, if it is one of cells with something between them.

    Args:
        text: the beginning of it, where *is_cut*.
        is_declared: its media type says that it is a table; else it must look like one.
        is_cut: its last line is not whole.
    """
    whole = text.rpartition("\n")[0] if is_cut else text
    for delimiter in sorted(_DELIMITERS, key=whole.partition("\n")[0].count, reverse=True):
        rows = _separated(whole, delimiter)
        if _is_table(rows) if is_declared else _looks_like_a_table(rows, delimiter):
            width = max(map(len, rows))
            shown = min(width, MAX_COLUMNS)
            head, *body = (_fitted(row, shown) for row in rows[: MAX_ROWS + 1])
            return Table(head, tuple(body), len(rows) - 1, width, is_cut)
    return None


def _separated(text: str, delimiter: str) -> list[list[str]]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [row for row in rows if row]
    except csv.Error:
        return []


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    return len(rows) > 1 and len(rows[0]) > 1


def _looks_like_a_table(rows: Sequence[Sequence[str]], delimiter: str) -> bool:
    if len(rows) < _PLAIN_ROWS or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    # In prose a space follows a comma or a semicolon.
    return delimiter in "\t|" or not any(cell.startswith(" ") for row in rows for cell in row)


def _fitted(row: Sequence[str], width: int) -> tuple[str, ...]:
    cells = [_short(cell) for cell in row[:width]]
    return (*cells, *[""] * (width - len(cells)))


def _short(cell: str) -> str:
    """*cell*, within bounds, and fit to be encoded."""
    short = cell if len(cell) <= MAX_CELL_CHARACTERS else cell[: MAX_CELL_CHARACTERS - 1] + "…"
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", short)


def _json_table(text: str) -> Table | None:
    """A list of objects as a table, an object of plain values as a record; None of anything else."""
    try:
        document = json.loads(
            text, object_pairs_hook=_mapping, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except _NamedTwice:
        return None
    if isinstance(document, dict) and document and all(map(_is_plain, document.values())):
        named = list(document.items())[:MAX_ROWS]
        return Table((), tuple((_short(name), _cell(value)) for name, value in named), len(document), 2)
    if isinstance(document, list) and document and all(isinstance(row, dict) and row for row in document):
        columns = list(dict.fromkeys(name for row in document for name in row))
        head = columns[:MAX_COLUMNS]
        body = (tuple(_cell(row[name]) if name in row else "" for name in head) for row in document[:MAX_ROWS])
        return Table(_fitted(head, len(head)), tuple(body), len(document), len(columns))
    return None


def _mapping(pairs: Iterable[tuple[str, _Json]]) -> Mapping[str, _Json]:
    found: dict[str, _Json] = {}
    for name, value in pairs:
        if name in found:
            raise _NamedTwice(name)
        found[name] = value
    return found


def _is_plain(value: _Json) -> bool:
    """Whether *value* is no object, and no list of anything but such."""
    if isinstance(value, list):
        return all(not isinstance(element, dict | list) for element in value)
    return not isinstance(value, dict)


def _cell(value: _Json) -> str:
    """*value* as a cell has it: a text without its quotes, a list of one as the one, others as JSON."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list):
        value = value[0]
    return _short(value if isinstance(value, str) else _written(value))


def _written(value: _Json) -> str:
    """*value* as JSON, in which numbers are as they were."""
    match value:
        case _Number():
            return str(value)
        case list():
            return "[" + ", ".join(map(_written, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{_written(name)}: {_written(inner)}" for name, inner in value.items()) + "}"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _indented(text: str) -> str | None:
    """The document *text*, a line for every value but those of flat lists, and all else as it was; None if too deep."""
    pieces = _PIECE.findall(text)
    parts: list[str] = []
    depth, previous, is_flat = 0, "", False
    for piece, opens_flat_list in zip(pieces, _flat_lists(pieces), strict=True):
        if piece in ("}", "]"):
            depth -= 1
        if piece not in (",", ":"):
            parts.append(_before(piece, previous, depth, is_flat))
        parts.append(_readable(piece))
        if piece in ("{", "["):
            depth += 1
            if depth > _MAX_DEPTH:
                return None
        is_flat = opens_flat_list or (is_flat and piece != "]")
        previous = piece
    return "".join(parts)


def _flat_lists(pieces: Sequence[str]) -> list[bool]:
    """Which of *pieces* open a list that holds no list and no object."""
    flat = [False] * len(pieces)
    bracket = ""
    for at in range(len(pieces) - 1, -1, -1):
        if pieces[at] in ("{", "}", "[", "]"):
            flat[at] = (pieces[at], bracket) == ("[", "]")
            bracket = pieces[at]
    return flat


def _before(piece: str, previous: str, depth: int, is_flat: bool) -> str:
    """What stands before *piece* where *previous* was the one before it."""
    if is_flat:
        return " " if previous == "," else ""
    if previous == ":":
        return " "
    is_empty = (previous, piece) == ("{", "}")
    return "" if is_empty or not previous else "\n" + "  " * depth


def _readable(piece: str) -> str:
    """A text without needless escapes; anything else as it is."""
    if not piece.startswith('"'):
        return piece
    text = json.loads(piece)
    return piece if _SURROGATE.search(text) else json.dumps(text, ensure_ascii=False)
