"""A model that is loaded when it is wanted, wherever that is: here (`pool.Pooled`), or in another process; and what its
callers hear who cannot wait for it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, runtime_checkable

from backends.contract import Backend, Deadline
from backends.errors import DeadlineExceeded, Unavailable
from backends.told import innermost
from backends.warm.entry import Warmth

SHORTEST_RETRY_S: Final = 0.1


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


def closed(model: str) -> Unavailable:
    """*model* takes no calls any more."""
    return Unavailable(f"model {model!r} is closed; send the request elsewhere")


def came_late(model: str) -> DeadlineExceeded:
    """A call had no time left when it came."""
    return DeadlineExceeded(f"the deadline passed before model {model!r} was asked; allow more time")


def no_time_to_load(model: str, load_s: float) -> Unavailable:
    """*model* takes *load_s* seconds to load, and a call has less."""
    return Unavailable(
        f"model {model!r} is not loaded yet, and the deadline leaves no time for it; try again",
        retry_after_s=max(load_s, SHORTEST_RETRY_S),
    )
