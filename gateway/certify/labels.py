"""Labelled scores out of the store: the items that all stages of a route have scored, with what people said of them.

Only items whose stages ran as they are loaded now are evidence for it, so each must carry the digest of the route's
present subject. Evidence is taken in the order in which items were decided. What no label has come for yet must not be
left out quietly, since wrong answers may well take longer to be found than right ones: by default the sequence ends
before the first such item; it can also be counted as wrong, or, where whoever labels picks items at random, dropped.
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
        unlabelled: of the others, those without a label, or with labels that disagree.
    """

    scores: Scores | None
    used: int
    foreign: int
    unlabelled: int


def evidence_of(items: Sequence[LabelledItem], stages: Sequence[str], subject: str, missing: Missing) -> Evidence:
    """The scores of *items*, in their order.

    Args:
        stages: models of the route, from cheap to strong.
        subject: digest of what is loaded.
    """
    own = [(item, records) for item in items if (records := _records(item.trail, stages, subject)) is not None]
    unlabelled = sum(item.label is None for item, _ in own)
    used = list(own)
    if missing is Missing.HOLD:
        first = next((index for index, (item, _) in enumerate(own) if item.label is None), len(own))
        used = own[:first]
    elif missing is Missing.DROP:
        used = [(item, records) for item, records in own if item.label is not None]
    counts = {"used": len(used), "foreign": len(items) - len(own), "unlabelled": unlabelled}
    if not used:
        return Evidence(None, **counts)
    confidence = [[_confidence(record) for record in records] for _, records in used]
    right = [[item.label is not None and record.label == item.label for record in records] for item, records in used]
    return Evidence(Scores(np.array(confidence).T, np.array(right).T), **counts)


def _records(trail: Sequence[StageRecord], stages: Sequence[str], subject: str) -> list[StageRecord] | None:
    """What each stage said, in the order of *stages*; None where one did not, or was another than is loaded."""
    said = {record.stage: record for record in trail if record.version and record.detail == subject}
    return [said[stage] for stage in stages] if all(stage in said for stage in stages) else None


def _confidence(record: StageRecord) -> float:
    return math.nan if record.confidence is None else record.confidence
