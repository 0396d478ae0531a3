"""One request's items on their way through a cascade: which are open, and what every stage has said of each.

Only rows that a stage escalated reach the next; an item that is accepted never changes again. The pipeline runs the
stages, this keeps the books: it does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.contract import Tensors
from backends.errors import BackendFailed, Code, DeadlineExceeded, Overloaded, PointsmanError, Unavailable
from gateway.answer import CLASSIFY, PEOPLE, ROUTE_AT, ItemAnswer, StageRecord, StageRun, Status, labels_of
from gateway.people.outlook import Overload
from router.cascade import gathering_reason
from router.contract import Decision, OnDefer, Reason, Route, Verdict, WhenOverloaded
from router.table import Picked

_REASONS = {
    Code.DEADLINE_EXCEEDED: Reason.OUT_OF_TIME,
    Code.UNAVAILABLE: Reason.STAGE_UNAVAILABLE,
    Code.BACKEND_FAILED: Reason.STAGE_FAILED,
}


_SHORTEST_RETRY_S = 0.1

_BEFORE_STAGES = (Reason.ROUTED_TO_PERSON, Reason.UNCLEAR_CLASSIFICATION, Reason.CONTRADICTORY_CLASSIFICATION)
"""Reasons of items that no stage was asked about."""


@dataclass(slots=True)
class _Item:
    """One item: the last stage that answered it, and the trail of all that were asked."""

    reason: Reason | None = None
    stage: str | None = None
    label: str | None = None
    outputs: Tensors | None = None
    confidence: float | None = None
    accepted: bool = False
    unasked: bool = False  # nobody decides it, though it was not accepted
    trail: list[StageRecord] = field(default_factory=list)


class Progress:
    """The items of one request; owned by the task that answers it."""

    def __init__(self, size: int) -> None:
        self._items = [_Item() for _ in range(size)]
        self.open: list[int] = list(range(size))
        """Items that no stage has accepted, ascending."""
        self.all_ran = True
        """Every stage so far has answered the open items."""
        self.troubles: list[StageRecord] = []
        """Of stages that gave no answer, in order."""
        self._retry_after_s = 1.0

    def of_version(self, version: str) -> None:
        """Enter which version of the route answers; before anything else."""
        self._note(StageRecord(ROUTE_AT, "", version, None, Decision.ESCALATE))

    def routed(self, picked: Picked, traits: Mapping[str, Any] | None = None) -> None:
        """Enter what routing had to say: that a person must decide, or what was in doubt; and by what it was decided.

        Args:
            traits: what was known of the request (Any: JSON); None: its caller named the route.
        """
        if picked.reason is not None or traits is not None:
            decision = Decision.DEFER if picked.to_person else Decision.ESCALATE
            said = StageRecord(CLASSIFY, "", None, None, decision, picked.reason, picked.detail, traits=traits)
            self._note(said)

    def judged(
        self,
        stage: str,
        version: str,
        outputs: Tensors,
        verdicts: Sequence[Verdict],
        detail: str = "",
        run: StageRun | None = None,
    ) -> None:
        """Enter what *stage* answered for the open items, row by row, what was made of it, and what it took."""
        labels = labels_of(outputs)
        still_open = []
        for row, (index, verdict) in enumerate(zip(self.open, verdicts, strict=True)):
            item = self._items[index]
            item.stage, item.label, item.confidence = stage, labels[row], verdict.confidence
            item.outputs = outputs if len(verdicts) == 1 else _row(outputs, row)
            item.reason = verdict.reason
            item.accepted = verdict.decision is Decision.ACCEPT
            item.trail.append(
                StageRecord(
                    stage, version, item.label, verdict.confidence, verdict.decision, verdict.reason, detail, run
                )
            )
            if not item.accepted:
                still_open.append(index)
        self.open = still_open

    def passed_over(
        self, stage: str, version: str, reason: Reason, detail: str = "", retry_after_s: float | None = None
    ) -> None:
        """Enter that *stage* gave the open items no answer; and when it might, where that is known."""
        self.all_ran = False
        if retry_after_s is not None:
            self._retry_after_s = max(retry_after_s, _SHORTEST_RETRY_S)
        self.troubles.append(StageRecord(stage, version, None, None, Decision.ESCALATE, reason, detail))
        self._note(self.troubles[-1])

    def _note(self, record: StageRecord) -> None:
        """Enter what is the same for all open items."""
        for index in self.open:
            self._items[index].reason = record.reason
            self._items[index].trail.append(record)

    def failed(self, stage: str, version: str, error: PointsmanError) -> None:
        """Enter that *stage* failed on the open items; the cascade goes on.

        Raises:
            PointsmanError: *error* itself, where another stage would meet it too.
        """
        reason = Reason.OVERLOADED if isinstance(error, Overloaded) else _REASONS.get(error.code)
        if reason is None:
            raise error
        self.passed_over(stage, version, reason, retry_after_s=error.retry_after_s)

    def settle(self, route: Route, overload: Overload | None = None) -> tuple[ItemAnswer, ...]:
        """Every item's answer, now that no stage is left to ask.

        What no stage was sure of goes to the route's person; without one it is answered as uncertain, where `on_defer`
        says so and a stage has answered, and refused otherwise.

        Args:
            route: says who decides what is open.
            overload: why its people have no time; None where they have. By its policy the request is refused, or what
                a stage has answered stands as it is. An item keeps its reason, and so stays among those whose labels
                a certificate needs: one without a label.

        Raises:
            DeadlineExceeded: there was no time for a stage, and there is no person.
            BackendFailed: the last stage failed, and there is no person.
            Overloaded: people have no time, and the policy is to refuse.
            Unavailable: no stage was sure, or none was ready or had room, and there is no person.
        """
        gathers = gathering_reason(route) if self.open else None
        if overload is not None and self.open and overload.policy is WhenOverloaded.REFUSE:
            raise refusal_of_people(overload)
        for index in self.open:
            item = self._items[index]
            if gathers and item.reason not in _BEFORE_STAGES:
                item.reason = gathers
            if route.human is None and (route.on_defer is OnDefer.ERROR or item.outputs is None):
                raise _refusal(route, item, self._retry_after_s)
            if overload is not None and overload.policy is WhenOverloaded.PROVISIONAL and item.outputs is not None:
                item.unasked = True
                people = StageRecord(
                    PEOPLE, "", None, None, Decision.ESCALATE, Reason.PEOPLE_OVERLOADED, overload.detail
                )
                item.trail.append(people)
        has_person = route.human is not None
        return tuple([_answer(item, deferred=has_person) for item in self._items])


def _row(outputs: Tensors, row: int) -> Tensors:
    return {name: tensor.rows(row, row + 1) for name, tensor in outputs.items()}


def _answer(item: _Item, *, deferred: bool) -> ItemAnswer:
    if item.accepted:
        status = Status.FINAL
    elif item.outputs is None:
        status = Status.PENDING
    else:
        status = Status.PROVISIONAL
    waits = deferred and not item.accepted and not item.unasked
    return ItemAnswer(
        status=status,
        stage=item.stage,
        label=item.label,
        outputs=item.outputs,
        confidence=item.confidence,
        decided_by=None if waits else f"model:{item.stage}",
        reason=item.reason,
        trail=tuple(item.trail),
    )


def refusal_of_people(overload: Overload) -> Overloaded:
    """What a caller is told whose request people have no time for."""
    return Overloaded(f"{overload.detail}; try again later", retry_after_s=overload.retry_after_s)


def _refusal(route: Route, item: _Item, retry_after_s: float) -> PointsmanError:
    match item.reason:
        case Reason.OUT_OF_TIME:
            return DeadlineExceeded(f"no stage of route {route.name!r} could answer by the deadline; allow more time")
        case Reason.NO_CERTIFICATE:
            return Unavailable(f"route {route.name!r} has no certificate for its error budget, and no person to ask")
        case Reason.UNCERTIFIED_PATH:
            return Unavailable(
                f"a stage of route {route.name!r} was skipped that its certificate counts on, and it has no person to "
                "ask; try again",
                retry_after_s=1.0,
            )
        case Reason.STAGE_FAILED:
            return BackendFailed(f"the last stage of route {route.name!r} failed on this input")
        case Reason.OVERLOADED:
            return Overloaded(
                f"the models of route {route.name!r} are overloaded; try again", retry_after_s=retry_after_s
            )
        case Reason.STAGE_UNAVAILABLE:
            return Unavailable(f"no stage of route {route.name!r} is available; try again", retry_after_s=retry_after_s)
        case _:
            return Unavailable(f"no stage of route {route.name!r} is sure enough, and it has no person to ask")
