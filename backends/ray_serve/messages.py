"""What travels between a gateway and the replicas of a model. Both ends are of one version, so it is pickled."""

from __future__ import annotations

from dataclasses import dataclass

from backends.contract import Batch, Limits, Signature, Tensors, record
from backends.errors import PointsmanError
from backends.trace_context import TraceContext


@dataclass(frozen=True, slots=True)
class About:
    """What a replica says of its model.

    Attributes:
        digest: of what it was made of; the same for all replicas of one version.
        limits: of one replica.
        load_s: what loading it takes, in seconds, where it is loaded when it is wanted.
    """

    digest: str
    signature: Signature
    version: str
    limits: Limits
    load_s: float = 0.0


@record(eq=False)
class Asked:
    """A batch for a replica.

    Attributes:
        digest: of the model that is wanted.
        left_s: seconds until its deadline; infinity: there is none.
        urgency: as `contract.URGENCY`.
        trace: as `contract.TRACE`.
        waited_s: what the batch has waited for, and what calls have lately waited on their way to a replica.
        misses: deadlines that this caller has missed since it last told.
    """

    digest: str
    batch: Batch
    left_s: float
    urgency: int
    trace: TraceContext | None
    waited_s: float
    misses: int


@record(eq=False)
class Answered:
    """What the model gave, the seconds that it took from the arrival of the call, and whether it was loaded for it."""

    outputs: Tensors
    took_s: float
    was_cold: bool = False


@record(eq=False)
class Refused:
    """What the model said instead."""

    kind: type[PointsmanError]
    message: str
    retry_after_s: float | None

    @classmethod
    def of(cls, error: PointsmanError) -> Refused:
        """As a message."""
        return cls(type(error), str(error), error.retry_after_s)

    def error(self) -> PointsmanError:
        """As an exception."""
        return self.kind(self.message, retry_after_s=self.retry_after_s)


@record(eq=False)
class AnotherModel:
    """The replica is of another version than the one that is wanted."""

    digest: str
