"""What a caller is told, and what the store keeps of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, NewType

from backends.contract import Batch, Tensors, record
from router.contract import Decision, OnDefer, Reason

AnswerId = NewType("AnswerId", str)


class Status(StrEnum):
    """How far an answer is; `worst` orders them."""

    FINAL = "final"
    PROVISIONAL = "provisional"
    PENDING = "pending"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_BADNESS = {
    status: badness
    for badness, status in enumerate(
        # What is over is better than what is open: an answer is over when all of it is.
        (Status.FINAL, Status.CANCELLED, Status.EXPIRED, Status.PROVISIONAL, Status.PENDING)
    )
}

GIVEN_UP = frozenset({Status.CANCELLED, Status.EXPIRED})
"""What ends an item without a decision."""


LABEL = "label"
"""The output that holds an item's label."""

CLASSIFY = "classify"
"""The stage that a trail begins with where routing itself had something to say."""


ROUTE_AT = "route@version"
"""The stage that a trail begins with where the route has several versions: its label is the one that answered. No model
has such a name."""

PEOPLE = "people@queue"
"""The stage under which a trail tells of people who were not asked, or did not decide in time. No model has such a
name."""


@record
class StageRun:
    """What a stage's answer to one request took, and what it was judged by; the same for all of its items.

    Attributes:
        took_s: from the request's turn at the stage to its answer: waiting, preprocessing, the model; in seconds.
        model_s: of that, the model's time for the batch, divided by its items; None where it is not known.
        batch: id of the batch, of the first where the request needed several; "" where it is not known.
        batch_size: items in it.
        cost_ms: of an item: its share of the model's time in milliseconds, times the model's `cost`.
        threshold: least confidence that was accepted; None where no number says so.
        certificate: id of the certificate that the threshold is of; "" where it is of none.
    """

    took_s: float
    model_s: float | None = None
    batch: str = ""
    batch_size: int = 0
    cost_ms: float | None = None
    threshold: float | None = None
    certificate: str = ""


@record
class StageRecord:
    """What one stage said of one item, for the decision log.

    Attributes:
        stage: the model, or `CLASSIFY`, `ROUTE_AT` or `PEOPLE`.
        version: the model's version that answered; "" where it never did.
        label: its best label; None where it has none.
        confidence: calibrated, in [0, 1]; None where there is none.
        decision: what `judge` made of it.
        reason: why it was not accepted.
        detail: what an operator wants to know of that, in words.
        run: what it took; None where it gave no answer.
        traits: of `CLASSIFY`, what was known of the request, by name (Any: JSON); None where nobody asked.
    """

    stage: str
    version: str
    label: str | None
    confidence: float | None
    decision: Decision
    reason: Reason | None = None
    detail: str = ""
    run: StageRun | None = None
    traits: Mapping[str, Any] | None = None


