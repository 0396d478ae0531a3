"""A cascade's two questions: which stage comes next, and is its answer good enough?

    next_stage ──► a stage ──► judge ──► accept
        ▲                        │
        └────────  escalate  ◄───┤          nothing left, or the last stage unsure: defer to a person
                                 └────────► defer

Stages go from cheap to strong and are never revisited. A stage that cannot answer in time is skipped, and what was
skipped is told: a later certificate covers the stages that really ran, not those that were configured.

NaN is never "confident": every comparison here is written so that NaN fails it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.contract import record
from router.contract import (
    AcceptAny,
    Certified,
    Decision,
    MinConfidence,
    ModelState,
    Observe,
    Reason,
    Residency,
    Route,
    Stage,
    Uncertified,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A stage that was passed over.

    Attributes:
        stage: its index in the cascade.
        reason: `STAGE_UNAVAILABLE`, `OVERLOADED` or `OUT_OF_TIME`.
        detail: what an operator wants to know, in words.
        wait_s: seconds after which another request may find it, where it is overloaded or has to be loaded.
    """

    stage: int
    model: str
    reason: Reason
    detail: str
    wait_s: float | None = None


@record
class Next:
    """What follows.

    Attributes:
        stage: index of the stage to run; None where none is left.
        skipped: the stages passed over on the way, in order.
    """

    stage: int | None
    skipped: tuple[Skipped, ...] = ()

    @property
    def reason(self) -> Reason | None:
        """Why no stage is left, where stages were passed over: for want of time if any was, else of room or models."""
        if self.stage is not None or not self.skipped:
            return None
        reasons = {skipped.reason for skipped in self.skipped}
        known = (Reason.OUT_OF_TIME, Reason.OVERLOADED, Reason.STAGE_UNAVAILABLE)
        return next(reason for reason in known if reason in reasons)


def next_stage(
    route: Route, after: int | None, states: Mapping[str, ModelState], remaining_s: float, *, insist: bool = False
) -> Next:
    """The first stage behind *after* that is ready and can answer within *remaining_s*.

    Args:
        after: index of the stage that ran last; None before the first.
        states: a snapshot of every model, by name; one that is missing is not ready.
        remaining_s: seconds until the request's deadline.
        insist: it need not be expected to answer in time, as long as there is any.
    """
    skipped: list[Skipped] = []
    first = 0 if after is None else after + 1
    for index, stage in enumerate(route.cascade[first:], start=first):
        state = states.get(stage.model)
        if insist and remaining_s > 0.0 and state is not None and state.ready:
            return Next(index, tuple(skipped))
        obstacle = _obstacle(index, stage, state, remaining_s)
        if obstacle is None:
            return Next(index, tuple(skipped))
        skipped.append(obstacle)
    return Next(None, tuple(skipped))


def _obstacle(index: int, stage: Stage, state: ModelState | None, remaining_s: float) -> Skipped | None:
    if state is None or not state.ready:
        return Skipped(index, stage.model, Reason.STAGE_UNAVAILABLE, f"model {stage.model} is not ready")
    warm_s = state.predicted_wait_s + state.latency_s
    needed_s = state.expected_load_s + warm_s
    if remaining_s > 0.0 and needed_s <= remaining_s:
        return None
    if state.residency is not Residency.HOT and 0.0 < remaining_s >= warm_s:  # in time, if it were loaded
        detail = f"model {stage.model} is not loaded, which takes {state.expected_load_s * 1e3:.0f} ms"
        detail += f"; {remaining_s * 1e3:.1f} ms are left"
        return Skipped(index, stage.model, Reason.STAGE_UNAVAILABLE, detail, state.expected_load_s)
    detail = f"model {stage.model} needs {needed_s * 1e3:.1f} ms and {remaining_s * 1e3:.1f} ms are left"
    if 0.0 < remaining_s >= state.latency_s and state.predicted_wait_s < math.inf:  # in time, if nobody else waited
        return Skipped(index, stage.model, Reason.OVERLOADED, detail, state.predicted_wait_s)
    return Skipped(index, stage.model, Reason.OUT_OF_TIME, detail)


def judge(route: Route, stage: int, confidences: NDArray[np.float64], *, all_ran: bool = True) -> tuple[Verdict, ...]:
    """What becomes of each item after *stage* has answered it.

    1. the route accepts anything: accept
    2. no confidence (NaN, or outside [0, 1]): escalate, or defer at the last stage, with `NO_CONFIDENCE`
    3. the route's rule is met: accept
    4. it is not: escalate, or defer at the last stage, with the rule's reason

    The rule is a threshold; on a certified route the certificate is about all stages, so that an item which skipped one
    is not accepted behind it (`UNCERTIFIED_PATH`). A route without its certificate accepts nothing, one that observes
    accepts what the last stage says. Both ask all stages, and say so of every item, whatever its confidence: a
    certificate will rest on all items alike.

    Args:
        confidences: (n,) calibrated, as `router.calibration.confidences` gives them.
        all_ran: every stage before *stage* has answered these items.
    """
    if isinstance(route.accept, AcceptAny):
        return tuple([Verdict(Decision.ACCEPT, c if 0.0 <= c <= 1.0 else None) for c in confidences.tolist()])
    is_last = stage + 1 >= len(route.cascade)
    unsure = Decision.DEFER if is_last else Decision.ESCALATE
    threshold, accepted, refused = _rule(route, is_last, all_ran)
    gathers = gathering_reason(route)
    # A verdict without a confidence says nothing of its item, so all of them share one.
    unknown = Verdict(unsure, None, gathers or Reason.NO_CONFIDENCE)
    # A verdict an item is made in Python whatever the comparison costs; on Python floats it costs least.
    return tuple(
        unknown
        if not 0.0 <= confidence <= 1.0
        else Verdict(Decision.ACCEPT, confidence, accepted)
        if confidence >= threshold
        else Verdict(unsure, confidence, refused)
        for confidence in confidences.tolist()
    )


def gathering_reason(route: Route) -> Reason | None:
    """What every item of *route* is told as, whatever its stages say, since a certificate will rest on all of them.

    None where the route does not gather labels.
    """
    match route.accept:
        case Uncertified():
            return Reason.NO_CERTIFICATE
        case Observe():
            return Reason.OBSERVED
        case _:
            return None


def _rule(route: Route, is_last: bool, all_ran: bool) -> tuple[float, Reason | None, Reason]:
    """The threshold that accepts at this stage (infinite: nothing is), the reason where it does, and where not."""
    match route.accept:
        case MinConfidence(value):
            return value, None, Reason.LOW_CONFIDENCE
        case Certified(threshold) if all_ran:
            return threshold, None, Reason.LOW_CONFIDENCE
        case Uncertified():
            return math.inf, None, Reason.NO_CERTIFICATE
        case Observe():
            return (0.0 if is_last else math.inf), Reason.OBSERVED, Reason.OBSERVED
        case _:
            return math.inf, None, Reason.UNCERTIFIED_PATH
