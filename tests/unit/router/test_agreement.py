"""Agreement and accuracy, against hand-computed values and published examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router.agreement import Estimate, cohen_kappa, krippendorff_alpha, rate

labels = st.sampled_from("abc")
Measure = Callable[[Sequence[tuple[str, str]]], Estimate]
pairs_of_labels = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)


def pairs_of(table: list[list[int]]) -> list[tuple[str, str]]:
    """Items of two people, of which *table* counts how often one said the row's label and the other the column's."""
    return list(
        chain.from_iterable(
            repeat((f"{row}", f"{column}"), count)
            for row, counts in enumerate(table)
            for column, count in enumerate(counts)
        )
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# --- rates ---


@pytest.mark.parametrize(
    ("count", "items", "low", "high"),
    [
        (0, 10, 0.0, 1 - 0.025**0.1),  # of none there is a closed form, as of all
        (10, 10, 0.025**0.1, 1.0),
        (8, 10, 0.4439, 0.9748),  # as R's binom.test has it
        (95, 100, 0.8872, 0.9836),
    ],
)
def test_a_rate_has_its_exact_interval(count: int, items: int, low: float, high: float) -> None:
    found = rate(count, items)
    assert found.value == count / items
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_rate_of_nothing_is_unknown() -> None:
    assert rate(0, 0) == Estimate(None, 0.0, 1.0, 0)


# --- Cohen's kappa ---


def test_kappa_is_what_fleiss_found_for_two_psychiatrists() -> None:
    # J. L. Fleiss, "Statistical Methods for Rates and Proportions", 1981, table 13.1: kappa .68, standard error .087.
    found = cohen_kappa(pairs_of([[75, 1, 4], [5, 4, 1], [0, 0, 10]]))
    assert found.value == pytest.approx((0.89 - 0.66) / (1 - 0.66))
    assert found.items == 100
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(0.087, abs=1e-3)


def test_kappa_and_its_variance_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreed .7; by chance .5 x .6 + .5 x .4 = .5; kappa .4.
    found = cohen_kappa(pairs_of([[20, 5], [10, 15]]))
    assert found.value == pytest.approx(0.4)
    alike = 0.4 * (1 - 1.1 * 0.6) ** 2 + 0.3 * (1 - 0.9 * 0.6) ** 2
    # p(yes, no) meets the columns' share of yes and the rows' of no; p(no, yes) the other two.
    unlike = 0.36 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    error = math.sqrt((alike + unlike - (0.4 - 0.5 * 0.6) ** 2) / 0.25 / 50)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)


@given(pairs=pairs_of_labels)
def test_kappa_is_scikit_learn_s(pairs: list[tuple[str, str]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found = cohen_kappa(pairs)
    if found.value is None:
        assert len({label for pair in pairs for label in pair}) == 1
    else:
        ones, others = zip(*pairs, strict=True)
        assert found.value == pytest.approx(metrics.cohen_kappa_score(ones, others), abs=1e-12)


@given(pairs=pairs_of_labels)
def test_kappa_lies_in_its_interval_whoever_comes_first(pairs: list[tuple[str, str]]) -> None:
    found = cohen_kappa(pairs)
    turned = cohen_kappa([(other, one) for one, other in pairs])
    assert -1.0 <= found.low <= found.high <= 1.0
    assert found.value is None or found.low - 1e-12 <= found.value <= found.high + 1e-12
    for one, other in zip((found.value, found.low, found.high), (turned.value, turned.low, turned.high), strict=True):
        assert one == other or one == pytest.approx(other, abs=1e-9)


def test_the_interval_of_kappa_holds_the_truth_as_often_as_it_says() -> None:
    # Two people of whom each gives the true label of a coin with probability .9, else the other: agreed .82.
    true_kappa = (0.82 - 0.5) / 0.5
    random = rng()
    held = 0
    for _ in range(400):
        truth = random.random(150) < 0.5
        ones, others = (truth ^ (random.random(150) < 0.1) for _ in range(2))
        found = cohen_kappa(list(zip(ones.tolist(), others.tolist(), strict=True)))
        held += found.low <= true_kappa <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_few_items_without_a_difference_prove_little() -> None:
    few, many = cohen_kappa(pairs_of([[2, 0], [0, 2]])), cohen_kappa(pairs_of([[200, 0], [0, 200]]))
    assert (few.value, few.high) == (many.value, many.high) == (1.0, 1.0)
    assert few.low == pytest.approx(1 - (1 - 0.025**0.25) / 0.5)
    assert few.low < 0.0 < 0.95 < many.low


@pytest.mark.parametrize("pairs", [[], [("a", "a")] * 50])
def test_one_label_says_nothing_of_agreement(pairs: list[tuple[str, str]]) -> None:
    assert cohen_kappa(pairs) == Estimate(None, -1.0, 1.0, len(pairs))
    assert krippendorff_alpha(pairs, rng()) == Estimate(None, -1.0, 1.0, len(pairs))


# --- Krippendorff's alpha ---


def test_alpha_is_krippendorff_s_for_two_people_and_two_labels() -> None:
    # "Computing Krippendorff's Alpha-Reliability", example A.
    items = list(zip("0100000010", "1110010000", strict=True))
    assert krippendorff_alpha(items, rng()).value == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_krippendorff_s_for_many_people_who_leave_gaps() -> None:
    # The same, example C: four people, twelve items.
    said = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    items = [[label for label in column if label != "."] for column in zip(*said, strict=True)]
    found = krippendorff_alpha(items, rng())
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11  # one item has one label
    assert found.low < 0.743 < found.high


def test_alpha_of_two_people_by_hand() -> None:
    # Four labels of a and four of b on four items, of which two are mixed: 1 - (4 / 8) / (2 x 4 x 4 / (8 x 7)).
    items = [("a", "a"), ("a", "b"), ("b", "b"), ("a", "b")]
    assert krippendorff_alpha(items, rng()).value == pytest.approx(1 - (4 / 8) / (2 * 4 * 4 / (8 * 7)))


@given(items=st.lists(st.lists(labels, max_size=4), max_size=30))
def test_alpha_is_the_sum_over_pairs_that_defines_it(items: list[list[str]]) -> None:
    found = krippendorff_alpha(items, rng(), resamples=50)
    several = [given_ for given_ in items if len(given_) > 1]
    everything = [label for given_ in several for label in given_]
    assert found.items == len(several)
    if len(set(everything)) < 2:
        assert found.value is None
        return
    observed = sum(
        (one != other) / (len(given_) - 1)
        for given_ in several
        for i, one in enumerate(given_)
        for j, other in enumerate(given_)
        if i != j
    ) / len(everything)
    expected = sum(one != other for one in everything for other in everything) / (
        len(everything) * (len(everything) - 1)
    )
    assert found.value == pytest.approx(1 - observed / expected, abs=1e-9)
    assert -1.0 <= found.low <= found.high <= 1.0


def test_the_interval_of_alpha_narrows_with_items() -> None:
    few = krippendorff_alpha(pairs_of([[20, 2], [3, 25]]), rng())
    many = krippendorff_alpha(pairs_of([[2000, 200], [300, 2500]]), rng())
    assert few.value == pytest.approx(many.value, abs=0.01)
    assert many.high - many.low < 0.2 * (few.high - few.low)


def test_few_items_without_a_difference_prove_little_of_alpha() -> None:
    found = krippendorff_alpha([("a", "a"), ("b", "b")], rng())
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low < 0.0


# --- both, where what was seen moves agreement and chance alike ---


def kappa_of(pairs: Sequence[tuple[str, str]]) -> Estimate:
    return cohen_kappa(pairs)


def alpha_of(pairs: Sequence[tuple[str, str]]) -> Estimate:
    return krippendorff_alpha(pairs, rng(), resamples=200)


@pytest.mark.parametrize("measure", [kappa_of, alpha_of])
def test_one_item_on_which_people_differ_says_nearly_nothing(measure: Measure) -> None:
    found = measure([("a", "b")])
    assert (found.value, found.low) == (0.0, -1.0)
    assert 0.9 < found.high <= 1.0


@pytest.mark.parametrize("measure", [kappa_of, alpha_of])
def test_two_items_on_which_people_differ_do_not_prove_that_they_always_do(measure: Measure) -> None:
    found = measure([("a", "b"), ("b", "a")])
    assert found.low == -1.0
    assert 0.5 < found.high <= 1.0


@pytest.mark.parametrize("measure", [kappa_of, alpha_of])
def test_somebody_who_always_said_the_same_may_agree_all_the_same(measure: Measure) -> None:
    few = measure([("a", "a")] * 20 + [("a", "b")])
    many = measure([("a", "a")] * 20_000 + [("a", "b")] * 10_000)
    assert few.low == -1.0
    assert 0.9 < few.high < 1.0
    assert many.value is not None
    assert many.low < many.value < many.high < few.high
    assert many.high - many.low < 0.2


@pytest.mark.parametrize("measure", [kappa_of, alpha_of])
@given(pairs=st.lists(st.tuples(labels, labels), min_size=1, max_size=12))
def test_people_who_differed_have_an_interval_that_holds_the_estimate_and_narrows(
    measure: Measure, pairs: list[tuple[str, str]]
) -> None:
    assume(any(one != other for one, other in pairs))
    found, more = measure(pairs), measure(pairs * 64)
    for estimate in (found, more):
        assert estimate.value is not None
        assert -1.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
        assert estimate.low < estimate.high
    assert more.high - more.low < found.high - found.low


def test_the_interval_of_kappa_holds_the_truth_where_one_label_is_rare() -> None:
    """Of 30 items, 1 in 25 has the rare label; each says it of 4 in 5 of those, and of one in a hundred others."""
    rare, right, wrong = 0.04, 0.8, 0.01
    both = rare * right**2 + (1 - rare) * wrong**2
    says = rare * right + (1 - rare) * wrong
    agreed, by_chance = 1 - 2 * (says - both), says**2 + (1 - says) ** 2
    true_kappa = (agreed - by_chance) / (1 - by_chance)
    random = rng()
    held = asked = 0
    for _ in range(600):
        truth = random.random(30) < rare
        ones, others = (random.random(30) < np.where(truth, right, wrong) for _ in range(2))
        found = cohen_kappa(list(zip(ones.tolist(), others.tolist(), strict=True)))
        if found.value is not None:
            asked += 1
            held += found.low <= true_kappa <= found.high
    assert held / asked >= 0.92


def test_labels_of_many_people_who_split_alike_on_every_item_prove_nothing_either() -> None:
    few, many = (krippendorff_alpha([("a", "a", "b", "b")] * count, rng()) for count in (2, 2000))
    assert few.low == -1.0
    assert few.high > 0.0
    assert many.value is not None
    assert many.low < many.value < many.high
    assert many.high - many.low < 0.5
