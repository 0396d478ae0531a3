"""The labelled data is what its sources say, and no item is in two splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.data import DIGIT_LABELS, Digits, Snippet, png, rating_class, split
from kernels.decode import decode


def test_there_are_500_of_each_digit(digits: Digits) -> None:
    assert digits.images.shape == (5000, 28, 28)
    assert digits.images.dtype == np.uint8
    assert np.bincount(digits.labels).tolist() == [500] * len(DIGIT_LABELS)


def test_snippets_are_unique_and_rated_by_fourteen_and_more(snippets: tuple[Snippet, ...]) -> None:
    assert len(snippets) == len({snippet.text for snippet in snippets}) == 7897
    assert min(len(snippet.ratings) for snippet in snippets) >= 14
    assert {rating for snippet in snippets for rating in snippet.ratings} == set(range(-4, 5))
    assert np.bincount([snippet.label for snippet in snippets]).tolist() == [2320, 1488, 4089]


def test_one_rater_agrees_with_the_mean_in_83_percent(snippets: tuple[Snippet, ...]) -> None:
    agreement = [np.mean([rating_class(r) == snippet.label for r in snippet.ratings]) for snippet in snippets]

    assert np.mean(agreement) == pytest.approx(0.831, abs=0.002)


def test_entities_are_resolved_for_readers(snippets: tuple[Snippet, ...]) -> None:
    assert not any("&amp;" in snippet.text for snippet in snippets)


@pytest.mark.parametrize(("rating", "label"), [(-4, 0), (-0.5, 0), (-0.49, 1), (0, 1), (0.49, 1), (0.5, 2), (4, 2)])
def test_half_a_point_makes_a_class(rating: float, label: int) -> None:
    assert rating_class(rating) == label


def test_a_png_decodes_to_the_pixels_it_was_made_of(digits: Digits) -> None:
    image = digits.images[7]

    assert np.array_equal(decode("image", png(image)), np.repeat(image[..., np.newaxis], 3, axis=2))


@given(
    labels=st.lists(st.integers(0, 2), min_size=40, max_size=200).map(np.array),
    train=st.integers(0, 20),
    calibration=st.integers(0, 19),
    seed=st.integers(0, 3),
)
def test_splits_are_disjoint_and_complete(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], train: int, calibration: int, seed: int
) -> None:
    parts = split(labels, train=train, calibration=calibration, seed=seed)

    every = np.concatenate([parts.train, parts.fit, parts.certify, parts.held_out])
    assert sorted(every) == list(range(len(labels)))
    assert len(parts.train) == train
    assert len(parts.fit) + len(parts.certify) == calibration


def test_every_split_has_its_share_of_every_class(digits: Digits) -> None:
    parts = split(digits.labels, train=2000, calibration=2000, seed=1)

    for part in (parts.train, parts.fit, parts.certify, parts.held_out):
        counts = np.bincount(digits.labels[part])
        assert counts.max() - counts.min() <= 3


def test_splits_are_the_same_in_every_run(digits: Digits) -> None:
    one = split(digits.labels, train=100, calibration=50, seed=3)
    two = split(digits.labels, train=100, calibration=50, seed=3)

    assert np.array_equal(one.held_out, two.held_out)
    assert not np.array_equal(one.held_out, split(digits.labels, train=100, calibration=50, seed=4).held_out)


def test_a_split_that_holds_nothing_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 \+ 2 items of 5 leave none to hold out; ask for fewer"):
        split(np.zeros(5, dtype=np.int64), train=3, calibration=2, seed=0)
