"""The path table: which endpoint answers a method on a path, decided on the raw path and on nothing else.

A path is matched exactly as it arrived. It is not percent-decoded, not normalised, and a slash at its end or two in a
row are part of it: what a proxy in front would read differently (`//v2`, `/v2/%2e%2e/`) names nothing here. A parameter
matches one segment of unreserved characters, so a value needs no decoding, and no later layer can decode it twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from backends.errors import MethodNotAllowed, NotFound
from gateway.http.messages import Endpoint, PathParameters
from gateway.request import Role

UNMATCHED = "(unmatched)"
"""What metrics call every path that is not in the table."""

_REMEMBERED = 512
"""Paths that need not be looked for again: those of a few models, asked for by many requests."""

_SHORT = 256
"""Characters of a path that is remembered; callers can choose its length."""

_PARAMETER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class PathEntry:
    """One method on one path.

    Attributes:
        method: upper-case; HEAD is answered wherever GET is.
        template: the path, with `{name}` where a segment, or a part of one, varies.
        endpoint: what answers.
        role: what the caller must be allowed to do; None: anybody, unauthenticated.
    """

    method: str
    template: str
    endpoint: Endpoint
    role: Role | None = Role.CALLER


@dataclass(frozen=True, slots=True)
class Match:
    """The entry that answers, and the path's variable parts."""

    entry: PathEntry
    parameters: PathParameters


class WrongMethod(MethodNotAllowed):
    """The path exists, for other methods.

    Attributes:
        template: the path's entry in the table.
        allowed: the methods that it has.
    """

    def __init__(self, template: str, allowed: Iterable[str]) -> None:
        self.template = template
        self.allowed = tuple(sorted(allowed))
        super().__init__(f"this path answers {', '.join(self.allowed)} only")


@dataclass(frozen=True, slots=True)
class _Path:
    template: str
    pattern: re.Pattern[str]
    methods: dict[str, PathEntry]


class PathTable:
    """Finds the entry for a request; fixed once built."""

    def __init__(self, entries: Iterable[PathEntry]) -> None:
        """Build the table, which remembers the last paths that it was asked about.

        Raises:
            ValueError: two entries have one method and template.
        """
        paths: dict[str, _Path] = {}
        for entry in entries:
            path = paths.setdefault(entry.template, _Path(entry.template, _pattern(entry.template), {}))
            if entry.method in path.methods:
                raise ValueError(f"{entry.method} {entry.template} is in the path table twice; remove one")
            path.methods[entry.method] = entry
        for path in paths.values():
            if "GET" in path.methods:
                path.methods.setdefault("HEAD", path.methods["GET"])
        self._fixed = {path.template: path for path in paths.values() if "{" not in path.template}
        self._variable: dict[int, list[_Path]] = {}
        for path in paths.values():
            if path.template not in self._fixed:
                self._variable.setdefault(path.template.count("/"), []).append(path)
        self._found = lru_cache(_REMEMBERED)(self._find)

    def match(self, method: str, path: str) -> Match:
        """The entry for *method* on *path*, raw and without its query.

        Raises:
            NotFound: the table has no such path.
            WrongMethod: it has, with other methods.
        """
        return self._found(method, path) if len(path) <= _SHORT else self._find(method, path)

    def _find(self, method: str, path: str) -> Match:
        if fixed := self._fixed.get(path):
            return Match(_entry(fixed, method), {})
        for candidate in self._variable.get(path.count("/"), ()):
            if found := candidate.pattern.fullmatch(path):
                return Match(_entry(candidate, method), found.groupdict())
        raise NotFound("there is nothing at this path")


def _entry(path: _Path, method: str) -> PathEntry:
    entry = path.methods.get(method)
    if entry is None:
        raise WrongMethod(path.template, path.methods)
    return entry


def _pattern(template: str) -> re.Pattern[str]:
    parts = _PARAMETER.split(template)
    literals, names = parts[::2], parts[1::2]
    pattern = re.escape(literals[0])
    for name, literal in zip(names, literals[1:], strict=True):
        pattern += rf"(?P<{name}>[A-Za-z0-9._~-]+){re.escape(literal)}"
    return re.compile(pattern)
