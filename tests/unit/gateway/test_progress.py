"""The books of a request: who is still open, what was said of each item, and how each of them ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Datatype, Signature, Tensor, Tensors, TensorSpec
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, Overloaded, PointsmanError, Unavailable
from gateway.answer import AnswerId, Status
from gateway.certify.labels import Missing, evidence_of
from gateway.people.outlook import Overload
from gateway.progress import Progress
from gateway.store.contract import LabelledItem
from router.cascade import judge
from router.contract import (
    Decision,
    HumanPolicy,
    MinConfidence,
    OnDefer,
    Reason,
    Route,
    Stage,
    Uncertified,
    Verdict,
    WhenOverloaded,
)

ROUTE = Route(
    name="r",
    signature=Signature((TensorSpec("x", Datatype.FP32, (1,)),), (TensorSpec("y", Datatype.INT64, (1,)),)),
    decode=None,
    cascade=(Stage("fast"), Stage("strong")),
    accept=MinConfidence(0.9),
    human=HumanPolicy("q", 60.0),
    on_defer=OnDefer.PROVISIONAL,
    deadline_s=1.0,
)
NOBODY = replace(ROUTE, human=None)
ACCEPT = Verdict(Decision.ACCEPT, 0.95)
ESCALATE = Verdict(Decision.ESCALATE, 0.5, Reason.LOW_CONFIDENCE)
DEFER = Verdict(Decision.DEFER, 0.6, Reason.LOW_CONFIDENCE)


def outputs_for(items: list[int]) -> Tensors:
    """Outputs that carry which item they belong to."""
    labels = np.empty((len(items), 1), dtype=object)
    labels[:, 0] = [f"item-{i}".encode() for i in items]
    return {"y": Tensor.of(np.array(items, dtype=np.int64).reshape(-1, 1)), "label": Tensor.of(labels)}


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
def test_every_item_keeps_its_own_answer_whoever_else_escalates(first: list[bool], data: st.DataObject) -> None:
    progress = Progress(len(first))
    progress.judged("fast", "1", outputs_for(progress.open), [ACCEPT if sure else ESCALATE for sure in first])
    second = data.draw(st.lists(st.booleans(), min_size=len(progress.open), max_size=len(progress.open)))
    if progress.open:
        progress.judged("strong", "2", outputs_for(progress.open), [ACCEPT if sure else DEFER for sure in second])

    items = progress.settle(ROUTE)

    later = iter(second)
    for index, (item, sure_at_first) in enumerate(zip(items, first, strict=True)):
        assert item.label == f"item-{index}"
        assert item.outputs is not None
        assert item.outputs["y"].numpy().tolist() == [[index]]
        assert item.stage == ("fast" if sure_at_first else "strong")
        sure = sure_at_first or next(later)
        assert item.status is (Status.FINAL if sure else Status.PROVISIONAL)
        assert item.decided_by == (f"model:{item.stage}" if sure else None)
        assert [record.stage for record in item.trail] == (["fast"] if sure_at_first else ["fast", "strong"])


def test_an_item_that_no_stage_answered_is_pending() -> None:
    progress = Progress(1)
    progress.passed_over("fast", "", Reason.STAGE_UNAVAILABLE)

    (item,) = progress.settle(ROUTE)

    assert (item.status, item.stage, item.outputs, item.reason) == (
        Status.PENDING,
        None,
        None,
        Reason.STAGE_UNAVAILABLE,
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeadlineExceeded("late"), Reason.OUT_OF_TIME),
        (Unavailable("resting"), Reason.STAGE_UNAVAILABLE),
        (Overloaded("busy"), Reason.OVERLOADED),
        (BackendFailed("broken"), Reason.STAGE_FAILED),
    ],
)
def test_a_failing_stage_leaves_its_items_open_with_the_reason(error: PointsmanError, reason: Reason) -> None:
    progress = Progress(2)
    progress.failed("fast", "1", error)

    assert progress.open == [0, 1]
    assert progress.settle(ROUTE)[1].reason is reason
    with pytest.raises(type(error)):
        progress.settle(NOBODY)


def test_who_is_refused_for_overload_hears_when_to_come_back() -> None:
    progress = Progress(1)
    progress.failed("fast", "1", Overloaded("busy", retry_after_s=7.0))

    with pytest.raises(Overloaded, match="are overloaded; try again") as refused:
        progress.settle(NOBODY)

    assert refused.value.retry_after_s == 7.0


def test_an_error_that_every_stage_would_meet_ends_the_request() -> None:
    with pytest.raises(InvalidInput, match="bad"):
        Progress(1).failed("fast", "1", InvalidInput("bad"))


def test_without_a_person_an_unsure_answer_is_given_as_uncertain_or_refused_as_the_route_says() -> None:
    progress = Progress(1)
    progress.judged("strong", "1", outputs_for([0]), [DEFER])

    (item,) = progress.settle(NOBODY)
    assert (item.status, item.decided_by, item.reason) == (
        Status.PROVISIONAL,
        "model:strong",
        Reason.LOW_CONFIDENCE,
    )
    with pytest.raises(Unavailable, match="no person to ask"):
        progress.settle(replace(NOBODY, on_defer=OnDefer.ERROR))


def test_a_failure_after_an_answer_keeps_the_answer_as_provisional() -> None:
    progress = Progress(1)
    progress.judged("fast", "1", outputs_for([0]), [ESCALATE])
    progress.failed("strong", "1", BackendFailed("broken"))

    (item,) = progress.settle(ROUTE)

    assert (item.status, item.stage, item.reason) == (Status.PROVISIONAL, "fast", Reason.STAGE_FAILED)
    assert [record.decision for record in item.trail] == [Decision.ESCALATE, Decision.ESCALATE]


# --- people who have no time ---


def overload(policy: WhenOverloaded) -> Overload:
    return Overload(policy, "q", "people of queue 'q' need about 3 h, and this route allows 2 h", 3600.0)


def unsure(route: Route = ROUTE, answered: bool = True) -> Progress:
    """Two items, of which the first is sure; no stage is of the second, and none may have answered it."""
    progress = Progress(2)
    progress.judged("fast", "1", outputs_for(progress.open), [ACCEPT, ESCALATE])
    if answered:
        progress.judged("strong", "2", outputs_for(progress.open), [DEFER])
    return progress


def test_where_people_have_no_time_the_model_s_answer_stands_and_says_so() -> None:
    sure, stands = unsure().settle(ROUTE, overload(WhenOverloaded.PROVISIONAL))

    assert (sure.status, sure.decided_by, sure.remarks) == (Status.FINAL, "model:fast", ())
    assert (stands.status, stands.decided_by, stands.label) == (Status.PROVISIONAL, "model:strong", "item-1")
    assert stands.reason is Reason.LOW_CONFIDENCE
    assert stands.remarks == ("people of queue 'q' need about 3 h, and this route allows 2 h",)
    assert stands.trail[-1].reason is Reason.PEOPLE_OVERLOADED


def test_what_no_stage_has_answered_waits_for_people_all_the_same() -> None:
    progress = Progress(1)
    progress.passed_over("fast", "", Reason.STAGE_UNAVAILABLE)

    (item,) = progress.settle(ROUTE, overload(WhenOverloaded.PROVISIONAL))

    assert (item.status, item.decided_by) == (Status.PENDING, None)


def test_where_people_have_no_time_a_request_is_refused_with_the_time_to_try_again() -> None:
    with pytest.raises(Overloaded, match="need about 3 h, and this route allows 2 h; try again later") as refused:
        unsure().settle(ROUTE, overload(WhenOverloaded.REFUSE))

    assert refused.value.retry_after_s == 3600.0


@pytest.mark.parametrize("policy", [WhenOverloaded.STRONGER, WhenOverloaded.WAIT])
def test_else_people_are_asked_whatever_it_takes(policy: WhenOverloaded) -> None:
    assert unsure().settle(ROUTE, overload(policy))[1].decided_by is None


@pytest.mark.parametrize("policy", list(WhenOverloaded))
def test_nobody_is_refused_whom_no_person_would_have_been_asked_about(policy: WhenOverloaded) -> None:
    progress = Progress(1)
    progress.judged("fast", "1", outputs_for(progress.open), [ACCEPT])

    (item,) = progress.settle(ROUTE, overload(policy))

    assert (item.status, item.trail[-1].stage) == (Status.FINAL, "fast")


def test_an_item_whose_label_a_certificate_needs_keeps_its_reason_without_a_label() -> None:
    """It stays among those that were scored without selection: one whose label is missing, which holds the proof up."""
    gathering = replace(ROUTE, accept=Uncertified("there is no certificate"))
    progress = Progress(1)
    verdicts = judge(gathering, 0, np.array([0.99]))
    progress.judged("fast", "1", outputs_for(progress.open), verdicts, "subject")

    (item,) = progress.settle(gathering, overload(WhenOverloaded.PROVISIONAL))

    assert (item.status, item.reason, item.decided_by) == (Status.PROVISIONAL, Reason.NO_CERTIFICATE, "model:fast")
    labelled = LabelledItem(AnswerId("0"), 0, 1.0, "t", item.trail, None)
    held = evidence_of([labelled], ["fast"], "subject", Missing.HOLD)
    assert (held.used, held.unlabelled) == (1, 1)
    assert held.scores is not None
    assert not held.scores.right.any()
