"""A YAML file as plain data, with the place of every value; the safe part of YAML only.

The file may come from anybody who can open a pull request, so reading it can neither run code nor take long, and what
looks like one thing never means another:

- Only mappings, lists, text, numbers, true, false and null exist. A tag (`!!python/object`) is refused.
- Aliases are refused, so a few lines cannot stand for a billion.
- Size, depth and the number of values are limited. The file is read as events, so depth costs no recursion.
- A key stands once in its mapping, and is text.
- Plain words follow YAML 1.2's core schema: `no`, `on` and `12:30` are text, as they look, not YAML 1.1's false,
  true and 750. NaN and infinity are refused: no setting takes them.

Every fault that leaves the rest readable is kept, and reading goes on; a fault of syntax ends it.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

FILE_LIMIT_BYTES = 1024 * 1024
DEPTH_LIMIT = 24
NODE_LIMIT = 100_000

Place: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of the document."""

# Any: libyaml's loader where PyYAML was built with it, ten times as fast; the same events without.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the configuration.

    Attributes:
        line: from 1.
        column: from 1.
        path: of the setting, such as `models.digits-fast.batching.max_delay`; "" for the file as a whole.
        message: what was wrong, and the remedy.
    """

    file: Path
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


@dataclass(slots=True)
class Document:
    """A file's data, the places in it, and the faults found so far.

    Attributes:
        data: JSON-like; None where nothing could be read.
        keys: line and column of the key at each place.
        values: line and column of the value at each place.
        unreadable: places whose value, or key, is at fault already.
        text: as it was read.
    """

    file: Path
    data: Any = None  # Any: JSON-like
    keys: dict[Place, tuple[int, int]] = field(default_factory=dict)
    values: dict[Place, tuple[int, int]] = field(default_factory=dict)
    unreadable: set[Place] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    text: str = ""

    @property
    def base(self) -> Path:
        """The folder that relative paths in the file start from."""
        return self.file.absolute().parent

    def add_fault(self, place: Place, message: str, *, at_key: bool = False) -> None:
        """Keep a fault of the value (or the key) at *place*, or of the nearest place around it that was written.

        What could not be read is told already, and stands in `data` as null: nothing more is kept of it.
        """
        if place in self.unreadable:
            return
        # Entries of lists have no key, so their value stands for it.
        known = self.values | self.keys if at_key else self.values
        written = place
        while written and written not in known:
            written = written[:-1]
        line, column = known.get(written, (1, 1))
        self.faults.append(Fault(self.file, line, column, _dotted(place), message))


def _dotted(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a small regular file.

    Raises:
        ValueError: it cannot be read, is no regular file (a pipe or a device might never end), or is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file; name one")
        if status.st_size > limit_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes; at most {limit_bytes} are read, shorten it")
        with path.open("rb") as file:
            return file.read(limit_bytes)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; correct the path") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct the path or its permissions") from error


def read_document(path: Path) -> Document:
    """The file *path* as data with places; what is wrong with it is in `faults`, never raised."""
    try:
        text = read_file(path, FILE_LIMIT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        return Document(path, faults=[Fault(path, line, column, "", "is not UTF-8; save the file as UTF-8")])
    except ValueError as error:
        return Document(path, faults=[Fault(path, 1, 1, "", str(error))])
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """As `read_document`, of *text*, as if it stood in the file *path*."""
    document = Document(path, text=text)
    try:
        document.data = _Composer(document).compose(text)
    except _TooMuch:
        document.data = None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.faults.append(Fault(path, line, column, "", f"is not YAML: {error.problem}; correct the syntax"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.faults.append(Fault(path, line, 1, "", f"is not YAML: {error.reason}; remove the character"))
    return document


_NO_KEY = "(key)"
"""Stands for a key that is none, in places alone."""


class _TooMuch(Exception):
    """The document is past a limit, and reading on would be the attack; its fault has been kept."""


class _Composer:
    """Events to data; keeps where everything was, and what was wrong with it.

    Any, in its methods: PyYAML's events have attributes that their types do not tell.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def compose(self, text: str) -> Any:  # Any: JSON-like
        events = yaml.parse(text, Loader=_LOADER)
        data = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and () in self._document.values:
                self._fault(event, (), "a second document starts here; keep one in a file")
                return data
            if isinstance(event, yaml.NodeEvent):
                data = self._value(event, events, ())
        return data

    def _value(self, event: Any, events: Iterator[Any], place: Place) -> Any:
        mark = event.start_mark
        self._document.values[place] = (mark.line + 1, mark.column + 1)
        self._nodes += 1
        if self._nodes > NODE_LIMIT:
            self._fault(
                event, place, f"is value number {self._nodes}; at most {NODE_LIMIT} are read, simplify the file"
            )
            raise _TooMuch
        if len(place) > DEPTH_LIMIT:
            self._fault(event, place[:2], f"is nested deeper than {DEPTH_LIMIT} levels; flatten it")
            raise _TooMuch
        if isinstance(event, yaml.AliasEvent):
            self._fault(event, place, f"*{event.anchor} is an alias; write the value out")
            return None
        if event.tag not in (None, "!") and not _is_ordinary(event):
            self._fault(event, place, f"has the tag {event.tag!r}; remove it, only plain values are read")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, place)
        return self._scalar(event, place)

    def _mapping(self, events: Iterator[Any], place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._key(event, events, place)
            inner = (*place, key)
            mark = event.start_mark
            twice = inner in self._document.keys
            if twice:
                first = self._document.keys[inner][0]
                self._fault(event, inner, f"stands here twice, first in line {first}; keep one of them")
            else:
                self._document.keys[inner] = (mark.line + 1, mark.column + 1)
            value = self._value(next(events), events, inner if not twice else (*place, f"{key} (again)"))
            if key != _NO_KEY:
                values.setdefault(key, value)
        return values

    def _key(self, event: Any, events: Iterator[Any], place: Place) -> str:
        if isinstance(event, yaml.ScalarEvent) and event.tag in (None, "!"):
            key = event.value
            if not event.implicit[0] or isinstance(_plain(key), str):
                return _printable(key)
            self._fault(event, (*place, key), f"the key {key} is not text; quote it")
            return key
        self._fault(event, place, "a key here is not plain text; use a word")
        self._value(event, events, (*place, _NO_KEY))
        return _NO_KEY

    def _sequence(self, events: Iterator[Any], place: Place) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            values.append(self._value(event, events, (*place, len(values))))
        return values

    def _scalar(self, event: Any, place: Place) -> Any:
        if not event.implicit[0]:  # quoted, or a block of text
            return self._text(event, place)
        value = _plain(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(event, place, f"is {event.value}, which is not a finite number; write one")
            return None
        return self._text(event, place) if isinstance(value, str) else value

    def _text(self, event: Any, place: Place) -> str | None:
        text: str = event.value
        if "\0" in text or _printable(text) != text:
            self._fault(event, place, "holds a character that is no text (NUL or half a surrogate pair); remove it")
        return text

    def _fault(self, event: Any, place: Place, message: str) -> None:
        mark = event.start_mark
        fault = Fault(self._document.file, mark.line + 1, mark.column + 1, _dotted(place), message)
        self._document.faults.append(fault)
        self._document.unreadable.add(place)


def _is_ordinary(event: Any) -> bool:
    """Whether the tag only says what the value would be anyway, such as `!!str` before text."""
    kinds = {yaml.MappingStartEvent: "map", yaml.SequenceStartEvent: "seq", yaml.ScalarEvent: "str"}
    return bool(event.tag == f"tag:yaml.org,2002:{kinds[type(event)]}")


def _plain(text: str) -> str | int | float | bool | None:
    """What an unquoted word means in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        return math.nan
    return float(text) if _FLOAT.fullmatch(text) else text


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
