"""From what a model says of itself to P(the stage is right): calibrators, how they are fitted, and their files.

A calibrator is fitted on labels of a split of its own (the *fit* split), never on those that choose or certify a
threshold: isotonic regression fitted on the certifying labels broke its bound in a fifth of simulated draws.

Two forms, both monotone, so that neither changes the order in which a stage trusts its items (temperature keeps the
best class of an item as it is, isotonic regression keeps the order of the measured scores):

- `Temperature` divides the log-probabilities by T: one parameter, for probabilities that are over- or underconfident
  throughout. It needs the probabilities themselves and measures their maximum.
- `Isotonic` maps any measured score through a non-decreasing, piecewise linear curve: needs a thousand labels or so,
  and repairs any monotone distortion, of scores that are no probabilities too.

Rejected: Platt scaling (assumes a sigmoid distortion that softmax maxima do not have), and scikit-learn as a runtime
dependency for forty lines (`make demo` trains with it; the gateway serves without).

Sources: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (temperature, expected calibration
error); B. Zadrozny and C. Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
KDD 2002 (isotonic); R. E. Barlow et al., "Statistical Inference under Order Restrictions", 1972 (pool adjacent
violators).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from backends.contract import Tensors
from router.confidence import Kind, Measure, measure, probabilities

FORMAT = "pointsman-calibration/1"

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
"""Bounds of a fit: beyond them the labels say no more than "always sure" or "never sure"."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Takes the measured score as it is, where it lies in [0, 1]; elsewhere there is no confidence."""

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) scores to (n,) in [0, 1]; NaN where they are NaN or outside."""
        return np.where((scores >= 0.0) & (scores <= 1.0), scores, np.nan)


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides log-probabilities by *t*: above 1 the model was overconfident, below 1 underconfident."""

    t: float

    def __post_init__(self) -> None:
        if not 0.0 < self.t < math.inf:
            raise ValueError(f"temperature {self.t} is not a positive number; fit it again")

    def apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, classes) distributions to (n,), the best class's share after tempering; NaN where a row is NaN."""
        best = np.maximum.reduce(rows, axis=1, keepdims=True)
        # Relative to the best class, so that nothing overflows: its share is one over the sum of all.
        ratios = (rows / best) ** (1.0 / self.t)
        shares: NDArray[np.float64] = 1.0 / np.add.reduce(ratios, axis=1)
        return shares


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A non-decreasing curve through the points (*x*, *y*), linear between them, constant beyond the ends."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    _points: tuple[NDArray[np.float64], NDArray[np.float64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError(f"isotonic curve has {len(self.x)} x and {len(self.y)} y; fit it again")
        if not all(math.isfinite(value) for value in self.x) or not _strictly_rising(self.x):
            raise ValueError("isotonic x is not strictly increasing; fit it again")
        if not all(0.0 <= value <= 1.0 for value in self.y) or not _never_falling(self.y):
            raise ValueError("isotonic y is not non-decreasing within [0, 1]; fit it again")
        # A curve has hundreds of points, and turning tuples into arrays would cost more than looking them up.
        object.__setattr__(self, "_points", (np.array(self.x), np.array(self.y)))

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) scores to (n,) in [0, 1]; NaN where they are not finite."""
        curve = np.interp(scores, *self._points)
        return np.where(np.isfinite(scores), curve, np.nan)


def _strictly_rising(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _never_falling(values: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in pairwise(values))


Calibrator: TypeAlias = Identity | Temperature | Isotonic


def confidences(how: Measure, calibrator: Calibrator, outputs: Tensors, size: int) -> NDArray[np.float64]:
    """The calibrated confidence in a stage's answer to each of *size* items, which `router.cascade.judge` takes.

    Args:
        outputs: the model's, after its postprocessing, with a batch axis of *size*.

    Returns:
        (size,) estimates of P(stage right) in [0, 1]; NaN where there is none.
    """
    if isinstance(calibrator, Temperature):
        return calibrator.apply(probabilities(how, outputs, size))
    return calibrator.apply(measure(how, outputs, size))


def fit_temperature(rows: NDArray[np.float64], labels: NDArray[np.int64]) -> Temperature:
    """The temperature that makes *labels* likeliest, between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.

    The negative log-likelihood is convex in 1/T, so its slope is bisected; no step size, no start value.

    Args:
        rows: (n, classes), distributions.
        labels: (n,), indices of the true classes.

    Raises:
        ValueError: there is nothing to fit, or a row or label is malformed.
    """
    if rows.ndim != 2 or rows.shape[0] == 0 or labels.shape != rows.shape[:1]:
        raise ValueError(f"temperature needs (n, classes) and (n,); got {rows.shape} and {labels.shape}")
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise ValueError("a row to fit is not a distribution; drop rows without a confidence first")
    if labels.min() < 0 or labels.max() >= rows.shape[1]:
        raise ValueError(f"a label lies outside 0 to {rows.shape[1] - 1}; compare the order of the labels")
    logs = np.log(np.maximum(rows, np.finfo(np.float64).tiny))
    truth = logs[np.arange(len(labels)), labels]
    low, high = math.log(1.0 / MAX_TEMPERATURE), math.log(1.0 / MIN_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2.0
        if _slope(logs, truth, math.exp(middle)) > 0.0:
            high = middle
        else:
            low = middle
    return Temperature(math.exp(-(low + high) / 2.0))


def _slope(logs: NDArray[np.float64], truth: NDArray[np.float64], inverse: float) -> float:
    """d(negative log-likelihood)/d(1/T) at 1/T = *inverse*: the model's mean log-score less the truth's."""
    scaled = logs * inverse
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected = (weights * logs).sum(axis=1) / weights.sum(axis=1)
    return float((expected - truth).mean())


def fit_isotonic(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Isotonic:
    """The non-decreasing curve nearest to *right* in squares, by pool adjacent violators.

    Equal scores are averaged first, as scikit-learn does, whose curve this is (out_of_bounds="clip").

    Args:
        scores: (n,), measured, finite.
        right: (n,), whether the stage was right.

    Raises:
        ValueError: there is nothing to fit, the lengths differ, or a score is not finite.
    """
    if scores.ndim != 1 or len(scores) == 0 or scores.shape != right.shape:
        raise ValueError(f"isotonic needs (n,) and (n,); got {scores.shape} and {right.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score to fit is not finite; drop rows without a confidence first")
    x, position = np.unique(scores, return_inverse=True)
    weights = np.bincount(position).astype(np.float64)
    means = np.bincount(position, weights=right.astype(np.float64)) / weights
    blocks = _pooled(means.tolist(), weights.tolist())
    return _curve(x.tolist(), blocks)


def _pooled(means: list[float], weights: list[float]) -> list[tuple[float, float, int]]:
    """Merge neighbours until no mean falls: (mean, weight, members) of each block, in order."""
    blocks: list[tuple[float, float, int]] = []
    for mean, weight in zip(means, weights, strict=True):
        block = (mean, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            left = blocks.pop()
            total = left[1] + block[1]
            block = ((left[0] * left[1] + block[0] * block[1]) / total, total, left[2] + block[2])
        blocks.append(block)
    return blocks


def _curve(x: list[float], blocks: list[tuple[float, float, int]]) -> Isotonic:
    """The first and last score of every block: the points between them lie on its level."""
    xs: list[float] = []
    ys: list[float] = []
    start = 0
    for mean, _, members in blocks:
        ends = [x[start]] if members == 1 else [x[start], x[start + members - 1]]
        xs += ends
        ys += [min(mean, 1.0)] * len(ends)  # a weighted mean of ones can round to just above one
        start += members
    return Isotonic(tuple(xs), tuple(ys))


def expected_calibration_error(stated: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15) -> float:
    """How far stated confidence and accuracy lie apart: the mean over equal-width bins, weighted by their items.

    Args:
        stated: (n,) in [0, 1]; items without a confidence (NaN) are left out.
        right: (n,), whether each was right.

    Returns:
        0 (calibrated) to 1; NaN where no item states a confidence.
    """
    known = ~np.isnan(stated)
    stated, right = stated[known], right[known]
    if len(stated) == 0:
        return math.nan
    places = np.minimum((stated * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, weights=stated - right.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(stated))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibrator, and what it is good for.

    Attributes:
        how: what must be measured before it is applied.
        fitted_on: labelled items of the fit split.
        model: name of the model it was fitted for.
        version: that model's version, as the backend tells it.
    """

    calibrator: Calibrator
    how: Measure
    fitted_on: int
    model: str
    version: str

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """A form that JSON can hold, and `from_dict` reads back without loss."""
        kind, parameters = _parameters(self.calibrator)
        return {
            "format": FORMAT,
            "kind": kind,
            "measure": str(self.how),
            "parameters": parameters,
            "fitted_on": self.fitted_on,
            "model": self.model,
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: object) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: names what is missing or malformed, and the remedy.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"not a calibration file (no format {FORMAT!r}); write it with Calibration.to_dict")
        parameters = _field(data, "parameters", Mapping)
        how = Measure.parse(_field(data, "measure", str))
        calibrator = _calibrator(_field(data, "kind", str), parameters)
        if isinstance(calibrator, Temperature) and how.kind is not Kind.MAX:
            raise ValueError(f"temperature calibrates the measure max, not {how}; fit an isotonic curve")
        fitted_on = _field(data, "fitted_on", int)
        return cls(calibrator, how, fitted_on, _field(data, "model", str), _field(data, "version", str))


