"""What a pool tells whoever observes it: small frozen records, and the protocol that takes them."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from backends.contract import record


class Step(StrEnum):
    """The rungs between the disk and a model that answers its first request as fast as any other."""

    READ = "read"
    """From the disk into host memory: the operating system's cache of files."""

    OPEN = "open"
    """From there to a session that is built."""

    WARM_UP = "warm_up"
    """To one that has seen a batch of every size."""


@record
class StepReport:
    """A model has taken a step up, or failed to.

    Attributes:
        duration_s: what that took.
        error: why it failed; None where it did not.
    """

    model: str
    step: Step
    duration_s: float
    error: BaseException | None = None


class PoolObserver(Protocol):
    """Is told what happens in a pool, on its event loop; must not raise."""

    def on_load_step(self, report: StepReport) -> None:
        """A model has taken a step up, or failed to."""
        ...

    def on_cold_start(self, model: str) -> None:
        """A request found *model* not warm."""
        ...

    def on_unload(self, model: str, error: BaseException | None) -> None:
        """*model* has left the memory, or failed to do so in good order."""
        ...


class IgnorePool:
    """Takes no notice."""

    def on_load_step(self, report: StepReport) -> None:
        """Ignored."""

    def on_cold_start(self, model: str) -> None:
        """Ignored."""

    def on_unload(self, model: str, error: BaseException | None) -> None:
        """Ignored."""
