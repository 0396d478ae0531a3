"""Goodput over load, drawn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any


def draw(parts: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A row for each model and trace of *parts*, a column for each objective, a line for each side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines = [(part, trace) for part in parts for trace in dict.fromkeys(row["trace"] for row in part["rows"])]
    objectives = sorted({row["objective"] for part in parts for row in part["rows"]})
    size = (4.4 * len(objectives), 3.3 * len(lines) + 0.4)
    figure, grid = pyplot.subplots(len(lines), len(objectives), figsize=size, squeeze=False, layout="constrained")
    for (i, (part, trace)), (j, objective) in product(enumerate(lines), enumerate(objectives)):
        axes = grid[i][j]
        rows = [row for row in part["rows"] if (row["trace"], row["objective"]) == (trace, objective)]
        for side in rows[0]["shares"] if rows else ():
            points = [(row["load"], [row["load"] * share for share in row["shares"][side]]) for row in rows]
            loads, medians = [load for load, _ in points], [statistics.median(found) for _, found in points]
            spread = [[m - min(f) for m, (_, f) in zip(medians, points, strict=True)],
                      [max(f) - m for m, (_, f) in zip(medians, points, strict=True)]]  # fmt: skip
            axes.errorbar(loads, medians, spread, marker="o", markersize=4, capsize=2, label=side)
        axes.set_title(f"{part['kind']}: {part['model']}\n{trace}, objective {objective:g} x one", fontsize=8)
        axes.set_xlabel("offered / capacity", fontsize=8)
        axes.set_ylabel("in time / capacity", fontsize=8)
        axes.grid(visible=True, alpha=0.25)
    grid[0][-1].legend(fontsize=8)
    figure.suptitle("Goodput of real servers (medians and ranges over rounds)", fontsize=10)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
