"""Which threshold keeps an error budget, proven on labelled items: risk control by fixed-sequence testing.

**The claim.** For labelled items drawn like the traffic to come, the chosen threshold's true error R (the share of
wrong answers among accepted ones) exceeds `max_error` with probability 1 - `confidence` at most: for any number of
items, and with no assumption on the models.

**What is tested** is the route's rule as one: an item is accepted at the first stage whose calibrated confidence
reaches the threshold, whichever stage that is. Calibrators are fitted on other items.

**How.** The grid is the distinct confidences of the items, strict to loose, fixed before any label is looked at. Four
sequences walk along it, from the first threshold that could prove anything, and from where 20, 40 and 60 % of the items
are accepted; each tests "R > max_error" at a quarter of the level, and stops where it first fails to reject. Within a
sequence no correction is due: to go wrong it must reject the first true hypothesis that it meets. A sequence that
arrives at the next one's start hands its level on, and they go on as one: what it has not used up by going wrong is
still there to be spent. The loosest threshold that any sequence reached is taken.

Rejected: one sequence from the strictest start (valid, but with continuous confidences the few items there seldom prove
anything, and it stops at once); three sequences that share nothing (valid, and covers less in every case measured: see
`loadtests.experiments.certification`, where the fourth start was chosen too); a union bound over the grid or over a
binary search (pays for tests that are not needed); certifying stages apart with a share of the level each (a later
stage sees the hard items only, and then often accepts nothing).

Sources: A. N. Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control", 2021
(fixed-sequence testing from several starts, which we put at shares of accepted items); B. L. Wiens and A. Dmitrienko,
"The fallback procedure for evaluating a single family of hypotheses", Journal of Biopharmaceutical Statistics 15, 2005
(handing levels on); Y. Geifman and R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017 (the
question); C. J. Clopper and E. S. Pearson, Biometrika 26, 1934 (the binomial test).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from router.binomial import at_most, critical_counts, is_rejected, least_trials, upper_bound

STARTS_PERCENT = (0, 20, 40, 60)
"""Where the sequences start: percent of all items that are accepted there, and `minimal_accepted` of them at least."""

_SUREST_PERCENT = 20
_FIRST_LOOK = 0.8

DEFAULT_CONFIDENCE = 0.95
"""How sure a proof is where nobody says it."""

MAX_LABELS = 1_000_000
"""More labels than anybody gathers: where more would be needed, the answer is that none suffice."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most a share of *max_error* of the accepted answers is wrong, with a probability of at least *confidence*.

    Both lie in (0, 1).
    """

    max_error: float
    confidence: float

    def __post_init__(self) -> None:
        for name, value in (("max_error", self.max_error), ("confidence", self.confidence)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} {value} is not between 0 and 1; 0.01 stands for 1 %")

    @property
    def level(self) -> float:
        """Of one sequence by itself: its probability of going wrong, at most."""
        return (1.0 - self.confidence) / len(STARTS_PERCENT)

    def __str__(self) -> str:
        return f"an error of {self.max_error:.2%} with {self.confidence:.1%} confidence"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What every stage of a cascade said of labelled items.

    Attributes:
        confidence: (stages, n), float64, calibrated, in [0, 1]; NaN where the stage gave none, and accepted nothing.
        right: (stages, n), bool, whether the stage's answer was the true one.
        ran: (stages, n), bool, whether the stage saw the item; what stands at the others is ignored. Or one True: all.

    Raises:
        ValueError: the arrays do not fit together, or a confidence is outside [0, 1].
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    ran: NDArray[np.bool_] = field(default_factory=lambda: np.array(True))

    def __post_init__(self) -> None:
        if self.ran.ndim == 0:
            object.__setattr__(self, "ran", np.full(self.confidence.shape, self.ran))
        if self.confidence.ndim != 2 or self.confidence.shape[0] == 0:
            raise ValueError(f"confidence is {self.confidence.shape}, not (stages, items); give one row a stage")
        for name, array in (("right", self.right), ("ran", self.ran)):
            if array.shape != self.confidence.shape or array.dtype != np.bool_:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}; it must be bool {self.confidence.shape}, as confidence is"
                )
        stated = self.confidence[self.ran]
        outside = stated[(stated < 0.0) | (stated > 1.0)]
        if outside.size:
            raise ValueError(f"confidence {outside[0]} is outside [0, 1]; calibrate the scores first")

    @property
    def items(self) -> int:
        """How many there are, those without any confidence included."""
        return int(self.confidence.shape[1])


def accepted_and_wrong(scores: Scores, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many items the route accepts at each threshold, and how many of those are wrong.

    Where the rule comes to a stage that never saw the item, the item counts as accepted and as wrong. That is safe: of
    n + 1 items with k + 1 wrong the binomial p-value is no less than of n with k (not accepted after all), and of
    n + 1 with k (accepted and right).

    Each stage decides about an item at the thresholds between the highest confidence before it and its own, so every
    item adds two steps a stage to a running sum: O(stages n log t) for t thresholds.

    Args:
        thresholds: (t,), finite, in any order.

    Returns:
        Two of (t,), in the order of *thresholds*.
    """
    order = np.argsort(thresholds)
    # A stage that was never asked would have accepted at any threshold, and would have been wrong.
    confidence = np.where(scores.ran, np.nan_to_num(scores.confidence, nan=-np.inf), np.inf)
    right = scores.right & scores.ran
    ranks = np.searchsorted(thresholds[order], confidence, side="right")
    reached = np.maximum.accumulate(ranks, axis=0)
    before = np.vstack([np.zeros_like(reached[:1]), reached[:-1]])

    accepted, wrong = np.empty_like(order), np.empty_like(order)
    accepted[order] = scores.items - _passed(reached[-1], len(order))
    wrong[order] = _passed(before[~right], len(order)) - _passed(reached[~right], len(order))
    return accepted, wrong


