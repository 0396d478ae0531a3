"""From a measured score to the probability of being right."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from backends.contract import Tensor
from router.calibration import (
    FORMAT,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Calibration,
    Calibrator,
    Identity,
    Isotonic,
    Temperature,
    confidences,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
)
from router.confidence import Kind, Measure

SCORES = npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(-5.0, 5.0).map(lambda x: round(x, 1)))
UNIT = npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(0.0, 1.0))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return rows


@pytest.fixture(scope="module")
def sklearn_isotonic() -> Any:
    """The reference, where it is installed; imported outside the test, whose examples have a deadline each."""
    return pytest.importorskip("sklearn.isotonic")


@given(scores=SCORES, random=st.randoms(use_true_random=False))
def test_isotonic_is_scikit_learns(sklearn_isotonic: Any, scores: NDArray[np.float64], random: Random) -> None:
    right = np.array([random.random() < 0.6 for _ in scores])
    reference = sklearn_isotonic.IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, right)
    probes = np.linspace(-6.0, 6.0, 101)

    fitted = fit_isotonic(scores, right)

    np.testing.assert_allclose(fitted.apply(probes), reference.predict(probes), atol=1e-9)


@given(SCORES, SCORES, st.randoms(use_true_random=False))
def test_isotonic_is_monotone_and_a_probability(
    scores: NDArray[np.float64], probes: NDArray[np.float64], random: Random
) -> None:
    fitted = fit_isotonic(scores, np.array([random.random() < 0.5 for _ in scores]))

    values = fitted.apply(np.sort(probes))

    assert ((values >= 0.0) & (values <= 1.0)).all()
    assert (np.diff(values) >= 0.0).all()


@given(UNIT, st.floats(0.05, 20.0))
def test_temperature_is_monotone_and_a_probability(best: NDArray[np.float64], t: float) -> None:
    best = 0.5 + np.sort(best) / 2.0
    rows = np.stack([best, 1.0 - best], axis=1)

    values = Temperature(t).apply(rows)

    assert ((values >= 0.5) & (values <= 1.0)).all()
    assert (np.diff(values) >= -1e-12).all()


@pytest.mark.parametrize("t", [0.4, 1.0, 2.5])
def test_the_temperature_that_distorted_a_model_is_found_again(t: float) -> None:
    rng = np.random.default_rng(7)
    true_rows = softmax(rng.normal(0.0, 2.0, (20_000, 4)))
    labels = (rng.random((len(true_rows), 1)) > true_rows.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    stated = softmax(np.log(true_rows) * t)  # sharper than the truth by t

    assert fit_temperature(stated, labels).t == pytest.approx(t, rel=0.05)


def test_a_temperature_of_one_is_the_maximum() -> None:
    rows = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])

    assert Temperature(1.0).apply(rows).tolist() == pytest.approx([0.7, 1.0])


def test_labels_that_are_always_right_stop_at_the_lower_bound() -> None:
    rows = np.array([[0.9, 0.1], [0.2, 0.8]])

    assert fit_temperature(rows, np.array([0, 1])).t == pytest.approx(MIN_TEMPERATURE)
    assert fit_temperature(rows, np.array([1, 0])).t == pytest.approx(MAX_TEMPERATURE)


def test_certain_rows_with_a_wrong_label_still_fit() -> None:
    rows = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])

    assert MIN_TEMPERATURE <= fit_temperature(rows, np.zeros(10, np.int64)).t <= MAX_TEMPERATURE


@pytest.mark.parametrize(
    ("calibrator", "how"),
    [
        (Identity(), Measure(Kind.MARGIN)),
        (Temperature(2.0), Measure()),
        (Isotonic((0.0, 1.0), (0.1, 0.9)), Measure(Kind.ENTROPY)),
    ],
)
def test_a_row_without_a_confidence_stays_without_one(calibrator: Calibrator, how: Measure) -> None:
    outputs = {"p": Tensor.of(np.array([[0.8, 0.2], [math.nan, 1.0], [0.6, 0.6]]))}

    values = confidences(how, calibrator, outputs, 3)

    assert 0.0 <= values[0] <= 1.0
    assert np.isnan(values[1:]).all()
    assert np.isnan(confidences(how, calibrator, {}, 2)).all()


def test_an_uncalibrated_score_outside_zero_to_one_is_no_confidence() -> None:
    outputs = {"score": Tensor.of(np.array([-0.1, 1.1, 0.4]))}

    values = confidences(Measure.parse("output:score"), Identity(), outputs, 3)

    assert np.isnan(values[:2]).all()
    assert values[2] == 0.4


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), r"needs \(n, classes\) and \(n,\); got \(0, 2\) and \(0,\)"),
        (np.full((2, 2), 0.5), np.zeros(3, np.int64), r"got \(2, 2\) and \(3,\)"),
        (np.array([[math.nan, 1.0]]), np.array([0]), "drop rows without a confidence"),
        (np.full((1, 2), 0.5), np.array([2]), "a label lies outside 0 to 1; compare the order of the labels"),
    ],
)
def test_temperature_refuses_what_it_cannot_fit(
    rows: NDArray[np.float64], labels: NDArray[np.int64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(rows, labels)


def test_isotonic_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match=r"needs \(n,\) and \(n,\); got \(0,\) and \(0,\)"):
        fit_isotonic(np.zeros(0), np.zeros(0, np.bool_))
    with pytest.raises(ValueError, match="a score to fit is not finite; drop rows"):
        fit_isotonic(np.array([math.nan]), np.array([True]))


@pytest.mark.parametrize(
    "calibrator", [Identity(), Temperature(1.7), Isotonic((0.25, 0.5, 1.0), (0.0, 0.5, 0.97))], ids=repr
)
def test_a_calibration_reads_back_what_it_writes(calibrator: Calibrator) -> None:
    calibration = Calibration(calibrator, Measure(), 1200, "digits-fast", "3")

    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


SOUND: dict[str, Any] = Calibration(Isotonic((0.0, 1.0), (0.1, 0.9)), Measure(), 10, "m", "1").to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, f"not a calibration file .no format '{FORMAT}'.; write it with Calibration.to_dict"),
        ({"kind": "platt"}, "kind 'platt' is unknown; use identity, temperature or isotonic"),
        ({"measure": "best"}, "confidence 'best' is unknown"),
        ({"parameters": []}, r"calibration parameters is \[\]; fit"),
        ({"parameters": {"x": [0.0], "y": None}}, "parameter y is None, not a list; fit"),
        ({"parameters": {"x": [0.0], "y": [True]}}, "parameter y is True, not a number"),
        ({"parameters": {"x": [], "y": []}}, "curve has 0 x and 0 y; fit it again"),
        ({"parameters": {"x": [0.0, 0.0], "y": [0.1, 0.2]}}, "x is not strictly increasing"),
        ({"parameters": {"x": [0.0, math.nan], "y": [0.1, 0.2]}}, "x is not strictly increasing"),
        ({"parameters": {"x": [0.0, 1.0], "y": [0.2, 0.1]}}, "y is not non-decreasing"),
        ({"parameters": {"x": [0.0], "y": [math.nan]}}, "y is not non-decreasing"),
        ({"kind": "temperature", "parameters": {"t": 0}}, "temperature 0.0 is not a positive number"),
        ({"kind": "temperature", "parameters": {"t": math.nan}}, "temperature nan is not a positive number"),
        ({"kind": "temperature", "parameters": {}}, "parameter t is None, not a number"),
        ({"kind": "temperature", "parameters": {"t": 1}, "measure": "margin"}, "measure max, not margin; fit"),
        ({"fitted_on": True}, "calibration fitted_on is True; fit the calibration again"),
        ({"model": 3}, "calibration model is 3"),
        ({"version": None}, "calibration version is None"),
    ],
)
def test_a_malformed_calibration_is_refused_with_a_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration.from_dict({**SOUND, **change})


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_anything_but_a_calibration_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="not a calibration file"):
        Calibration.from_dict(data)


def test_expected_calibration_error_weighs_each_bin_by_its_items() -> None:
    stated = np.array([0.95] * 8 + [0.55] * 2 + [math.nan])
    right = np.array([True] * 8 + [False] * 2 + [False])

    assert expected_calibration_error(stated, right) == pytest.approx(0.8 * 0.05 + 0.2 * 0.55)


def test_expected_calibration_error_of_no_items_is_nan() -> None:
    assert math.isnan(expected_calibration_error(np.array([math.nan]), np.array([True])))


@given(UNIT)
def test_isotonic_mends_a_calibration_error_on_its_own_data(stated: NDArray[np.float64]) -> None:
    right = stated**3 > 0.2

    mended = fit_isotonic(stated, right).apply(stated)

    assert expected_calibration_error(mended, right) <= expected_calibration_error(stated, right) + 1e-9
