"""How far people who label can be relied on: how often they are right, and how far they agree beyond chance.

Labels are names (nominal): two are alike or they are not. Everything comes with an interval, since what few items say
of somebody is easily taken for more than it is.

**Perfect agreement.** The usual intervals of kappa and alpha shrink to a point where nobody has disagreed yet, however
few items that was. There the exact bound on the share of items that might differ takes their place.

**Agreement on one label alone**, or on none: somebody who always says the same, or a handful of items. There too they
shrink, often to a point, since all that was seen moves agreement and chance alike. What takes their place are exact
bounds on the share agreed and on how often each label is given, which hold all at once, carried through the formula.
Where these say nothing, as of one item, neither does the interval.

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
        level: of the interval, which is a large-sample one where people agreed on two labels or more.
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
    low, high = max(-1.0, kappa - half), min(1.0, kappa + half)
    if np.count_nonzero(np.diag(table)) < 2:
        least, most = _exact_kappa(table.astype(np.int64), level)
        low, high = min(low, least), max(high, most)
    return Estimate(kappa, low, high, count)


def _exact_kappa(table: NDArray[np.int64], level: float) -> tuple[float, float]:
    """The kappas that *table* does not contradict, by bounds on its diagonal's share and on those of its margins."""
    count, agreed = int(table.sum()), int(np.trace(table))
    each = _of_each(level, 1 + 2 * len(table))
    shares_agreed = two_sided(agreed, count, each)
    rows, columns = _bounds(table.sum(axis=1), count, each), _bounds(table.sum(axis=0), count, each)
    by_chance = (rows * columns).sum(axis=0)
    return (
        _beyond_chance(1.0 - shares_agreed[0], 1.0 - float(by_chance[1])),
        _beyond_chance(1.0 - shares_agreed[1], 1.0 - float(by_chance[0])),
    )


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
        rng: draws the items anew, for the interval: percentiles, where people agreed on two labels or more.
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
    low, high = np.quantile(found[np.isfinite(found)], [1.0 - _one_sided(level), _one_sided(level)]).tolist()
    if low == high or np.count_nonzero((given > 1.0).any(axis=0)) < 2:
        least, most = _exact_alpha(times, given, level)
        low, high = min(low, least), max(high, most)
    return Estimate(alpha, min(low, alpha), max(high, alpha), count)


def _exact_alpha(times: NDArray[np.float64], given: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The alphas that labels do not contradict, by bounds on the share that differs and on that of every label.

    An item counts once, however many labels it was given: they are not independent.
    """
    count, labels = int(times.sum()), float(times @ given.sum(axis=1))
    each = _of_each(level, 1 + given.shape[1])
    differing = _bounds(count * _observed(times[None, :], given), count, each)[0]
    shares = _bounds(count * (times @ given) / labels, count, each)
    most, least = (1.0 - (shares**2).sum(axis=0)) * labels / (labels - 1.0)
    return _beyond_chance(float(differing[1]), float(least)), _beyond_chance(float(differing[0]), min(1.0, float(most)))


def _alphas(times: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,), alpha of each; NaN where it has only one label.

    Args:
        times: (samples, kinds), how often each kind of item is there.
        given: (kinds, labels), how often an item of the kind was given each label.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = _expected(times, given)
        return np.where(expected > 0.0, 1.0 - _observed(times, given) / expected, np.nan)


def _observed(times: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,), the share of pairs of labels of one item that differ."""
    raters = given.sum(axis=1)
    differing = (raters**2 - (given**2).sum(axis=1)) / (raters - 1.0)
    found: NDArray[np.float64] = times @ differing / (times @ raters)
    return found


def _expected(times: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,), the share of all pairs of labels, whichever item they are of, that differ."""
    by_label = times @ given
    labels = by_label.sum(axis=1)
    found: NDArray[np.float64] = (labels**2 - (by_label**2).sum(axis=1)) / (labels * (labels - 1.0))
    return found


def _when_all_agree(items: int, differing_by_chance: float, level: float) -> float:
    """The least agreement that *items*, on none of which anybody differs, do not contradict."""
    return max(-1.0, 1.0 - upper_bound(0, items, _one_sided(level)) / differing_by_chance)


def _bounds(counts: NDArray[np.int64] | NDArray[np.float64], items: int, level: float) -> NDArray[np.float64]:
    """(counts, 2), the exact interval of the share that each of *counts* is of *items*; a broken count's is wider."""
    ends = [(math.floor(count), math.ceil(count)) for count in counts.tolist()]
    exact = {count: two_sided(count, items, level) for pair in ends for count in pair}
    return np.array([(exact[least][0], exact[most][1]) for least, most in ends])


def _of_each(level: float, intervals: int) -> float:
    """The level of each of *intervals* that together have *level* (Bonferroni)."""
    return 1.0 - (1.0 - level) / intervals


def _beyond_chance(differing: float, differing_by_chance: float) -> float:
    """Agreement, -1 at the least, as it is wherever all labels might be alike anyhow."""
    return max(-1.0, 1.0 - differing / differing_by_chance) if differing_by_chance > 0.0 else -1.0


def _one_sided(level: float) -> float:
    return (1.0 + level) / 2.0
