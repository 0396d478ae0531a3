"""What the data plane reports as it works: small frozen records, and the hook that takes them.

`gateway.telemetry` turns them into metrics; the pipeline and the edges know no metrics library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from backends.contract import record
from backends.errors import Code
from gateway.request import Protocol as RequestProtocol
from router.contract import Decision


class Outcome(StrEnum):
    """How a request ended, for its caller."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    REFUSED = "refused"
    ERROR = "error"

    @classmethod
    def of(cls, code: Code) -> Outcome:
        """The outcome that an error with *code* is: ours to answer for, or a refusal."""
        return cls.ERROR if code in (Code.INTERNAL, Code.BACKEND_FAILED) else cls.REFUSED


@record
class RequestReport:
    """A request that ended.

    Attributes:
        route: a route that exists, or "" where the request named none.
        duration_s: from the edge's call to its answer.
    """

    route: str
    protocol: RequestProtocol
    outcome: Outcome
    duration_s: float


@record
class StageReport:
    """One stage that ran for one request.

    Attributes:
        duration_s: queueing, preprocessing and the model.
        decisions: one an item.
        confidences: one an item that had one, in [0, 1].
    """

    route: str
    stage: str
    duration_s: float
    decisions: tuple[Decision, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DetectorReport:
    """A detector that was asked about one request.

    Attributes:
        duration_s: decoding, queueing and the model.
        failed: it should have answered, and did not.
    """

    trait: str
    duration_s: float
    failed: bool


class PipelineObserver(Protocol):
    """Takes the reports; must not raise, and must be quick: it is called on the event loop."""

    def on_request(self, report: RequestReport) -> None:
        """A request ended."""
        ...

    def on_stage(self, report: StageReport) -> None:
        """A stage ran."""
        ...

    def on_detector(self, report: DetectorReport) -> None:
        """A detector was asked."""
        ...
