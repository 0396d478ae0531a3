"""The threshold of a demo route: the loosest one whose error, with a margin for small samples, is what was promised.

The cascade is judged as one. An item is accepted at the first stage whose calibrated confidence reaches the threshold;
what no stage accepts goes to a person. Of the thresholds under which the one-sided 95 % bound on the accepted error
(Clopper and Pearson) stays at or below `max_error`, the loosest is taken, on labels that fitted neither the models nor
their calibrators.

This is a margin, not a certificate: the threshold is picked among many on the same labels, so the bound holds somewhat
less often than 95 % of the time. Routes that choose this way say `certified: false`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.demo.binomial import upper_bound

LEVEL = 0.95
_STEP = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What every stage of a cascade says of labelled items.

    Attributes:
        confidence: (stages, n), calibrated.
        right: (stages, n), whether the stage's label is the true one.
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A chosen threshold, and what the choosing items say of it.

    Attributes:
        value: the least confidence to accept, in steps of 0.0001.
        items: how many items chose it.
        accepted: how many of them it accepts.
        wrong: how many of those are wrong.
    """

    value: float
    items: int
    accepted: int
    wrong: int


def choose_threshold(judged: Judged, max_error: float) -> Threshold:
    """The loosest threshold that keeps *max_error*, bound included.

    Raises:
        ValueError: none does; the models are too weak, or the items too few.
    """
    items = judged.right.shape[1]
    for value in np.unique(np.ceil(judged.confidence / _STEP) * _STEP).round(4):
        accepted, wrong = cascade_errors(judged, value)
        if wrong <= max_error * accepted and upper_bound(wrong, accepted, LEVEL) <= max_error:
            return Threshold(float(value), items, accepted, wrong)
    raise ValueError(f"no threshold keeps an error of {max_error:.1%} on {items} items. This is a bug.")


def cascade_errors(judged: Judged, threshold: float) -> tuple[int, int]:
    """How many items the cascade accepts at *threshold*, and how many of those are wrong."""
    reached = judged.confidence >= threshold
    accepted = reached.any(axis=0)
    first = reached.argmax(axis=0)
    right = judged.right[first, np.arange(len(first))]
    return int(accepted.sum()), int((accepted & ~right).sum())
