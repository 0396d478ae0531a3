"""How often reviewers are right, and how far they agree, from what several of them said of the same items.

**Which opinions count.** Only the first two on an item. A third is asked for where these two differ, so that whoever
gives many of those would look worse than they are. Gold items count for `gold` alone, and whoever adjudicates has seen
the others' opinions, and agrees with nobody by that.

**What accuracy is measured against**: the label of the one who adjudicated, else the one that most have given. Items
where nobody would decide a difference are left out: there only those on which all agree would have a true label. While
a difference waits to be decided, its item is in `pending`, and in nobody's accuracy.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from gateway.store.contract import Opinion, OpinionKind, Store
from router.agreement import Estimate, cohen_kappa, krippendorff_alpha, rate

DAY_S = 86_400.0
RECENT_S = 90 * DAY_S
"""How far back figures look, where nobody says."""

LEVEL = 0.95
"""Of all intervals."""

_FIRST_TWO = (1, 2)


@dataclass(frozen=True, slots=True)
class ReviewerRow:
    """One reviewer.

    Attributes:
        opinions: that they gave, of gold items too.
        gold: how often they knew the known answer.
        accuracy: how often they said what was settled by the others, or by who adjudicated.
        agreement: how often the other one who was asked said the same.
    """

    reviewer: str
    opinions: int
    gold: Estimate
    accuracy: Estimate
    agreement: Estimate


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two reviewers, and the items that both were asked about."""

    reviewers: tuple[str, str]
    agreement: Estimate
    kappa: Estimate


@dataclass(frozen=True, slots=True)
class Figures:
    """All of them.

    Attributes:
        alpha: Krippendorff's, over all items that two people labelled.
        pending: items on which opinions differ, and that somebody is to decide.
    """

    reviewers: tuple[ReviewerRow, ...]
    pairs: tuple[PairRow, ...]
    alpha: Estimate
    pending: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it (Any)."""
        return {
            "level": LEVEL,
            "reviewers": [asdict(row) for row in self.reviewers],
            "pairs": [
                {
                    "reviewers": list(row.reviewers),
                    "agreement": asdict(row.agreement),
                    "cohen_kappa": asdict(row.kappa),
                }
                for row in self.pairs
            ],
            "krippendorff_alpha": asdict(self.alpha),
            "pending": self.pending,
        }

    def text(self) -> str:
        """For a terminal."""
        if not self.reviewers:
            return (
                "no item was labelled by two people, and no gold item by anybody; see `opinions`, `second_opinion` and "
                "`gold` of a route's `human`"
            )
        table: list[tuple[str, ...]] = [("reviewer", "opinions", "gold", "accuracy", "agreement")]
        table += [
            (row.reviewer, f"{row.opinions:,}", *map(_share, (row.gold, row.accuracy, row.agreement)))
            for row in self.reviewers
        ]
        lines = _aligned(table)
        if self.pairs:
            pairs = [("pair", "items", "agreement", "Cohen's kappa")]
            for pair in self.pairs:
                told = (_share(pair.agreement), _number(pair.kappa))
                pairs.append((" and ".join(pair.reviewers), f"{pair.kappa.items:,}", *told))
            lines += ["", *_aligned(pairs)]
        lines += ["", f"Krippendorff's alpha over {self.alpha.items:,} items: {_number(self.alpha)}"]
        if self.pending:
            lines.append(f"{self.pending:,} items on which opinions differ wait for somebody to decide")
        lines.append(f"in brackets: {LEVEL:.0%} intervals")
        return "\n".join(lines)


def _share(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.1%} of {estimate.items:,} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _number(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unknown: everybody gave the same label" if estimate.items else "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


async def read_figures(store: Store, tenant: str | None, queue: str | None, since_s: float) -> Figures:
    """The figures of what was said since *since_s* (Unix time, seconds), in *queue*, for *tenant*; None: in all."""
    said = await store.opinions(tenant, queue, since_s)
    return await asyncio.to_thread(figures_of, said)


def figures_of(said: Iterable[Opinion]) -> Figures:
    """What *said* comes to."""
    every = list(said)
    gold: defaultdict[str, list[bool]] = defaultdict(list)
    right: defaultdict[str, list[bool]] = defaultdict(list)
    agreed: defaultdict[str, list[bool]] = defaultdict(list)
    pairs: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    pending = 0
    for opinion in every:
        if opinion.kind is OpinionKind.GOLD:
            gold[opinion.reviewer].append(opinion.label == opinion.truth)
    for opinions in _by_item(every):
        first_two = sorted((one for one in opinions if one.number in _FIRST_TWO), key=lambda one: one.reviewer)
        if len(first_two) == len(_FIRST_TWO):
            one, other = first_two
            pairs[one.reviewer, other.reviewer].append((one.label, other.label))
            for each in first_two:
                agreed[each.reviewer].append(one.label == other.label)
        settled = settled_label(opinions)
        if settled is not None:
            for each in first_two:
                right[each.reviewer].append(each.label == settled)
        pending += settled is None and opinions[0].settles and len({one.label for one in opinions}) > 1
    given = Counter(opinion.reviewer for opinion in every)
    return Figures(
        reviewers=tuple(
            ReviewerRow(name, given[name], *(_rate(found[name]) for found in (gold, right, agreed)))
            for name in sorted(given)
        ),
        pairs=tuple(
            PairRow(names, _rate([one == other for one, other in labels]), cohen_kappa(labels, LEVEL))
            for names, labels in sorted(pairs.items())
        ),
        alpha=krippendorff_alpha(
            [labels for found in pairs.values() for labels in found], np.random.default_rng(0), LEVEL
        ),
        pending=pending,
    )


def settled_label(opinions: Sequence[Opinion]) -> str | None:
    """What is taken for true of the item that *opinions*, all there are, were given on; None where nothing is."""
    for opinion in opinions:
        if opinion.kind is OpinionKind.ADJUDICATION:
            return opinion.label
    (label, most), *others = Counter(opinion.label for opinion in opinions).most_common()
    if not opinions[0].settles or most < 2 or (others and others[0][1] == most):
        return None
    return label


def _by_item(said: Iterable[Opinion]) -> Iterable[list[Opinion]]:
    """*said* of items that are no gold, item by item, in the order they were given."""
    of_items = [opinion for opinion in said if opinion.kind is not OpinionKind.GOLD]
    of_items.sort(key=lambda one: (one.subject, one.item, one.number or 0))
    for _, opinions in groupby(of_items, key=lambda one: (one.subject, one.item)):
        yield list(opinions)


def _rate(hits: Sequence[bool]) -> Estimate:
    return rate(sum(hits), len(hits), LEVEL)
