"""The picture of a result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.peers.goals import Cell
from loadtests.peers.servers import SERVERS, Form

_PANELS = (
    ("rate", "right replies a second"),
    ("p50_ms", "p50, ms"),
    ("p99_ms", "p99, ms"),
    ("server_cpu_us", "server CPU per reply, µs"),
)
_STYLES = ("-", "--")


def lines(cells: Sequence[Cell], form: Form, figure: str) -> dict[str, list[tuple[int, float]]]:
    """By server, the medians of *figure* over the numbers of clients, each out of the first comparison that has it."""
    found: dict[str, dict[int, float]] = {}
    for cell in cells:
        if cell.form is form and cell.clients is not None:
            for name, samples in cell.samples.items():
                median = statistics.median(getattr(sample, figure) for sample in samples)
                found.setdefault(name, {}).setdefault(cell.clients, median)
    return {name: sorted(points.items()) for name, points in found.items()}


def draw(cells: Sequence[Cell], title: str, file: Path, order: Sequence[str] = tuple(SERVERS)) -> None:
    """Closed loops: a row for each form, a column for each figure.

    Args:
        order: the servers', by which they get their colours.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    forms = [form for form in Form if any(cell.form is form for cell in cells)]
    size = (4.6 * len(_PANELS), 4.0 * len(forms) + 0.5)
    figure, grid = pyplot.subplots(len(forms), len(_PANELS), figsize=size, squeeze=False, layout="constrained")
    for row, form in zip(grid, forms, strict=True):
        for axes, (name, label) in zip(row, _PANELS, strict=True):
            _panel(axes, lines(cells, form, name), f"{form}: {label}", order)
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _panel(  # Any: untyped pyplot objects
    axes: Any, found: dict[str, list[tuple[int, float]]], title: str, order: Sequence[str]
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    clients = sorted({point for points in found.values() for point, _ in points})
    for name, points in found.items():
        place = order.index(name)
        style = _STYLES[place // 10]
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=f"C{place % 10}", label=name)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("clients")
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(each) for each in clients])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="both", alpha=0.25)