def _parameters(calibrator: Calibrator) -> tuple[str, dict[str, Any]]:
    match calibrator:
        case Identity():
            return "identity", {}
        case Temperature(t):
            return "temperature", {"t": t}
        case Isotonic(x, y):
            return "isotonic", {"x": list(x), "y": list(y)}


def _calibrator(kind: str, parameters: Mapping[str, Any]) -> Calibrator:
    match kind:
        case "identity":
            return Identity()
        case "temperature":
            return Temperature(_number(parameters, "t"))
        case "isotonic":
            return Isotonic(_numbers(parameters, "x"), _numbers(parameters, "y"))
        case _:
            raise ValueError(f"calibration kind {kind!r} is unknown; use identity, temperature or isotonic")


def _field(data: Mapping[str, Any], name: str, wanted: type[Any]) -> Any:
    value = data.get(name)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"calibration {name} is {value!r}; fit the calibration again")
    return value


def _number(parameters: Mapping[str, Any], name: str) -> float:
    value = parameters.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"calibration parameter {name} is {value!r}, not a number; fit the calibration again")
    return float(value)


def _numbers(parameters: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = parameters.get(name)
    if not isinstance(values, list):
        raise ValueError(f"calibration parameter {name} is {values!r}, not a list; fit the calibration again")
    return tuple(_number({name: value}, name) for value in values)