@record(eq=False)
class ItemAnswer:
    """One item's answer.

    Attributes:
        status: final, provisional (a model's answer that a person will confirm or correct), pending (no output),
            cancelled (its caller wanted no decision any more) or expired (no person decided in time); the last two keep
            what a model had answered, which nobody has confirmed.
        stage: the last stage that answered; None where none did.
        label: the label that stands now.
        outputs: the route's outputs with a batch axis of 1; None where no stage answered, or a person overruled it.
        confidence: of the stage that answered, in [0, 1]; None where there is none, or a person overruled it.
        decided_by: `model:NAME` or `person:NAME`; None while a person has to decide, and where none did. An answer that
            stays provisional, because its route has no person, or none with time, was decided by its model.
        reason: why it went to a person; None where it did not.
        trail: what every stage said, in order.
    """

    status: Status
    stage: str | None
    label: str | None
    outputs: Tensors | None
    confidence: float | None
    decided_by: str | None
    reason: Reason | None
    trail: tuple[StageRecord, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What routing had to say, and why stages were passed over, in words."""
        return tuple(record.detail for record in self.trail if record.detail and not record.version)


@record(eq=False)
class Answer:
    """A request's answer, one entry an item.

    Attributes:
        id: unguessable, and ordered by time.
        created_s: Unix time of the request, in seconds.
        revision: 1, and one more for every change after the first reply.
        max_error: the error rate that the route promises of accepted answers; None where it states none.
        certified: whether that promise is proven on labels, and not only configured.
        on_defer: what a client without two-phase answers gets for this request; not kept by the store.
        predicted_wait_s: seconds that people will take for what is open, as far as their pace tells; None where nobody
            knows, or nothing is open; not kept by the store.
        inputs: the items as they were sent, of which the store keeps a digest alone; None where they were not seen.
        subject: by what the store knows whom it is about (`gateway.store.key`); None where nobody said. Neither is
            read back.
    """

    id: AnswerId
    tenant: str
    route: str
    created_s: float
    items: tuple[ItemAnswer, ...]
    revision: int = 1
    max_error: float | None = None
    certified: bool = False
    on_defer: OnDefer = OnDefer.PROVISIONAL
    predicted_wait_s: float | None = None
    inputs: Batch | None = None
    subject: bytes | None = None

    @property
    def status(self) -> Status:
        """The worst status of all items."""
        if len(self.items) == 1:
            return self.items[0].status
        return max((item.status for item in self.items), key=_BADNESS.__getitem__)

    @property
    def version(self) -> str:
        """Of the route, that answered; "" where it had only one."""
        trail = self.items[0].trail
        return (trail[0].label or "") if trail and trail[0].stage == ROUTE_AT else ""

    @property
    def open_items(self) -> tuple[int, ...]:
        """Indices of the items that wait for a person; an uncertain one that has nobody to ask does not."""
        items = enumerate(self.items)
        return tuple([i for i, item in items if item.decided_by is None and item.status not in GIVEN_UP])

    def decided(self, item: int, label: str, reviewer: str) -> Answer:
        """This answer after *reviewer* gave *item* its final label.

        A model's outputs and confidence stay where it had the same label; they would contradict any other.
        """
        final = replace(self.items[item], status=Status.FINAL, label=label, decided_by=f"person:{reviewer}")
        if label != self.items[item].label:
            final = replace(final, outputs=None, confidence=None)
        items = (*self.items[:item], final, *self.items[item + 1 :])
        return replace(self, items=items, revision=self.revision + 1)


@record
class ItemState:
    """What an item was, from one revision of its answer on."""

    item: int
    status: Status
    label: str | None
    confidence: float | None
    decided_by: str | None


@record
class Revision:
    """What an answer became by one change.

    Attributes:
        number: 1 for the first reply.
        at_s: Unix time, in seconds.
        event: `answer` (the first reply), decide, correct, undo, cancel, expire or erase.
        actor: `person:NAME`, `caller:NAME` or `operator:NAME`; None where nobody did it.
        reason: what a correction's author says of it.
        items: those that changed, as they were then.
    """

    number: int
    at_s: float
    event: str
    actor: str | None
    reason: str | None
    items: tuple[ItemState, ...]


def labels_of(outputs: Tensors) -> list[str | None]:
    """The labels that stand in the output `label`, one an item; None where there is none."""
    size = next(iter(outputs.values())).shape[0]
    if LABEL not in outputs:
        return [None] * size
    column = outputs[LABEL].numpy().reshape(size)
    return [bytes(label).decode(errors="replace") or None for label in column]


def new_answer_id(now_s: float | None = None) -> AnswerId:
    """An id ordered by time and unguessable: UUID version 7 (RFC 9562, 5.7), as 32 hexadecimal digits."""
    milliseconds = int((time.time() if now_s is None else now_s) * 1000) & ((1 << 48) - 1)
    return AnswerId(f"{milliseconds:012x}{_tails.take()}")


def told_s(answer_id: AnswerId) -> float:
    """When *answer_id* was made, as Unix time in seconds, to the millisecond; 0.0 where it is none of ours."""
    try:
        return int(answer_id[:12], 16) / 1000
    except ValueError:
        return 0.0


class _Tails:
    """What follows the time in an id: version, variant and 74 random bits, as 20 hexadecimal digits.

    Made for many ids at once, since asking the system for a few random bytes takes longer than all the rest. Safe for
    threads, as one is taken in one step; a forked process begins with none, or both would give the same.
    """

    def __init__(self) -> None:
        self._tails: list[str] = []
        os.register_at_fork(after_in_child=self._tails.clear)

    def take(self) -> str:
        """One that nobody was given before."""
        while True:
            try:
                return self._tails.pop()
            except IndexError:
                random = os.urandom(256 * _TAIL_BYTES).hex()
                parts = [random[at : at + 2 * _TAIL_BYTES] for at in range(0, len(random), 2 * _TAIL_BYTES)]
                self._tails += [f"7{part[:3]}{_VARIANTS[part[3]]}{part[5:]}" for part in parts]


_TAIL_BYTES = 10
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_tails = _Tails()
