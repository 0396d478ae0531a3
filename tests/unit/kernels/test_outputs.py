"""Postprocessing: numerically stable, and never sure of what is not a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from kernels import outputs

NAN, INF = math.nan, math.inf


def test_softmax_of_known_scores() -> None:
    result = outputs.softmax(np.array([[0.0, math.log(3)], [5.0, 5.0]]))

    assert result.dtype == np.float32
    assert result.tolist() == [pytest.approx([0.25, 0.75]), [0.5, 0.5]]


def test_temperature_divides_scores() -> None:
    assert outputs.softmax(np.array([0.0, 2 * math.log(3)]), temperature=2.0) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_does_not_overflow(dtype: type) -> None:
    top = float(np.finfo(dtype).max)

    assert outputs.softmax(np.array([top, -top, -INF], dtype=dtype)).tolist() == [1, 0, 0]
    assert outputs.softmax(np.array([1.0, 0.0], dtype=dtype), temperature=1e-300).tolist() == [1, 0]


@pytest.mark.parametrize("scores", [[NAN, 1, 2], [INF, 1, 2], [INF, INF, 0], [-INF, -INF, -INF], [NAN, INF, -INF]])
def test_softmax_is_never_sure_of_what_is_not_a_number(scores: list[float]) -> None:
    result = outputs.softmax(np.array([scores, [0, 0, 0]], dtype=np.float32))

    assert np.isnan(result[0]).all()
    assert result[1] == pytest.approx([1 / 3] * 3)


@given(
    npst.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    )
)
def test_softmax_is_a_distribution_in_the_order_of_its_scores(logits: NDArray[np.float32]) -> None:
    result = outputs.softmax(logits)

    assert np.allclose(result.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(np.take_along_axis(result, logits.argmax(-1)[:, None], -1)[:, 0], result.max(-1))


def test_sigmoid_is_exact_at_both_ends() -> None:
    result = outputs.sigmoid(np.array([0, math.log(3), -20, -1e4, 1e4, -INF, INF, NAN], dtype=np.float32))

    assert result.dtype == np.float32
    assert result[:-1] == pytest.approx([0.5, 0.75, 2.0611537e-9, 0, 1, 0, 1], rel=1e-5)
    assert math.isnan(result[-1])


def test_mean_pool_leaves_masked_tokens_out_whatever_they_hold() -> None:
    hidden = np.array([[[1, 2], [3, 4], [NAN, INF]], [[5, 6], [7, 8], [9, 10]]], dtype=np.float16)
    mask = np.array([[1, 1, 0], [0, 0, 0]])

    result = outputs.mean_pool(hidden, mask)

    assert result.dtype == np.float32
    assert result.tolist() == [[2, 3], [0, 0]]


def test_mean_pool_keeps_nan_of_tokens_that_count() -> None:
    assert np.isnan(outputs.mean_pool(np.array([[[NAN], [1.0]]]), np.array([[1, 1]]))).all()


def test_l2_normalize_gives_unit_vectors_and_keeps_zero() -> None:
    vectors = np.array([[3, 4], [0, 0], [3e30, 4e30]], dtype=np.float32)

    assert outputs.l2_normalize(vectors).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0, 0],
        pytest.approx([0.6, 0.8]),
    ]
    assert np.isnan(outputs.l2_normalize(np.array([[NAN, 1.0], [INF, INF]]))).all()


def test_top_k_orders_and_prefers_the_lower_index() -> None:
    values, indices = outputs.top_k(np.array([[1.0, 3.0, 3.0, 2.0]], dtype=np.float32), 3)

    assert [str(values.dtype), str(indices.dtype)] == ["float32", "int64"]
    assert (values.tolist(), indices.tolist()) == ([[3, 3, 2]], [[1, 2, 3]])


def test_top_k_ranks_nothing_beside_nan() -> None:
    values, indices = outputs.top_k(np.array([[1.0, NAN], [1.0, 2.0]]), 1)

    assert np.isnan(values[0]).all()
    assert indices.tolist() == [[-1], [1]]


LABELS = np.array([b"cat", b"dog", "böck".encode()], dtype=object)


def test_label_names_the_best_and_is_empty_for_nan() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [NAN, 0.9, 0.1], [0, 0, 1]])

    assert outputs.label(scores, LABELS).tolist() == [[b"dog"], [b"cat"], [b""], ["böck".encode()]]
    assert LABELS[0] == b"cat"


def test_label_refuses_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match=r"^2 scores for 3 labels; list one label a class$"):
        outputs.label(np.zeros((1, 2)), LABELS)


@pytest.mark.parametrize(
    "name",
    ["softmax", "log_softmax", "margin", "entropy", "sigmoid", "l2_normalize", "top_k", "mean_pool", "first_token"],
)
def test_read_only_and_scattered_arrays_give_the_same(name: str, rng: np.random.Generator, unfriendly: Any) -> None:
    scores = rng.uniform(size=(3, 4, 5)).astype(np.float32)
    extra = {"top_k": (2,), "mean_pool": (np.ones((3, 4)),)}.get(name, ())
    operation = getattr(outputs, name)
    before = scores.copy()

    assert np.array_equal(operation(unfriendly(scores), *extra), operation(scores, *extra))
    assert np.array_equal(scores, before)


# What a distribution says about itself


def test_log_softmax_of_known_scores_and_of_improbable_ones() -> None:
    result = outputs.log_softmax(np.array([[0.0, math.log(3)], [0.0, -5000.0]]))

    assert result.dtype == np.float32
    assert result.tolist() == [pytest.approx([math.log(0.25), math.log(0.75)]), [0, -5000]]


@given(
    npst.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-50, 50, width=32)),
    st.floats(0.1, 10),
)
def test_log_softmax_is_the_logarithm_of_softmax(logits: NDArray[np.float32], temperature: float) -> None:
    probable = outputs.softmax(logits, temperature=temperature)
    logarithms = outputs.log_softmax(logits, temperature=temperature)

    assert np.allclose(np.exp(logarithms), probable, atol=1e-6)


@pytest.mark.parametrize("scores", [[NAN, 1.0], [INF, 1.0], [-INF, -INF]])
def test_log_softmax_is_never_sure_of_what_is_not_a_number(scores: list[float]) -> None:
    assert np.isnan(outputs.log_softmax(np.array([scores]))).all()


def test_margin_is_between_the_two_highest() -> None:
    result = outputs.margin(np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [NAN, 0.9, 0.1]]))

    assert result.dtype == np.float32
    assert result[:2, 0] == pytest.approx([0.3, 0])
    assert np.isnan(result[2]).all()


def test_entropy_is_0_where_sure_and_log_n_where_torn() -> None:
    result = outputs.entropy(np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [NAN, 1, 0, 0], [-0.1, 1.1, 0, 0]]))

    assert result.dtype == np.float32
    assert result[:3, 0] == pytest.approx([0, math.log(4), math.log(2)])
    assert np.isnan(result[3:]).all()


# Boxes


def boxes(*corners: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array([corners], dtype=np.float32)


def test_of_boxes_that_overlap_the_best_stays() -> None:
    # The first two share 2 x 1 of 2 x 3: an overlap of a third.
    given_boxes = boxes((0, 0, 2, 2), (0, 1, 2, 3), (5, 5, 6, 6))
    scores = np.array([[0.5, 0.9, 0.7]])

    kept, rated, classes = outputs.non_maximum_suppression(given_boxes, scores, overlap=0.3, limit=4)

    assert kept[0].tolist() == [[0, 1, 2, 3], [5, 5, 6, 6], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rated[0] == pytest.approx([0.9, 0.7, 0, 0])
    assert classes.tolist() == [[0, 0, -1, -1]]
    assert outputs.non_maximum_suppression(given_boxes, scores, overlap=0.34)[2][0, :4].tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("corner", [np.inf, -np.inf, 1e300])
def test_a_box_without_an_end_is_left_out_and_suppresses_nothing(corner: float) -> None:
    given = np.array([[[corner] * 4, [0, 0, 10, 10], [0, 0, corner, 10], [50, 50, 60, 60]]])

    kept, scores, _ = outputs.non_maximum_suppression(given, np.array([[0.9, 0.8, 0.7, 0.6]]), limit=4)

    assert kept[0].tolist() == [[0, 0, 10, 10], [50, 50, 60, 60], [0] * 4, [0] * 4]
    assert scores[0].tolist() == pytest.approx([0.8, 0.6, 0, 0])


def test_the_area_of_a_huge_box_does_not_overflow() -> None:
    given = boxes((0, 0, 1e30, 1e30), (0, 0, 1e30, 0.9e30), (0, 0, 1e30, 0.4e30))

    kept, _, _ = outputs.non_maximum_suppression(given, np.array([[0.9, 0.8, 0.7]]), limit=3)

    assert kept[0, :, 3].tolist() == pytest.approx([1e30, 0.4e30, 0])


def test_boxes_of_different_classes_leave_each_other_alone() -> None:
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.1]]])

    kept, rated, classes = outputs.non_maximum_suppression(boxes(*[(0, 0, 2, 2)] * 3), scores, limit=3)

    assert kept[0, :2].tolist() == [[0, 0, 2, 2]] * 2
    assert rated[0] == pytest.approx([0.9, 0.8, 0])
    assert classes.tolist() == [[0, 1, -1]]


def test_boxes_of_low_score_or_not_a_number_are_left_out_and_the_limit_holds() -> None:
    given_boxes = boxes((0, 0, 1, 1), (2, 0, 3, 1), (NAN, 0, 5, 1), (6, 0, 7, 1), (8, 0, 9, 1))

    kept, _, classes = outputs.non_maximum_suppression(
        given_boxes, np.array([[0.2, 0.9, 0.9, NAN, 0.8]]), min_score=0.3, limit=2
    )
    assert kept[0].tolist() == [[2, 0, 3, 1], [8, 0, 9, 1]]
    assert classes.tolist() == [[0, 0]]
    assert outputs.non_maximum_suppression(given_boxes, np.full((1, 5), 0.5), limit=1)[0].tolist() == [[[0, 0, 1, 1]]]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_suppression_is_its_definition(seed: int, overlap: float) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 8, (12, 2))
    corners = np.concatenate([start, start + rng.integers(0, 5, (12, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(12).astype(np.float32) / 12

    expected: list[int] = []
    for candidate in np.argsort(-scores):
        if all(intersection_over_union(corners[candidate], corners[kept]) <= overlap for kept in expected):
            expected.append(int(candidate))

    kept, rated, _ = outputs.non_maximum_suppression(corners[None], scores[None], overlap=overlap, limit=12)
    assert kept[0, : len(expected)].tolist() == corners[expected].tolist()
    assert rated[0, : len(expected)].tolist() == scores[expected].tolist()
    assert not rated[0, len(expected) :].any()


def intersection_over_union(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    width, height = (max(0.0, float(min(first[i + 2], second[i + 2]) - max(first[i], second[i]))) for i in (0, 1))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def test_the_first_token_stands_for_the_text() -> None:
    result = outputs.first_token(np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=np.float16))

    assert result.dtype == np.float32
    assert result.tolist() == [[1, 2], [5, 6]]
