"""Certified thresholds: the counting, the choice, what it guarantees, and what it says where nothing is proven."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.binomial import at_most, is_rejected
from router.certification import (
    Budget,
    Scores,
    Unproven,
    accepted_and_wrong,
    at_look,
    labels_needed,
    minimal_accepted,
    reliability,
    risk_coverage,
    select_threshold,
    shortfall,
    stage_shares,
)

LENIENT = Budget(max_error=0.3, confidence=0.8)
"""Provable on a handful of items."""

NAN = math.nan


@st.composite
def scores(draw: st.DrawFn, max_items: int = 40, missing: bool = True, levels: int = 8) -> Scores:
    """Cascades of one to three stages, with many ties, confidences that are NaN, and stages that did not run."""
    stages, items = draw(st.integers(1, 3)), draw(st.integers(0, max_items))
    size = stages * items
    stated = st.sampled_from([*np.linspace(0.0, 1.0, levels).tolist(), NAN])
    confidence = draw(st.lists(stated, min_size=size, max_size=size))
    right = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    ran = draw(st.lists(st.booleans() if missing else st.just(True), min_size=size, max_size=size))
    shape = (stages, items)
    return Scores(
        np.array(confidence, dtype=np.float64).reshape(shape),
        np.array(right, dtype=bool).reshape(shape),
        np.array(ran, dtype=bool).reshape(shape),
    )


def likely_right(seed: int, items: int, stages: int = 2, levels: int = 50) -> Scores:
    """Items whose stages are right about as often as they say, and mostly are, with ties."""
    rng = np.random.default_rng(seed)
    confidence = np.sqrt(rng.integers(1, levels + 1, (stages, items)) / levels)
    return Scores(confidence, rng.random((stages, items)) < confidence)


def one_stage(confidence: list[float], right: list[bool]) -> Scores:
    return Scores(np.array([confidence]), np.array([right]))


# --- counting ---


def counted_one_by_one(scores: Scores, threshold: float) -> tuple[int, int]:
    """The route's rule, item by item and stage by stage."""
    accepted = wrong = 0
    for item in range(scores.items):
        for stage in range(len(scores.confidence)):
            if not scores.ran[stage, item]:
                accepted, wrong = accepted + 1, wrong + 1
                break
            if scores.confidence[stage, item] >= threshold:
                accepted, wrong = accepted + 1, wrong + (not scores.right[stage, item])
                break
    return accepted, wrong


@given(scores(), st.lists(st.floats(-0.5, 1.5), max_size=6))
def test_items_are_counted_as_the_route_would_accept_them(given_scores: Scores, thresholds: list[float]) -> None:
    accepted, wrong = accepted_and_wrong(given_scores, np.array(thresholds, dtype=np.float64))

    one_by_one = [counted_one_by_one(given_scores, threshold) for threshold in thresholds]
    assert list(zip(accepted.tolist(), wrong.tolist(), strict=True)) == one_by_one


@given(scores())
def test_the_curve_stands_at_every_distinct_confidence_strict_to_loose(given_scores: Scores) -> None:
    curve = risk_coverage(given_scores)

    stated = {value for value in given_scores.confidence[given_scores.ran].tolist() if not math.isnan(value)}
    assert curve.thresholds.tolist() == sorted(stated, reverse=True)
    assert (np.diff(curve.accepted) >= 0).all()
    assert ((curve.risk >= 0.0) & (curve.risk <= 1.0) & (curve.coverage <= 1.0)).all()


@given(scores(max_items=12), st.data())
def test_a_stage_that_saw_nothing_never_makes_the_evidence_stronger(given_scores: Scores, data: st.DataObject) -> None:
    shape = given_scores.confidence.shape
    size = given_scores.confidence.size
    confidence = data.draw(st.lists(st.floats(0.0, 1.0) | st.just(NAN), min_size=size, max_size=size))
    right = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    completed = Scores(
        np.where(given_scores.ran, given_scores.confidence, np.reshape(confidence, shape)),
        np.where(given_scores.ran, given_scores.right, np.array(right, dtype=bool).reshape(shape)),
    )
    thresholds = np.linspace(0.0, 1.0, 9)

    incomplete = zip(*accepted_and_wrong(given_scores, thresholds), strict=True)
    complete = zip(*accepted_and_wrong(completed, thresholds), strict=True)

    for (accepted, wrong), (truly_accepted, truly_wrong) in zip(incomplete, complete, strict=True):
        p_value = at_most(int(wrong), int(accepted), 0.2)
        assert p_value >= at_most(int(truly_wrong), int(truly_accepted), 0.2) - 1e-12


