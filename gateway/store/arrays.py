"""Columns of many rows as PostgreSQL takes them: arrays, in its binary form.

An array of one dimension is, big-endian throughout (`array_recv` of src/backend/utils/adt/arrayfuncs.c):

    dimensions i32 = 1 | has NULLs i32 | type of its elements u32 | length i32 | first index i32 = 1 | elements
    element = length i32, and its bytes; of a NULL, a length of -1 alone

Nothing in it needs escaping. Every column of the schema has one type, whatever its values happen to be, so that a
statement is the same for all rows and is planned once; the driver's own arrays take their type from the values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, String, Text

_HEAD = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
_NULL = _LENGTH(-1)


class Array(bytes):
    """An array as it goes to the server."""

    __slots__ = ()


class Element(NamedTuple):
    """What a column holds: its type's name, its number in PostgreSQL's catalog, and how many values are written."""

    name: str
    oid: int
    written: Callable[[Sequence[Any]], bytes]  # Any: of the column's type


def element_of(column: Column[Any]) -> Element:
    """What *column* holds (Any: of its type)."""
    return _ELEMENTS[type(column.type)]


def array_of(element: Element, values: Sequence[Any]) -> Array:
    """*values*, of which any may be None, as an array (Any: of the element's type).

    Raises:
        struct.error: a number is out of range.
        UnicodeEncodeError: a text holds half a surrogate pair.
    """
    return Array(_HEAD(1, None in values, element.oid, len(values), 1) + element.written(values))


def _fixed(code: str) -> Callable[[Sequence[Any]], bytes]:
    """How values of one size are written."""
    size = struct.calcsize(f">{code}")
    one = struct.Struct(f">i{code}").pack

    def written(values: Sequence[Any]) -> bytes:
        if None in values:
            return b"".join([_NULL if value is None else one(size, value) for value in values])
        return _many(code, len(values)).pack(*chain.from_iterable(zip(repeat(size), values, strict=False)))

    return written


@lru_cache(256)
def _many(code: str, count: int) -> struct.Struct:
    return struct.Struct(">" + f"i{code}" * count)


def _texts(values: Sequence[str | None]) -> bytes:
    if None in values:
        return _bytes([None if value is None else value.encode() for value in values])
    return _bytes([*map(str.encode, values)])  # type: ignore[arg-type]  # none is None


def _bytes(values: Sequence[bytes | None]) -> bytes:
    if None in values:
        return b"".join([_NULL if value is None else _LENGTH(len(value)) + value for value in values])
    return b"".join(chain.from_iterable(zip(map(_LENGTH, map(len, values)), values, strict=True)))  # type: ignore[arg-type]


_TEXT = Element("text", 25, _texts)
_ELEMENTS: dict[type[Any], Element] = {
    Boolean: Element("boolean", 16, _fixed("?")),
    LargeBinary: Element("bytea", 17, _bytes),
    BigInteger: Element("bigint", 20, _fixed("q")),
    Integer: Element("integer", 23, _fixed("i")),
    String: _TEXT,
    Text: _TEXT,
    Double: Element("double precision", 701, _fixed("d")),
}
