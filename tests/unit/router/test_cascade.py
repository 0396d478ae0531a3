"""Which stage comes next, and whether its answer is good enough."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Signature
from router.cascade import Next, Skipped, judge, next_stage
from router.contract import (
    AcceptAny,
    AcceptRule,
    Certified,
    Decision,
    MinConfidence,
    ModelState,
    Observe,
    OnDefer,
    Reason,
    Residency,
    Route,
    Stage,
    Uncertified,
    Verdict,
)

READY = ModelState(ready=True, version="1", predicted_wait_s=0.01, latency_s=0.02)
LOADING = ModelState(ready=False, version="1")
SLOW = ModelState(ready=True, version="1", predicted_wait_s=0.5, latency_s=0.5)


def a_route(*models: str, min_confidence: float = 0.9) -> Route:
    return Route(
        name="digits",
        signature=Signature((), ()),
        decode=None,
        cascade=tuple(Stage(model) for model in models),
        accept=MinConfidence(min_confidence),
        human=None,
        on_defer=OnDefer.ERROR,
        deadline_s=1.0,
    )


TWO = a_route("fast", "strong")


def test_the_cascade_begins_at_its_first_stage_and_goes_on_to_the_next() -> None:
    states = {"fast": READY, "strong": READY}

    assert next_stage(TWO, None, states, 1.0) == Next(0)
    assert next_stage(TWO, 0, states, 1.0) == Next(1)
    assert next_stage(TWO, 1, states, 1.0) == Next(None)


def test_whoever_insists_gets_the_first_stage_that_is_ready_whatever_it_is_expected_to_take() -> None:
    cold = ModelState(ready=True, version="1", residency=Residency.COLD, expected_load_s=60.0)
    lost = ModelState(ready=True, version="1", predicted_wait_s=math.inf, latency_s=9.0)
    for state in (SLOW, cold, lost):
        states = {"fast": LOADING, "strong": state}
        skipped = next_stage(TWO, None, states, 0.3).skipped
        assert next_stage(TWO, None, states, 0.3) == Next(None, skipped)
        assert next_stage(TWO, None, states, 0.3, insist=True) == Next(1, skipped[:1])
        assert next_stage(TWO, None, states, 0.0, insist=True).stage is None
        assert next_stage(TWO, None, states, math.nan, insist=True).stage is None
    assert next_stage(TWO, 1, {"fast": READY, "strong": READY}, 0.3, insist=True) == Next(None)


@pytest.mark.parametrize("states", [{"strong": READY}, {"fast": LOADING, "strong": READY}])
def test_a_stage_that_is_not_ready_is_skipped(states: dict[str, ModelState]) -> None:
    skipped = Skipped(0, "fast", Reason.STAGE_UNAVAILABLE, "model fast is not ready")

    assert next_stage(TWO, None, states, 1.0) == Next(1, (skipped,))


def test_a_stage_that_cannot_answer_in_time_is_skipped() -> None:
    upcoming = next_stage(TWO, None, {"fast": SLOW, "strong": READY}, 0.3)

    detail = "model fast needs 1000.0 ms and 300.0 ms are left"
    assert upcoming == Next(1, (Skipped(0, "fast", Reason.OUT_OF_TIME, detail),))
    assert upcoming.reason is None


@pytest.mark.parametrize("remaining_s", [0.0, -1.0, math.nan])
def test_no_stage_starts_when_time_is_up(remaining_s: float) -> None:
    instant = ModelState(ready=True, version="1")

    upcoming = next_stage(TWO, None, {"fast": instant, "strong": instant}, remaining_s)

    assert upcoming.stage is None
    assert upcoming.reason is Reason.OUT_OF_TIME


def test_a_wait_that_is_not_a_number_is_too_long() -> None:
    lost = ModelState(ready=True, version="1", predicted_wait_s=math.nan)

    assert next_stage(a_route("fast"), None, {"fast": lost}, 1.0).reason is Reason.OUT_OF_TIME


def test_a_model_that_others_wait_for_is_overloaded_where_it_would_be_in_time_alone() -> None:
    busy = ModelState(ready=True, version="1", predicted_wait_s=0.9, latency_s=0.2)

    upcoming = next_stage(a_route("fast"), None, {"fast": busy}, 1.0)

    detail = "model fast needs 1100.0 ms and 1000.0 ms are left"
    assert upcoming == Next(None, (Skipped(0, "fast", Reason.OVERLOADED, detail, 0.9),))
    assert upcoming.reason is Reason.OVERLOADED
    assert next_stage(a_route("fast"), None, {"fast": busy}, 0.1).reason is Reason.OUT_OF_TIME


def test_a_cold_stage_whose_load_does_not_fit_is_passed_over_and_says_when_it_will_be_there() -> None:
    cold = ModelState(ready=True, version="1", residency=Residency.COLD, latency_s=0.02, expected_load_s=4.0)

    upcoming = next_stage(TWO, None, {"fast": cold, "strong": READY}, 1.0)

    detail = "model fast is not loaded, which takes 4000 ms; 1000.0 ms are left"
    assert upcoming == Next(1, (Skipped(0, "fast", Reason.STAGE_UNAVAILABLE, detail, 4.0),))
    assert next_stage(TWO, None, {"fast": cold}, 5.0) == Next(0)
    assert next_stage(a_route("fast"), None, {"fast": cold}, 0.01).reason is Reason.OUT_OF_TIME


def test_a_stage_that_is_being_loaded_is_waited_for_where_that_is_in_time() -> None:
    warming = ModelState(ready=True, version="1", residency=Residency.WARMING, latency_s=0.02, expected_load_s=0.3)

    assert next_stage(TWO, None, {"fast": warming, "strong": READY}, 0.4) == Next(0)
    assert next_stage(TWO, None, {"fast": warming, "strong": READY}, 0.3).stage == 1


def test_without_a_deadline_the_slowest_stage_is_in_time() -> None:
    assert next_stage(TWO, None, {"fast": SLOW}, math.inf) == Next(0)


def test_the_reason_for_having_no_stage_left_is_time_before_overload_before_unavailability() -> None:
    busy = ModelState(ready=True, version="1", predicted_wait_s=0.9, latency_s=0.05)
    assert next_stage(TWO, None, {}, 1.0).reason is Reason.STAGE_UNAVAILABLE
    assert next_stage(TWO, None, {"strong": SLOW}, 0.1).reason is Reason.OUT_OF_TIME
    assert next_stage(TWO, None, {"fast": busy}, 0.1).reason is Reason.OVERLOADED
    assert next_stage(TWO, None, {"fast": busy, "strong": SLOW}, 0.1).reason is Reason.OUT_OF_TIME
    assert next_stage(TWO, 1, {}, 1.0).reason is None


def test_before_the_last_stage_an_unsure_item_is_escalated() -> None:
    assert judge(TWO, 0, np.array([0.9, 0.89, math.nan])) == (
        Verdict(Decision.ACCEPT, 0.9),
        Verdict(Decision.ESCALATE, 0.89, Reason.LOW_CONFIDENCE),
        Verdict(Decision.ESCALATE, None, Reason.NO_CONFIDENCE),
    )


def test_at_the_last_stage_an_unsure_item_is_deferred() -> None:
    assert judge(TWO, 1, np.array([1.0, 0.5, math.nan])) == (
        Verdict(Decision.ACCEPT, 1.0),
        Verdict(Decision.DEFER, 0.5, Reason.LOW_CONFIDENCE),
        Verdict(Decision.DEFER, None, Reason.NO_CONFIDENCE),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.01])
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_what_is_no_probability_is_never_confident(value: float, threshold: float) -> None:
    only = a_route("only", min_confidence=threshold)

    assert judge(only, 0, np.array([value])) == (Verdict(Decision.DEFER, None, Reason.NO_CONFIDENCE),)


def test_a_threshold_that_is_not_a_number_accepts_nothing() -> None:
    only = a_route("only", min_confidence=math.nan)

    assert judge(only, 0, np.array([1.0]))[0].decision is Decision.DEFER


def test_an_exposed_model_is_accepted_as_it_is_and_never_called_confident_on_nonsense() -> None:
    exposed = replace(TWO, accept=AcceptAny())

    assert judge(exposed, 0, np.array([0.1, math.nan, 7.0])) == (
        Verdict(Decision.ACCEPT, 0.1),
        Verdict(Decision.ACCEPT, None),
        Verdict(Decision.ACCEPT, None),
    )


def test_no_items_have_no_verdicts() -> None:
    assert judge(TWO, 0, np.zeros(0)) == ()


ANY_CONFIDENCE = st.lists(st.floats(0.0, 1.0) | st.just(math.nan), max_size=8)


@given(ANY_CONFIDENCE, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_higher_threshold_never_accepts_more(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    confidences = np.array(values, np.float64)

    loose = judge(a_route("only", min_confidence=low), 0, confidences)
    strict = judge(a_route("only", min_confidence=high), 0, confidences)

    for easy, hard in zip(loose, strict, strict=True):
        assert not (hard.decision is Decision.ACCEPT and easy.decision is not Decision.ACCEPT)


@given(ANY_CONFIDENCE)
def test_each_item_is_judged_as_if_it_were_alone(values: list[float]) -> None:
    together = judge(TWO, 0, np.array(values, np.float64))

    assert together == tuple(judge(TWO, 0, np.array([value]))[0] for value in values)


# --- error budgets ---

SURE = np.array([0.95, 0.5, math.nan])


def judged(accept: AcceptRule, stage: int, *, all_ran: bool = True) -> list[tuple[Decision, Reason | None]]:
    return [(v.decision, v.reason) for v in judge(replace(TWO, accept=accept), stage, SURE, all_ran=all_ran)]


def test_a_certified_route_accepts_at_its_threshold() -> None:
    certified = Certified(0.9, "certificate")

    assert judged(certified, 0) == [
        (Decision.ACCEPT, None),
        (Decision.ESCALATE, Reason.LOW_CONFIDENCE),
        (Decision.ESCALATE, Reason.NO_CONFIDENCE),
    ]


def test_behind_a_skipped_stage_a_certified_route_accepts_nothing() -> None:
    assert judged(Certified(0.9, "certificate"), 1, all_ran=False) == [
        (Decision.DEFER, Reason.UNCERTIFIED_PATH),
        (Decision.DEFER, Reason.UNCERTIFIED_PATH),
        (Decision.DEFER, Reason.NO_CONFIDENCE),
    ]


def test_a_threshold_that_nobody_certified_does_not_mind_a_skipped_stage() -> None:
    assert judged(MinConfidence(0.9), 1, all_ran=False)[0] == (Decision.ACCEPT, None)


def test_a_route_without_its_certificate_asks_all_stages_and_accepts_nothing() -> None:
    uncertified = Uncertified("there is none")

    assert judged(uncertified, 0)[0] == (Decision.ESCALATE, Reason.NO_CERTIFICATE)
    assert judged(uncertified, 1) == [(Decision.DEFER, Reason.NO_CERTIFICATE)] * 3


def test_a_route_that_gathers_labels_says_so_of_what_skipped_a_stage_too() -> None:
    assert judged(Uncertified("there is none"), 1, all_ran=False)[0] == (Decision.DEFER, Reason.NO_CERTIFICATE)
    assert judged(Observe(), 1, all_ran=False)[0] == (Decision.ACCEPT, Reason.OBSERVED)


def test_a_route_that_observes_answers_with_its_last_stage_however_sure_it_is() -> None:
    assert judged(Observe(), 0)[0] == (Decision.ESCALATE, Reason.OBSERVED)
    assert judged(Observe(), 1) == [
        (Decision.ACCEPT, Reason.OBSERVED),
        (Decision.ACCEPT, Reason.OBSERVED),
        (Decision.DEFER, Reason.OBSERVED),
    ]