@given(scores(), st.sampled_from([0.0, 0.4, 1.0]))
def test_stage_shares_add_up_to_what_is_really_accepted(given_scores: Scores, threshold: float) -> None:
    reached = (given_scores.ran & (given_scores.confidence >= threshold)).any(axis=0)

    assert sum(stage_shares(given_scores, threshold)) == pytest.approx(reached.sum() / max(given_scores.items, 1))


# --- choosing ---


def chosen_by_the_letter(scores: Scores, budget: Budget) -> float | None:
    """The rule as it is written down, without arrays."""
    own_level = (1.0 - budget.confidence) / 4.0
    least = math.ceil(math.log(own_level) / math.log(1.0 - budget.max_error))
    stated = {value for value in scores.confidence[scores.ran].tolist() if not math.isnan(value)}
    grid = [(threshold, *counted_one_by_one(scores, threshold)) for threshold in sorted(stated, reverse=True)]
    enough = [place for place, (_, accepted, _) in enumerate(grid) if accepted >= least]
    if not enough:
        return None
    starts = []
    for share in (0, 20, 40, 60):
        within = [place for place, (_, accepted, _) in enumerate(grid) if 100 * accepted <= share * scores.items]
        starts.append(max(enough[0], *within) if within else enough[0])
    reached, level = [], 0.0
    for start, end in zip(starts, [*starts[1:], len(grid)], strict=True):
        level += own_level
        for threshold, accepted, wrong in grid[start:end]:
            if at_most(wrong, accepted, budget.max_error) > level:
                level = 0.0
                break
            reached.append(threshold)
    return min(reached, default=None)


@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(1, 3))
def test_the_choice_is_that_of_the_rule_by_the_letter(seed: int, items: int, stages: int) -> None:
    given_scores = likely_right(seed, items, stages, levels=12)

    assert select_threshold(given_scores, LENIENT).threshold == chosen_by_the_letter(given_scores, LENIENT)


@given(scores())
def test_the_choice_is_that_of_the_rule_by_the_letter_with_gaps_too(given_scores: Scores) -> None:
    assert select_threshold(given_scores, LENIENT).threshold == chosen_by_the_letter(given_scores, LENIENT)


@given(scores(max_items=80, levels=4))
def test_what_is_chosen_is_told_as_it_was_seen(given_scores: Scores) -> None:
    selection = select_threshold(given_scores, LENIENT)

    assert (selection.threshold is None) == (selection.reason is not None)
    assert selection.items == given_scores.items
    if selection.threshold is not None:
        assert (selection.accepted, selection.wrong) == counted_one_by_one(given_scores, selection.threshold)
        assert selection.wrong / selection.accepted <= selection.bound <= LENIENT.max_error + 1e-9


@given(scores(max_items=60))
def test_nothing_is_certified_on_fewer_items_than_could_prove_it(given_scores: Scores) -> None:
    selection = select_threshold(given_scores, LENIENT)

    assert selection.threshold is None or selection.accepted >= minimal_accepted(LENIENT)


