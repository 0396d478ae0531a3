"""Small drawings for the status page: coordinates for SVG, made here, since a template should not reckon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batching.report import BatchingStatistics, CurvePoint
from gateway.control.pages import milliseconds

WIDTH, HEIGHT = 320, 158
"""Of a drawing, in units of its `viewBox`."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 306, 16, 122

AXES = (_LEFT, _RIGHT, _TOP, _BOTTOM)
"""The edges of what is drawn, inside the room for ticks."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, in units of the drawing."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """What a model's batches take, by size.

    Attributes:
        median: points of a polyline.
        band: points of the polygon from there to the 95th percentile.
        sizes, seconds: ticks of the two axes.
        told: the same in words.
        curve: the same in numbers.
    """

    title: str
    median: str
    band: str
    sizes: tuple[Tick, ...]
    seconds: tuple[Tick, ...]
    told: str
    curve: tuple[CurvePoint, ...]


def model_plots(model: str, batching: BatchingStatistics) -> Sequence[CurvePlot]:
    """The drawings of *model*: of all its batches, and of each length bucket; none where nothing is known."""
    curves = {model: batching.curve}
    for bound, curve in batching.bucket_curves.items():
        curves[f"{model}, any longer items" if bound == "+Inf" else f"{model}, items up to {bound} long"] = curve
    plots = [curve_plot(title, curve) for title, curve in curves.items()]
    return [plot for plot in plots if plot is not None]


def curve_plot(title: str, curve: Sequence[CurvePoint]) -> CurvePlot | None:
    """The drawing of *curve*; None where nothing is known, or of one size alone."""
    if len(curve) < 2:
        return None
    highest_s = max(point.cautious_s for point in curve) or 1.0
    smallest, largest = curve[0].size, curve[-1].size

    def x(size: int) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (size - smallest) / (largest - smallest), 1)

    def y(seconds: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * seconds / highest_s, 1)

    median = [(x(point.size), y(point.typical_s)) for point in curve]
    tail = [(x(point.size), y(point.cautious_s)) for point in curve]
    one, most = curve[0], curve[-1]
    return CurvePlot(
        title=title,
        median=_points(median),
        band=_points([*median, *reversed(tail)]),
        sizes=tuple(Tick(x(point.size), str(point.size)) for point in _spaced(curve)),
        seconds=tuple(
            Tick(y(part * highest_s), milliseconds(part * highest_s) if part else "0") for part in (0, 0.5, 1)
        ),
        told=f"{title}: a batch of {one.size} takes {milliseconds(one.typical_s)}, one of {most.size} "
        f"{milliseconds(most.typical_s)}; 95 % of them up to {milliseconds(one.cautious_s)} and "
        f"{milliseconds(most.cautious_s)}",
        curve=tuple(curve),
    )


def _spaced(curve: Sequence[CurvePoint]) -> Sequence[CurvePoint]:
    """Those whose sizes fit side by side below the axis: the smallest, and those from a quarter of the largest on."""
    return [point for point in curve if point is curve[0] or point.size * 4 >= curve[-1].size]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
