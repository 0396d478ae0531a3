"""The results of `loadtests.experiments.certification` as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl

from loadtests.experiments.scores_data import Population
from router.certification import reliability, risk_coverage

mpl.use("Agg")

from matplotlib import pyplot as plt

Row: TypeAlias = Mapping[str, Any]
"""A row of the results (Any: JSON)."""


_BY_STAGE = (
    "Certifying as one promises something of all accepted answers, not of each stage's: the stage that sees the hard "
    "items may be wrong more often than the budget says while the route is not."
)


def text_of(report: Mapping[str, Any]) -> str:
    """The results as Markdown: what they come to, then a table for each population, system and budget."""
    parts = [
        "# Certified thresholds: kept promises, and coverage",
        f"{report['splits']:,} random splits each, seed {report['seed']}, {report['confidence']:.0%} confidence; "
        f"{report['machine']}, Python {report['python']}, "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f"; {report['seconds']} s. Written by `python -m loadtests.experiments.certification`, which says how.",
        _table(
            ["table", "items", "fitted the calibrators", "stages", "right"],
            (
                [
                    table["name"],
                    f"{table['items']:,}",
                    f"{table['fitted_on']:,}",
                    ", ".join(table["stages"]),
                    ", ".join(f"{share:.1%}" for share in table["accuracy"]),
                ]
                for table in report["tables"]
            ),
        ),
        "## Beside SGR",
        "Coverage must be at least SGR's, and 1.1 times it where SGR's is under 0.8 of the oracle's.",
        _table(
            ["table", "system", "max_error", "labels", "method", "SGR / oracle", "times SGR", "aimed at", ""],
            (_goal(goal) for goal in report["goals"]),
        ),
    ]
    for (name, system, max_error), rows in groupby(_sorted(report["rows"]), key=_panel):
        by_stage = system == "practice"
        parts += [f"## {name}, {system}, max_error {max_error:.0%}", _rows(list(rows), by_stage)]
        if by_stage:
            parts.append(_BY_STAGE)
    return "\n\n".join(parts) + "\n"


def _panel(row: Row) -> tuple[str, str, float]:
    return row["table"], row["system"], row["max_error"]


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (*_panel(row), row["labels"]))


def _goal(goal: Row) -> list[str]:
    verdict = "" if goal["reached"] else "missed"
    return [
        goal["table"],
        goal["system"],
        f"{goal['max_error']:.0%}",
        f"{goal['labels']:,}",
        goal["who"],
        f"{goal['sgr_of_oracle']:.2f}",
        "-" if goal["times_sgr"] is None else f"{goal['times_sgr']:.3f}",
        f"{goal['aimed_at']:.1f}",
        verdict if goal["keeps_promise"] else "breaks its promise",
    ]


def _rows(rows: Sequence[Row], by_stage: bool) -> str:
    heads = ["labels", "who", "over budget", "95 % interval", "coverage", "5 to 95 %", "of the oracle's", "nothing"]
    stages = ["a stage over budget"] if by_stage else []
    return _table([*heads, *stages], (_cells(row, by_stage) for row in rows))


def _cells(row: Row, by_stage: bool) -> list[str]:
    violations = f"{row['violations'] / row['splits']:.1%}"
    cells = [
        f"{row['labels']:,}",
        row["who"],
        violations if row["keeps_promise"] else f"**{violations}**",
        f"{row['violations_low']:.1%} to {row['violations_high']:.1%}",
        f"{row['coverage']:.3f}",
        f"{row['coverage_p5']:.3f} to {row['coverage_p95']:.3f}",
        f"{row['coverage'] / row['oracle']:.2f}" if row["oracle"] else "-",
        f"{row['nothing']:.1%}",
    ]
    return [*cells, f"{row['stage_violations'] / row['splits']:.1%}"] if by_stage else cells


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_methods(report: Mapping[str, Any], place: Path) -> None:
    """For every table and budget of the cascade, method by method: coverage above, and splits over budget below."""
    panels = [(key, list(rows)) for key, rows in groupby(_sorted(report["rows"]), key=_panel) if key[1] == "cascade"]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(5.5 * len(panels), 8), layout="constrained", squeeze=False, sharex="col"
    )
    for (upper, lower), ((name, _, max_error), rows) in zip(axes.T, panels, strict=True):
        methods = list(dict.fromkeys(row["who"] for row in rows))
        for number, (labels, some) in enumerate(groupby(rows, key=lambda row: row["labels"])):
            _draw_size(upper, lower, list(some), number / 4 - 0.25, f"{labels:,} labels")
        upper.axhline(100 * rows[0]["oracle"], color="0.5", linewidth=1, label="oracle")
        upper.set(title=f"{name}, cascade, max_error {max_error:.0%}", ylabel="mean coverage, %")
        upper.legend(fontsize="small")
        lower.axhline(100 * (1 - report["confidence"]), color="C3", linestyle="--", linewidth=1, label="allowed")
        lower.set(ylabel="splits over budget, %, with 95 % interval", yscale="symlog", ylim=(0, 100))
        lower.set_xticks(range(len(methods)), methods, rotation=40, ha="right")
        lower.legend(fontsize="small")
    figure.savefig(place, dpi=110)
    plt.close(figure)


def _draw_size(upper: Any, lower: Any, rows: Sequence[Row], shift: float, label: str) -> None:
    """One number of labels, a place for each method. Any: matplotlib's axes."""
    places = [number + shift for number in range(len(rows))]
    upper.bar(places, [100 * row["coverage"] for row in rows], width=0.25, label=label)
    shares = [100 * row["violations"] / row["splits"] for row in rows]
    below = [share - 100 * row["violations_low"] for share, row in zip(shares, rows, strict=True)]
    above = [100 * row["violations_high"] - share for share, row in zip(shares, rows, strict=True)]
    # Rounding may leave a length of -1e-13.
    lengths = [[max(0.0, length) for length in side] for side in (below, above)]
    lower.errorbar(places, shares, yerr=lengths, fmt="o", markersize=4, capsize=2, label=label)


def draw_curves(populations: Sequence[Population], max_errors: Mapping[str, Sequence[float]], place: Path) -> None:
    """Every population's risk over coverage, and the reliability of its calibrated stages."""
    figure, axes = plt.subplots(
        2, len(populations), figsize=(5.5 * len(populations), 9), layout="constrained", squeeze=False
    )
    for (upper, lower), population in zip(axes.T, populations, strict=True):
        for system, part in {"strong alone": population.stage(-1), "cascade": population}.items():
            curve = risk_coverage(part.scores)
            upper.plot(100 * curve.coverage, 100 * curve.risk, label=system)
        for max_error in max_errors[population.name]:
            upper.axhline(100 * max_error, color="0.6", linestyle="--", linewidth=1)
        upper.set(title=population.name, xlabel="coverage, %", ylabel="wrong of accepted, %")
        upper.legend()
        lower.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for stage, stated, right in zip(
            population.stages, population.scores.confidence, population.scores.right, strict=True
        ):
            found = reliability(stated, right)
            lower.scatter(
                found.confidence, found.accuracy, s=600 * found.count / found.count.max(), alpha=0.6, label=stage
            )
        lower.set(xlabel="calibrated confidence", ylabel="share right; areas are numbers of items")
        lower.legend()
    figure.savefig(place, dpi=110)
    plt.close(figure)
