"""Cold requests over the memory that they are bought with, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(runs: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel for each trace of *runs*, a line for each policy; both axes relative to 10 minutes of keep-alive."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, len(runs), figsize=(4.6 * len(runs), 4.0), squeeze=False, layout="constrained")
    for axes, run in zip(grid[0], runs, strict=True):
        for name, points in run["policies"].items():
            found = sorted((point["memory"], point["cold"]) for point in points)
            axes.plot(*zip(*found, strict=True), marker="o", markersize=4, label=name)
        axes.axvline(1.0, color="grey", linewidth=0.8)
        axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xlim(0.0, 2.2)
        axes.set_ylim(0.0, 2.0)
        axes.set_title(run["trace"], fontsize=9)
        axes.set_xlabel(f"{run['unit']}, relative to 10 min of keep-alive", fontsize=8)
        axes.set_ylabel("cold requests, relative", fontsize=8)
        axes.grid(visible=True, alpha=0.25)
    grid[0][-1].legend(fontsize=8)
    figure.suptitle("Cold requests and the memory they cost (goal: at most 0.5 at 1.0)", fontsize=10)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
