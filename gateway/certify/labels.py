"""Labelled scores out of the store: the items that a route has shown to all its stages, with what people said of them.

**Whose.** Only items whose stages were as they are loaded now are evidence for it, so each must carry the digest of the
route's present subject. Evidence is taken in the order in which items were decided.

**Stages that gave no answer.** A model that failed on an item would fail on it again: it has no confidence in it. Of a
stage that was not available, or came too late, nobody knows what it would have said: it never saw the item, which
counts as wrong wherever the rule would have asked it (see `router.certification.accepted_and_wrong`).

**Missing labels** must not be left out quietly, since wrong answers may well take longer to be found than right ones.
By default the sequence ends at the first item without a label, and that item counts as wrong: ending just before it
would choose the end by what is not said yet. They can all be counted as wrong, or, where whoever labels picks items at
random, dropped. An item whose labels disagree is never dropped and holds up nothing: it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from gateway.answer import StageRecord
from gateway.store.contract import LabelledItem
from router.certification import Scores
from router.contract import Reason


class Missing(StrEnum):
    """What becomes of items without a label."""

    HOLD = "hold"
    WRONG = "wrong"
    DROP = "drop"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the store's items come to.

    Attributes:
        scores: (stages, used); None where no item can be used.
        used: items that certify.
        foreign: items that other models, calibrations or plans scored.
        unlabelled: of the others, those without a label.
        disputed: of the others, those with labels that disagree.
        by_people: labels that reviewers gave; the others are callers' feedback.
    """

    scores: Scores | None
    used: int
    foreign: int
    unlabelled: int
    disputed: int
    by_people: int

    def __str__(self) -> str:
        callers = self.used - self.by_people
        return f"{self.used} items, {self.by_people} labelled by people and {callers} by callers, or by nobody"


def evidence_of(
    items: Sequence[LabelledItem], stages: Sequence[str], subject: str, missing: Missing, *, people_only: bool = False
) -> Evidence:
    """The scores of *items*, in their order.

    Args:
        stages: models of the route, from cheap to strong.
        subject: digest of what is loaded.
        people_only: feedback of callers is no label.
    """
    own = [item for item in items if _is_of(item.trail, subject)]
    labels = [item.label if item.by_person or not people_only else None for item in own]
    waits = [label is None and not item.disputed for item, label in zip(own, labels, strict=True)]
    used: Sequence[int]
    if missing is Missing.HOLD:
        end = waits.index(True) + 1 if True in waits else len(own)
        used = range(end)
    elif missing is Missing.DROP:
        used = [index for index, waiting in enumerate(waits) if not waiting]
    else:
        used = range(len(own))
    scores = _scores([own[index] for index in used], [labels[index] for index in used], stages) if used else None
    return Evidence(
        scores=scores,
        used=len(used),
        foreign=len(items) - len(own),
        unlabelled=sum(waits),
        disputed=sum(item.disputed for item in own),
        by_people=sum(own[index].by_person for index in used),
    )


def _is_of(trail: Sequence[StageRecord], subject: str) -> bool:
    """Whether a stage as it is loaded has scored the item; the stages of one item are of one subject."""
    return any(record.detail == subject for record in trail)


def _scores(items: Sequence[LabelledItem], labels: Sequence[str | None], stages: Sequence[str]) -> Scores:
    said = [{record.stage: record for record in item.trail} for item in items]
    records = [[trail.get(stage) for trail in said] for stage in stages]
    return Scores(
        confidence=np.array([[_confidence(record) for record in row] for row in records]),
        right=np.array(
            [[_is_right(record, label) for record, label in zip(row, labels, strict=True)] for row in records]
        ),
        ran=np.array([[_ran(record) for record in row] for row in records]),
    )


def _confidence(record: StageRecord | None) -> float:
    return math.nan if record is None or record.confidence is None else record.confidence


def _is_right(record: StageRecord | None, label: str | None) -> bool:
    return record is not None and label is not None and record.label == label


def _ran(record: StageRecord | None) -> bool:
    return record is not None and record.reason not in (
        Reason.STAGE_UNAVAILABLE,
        Reason.OVERLOADED,
        Reason.OUT_OF_TIME,
    )
