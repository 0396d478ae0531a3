"""What delivering tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Outcome(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    FAILED = "failed"  # it is tried again
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """An attempt that ended, and how long it took in seconds."""

    webhook: str
    outcome: Outcome
    duration_s: float


class DeliveryObserver(Protocol):
    """Is told of every attempt; called on the event loop, so it must be quick."""

    def on_attempt(self, report: AttemptReport) -> None:
        """An attempt has ended."""
        ...
