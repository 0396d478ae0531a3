"""The chosen threshold is the loosest that keeps the promise with its margin."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.demo.binomial import upper_bound
from gateway.demo.thresholds import Judged, cascade_errors, choose_threshold


def _judged(seed: int, items: int = 1000) -> Judged:
    """Two stages, the second better, both calibrated: right as often as they say."""
    rng = np.random.default_rng(seed)
    confidence = np.sort(rng.beta([[4.0], [8.0]], 1.0, size=(2, items)), axis=0)
    return Judged(confidence, rng.random((2, items)) < confidence)


def test_an_item_counts_at_the_first_stage_that_is_sure_enough() -> None:
    judged = Judged(
        confidence=np.array([[0.9, 0.5, 0.5, np.nan], [0.9, 0.9, 0.5, 0.9]]),
        right=np.array([[False, False, True, True], [True, True, True, False]]),
    )

    assert cascade_errors(judged, 0.8) == (3, 2)  # the first and the last are wrong, nobody accepts the third


@pytest.mark.parametrize("seed", range(2))
def test_the_threshold_keeps_its_promise_and_none_looser_does(seed: int) -> None:
    judged = _judged(seed)

    chosen = choose_threshold(judged, 0.1)

    assert cascade_errors(judged, chosen.value) == (chosen.accepted, chosen.wrong)
    assert upper_bound(chosen.wrong, chosen.accepted, 0.95) <= 0.1
    for looser in np.arange(round(float(judged.confidence.min()), 4), chosen.value - 1e-4, 0.05):
        accepted, wrong = cascade_errors(judged, float(looser))
        assert upper_bound(wrong, accepted, 0.95) > 0.1


def test_too_few_items_promise_nothing() -> None:
    with pytest.raises(ValueError, match=r"no threshold keeps an error of 2\.0% on 50 items"):
        choose_threshold(_judged(0, items=50), 0.02)