def _passed(ends: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """How many of *ends* lie at or before each of *count* places."""
    passed: NDArray[np.int64] = np.bincount(ends, minlength=count + 1)[:count].cumsum()
    return passed


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """What the route's rule comes to at every threshold that makes a difference, strict to loose.

    Attributes:
        thresholds: (t,), the distinct confidences, falling.
        accepted: (t,), items that are accepted.
        wrong: (t,), how many of those are wrong.
        items: how many there are in all.
    """

    thresholds: NDArray[np.float64]
    accepted: NDArray[np.int64]
    wrong: NDArray[np.int64]
    items: int

    @property
    def coverage(self) -> NDArray[np.float64]:
        """(t,), the share of all items that is accepted."""
        return self.accepted / max(self.items, 1)

    @property
    def risk(self) -> NDArray[np.float64]:
        """(t,), the share of the accepted items that is wrong."""
        return self.wrong / self.accepted

    def first_accepting(self, count: int) -> int | None:
        """Index of the strictest threshold that accepts at least *count* items; None where none does."""
        index = int(np.searchsorted(self.accepted, count))
        return index if index < len(self.accepted) else None


def risk_coverage(scores: Scores) -> RiskCoverage:
    """The risk-coverage curve of the route as one; all items of one confidence enter together."""
    stated = np.unique(scores.confidence[scores.ran])
    thresholds = stated[~np.isnan(stated)][::-1]
    return RiskCoverage(thresholds, *accepted_and_wrong(scores, thresholds), scores.items)


def stage_shares(scores: Scores, threshold: float) -> tuple[float, ...]:
    """Of all items, the share that each stage is the first to accept at *threshold*."""
    reaches = scores.ran & (scores.confidence >= threshold)
    earlier = np.zeros(scores.items, dtype=bool)
    shares = []
    for accepts in reaches:
        shares.append(float((accepts & ~earlier).sum()) / max(scores.items, 1))
        earlier |= accepts
    return tuple(shares)


class Unproven(StrEnum):
    """Why no threshold was found."""

    TOO_FEW_ACCEPTED = "too_few_accepted"  # even without a wrong one among them they would prove nothing
    NOT_REJECTED = "not_rejected"  # no sequence got past its start


@dataclass(frozen=True, slots=True)
class Selection:
    """The threshold that was chosen, and what was seen there.

    Attributes:
        threshold: the least confidence to accept; None where no threshold is proven, and all goes to people.
        items: labelled items, those that are not accepted included.
        accepted: at the threshold; 0 where there is none.
        wrong: of those; 0 where there is no threshold.
        bound: the upper limit on the error that these counts give when the threshold is taken as given beforehand
            (one-sided Clopper-Pearson at `level`); evidence at one point, while what is guaranteed of the choice as a
            whole is `max_error`. 1.0 where there is no threshold.
        starts: thresholds where the sequences started, strict to loose; none where not enough is accepted anywhere.
        level: of the sequence that reached the threshold, what was handed on to it included; 0.0 where none did.
        reason: why there is no threshold; None where there is one. `shortfall` has words for it.
    """

    threshold: float | None
    items: int
    accepted: int
    wrong: int
    bound: float
    starts: tuple[float, ...]
    level: float
    reason: Unproven | None = None


def select_threshold(scores: Scores, budget: Budget) -> Selection:
    """The loosest threshold that *scores* prove to keep *budget*.

    With other labels drawn the same way, a threshold whose true error exceeds `max_error` would be chosen with a
    probability of 1 - `confidence` at most. A larger `max_error` or a smaller `confidence` never gives a stricter
    threshold, unless fewer items prove it, so that the sequences start elsewhere (`minimal_accepted`).
    """
    return select_along(risk_coverage(scores), budget)


def select_along(curve: RiskCoverage, budget: Budget) -> Selection:
    """`select_threshold` for items whose risk-coverage *curve* is at hand."""
    starts = starting_points(curve, minimal_accepted(budget))
    tested = tuple(float(curve.thresholds[start]) for start in starts)
    found = walked(curve, starts, budget)
    if found is None:
        reason = Unproven.NOT_REJECTED if starts else Unproven.TOO_FEW_ACCEPTED
        return Selection(None, curve.items, 0, 0, 1.0, tested, 0.0, reason)
    loosest, level = found
    accepted, wrong = int(curve.accepted[loosest]), int(curve.wrong[loosest])
    bound = upper_bound(wrong, accepted, 1.0 - level)
    return Selection(float(curve.thresholds[loosest]), curve.items, accepted, wrong, bound, tested, level)


def walked(curve: RiskCoverage, starts: Sequence[int], budget: Budget) -> tuple[int, float] | None:
    """The loosest threshold that a sequence reaches, and its level there; None where none gets past its start.

    1. the next sequence starts at the same threshold: they go as one from there
    2. the sequence reaches the start of the next: they go on as one, so that its own walk ends there
    3. it stops before: its level is used up

    Args:
        starts: indices, rising; each sequence has a level of `budget.level` of its own.
    """
    found: tuple[int, float] | None = None
    sequences = 0
    for start, following in pairwise([*starts, len(curve.thresholds)]):
        sequences += 1
        if start == following:
            continue
        level = sequences * budget.level
        end = fixed_sequence(curve, start, budget.max_error, level)
        if end is not None:
            found = min(end, following - 1), level
        if end is None or end + 1 < following:
            sequences = 0
    return found


def starting_points(curve: RiskCoverage, least: int, percents: Sequence[int] = STARTS_PERCENT) -> list[int]:
    """Indices where sequences start, strict to loose; none where no threshold accepts *least* items.

    Each is the loosest threshold that accepts no more than its share of the items, but *least* in any case. Calibrated
    confidences come in large ties, and a start behind the tie that crosses its share could lie far behind it.

    Args:
        percents: shares of all items, rising.
    """
    strictest = curve.first_accepting(least)
    if strictest is None:
        return []
    shares = [curve.items * percent // 100 for percent in percents]
    within = np.searchsorted(curve.accepted, shares, side="right") - 1
    return [max(strictest, int(index)) for index in within]


def fixed_sequence(curve: RiskCoverage, start: int, max_error: float, level: float) -> int | None:
    """Test "the error is above *max_error*" from *start* on, looser and looser, up to the first that is not rejected.

    Returns:
        Index of the last threshold whose test was rejected; None where already the first was not.
    """
    critical = critical_counts(curve.items, max_error, level)
    failed = curve.wrong[start:] > critical[curve.accepted[start:]]
    steps = int(failed.argmax()) if failed.any() else len(failed)
    return start + steps - 1 if steps else None


def at_look(budget: Budget, look: int) -> Budget:
    """*budget* at what is left of its level when labels that grow are looked at for the *look*th time, from 1.

    Whoever looks at them every now and then, and stops when they prove the budget, takes the best of many tries. So the
    first look gets four fifths of the level, and the others share the rest: look j gets 1 / (j (j - 1)) of it. All
    together spend no more than the whole.
    """
    share = _FIRST_LOOK if look == 1 else (1.0 - _FIRST_LOOK) / (look * (look - 1))
    return Budget(budget.max_error, 1.0 - share * (1.0 - budget.confidence))


def minimal_accepted(budget: Budget) -> int:
    """The least number of accepted items that can prove anything: so many without one that is wrong."""
    return math.ceil(math.log(budget.level) / math.log1p(-budget.max_error))


def labels_needed(budget: Budget, error_rate: float, power: float = 0.9) -> int | None:
    """How many accepted items prove *budget* with probability *power*, where their true error is *error_rate*.

    It is the number for one threshold; a sequence that passes several in a row, all near `max_error`, needs more.

    Args:
        error_rate: in [0, 1).
        power: in (0, 1).

    Returns:
        None where *error_rate* is not below `max_error`, or so little that more than `MAX_LABELS` were needed.
    """
    if error_rate >= budget.max_error:
        return None

    # Of all numbers of items at which k wrong ones pass, the least has the best chance of no more than k; and that
    # chance grows with k, apart from rounding. So k is doubled until it suffices, and searched for below.
    def suffices(k: int) -> bool:
        return at_most(k, least_trials(k, budget.max_error, budget.level), error_rate) >= power

    high = 1
    while not suffices(high):
        high *= 2
        if high > budget.max_error * MAX_LABELS:
            return None
    least = bisect_left(range(high), True, key=suffices)
    return least_trials(least, budget.max_error, budget.level)


def shortfall(selection: Selection, scores: Scores, budget: Budget) -> str | None:
    """Why *scores* do not prove *budget* and what would, for people; None where they do.

    How many labels would do is told from the error and the share of the surest fifth, as if both were the true ones.
    """
    if selection.threshold is not None:
        return None
    curve = risk_coverage(scores)
    if not len(curve.thresholds):
        return f"none of {scores.items:,} labelled items has a confidence; label items that the stages have scored"
    at = starting_points(curve, 1, (_SUREST_PERCENT,))[0]
    accepted, wrong = int(curve.accepted[at]), int(curve.wrong[at])
    observed = (
        f"{scores.items:,} labelled items do not prove {budget}: "
        f"of the surest {accepted:,}, {wrong:,} are wrong ({wrong / accepted:.2%})"
    )
    unseen = _unseen(scores, float(curve.thresholds[at]))
    if unseen:
        observed += f", {unseen:,} of them because a stage that had to decide never saw them; score all with all stages"
    return f"{observed}. {_remedy(accepted, wrong, scores.items, budget)}"


def _unseen(scores: Scores, threshold: float) -> int:
    """Items that count as wrong at *threshold* because the rule comes to a stage that never saw them."""
    if_always_right = replace(scores, right=np.ones_like(scores.right))
    _, wrong = accepted_and_wrong(if_always_right, np.array([threshold]))
    return int(wrong[0])


def _remedy(accepted: int, wrong: int, items: int, budget: Budget) -> str:
    needed = labels_needed(budget, wrong / accepted)
    if needed is not None:
        return f"At that error, {math.ceil(needed * items / accepted):,} labelled items would be enough."
    if is_rejected(wrong, accepted, budget.max_error, 1.0 - budget.confidence):
        return "No number of labels helps: even they are wrong too often; improve the models, or raise max_error."
    least = math.ceil(minimal_accepted(budget) * items / accepted)
    more = f", and fewer than {least:,} cannot tell whether it is smaller" if items < least else ""
    return f"At that error no number of labels would be enough{more}."


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Stated confidence and accuracy, by equal-width bins of the confidence.

    Attributes:
        confidence: (bins,), the mean of what was stated; NaN where a bin is empty, as in accuracy.
        accuracy: (bins,), the share that was right.
        count: (bins,), items.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15) -> Reliability:
    """How often answers are right that state a certain confidence.

    Args:
        confidence: (n,), in [0, 1]; items without one (NaN) are left out.
        right: (n,), whether each was right.
    """
    known = ~np.isnan(confidence)
    stated, correct = confidence[known], right[known].astype(np.float64)
    places = np.minimum((stated * bins).astype(np.int64), bins - 1)
    count = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is NaN, as documented
        return Reliability(
            np.bincount(places, weights=stated, minlength=bins) / count,
            np.bincount(places, weights=correct, minlength=bins) / count,
            count,
        )
