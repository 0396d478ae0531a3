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

**Second opinions.** Where a second person, asked blindly, has said something else than the one who decided, the item is
wrong, unless somebody who adjudicated has upheld the label that stands; so it is where the two agree, and somebody has
corrected it to another label. That can only make a proof harder. How often the two
differ on what is accepted (`disagreement_of`) goes into the certificate beside its bound, since the labels of the other
items are no better. To have it proven instead, only items that were drawn for a second opinion are taken
(`twice_only`): a fair sample, as the draw knows nothing of an item; one whose second opinion is missing has no label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gateway.answer import StageRecord
from gateway.store.contract import LabelledItem, SecondLabel
from router.binomial import upper_bound
from router.certificate import Disagreement
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
        twice: (used,), bool, which two people have labelled.
        differing: (used,), bool, which of those they labelled differently.
        twice_only: others were left out.
    """

    scores: Scores | None
    used: int
    foreign: int
    unlabelled: int
    disputed: int
    by_people: int
    twice: NDArray[np.bool_]
    differing: NDArray[np.bool_]
    twice_only: bool = False

    def __str__(self) -> str:
        callers = self.used - self.by_people
        people = f"{self.used} items, {self.by_people} labelled by people and {callers} by callers, or by nobody"
        twice, differing = int(self.twice.sum()), int(self.differing.sum())
        drawn = ", all drawn to be labelled twice" if self.twice_only else ""
        return f"{people}{drawn}; {twice} labelled by a second person, {differing} of these differently"


def disagreement_of(evidence: Evidence, threshold: float, confidence: float) -> Disagreement | None:
    """How far people disagree about what is accepted from *threshold* on; None where nothing of it was labelled twice.

    Args:
        confidence: of the limit.
    """
    if evidence.scores is None:
        return None
    accepted = (evidence.scores.ran & (evidence.scores.confidence >= threshold)).any(axis=0)
    items, differing = int((accepted & evidence.twice).sum()), int((accepted & evidence.differing).sum())
    if not items:
        return None
    return Disagreement(items, differing, upper_bound(differing, items, confidence), evidence.twice_only)


def evidence_of(
    items: Sequence[LabelledItem],
    stages: Sequence[str],
    subject: str,
    missing: Missing,
    *,
    people_only: bool = False,
    twice_only: bool = False,
) -> Evidence:
    """The scores of *items*, in their order.

    Args:
        stages: models of the route, from cheap to strong.
        subject: digest of what is loaded.
        people_only: feedback of callers is no label.
        twice_only: only items that a second person was to label count, and only with both labels.
    """
    own = [item for item in items if _is_of(item.trail, subject)]
    foreign = len(items) - len(own)
    if twice_only:
        own = [item for item in own if item.second is not SecondLabel.NONE]
    labels = [_label(item, people_only=people_only, twice_only=twice_only) for item in own]
    waits = [label is None and not item.disputed for item, label in zip(own, labels, strict=True)]
    used: Sequence[int]
    if missing is Missing.HOLD:
        end = waits.index(True) + 1 if True in waits else len(own)
        used = range(end)
    elif missing is Missing.DROP:
        used = [index for index, waiting in enumerate(waits) if not waiting]
    else:
        used = range(len(own))
    chosen = [own[index] for index in used]
    relied_on = [None if own[index].second.is_in_doubt else labels[index] for index in used]
    scores = _scores(chosen, relied_on, stages) if used else None
    return Evidence(
        scores=scores,
        used=len(used),
        foreign=foreign,
        unlabelled=sum(waits),
        disputed=sum(item.disputed for item in own),
        by_people=sum(item.by_person for item in chosen),
        twice=np.array([item.second.is_given for item in chosen], dtype=bool),
        differing=np.array([item.second.differs for item in chosen], dtype=bool),
        twice_only=twice_only,
    )


def _label(item: LabelledItem, *, people_only: bool, twice_only: bool) -> str | None:
    is_missing = (people_only and not item.by_person) or (twice_only and not item.second.is_given)
    return None if is_missing else item.label


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
