"""What a certification came to: for a terminal, for programs, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gateway.certify.files import ScoresError
from router.certificate import Certificate
from router.certification import (
    Budget,
    Reliability,
    RiskCoverage,
    Scores,
    Selection,
    reliability,
    risk_coverage,
    shortfall,
    stage_shares,
)

_POINTS = 200
"""Most points of a curve in JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One certification.

    Attributes:
        source: what the labels are, in words.
        certificate: where one was issued.
        tested: the budget that the threshold was chosen under: stricter where labels may be looked at again.
        evidence: what the labels are, as the certificate says it.
        from_store: they are of the store, so that it is known who gave them.
    """

    source: str
    stages: tuple[str, ...]
    scores: Scores
    budget: Budget
    selection: Selection
    certificate: Certificate | None = None
    tested: Budget | None = None
    evidence: str = ""
    from_store: bool = False

    @property
    def coverage(self) -> float:
        """Share of the items that are accepted."""
        return self.selection.accepted / self.selection.items if self.selection.items else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it (Any), with curves of at most `_POINTS` points."""
        selection = self.selection
        return {
            "source": self.source,
            "certified": selection.threshold is not None,
            "max_error": self.budget.max_error,
            "confidence": self.budget.confidence,
            "threshold": selection.threshold,
            "items": selection.items,
            "accepted": selection.accepted,
            "wrong": selection.wrong,
            "coverage": self.coverage,
            "bound": selection.bound,
            "by_stage": dict(zip(self.stages, self._shares(), strict=True)),
            "shortfall": shortfall(selection, self.scores, self.tested or self.budget),
            "certificate": self.certificate.to_dict() if self.certificate else None,
            "risk_coverage": _curve(risk_coverage(self.scores)),
            "reliability": {name: _bins(bins) for name, bins in zip(self.stages, self._reliability(), strict=True)},
        }

    def text(self) -> str:
        """For a terminal."""
        selection, budget = self.selection, self.budget
        many = "stages" if len(self.stages) > 1 else "stage"
        names = ", ".join(filter(None, self.stages))
        lines = [
            f"{self.source}: {selection.items:,} labelled items, {len(self.stages)} {many}" + (names and f" ({names})")
        ]
        if self.evidence:
            lines.append(f"evidence: {self.evidence}")
        if selection.threshold is None:
            lines.append(f"not certified: {shortfall(selection, self.scores, self.tested or budget)}")
            return "\n".join(lines)
        lines.append(
            f"certified: of what is accepted at most {budget.max_error:.2%} is wrong, {budget.confidence:.1%} sure"
        )
        lines.append(
            f"accept from confidence {selection.threshold:.6g} on: {self.coverage:.1%} of the items "
            f"({selection.accepted:,} accepted, {selection.wrong:,} wrong, "
            f"{selection.wrong / selection.accepted:.2%}; upper limit there {selection.bound:.2%})"
        )
        if self.from_store and self.certificate is not None:
            lines.append(f"labels: {_told_of_labels(self.certificate)}")
        if len(self.stages) > 1:
            shares = zip(self.stages, self._shares(), strict=True)
            people = 1.0 - self.coverage
            lines.append("answered by " + ", ".join(f"{n} {s:.1%}" for n, s in shares) + f", people {people:.1%}")
        return "\n".join(lines)

    def draw(self, place: Path) -> None:
        """Reliability of every stage, and the error over the coverage with the chosen point, as a picture.

        Raises:
            ScoresError: matplotlib is not installed, or cannot write such a file.
        """
        try:
            import_module("matplotlib").use("Agg")
            pyplot = import_module("matplotlib.pyplot")
        except ImportError as error:
            raise ScoresError("plots need matplotlib: pip install 'pointsman[certify]'") from error
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
        _draw_reliability(left, self.stages, self._reliability())
        _draw_risk(right, risk_coverage(self.scores), self)
        try:
            figure.savefig(place, dpi=120)
        except (OSError, ValueError) as error:
            raise ScoresError(f"{place} cannot be written: {error}") from error
        finally:
            pyplot.close(figure)

    def _shares(self) -> Sequence[float]:
        threshold = self.selection.threshold
        return [0.0] * len(self.stages) if threshold is None else stage_shares(self.scores, threshold)

    def _reliability(self) -> list[Reliability]:
        return [
            reliability(np.where(ran, confidence, np.nan), right)
            for confidence, right, ran in zip(self.scores.confidence, self.scores.right, self.scores.ran, strict=True)
        ]


def _told_of_labels(certificate: Certificate) -> str:
    """How far the labels can be relied on, in words."""
    found = certificate.disagreement
    if found is None:
        return (
            "no accepted item was labelled by a second person, so that nobody knows how often labels are wrong; "
            "the error is one against these labels (see `second_opinion` of `human`)"
        )
    seen = f"of {found.items:,} accepted ones that a second person labelled, {found.differing:,} differ"
    if found.is_proven:
        return f"{seen}; all were to be labelled twice, and an item is wrong where the two differ: the limits count it"
    return (
        f"{seen} ({found.differing / found.items:.2%}; at most {found.limit:.2%}); the error is against the labels; "
        f"against what both would say, its upper limit there is {certificate.bound_with_labels:.2%}"
    )


def _curve(curve: RiskCoverage) -> dict[str, list[float]]:
    last = len(curve.thresholds) - 1
    picked = np.unique(np.linspace(0, last, min(_POINTS, last + 1)).round().astype(int)).tolist()
    return {
        "threshold": [float(curve.thresholds[i]) for i in picked],
        "coverage": [float(curve.coverage[i]) for i in picked],
        "risk": [float(curve.risk[i]) for i in picked],
    }


def _bins(bins: Reliability) -> dict[str, list[Any]]:
    held = bins.count > 0
    return {
        "confidence": bins.confidence[held].tolist(),
        "accuracy": bins.accuracy[held].tolist(),
        "count": bins.count[held].tolist(),
    }


# Any, below: matplotlib's axes.


def _draw_reliability(axes: Any, stages: Sequence[str], found: Sequence[Reliability]) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1, label="calibrated")
    for name, bins in zip(stages, found, strict=True):
        held = bins.count > 0
        area = 4 + 160 * bins.count[held] / bins.count.max()  # a bin of few items may lie anywhere
        axes.scatter(bins.confidence[held], bins.accuracy[held], s=area, alpha=0.7, label=name or "stage")
    axes.set(
        xlabel="stated confidence",
        ylabel="share that was right",
        title="Reliability (area: items)",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(loc="upper left")


def _draw_risk(axes: Any, curve: RiskCoverage, report: Report) -> None:
    axes.plot(100 * curve.coverage, 100 * curve.risk, label="error of what is accepted")
    axes.axhline(100 * report.budget.max_error, color="0.5", linestyle="--", linewidth=1, label="max_error")
    selection = report.selection
    if selection.threshold is not None:
        observed = 100 * selection.wrong / selection.accepted
        above = [[0.0], [100 * selection.bound - observed]]
        label = f"certified: from {selection.threshold:.4g} on"
        axes.errorbar([100 * report.coverage], [observed], yerr=above, fmt="o", color="C3", capsize=4, label=label)
    axes.set(xlabel="accepted, % of items", ylabel="wrong, % of accepted", title="Risk and coverage", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