@given(scores(), st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(given_scores: Scores, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(given_scores.items)  # type: ignore[attr-defined]
    shuffled = Scores(given_scores.confidence[:, order], given_scores.right[:, order], given_scores.ran[:, order])

    assert select_threshold(shuffled, LENIENT) == select_threshold(given_scores, LENIENT)


BUDGETS = st.builds(Budget, max_error=st.floats(0.12, 0.6), confidence=st.floats(0.5, 0.98))


@given(st.integers(0, 10_000), st.integers(150, 400), BUDGETS, BUDGETS)
def test_a_looser_budget_never_gives_a_stricter_threshold(seed: int, items: int, one: Budget, other: Budget) -> None:
    tight = Budget(min(one.max_error, other.max_error), max(one.confidence, other.confidence))
    loose = Budget(max(one.max_error, other.max_error), min(one.confidence, other.confidence))
    given_scores = likely_right(seed, items)

    at_tight, at_loose = (select_threshold(given_scores, budget) for budget in (tight, loose))

    assume(at_tight.starts == at_loose.starts)
    if at_tight.threshold is not None:
        assert at_loose.threshold is not None
        assert at_loose.threshold <= at_tight.threshold


def test_items_of_one_confidence_enter_together() -> None:
    half_wrong = one_stage([0.9] * 100 + [0.8] * 100, [True] * 140 + [False] * 60)

    selection = select_threshold(half_wrong, LENIENT)

    assert (selection.threshold, selection.accepted, selection.wrong) == (0.9, 100, 0)


def test_a_start_that_falls_into_a_tie_is_before_it() -> None:
    """The surest 19 % are tied, and the next 40 % too: a start at 20 % is with the former."""
    tied = one_stage([0.99] * 19 + [0.5] * 40 + [0.1] * 41, [True] * 19 + [False] * 81)

    selection = select_threshold(tied, LENIENT)

    assert selection.starts == (0.99, 0.99, 0.99, 0.5)
    assert (selection.threshold, selection.accepted) == (0.99, 19)


def test_a_later_start_passes_where_the_first_stops() -> None:
    """The surest fifth is worse than what follows, as where a model is blindly sure of one kind of item."""
    rng = np.random.default_rng(5)
    confidence = np.sort(rng.random(1_000))[::-1]
    wrong_first = [False] * 100 + [True] * 900

    selection = select_threshold(one_stage(confidence.tolist(), wrong_first), Budget(0.3, 0.95))

    assert selection.threshold == confidence[-1]


@pytest.mark.parametrize("confidence", [0.7, 1.0])
def test_where_all_are_right_all_are_accepted(confidence: float) -> None:
    items = minimal_accepted(LENIENT)

    selection = select_threshold(one_stage([confidence] * items, [True] * items), LENIENT)

    assert (selection.threshold, selection.accepted, selection.wrong) == (confidence, items, 0)
    fewer = one_stage([confidence] * (items - 1), [True] * (items - 1))
    assert select_threshold(fewer, LENIENT).reason is Unproven.TOO_FEW_ACCEPTED


def test_where_all_are_wrong_nothing_is_accepted() -> None:
    rng = np.random.default_rng(6)

    selection = select_threshold(one_stage(rng.random(500).tolist(), [False] * 500), LENIENT)

    assert (selection.threshold, selection.accepted, selection.bound) == (None, 0, 1.0)
    assert selection.reason is Unproven.NOT_REJECTED


@pytest.mark.parametrize("items", [0, 1, 1_000])
def test_items_without_any_confidence_are_never_accepted(items: int) -> None:
    nameless = Scores(np.full((2, items), NAN), np.ones((2, items), dtype=bool))

    assert select_threshold(nameless, LENIENT).reason is Unproven.TOO_FEW_ACCEPTED


def test_a_first_stage_without_a_confidence_leaves_the_second_to_decide() -> None:
    confidence = np.array([[NAN] * 50, [0.9] * 50])
    right = np.array([[False] * 50, [True] * 50])

    assert select_threshold(Scores(confidence, right), LENIENT).threshold == 0.9


def test_the_stages_behind_the_first_are_not_needed_where_it_accepts() -> None:
    """Labels gathered by a cascade in operation: the second stage only saw what the first was not sure of."""
    whole = likely_right(seed=7, items=4_000)
    ran = np.stack([np.ones(4_000, dtype=bool), whole.confidence[0] < 0.95])
    budget = Budget(0.2, 0.95)

    seen_by_all = select_threshold(whole, budget)
    seen_in_part = select_threshold(Scores(whole.confidence, whole.right, ran), budget)

    assert seen_by_all.threshold is not None
    assert seen_in_part.threshold == seen_by_all.threshold


# --- the guarantee, by simulation ---

CURVES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "rises evenly": lambda u: 0.25 * (1.0 - u),
    "rises late": lambda u: 0.5 * (1.0 - u) ** 3,
    "flat, just over the budget": lambda u: np.full_like(u, 0.0501),
    "worst where surest": lambda u: np.where(u > 0.8, 0.08, 0.02 + 0.3 * (0.8 - u)),
}
"""P(wrong) of an item by its confidence, which is uniform on [0, 1]."""

PROMISE = Budget(max_error=0.05, confidence=0.95)
DRAWS, ITEMS = 400, 1_000


def draws_over_budget(choose: Callable[[Scores], float | None], curve: str) -> int:
    """How many of `DRAWS` sets of labelled items make *choose* name a threshold whose true error is over the budget."""
    middles = (np.arange(100_000) + 0.5) / 100_000
    from_top = np.cumsum(CURVES[curve](middles)[::-1]) / np.arange(1, 100_001)
    over = 0
    for draw in range(DRAWS):
        rng = np.random.default_rng((11, draw))
        confidence = rng.random((1, ITEMS))
        right = rng.random((1, ITEMS)) >= CURVES[curve](confidence)
        threshold = choose(Scores(confidence, right))
        if threshold is not None:
            accepted = min(max(math.ceil((1.0 - threshold) * 100_000), 1), 100_000)
            over += bool(from_top[accepted - 1] > PROMISE.max_error)
    return over


def loosest_within(scores: Scores) -> float | None:
    """What one would try first: the loosest threshold whose error on the labels is within the budget."""
    curve = risk_coverage(scores)
    within = np.flatnonzero(curve.risk <= PROMISE.max_error)
    return float(curve.thresholds[within[-1]]) if len(within) else None


@pytest.mark.parametrize("curve", CURVES)
def test_the_budget_is_exceeded_no_more_often_than_promised(curve: str) -> None:
    over = draws_over_budget(lambda found: select_threshold(found, PROMISE).threshold, curve)

    assert not is_rejected(over, DRAWS, 1.0 - PROMISE.confidence)


@pytest.mark.parametrize("curve", CURVES)
def test_the_same_check_rejects_the_loosest_threshold_that_looks_right(curve: str) -> None:
    assert is_rejected(draws_over_budget(loosest_within, curve), DRAWS, 1.0 - PROMISE.confidence)


def test_all_looks_together_spend_no_more_than_the_level() -> None:
    budget = Budget(0.01, 0.95)

    spent = [1.0 - at_look(budget, look).confidence for look in range(1, 2_000)]

    assert spent[:3] == pytest.approx([0.04, 0.005, 0.005 / 3])
    assert sum(spent) <= 0.05
    assert sum(spent) == pytest.approx(0.05, abs=1e-4)


# --- how many labels ---


@pytest.mark.parametrize(
    ("budget", "least"), [(Budget(0.01, 0.95), 437), (Budget(0.02, 0.95), 217), (Budget(0.2, 0.95), 20)]
)
def test_the_least_number_of_items_is_that_which_proves_without_an_error(budget: Budget, least: int) -> None:
    assert minimal_accepted(budget) == least
    assert at_most(0, least, budget.max_error) <= budget.level < at_most(0, least - 1, budget.max_error)
    assert labels_needed(budget, 0.0) == least


@given(BUDGETS, st.floats(0.0, 0.9), st.floats(0.5, 0.95))
def test_so_many_labels_prove_the_budget_as_often_as_asked(budget: Budget, share: float, power: float) -> None:
    error_rate = share * budget.max_error
    needed = labels_needed(budget, error_rate, power)

    assert needed is not None
    critical = max(k for k in range(-1, needed) if at_most(k, needed, budget.max_error) <= budget.level)
    assert at_most(critical, needed, error_rate) >= power


@pytest.mark.parametrize("error_rate", [0.01, 0.02, 0.009999])
def test_no_number_of_labels_proves_what_is_not_so_or_hardly_so(error_rate: float) -> None:
    assert labels_needed(Budget(0.01, 0.95), error_rate) is None


def words(scores: Scores, budget: Budget) -> str:
    told = shortfall(select_threshold(scores, budget), scores, budget)
    assert told is not None
    return told


def test_a_shortfall_says_how_many_labels_would_do() -> None:
    """No errors among the surest fifth: 437 of them are needed, so five times as many labels."""
    few = one_stage((np.arange(500) / 500).tolist(), [False] * 300 + [True] * 200)

    assert words(few, Budget(0.01, 0.95)) == (
        "500 labelled items do not prove an error of 1.00% with 95.0% confidence: of the surest 100, 0 are wrong "
        "(0.00%). At that error, 2,185 labelled items would be enough."
    )


def test_a_shortfall_says_where_no_number_of_labels_helps() -> None:
    bad = one_stage((np.arange(1_000) / 1_000).tolist(), [True, False] * 500)

    assert "No number of labels helps" in words(bad, Budget(0.01, 0.95))


def test_a_shortfall_on_very_few_labels_does_not_judge_the_models() -> None:
    thin = one_stage((np.arange(50) / 50).tolist(), [True] * 49 + [False])

    assert words(thin, Budget(0.05, 0.95)).endswith(
        "At that error no number of labels would be enough, and fewer than 430 cannot tell whether it is smaller."
    )


def test_a_shortfall_names_stages_that_never_saw_the_items() -> None:
    whole = likely_right(seed=8, items=1_000)
    ran = np.stack([np.ones(1_000, dtype=bool), whole.confidence[0] < 0.5])

    assert "because a stage that had to decide never saw them" in words(
        Scores(whole.confidence, whole.right, ran), Budget(0.05, 0.95)
    )


def test_a_shortfall_without_any_confidence_says_so() -> None:
    assert "none of 3 labelled items has a confidence" in words(one_stage([NAN] * 3, [True] * 3), LENIENT)


def test_nothing_falls_short_where_a_threshold_is_proven() -> None:
    proven = one_stage([0.9] * 100, [True] * 100)

    assert shortfall(select_threshold(proven, LENIENT), proven, LENIENT) is None


# --- reliability, and what is refused ---


def test_reliability_tells_means_and_counts_by_bin_and_leaves_nan_out() -> None:
    found = reliability(np.array([0.1, 0.2, 0.9, 1.0, NAN]), np.array([True, False, True, True, True]), bins=2)

    np.testing.assert_allclose(found.confidence, [0.15, 0.95])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    assert found.count.tolist() == [2, 2]


def test_an_empty_bin_has_no_means() -> None:
    found = reliability(np.array([0.9]), np.array([True]), bins=2)

    assert math.isnan(found.confidence[0])
    assert math.isnan(found.accuracy[0])


@pytest.mark.parametrize(
    ("confidence", "right", "fault"),
    [
        ([0.5], [True], "give one row a stage"),
        (np.empty((0, 3)), np.empty((0, 3), dtype=bool), "give one row a stage"),
        ([[0.5, 0.6]], [[True]], "right is bool"),
        ([[0.5]], [[1]], "right is int64"),
        ([[1.5]], [[True]], "calibrate the scores first"),
        ([[math.inf]], [[True]], "calibrate the scores first"),
        ([[-0.1]], [[True]], "calibrate the scores first"),
    ],
)
def test_scores_that_do_not_fit_are_refused(confidence: object, right: object, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Scores(np.array(confidence, dtype=np.float64), np.array(right))


def test_what_stands_where_a_stage_did_not_run_is_ignored() -> None:
    assert Scores(np.array([[7.0]]), np.array([[True]]), np.array([[False]])).items == 1


@pytest.mark.parametrize(("max_error", "confidence"), [(0.0, 0.95), (1.0, 0.95), (NAN, 0.95), (0.01, 1.0), (0.01, 95)])
def test_a_budget_outside_zero_to_one_is_refused(max_error: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        Budget(max_error, confidence)
