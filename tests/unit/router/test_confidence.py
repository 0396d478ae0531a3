"""How sure a model says it is, and what happens when it says nonsense."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from backends.contract import Datatype, HostArray, Tensor
from router.confidence import Kind, Measure, is_quick, measure

PROBABILITY_KINDS = ["max", "margin", "entropy"]


def measured(kind: str, array: HostArray, size: int | None = None) -> list[float]:
    outputs = {"probabilities": Tensor.of(array)}
    values: list[float] = measure(Measure.parse(kind), outputs, len(array) if size is None else size).tolist()
    return values


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("max", [0.5, 1.0, 0.25]), ("margin", [0.25, 1.0, 0.0]), ("entropy", [0.25, 1.0, 0.0])],
)
def test_each_kind_measures_what_it_says(kind: str, expected: list[float]) -> None:
    rows = np.array([[0.5, 0.25, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], np.float32)
    if kind == "entropy":
        expected = [1.0 - 1.75 / 2.0, 1.0, 0.0]

    assert measured(kind, rows) == pytest.approx(expected)


@pytest.mark.parametrize("kind", PROBABILITY_KINDS)
@pytest.mark.parametrize(
    "bad",
    [[math.nan, 1.0], [math.inf, 0.0], [-math.inf, math.inf], [1.2, -0.2], [0.5, 0.3], [3.0, 2.0], [0.0, 0.0]],
)
def test_a_malformed_row_has_no_confidence_and_its_neighbours_keep_theirs(kind: str, bad: list[float]) -> None:
    rows = np.array([[0.75, 0.25], bad, [0.75, 0.25]])

    first, middle, last = measured(kind, rows)

    assert math.isnan(middle)
    assert first == last > 0.0


@pytest.mark.parametrize("kind", PROBABILITY_KINDS)
@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 1)),
        np.ones((2, 0)),
        np.full((2,), 0.5),
        np.full((2, 2, 2), 0.25),
        np.full((3, 2), 0.5),
        np.array(0.5),
        np.array([[b"0.5", b"0.5"], [b"1", b"0"]], object),
    ],
)
def test_an_output_of_the_wrong_shape_has_no_confidence(kind: str, array: HostArray) -> None:
    assert all(math.isnan(value) for value in measured(kind, array, size=2))


def test_a_missing_output_has_no_confidence() -> None:
    for how in (Measure(Kind.MAX), Measure(Kind.MAX, "other"), Measure(Kind.OUTPUT, "score")):
        assert np.isnan(measure(how, {}, 3)).tolist() == [True] * 3


def test_ragged_output_has_no_confidence() -> None:
    outputs = {"scores": Tensor.ragged(Datatype.FP32, (np.ones(2, np.float32), np.ones(3, np.float32)))}

    assert np.isnan(measure(Measure(), outputs, 2)).all()


def test_the_output_called_probabilities_is_measured_among_several() -> None:
    outputs = {
        "label": Tensor.of(np.array([3])),
        "probabilities": Tensor.of(np.array([[0.9, 0.1]])),
        "second": Tensor.of(np.array([[0.6, 0.4]])),
    }

    assert measure(Measure(), outputs, 1).tolist() == pytest.approx([0.9])
    assert measure(Measure.parse("max:second"), outputs, 1).tolist() == pytest.approx([0.6])
    assert np.isnan(measure(Measure(), {"a": outputs["label"], "b": outputs["second"]}, 1)).all()


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_scalar_output_is_taken_as_it_is(shape: tuple[int, ...]) -> None:
    values = np.array([-3.5, 7.0, math.nan, -math.inf], np.float32).reshape(shape)

    scores = measure(Measure.parse("output:score"), {"score": Tensor.of(values)}, 4)

    assert scores[:2].tolist() == [-3.5, 7.0]
    assert np.isnan(scores[2:]).all()


def test_a_scalar_output_with_several_values_an_item_has_no_confidence() -> None:
    assert np.isnan(measure(Measure.parse("output:x"), {"x": Tensor.of(np.ones((2, 3)))}, 2)).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_large_output_that_is_no_distribution_is_measured_without_a_copy(rows: int) -> None:
    numbers = np.ones((rows, 500_000), np.float32)

    tracemalloc.start()
    found = measured("max", numbers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert all(map(math.isnan, found))
    assert peak < numbers.nbytes / 10


def test_of_a_large_output_every_row_that_is_a_distribution_is_measured() -> None:
    rows = np.ones((2, 500_000), np.float32)
    rows[1] = 0.5 / (rows.shape[1] - 1)
    rows[1, 7] = 0.5

    assert measured("max", rows) == pytest.approx([math.nan, 0.5], nan_ok=True)


def _uniform(rows: int, classes: int) -> NDArray[np.float32]:
    return np.full((rows, classes), 1.0 / classes, np.float32)


@pytest.mark.parametrize(
    ("numbers", "quick"),
    [
        (_uniform(1, 100_000), True),  # 400 KB
        (_uniform(1, 200_000), False),  # 800 KB of probabilities
        (np.ones((3, 200_000), np.float32), True),  # above 1 soon
        (-_uniform(3, 200_000), True),
        (np.full((3, 200_000), np.nan, np.float32), True),
        (np.tile(np.array([[math.inf, -math.inf]], np.float32), 100_000), True),
        (np.concatenate([np.ones((1, 200_000), np.float32), _uniform(1, 200_000)]), False),  # one of them is some
        (np.ones((1, 3, 256, 256), np.float32), True),
        (np.ones((200_000, 0), np.float32), True),
        (np.ones((1, 200_000), np.int64), False),
    ],
)
def test_what_begins_as_no_distribution_needs_no_thread(numbers: HostArray, quick: bool) -> None:
    assert is_quick(Measure(), {"probabilities": Tensor.of(numbers)}) is quick


def test_a_score_is_read_whole_whatever_it_begins_with() -> None:
    assert not is_quick(Measure.parse("output:score"), {"score": Tensor.of(np.ones((1, 200_000), np.float32))})


@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(2, 40)),
        elements=st.floats(-0.0625, 1.0, width=32) | st.just(0.0),
    )
)
def test_a_large_output_measures_as_a_small_one_does(head: NDArray[np.float32]) -> None:
    """Zeros behind it change no probability, and its size is no reason to look at it otherwise."""
    large = np.zeros((len(head), 20_000), np.float32)
    large[:, : head.shape[1]] = head

    assert measured("max", large) == pytest.approx(measured("max", head), nan_ok=True)


def test_bf16_bit_patterns_are_read_as_numbers() -> None:
    half = 0x3F00
    outputs = {"probabilities": Tensor.of(np.full((1, 2), half, np.uint16), Datatype.BF16)}

    assert measure(Measure(), outputs, 1).tolist() == [0.5]


@pytest.mark.parametrize("text", ["", "maximum", "output", "output:", "max:", "Max"])
def test_an_unknown_measure_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match="use max, margin, entropy or output:NAME"):
        Measure.parse(text)


@pytest.mark.parametrize("text", ["max", "margin", "entropy:scores", "output:a:b"])
def test_a_measure_reads_back_what_it_writes(text: str) -> None:
    assert str(Measure.parse(text)) == text


@given(
    npst.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.sampled_from([*PROBABILITY_KINDS, "output:probabilities"]),
)
def test_no_output_whatever_raises_or_is_confident_outside_its_range(array: NDArray[np.float64], kind: str) -> None:
    values = measure(Measure.parse(kind), {"probabilities": Tensor.of(array)}, 3)

    assert values.shape == (3,)
    assert not np.isinf(values).any()
    if not kind.startswith("output"):
        known = values[~np.isnan(values)]
        assert ((known >= 0.0) & (known <= 1.0)).all()


@given(npst.arrays(np.float64, (3, 5), elements=st.floats(1e-6, 1.0)))
def test_confidence_does_not_depend_on_the_order_of_the_classes(weights: NDArray[np.float64]) -> None:
    rows = weights / weights.sum(axis=1, keepdims=True)

    for kind in PROBABILITY_KINDS:
        assert measured(kind, rows) == pytest.approx(measured(kind, rows[:, ::-1]))
