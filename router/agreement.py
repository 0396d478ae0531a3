"""How far people who label can be relied on: how often they are right, and how far they agree beyond chance.

Labels are names (nominal): two are alike or they are not. Everything comes with an interval, since what few items say
of somebody is easily taken for more than it is.

**Perfect agreement.** The usual intervals of kappa and alpha shrink to a point where nobody has disagreed yet, however
few items that was. There the exact bound on the share of items that might differ takes their place.

Sources: J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20, 1960;
J. L. Fleiss, J. Cohen and B. S. Everitt, "Large sample standard errors of kappa and weighted kappa", Psychological
Bulletin 72, 1969 (the variance); K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011 (alpha); C. J.
Clopper and E. S. Pearson, Biometrika 26, 1934 (rates).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from router.binomial import two_sided, upper_bound

RESAMPLES = 2000
"""Bootstrap samples of an alpha."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the interval that holds the true one.

    Attributes:
        value: None where nothing is known: no items, or only one label was ever given.
        low, high: the interval's ends; the widest there are where nothing is known.
        items: that it rests on.
    """

    value: float | None
    low: float
    high: float
    items: int


def rate(count: int, items: int, level: float = 0.95) -> Estimate:
    """The share that *count* of *items* is, with its exact interval (Clopper-Pearson)."""
    return Estimate(count / items if items else None, *two_sided(count, items, level), items)


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]], level: float = 0.95) -> Estimate:
    """Cohen's kappa of two people: 1 is full agreement, 0 what chance gives with labels as frequent as theirs.

    Args:
        pairs: an item each: what the one said, and what the other said.
        level: of the interval, which is a large-sample one.
    """
    count = len(pairs)
    labels = {label: index for index, label in enumerate(dict.fromkeys(label for pair in pairs for label in pair))}
    table = np.zeros((len(labels), len(labels)))
    for (one, other), times in Counter(pairs).items():
        table[labels[one], labels[other]] = times
    if len(labels) < 2:
        return Estimate(None, -1.0, 1.0, count)
    shares = table / count
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    agreed, by_chance = float(np.trace(shares)), float(rows @ columns)
    kappa = (agreed - by_chance) / (1.0 - by_chance)
    if np.trace(table) == count:
        return Estimate(1.0, _when_all_agree(count, 1.0 - by_chance, level), 1.0, count)
    half = NormalDist().inv_cdf(_one_sided(level)) * math.sqrt(_variance(shares, kappa, by_chance) / count)
    return Estimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), count)


def _variance(shares: NDArray[np.float64], kappa: float, by_chance: float) -> float:
    """Of kappa times the number of items: equation 13 of Fleiss, Cohen and Everitt.

    Written as the mean square of deviations, which does not lose its digits where they are all but nought.
    """
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    influence = np.eye(len(shares)) - (1.0 - kappa) * (columns[:, None] + rows[None, :])
    mean = float((shares * influence).sum())
    return float((shares * (influence - mean) ** 2).sum()) / (1.0 - by_chance) ** 2


def krippendorff_alpha(
    items: Iterable[Sequence[Hashable]], rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Krippendorff's alpha for nominal labels, of any number of people, who need not all have labelled all items.

    Args:
        items: the labels that each was given; those with fewer than two say nothing.
        rng: draws the items anew, for the interval (percentiles).
        level: of the interval.
        resamples: how often.
    """
    # What matters of an item is how often it was given each label, and of that there are few kinds.
    kinds = Counter(frozenset(Counter(labels).items()) for labels in items if len(labels) > 1)
    count = kinds.total()
    names = {label: index for index, label in enumerate(dict.fromkeys(label for kind in kinds for label, _ in kind))}
    given = np.zeros((len(kinds), len(names)))
    for row, kind in enumerate(kinds):
        for label, often in kind:
            given[row, names[label]] = often
    if len(names) < 2:
        return Estimate(None, -1.0, 1.0, count)
    times = np.array(list(kinds.values()), dtype=np.float64)
    alpha = float(_alphas(times[None, :], given)[0])
    if (np.count_nonzero(given, axis=1) == 1).all():
        by_chance = float(_expected(times[None, :], given)[0])
        return Estimate(1.0, _when_all_agree(count, by_chance, level), 1.0, count)
    drawn = rng.multinomial(count, times / count, size=resamples).astype(np.float64)
    found = _alphas(drawn, given)
    low, high = np.quantile(found[np.isfinite(found)], [1.0 - _one_sided(level), _one_sided(level)])
    return Estimate(alpha, float(low), float(high), count)


def _alphas(times: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,), alpha of each; NaN where it has only one label.

    Args:
        times: (samples, kinds), how often each kind of item is there.
        given: (kinds, labels), how often an item of the kind was given each label.
    """
    raters = given.sum(axis=1)
    differing = (raters**2 - (given**2).sum(axis=1)) / (raters - 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = times @ differing / (times @ raters)
        expected = _expected(times, given)
        return np.where(expected > 0.0, 1.0 - observed / expected, np.nan)


def _expected(times: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,), the share of all pairs of labels, whichever item they are of, that differ."""
    by_label = times @ given
    labels = by_label.sum(axis=1)
    found: NDArray[np.float64] = (labels**2 - (by_label**2).sum(axis=1)) / (labels * (labels - 1.0))
    return found


def _when_all_agree(items: int, differing_by_chance: float, level: float) -> float:
    """The least agreement that *items*, on none of which anybody differs, do not contradict."""
    return max(-1.0, 1.0 - upper_bound(0, items, _one_sided(level)) / differing_by_chance)


def _one_sided(level: float) -> float:
    return (1.0 + level) / 2.0
