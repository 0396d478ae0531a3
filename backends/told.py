"""What backends tell of themselves beyond the contract, found through whatever wraps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, runtime_checkable

from backends.contract import Backend

T = TypeVar("T")


@runtime_checkable
class Wrapping(Protocol):
    """A backend around another."""

    @property
    def inner(self) -> Backend:
        """The other."""
        ...


@runtime_checkable
class Statistics(Protocol):
    """What a backend has counted since it was opened, for a model that is opened over and over."""

    def after(self, past: Self) -> Self:
        """As it is now, with what was counted in its earlier lives."""
        ...

    def at_rest(self) -> Self:
        """What stays of it when it is closed."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A backend that counts."""

    def statistics(self) -> object:
        """As it is now."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was loaded on a server for this gateway.

    Attributes:
        nbytes: memory that it takes there; None where the server does not say.
    """

    nbytes: int | None


@runtime_checkable
class LoadedElsewhere(Protocol):
    """A backend whose model may be in another server's memory only while it is open."""

    @property
    def loaded(self) -> Loaded | None:
        """What it takes there; None where it is there anyhow."""
        ...


def statistics_of(backend: Backend, kind: type[T]) -> T | None:
    """The statistics of *kind* that *backend* has, or the one that it is around; None where there are none."""
    found = _counted(backend)
    return found if isinstance(found, kind) else None


def lasting_statistics_of(backend: Backend) -> Statistics | None:
    """Those that outlive it, whatever they are about; None where there are none."""
    found = _counted(backend)
    return found if isinstance(found, Statistics) else None


def loaded_of(backend: Backend) -> Loaded | None:
    """What *backend*, or the one that it is around, has had loaded elsewhere; None: nothing."""
    found = innermost(backend)
    return found.loaded if isinstance(found, LoadedElsewhere) else None


def _counted(backend: Backend) -> object:
    found = innermost(backend)
    return found.statistics() if isinstance(found, Counting) else None


def innermost(backend: Backend) -> Backend:
    """What *backend* is around, and what that is around, and so on; itself, where it is around nothing."""
    while isinstance(backend, Wrapping):
        backend = backend.inner
    return backend
