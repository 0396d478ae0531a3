"""Other ways to choose a threshold from labelled items, to be compared with `router.certification`.

A *method* looks at the risk-coverage curve of labelled items and names one threshold for the route as one. A *practice*
looks at the items and names a threshold for each stage. Where nothing is to be accepted, the threshold is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from router.binomial import critical_counts, least_trials
from router.certification import (
    Budget,
    RiskCoverage,
    Scores,
    fixed_sequence,
    select_along,
    select_threshold,
    starting_points,
)

Method: TypeAlias = Callable[[RiskCoverage, Budget], float]
Practice: TypeAlias = Callable[[Scores, Budget], tuple[float, ...]]

NOTHING = math.inf


def _threshold(curve: RiskCoverage, index: int | None) -> float:
    return NOTHING if index is None else float(curve.thresholds[index])


def pointsmans(curve: RiskCoverage, budget: Budget) -> float:
    """Pointsman's: fixed sequences from four starts that hand their levels on."""
    threshold = select_along(curve, budget).threshold
    return NOTHING if threshold is None else threshold


def apart(percents: Sequence[int]) -> Method:
    """Fixed sequences of equal levels from *percents* on, each by itself."""

    def method(curve: RiskCoverage, budget: Budget) -> float:
        level = (1.0 - budget.confidence) / len(percents)
        starts = starting_points(curve, least_trials(0, budget.max_error, level), percents)
        ends = (fixed_sequence(curve, start, budget.max_error, level) for start in starts)
        return _threshold(curve, max((end for end in ends if end is not None), default=None))

    return method


def strict_start(curve: RiskCoverage, budget: Budget) -> float:
    """One fixed sequence with the whole level, from the strictest threshold that could prove anything."""
    level = 1.0 - budget.confidence
    start = curve.first_accepting(least_trials(0, budget.max_error, level))
    return _threshold(curve, None if start is None else fixed_sequence(curve, start, budget.max_error, level))


def sgr(curve: RiskCoverage, budget: Budget) -> float:
    """Selection with guaranteed risk: a binary search over the items, its level shared out over its steps.

    Source:
        Y. Geifman and R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, algorithm 2. It
        ends with the last threshold that was tried; we take the loosest that passed, which the union bound allows.
    """
    steps = max(1, math.ceil(math.log2(curve.items)))
    critical = critical_counts(curve.items, budget.max_error, (1.0 - budget.confidence) / steps)
    low, high = 1, curve.items  # places in the order of rising confidence; accepted is from a place upwards
    loosest = None
    for _ in range(steps):
        place = math.ceil((low + high) / 2)
        index = curve.first_accepting(curve.items - place + 1)
        if index is not None and curve.wrong[index] <= critical[curve.accepted[index]]:
            high, loosest = place, index
        else:
            low = place
    return _threshold(curve, loosest)


def empirical(curve: RiskCoverage, budget: Budget) -> float:
    """The loosest threshold whose error on these items is within the budget; on the whole population the oracle's."""
    within = np.flatnonzero(curve.risk <= budget.max_error)
    return _threshold(curve, int(within[-1]) if len(within) else None)


def fixed(threshold: float) -> Method:
    """*threshold*, whatever the labels say."""
    return lambda curve, budget: threshold


SGR = "SGR"
CANDIDATES = ("Pointsman", "three starts apart")
"""The rule as it is, and a simpler one; each is compared with SGR."""

METHODS: dict[str, Method] = {
    CANDIDATES[0]: pointsmans,
    CANDIDATES[1]: apart((20, 40, 60)),
    SGR: sgr,
    "one strict start": strict_start,
    "empirical": empirical,
    "fixed 0.9": fixed(0.9),
    "fixed 0.95": fixed(0.95),
    "fixed 0.99": fixed(0.99),
}


def as_one(scores: Scores, budget: Budget) -> tuple[float, ...]:
    """Pointsman's: one threshold, and the cascade certified as one rule."""
    threshold = select_threshold(scores, budget).threshold
    return (NOTHING if threshold is None else threshold,) * len(scores.confidence)


def as_one_unseen(passed_below: float) -> Practice:
    """The same, where stages after the first only saw what the first stated less than *passed_below* of."""

    def practice(scores: Scores, budget: Budget) -> tuple[float, ...]:
        ran = np.repeat(~(scores.confidence[:1] >= passed_below), len(scores.confidence), axis=0)
        ran[0] = True
        return as_one(replace(scores, ran=ran), budget)

    return practice


def each_on_all(scores: Scores, budget: Budget) -> tuple[float, ...]:
    """Wrong: each stage certified alone on all items, while later stages are asked about the hard ones only."""
    everything = np.ones(scores.items, dtype=bool)
    return tuple(_alone(scores, stage, everything, budget) for stage in range(len(scores.confidence)))


def each_on_its_own(scores: Scores, budget: Budget) -> tuple[float, ...]:
    """Each stage certified on what it really sees, with its share of the level."""
    stages = len(scores.confidence)
    divided = Budget(budget.max_error, 1.0 - (1.0 - budget.confidence) / stages)
    seen = np.ones(scores.items, dtype=bool)
    thresholds = []
    for stage in range(stages):
        thresholds.append(_alone(scores, stage, seen, divided))
        seen = seen & ~(scores.confidence[stage] >= thresholds[-1])
    return tuple(thresholds)


def _alone(scores: Scores, stage: int, seen: NDArray[np.bool_], budget: Budget) -> float:
    rows = Scores(scores.confidence[stage : stage + 1, seen], scores.right[stage : stage + 1, seen])
    return as_one(rows, budget)[0]
