"""A model that is loaded when it is wanted, wherever that is: here (`pool.Pooled`), or in another process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from backends.contract import Backend, Deadline
from backends.told import innermost
from backends.warm.entry import Warmth


@runtime_checkable
class Warming(Protocol):
    """What such a model's backend has beside the contract."""

    @property
    def warmth(self) -> Warmth:
        """How warm it is."""
        ...

    def hold(self, deadline: Deadline) -> AbstractAsyncContextManager[object]:
        """Have it warm from entering to leaving; entering waits until it is, within *deadline*.

        Raises:
            DeadlineExceeded: the deadline passed first.
            Unavailable: closed, or not to be had by the deadline.
        """
        ...

    def want(self) -> None:
        """Load it if it is cold, though nobody waits."""
        ...


def warming_of(backend: Backend) -> Warming | None:
    """*backend*, or what it is around, where that is loaded when it is wanted; None: it is always there."""
    found = innermost(backend)
    return found if isinstance(found, Warming) else None
