"""Which kinds of backend exist: the `backend:` of a model in the configuration names one of them.

A package adds a kind by an entry point of the group `pointsman.backends`, whose value is a `BackendType`:

    [project.entry-points."pointsman.backends"]
    mine = "my_package.my_backend:MINE"

The kinds that come with Pointsman are entry points too, and are listed here once more, so that they are there in a
checkout that was never installed. A test holds the two lists together.

Decisions: names are known without importing anything; a kind is imported when it is asked for, so that a broken
package breaks only the models that want it. The name of a built-in kind cannot be taken over, and a name that two
packages claim is refused when asked for, rather than decided by the order of installation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from backends.contract import Backend
from backends.errors import BackendFailed, NotFound

GROUP = "pointsman.backends"

BUILT_IN: Mapping[str, str] = {
    "echo": "backends.echo:ECHO",
    "langid": "backends.language:LANGID",
    "magika": "backends.content_type:MAGIKA",
    "oip": "backends.oip.model:OIP",
    "onnx": "backends.onnx:ONNX",
    "openai": "backends.openai:OPENAI",
    "python": "backends.python:PYTHON",
    "ray_serve": "backends.ray_serve.backend:RAY_SERVE",
    "triton": "backends.triton.model:TRITON",
}


@dataclass(frozen=True, slots=True)
class BackendType:
    """A kind of backend.

    Attributes:
        name: as the configuration writes it.
        options: a frozen dataclass of plain typed fields; its field names are the configuration's keys.
        open: builds the backend of a model, ready to serve, from the model's name and an instance of `options`;
            raises a `PointsmanError` that names the remedy. Any: each kind has options of its own.
        running_only: options that decide how a model runs, and not what it answers: a certificate holds whatever they
            are. Every other is part of what is certified.

    Raises:
        ValueError: `running_only` names what is no option.
    """

    name: str
    options: type
    open: Callable[[str, Any], Awaitable[Backend]]
    running_only: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := self.running_only - {field.name for field in fields(self.options)}:
            raise ValueError(f"backend {self.name!r} has no option {sorted(unknown)[0]!r}; take it out of running_only")


class BackendTypes(Mapping[str, BackendType]):
    """Every known kind by name; a kind is imported when it is looked up, names are there without."""

    def __init__(self, installed: Iterable[EntryPoint]) -> None:
        """Args:
        installed: entry points of `GROUP`, the built-in ones among them or not.
        """
        self._sources: dict[str, set[EntryPoint]] = {
            name: {EntryPoint(name, value, GROUP)} for name, value in BUILT_IN.items()
        }
        for entry_point in installed:
            if entry_point.name not in BUILT_IN:
                self._sources.setdefault(entry_point.name, set()).add(entry_point)

    def __getitem__(self, name: str) -> BackendType:
        """The kind *name*.

        Raises:
            KeyError: unknown.
            BackendFailed: known, and cannot be loaded.
        """
        found = self._sources[name]
        if len(found) > 1:
            values = ", ".join(sorted(entry_point.value for entry_point in found))
            raise BackendFailed(f"backend {name!r} is claimed by several packages ({values}); uninstall all but one")
        return _load(next(iter(found)))

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # Mapping's own would import it

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._sources))

    def __len__(self) -> int:
        return len(self._sources)


def _load(entry_point: EntryPoint) -> BackendType:
    where = f"backend {entry_point.name!r} ({entry_point.value})"
    try:
        found = entry_point.load()
    except Exception as error:  # a package of somebody else's: anything can happen while it is imported
        raise BackendFailed(
            f"{where} cannot be loaded: {type(error).__name__}: {error}; repair or uninstall its package"
        ) from error
    if not isinstance(found, BackendType):
        raise BackendFailed(f"{where} is a {type(found).__name__}; its entry point must name a BackendType")
    return found


@cache
def backend_types() -> Mapping[str, BackendType]:
    """Every kind of backend that is installed, by name; what is installed is read once per process."""
    return BackendTypes(entry_points(group=GROUP))


def backend_type(name: str) -> BackendType:
    """The kind of backend that the configuration calls *name*.

    Raises:
        NotFound: there is none; says what there is, and what *name* is close to.
        BackendFailed: it is installed, and cannot be loaded.
    """
    known = backend_types()
    if name not in known:
        raise NotFound(_unknown(name, list(known)))
    return known[name]


def _unknown(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no backend {name!r}; {hint}there are {', '.join(known)}; others come with packages of their own"
