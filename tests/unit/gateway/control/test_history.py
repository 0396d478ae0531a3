"""The way of an item, told to people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.answer import CLASSIFY, ROUTE_AT, AnswerId, StageRecord
from gateway.control.history import Kind, Step, timeline
from gateway.store.audit import LogRow
from gateway.store.contract import (
    Claim,
    Delivery,
    Message,
    OutboxState,
    Panel,
    Proposal,
    Purpose,
    Review,
    ReviewHistory,
    ReviewState,
    ReviewTask,
    SecondOpinion,
    Statement,
)
from router.contract import Decision, Reason

REVIEW = Review(
    id="r1",
    tenant="default",
    answer_id=AnswerId("a1"),
    route="mail",
    state=ReviewState.OPEN,
    fence=0,
    reviewer=None,
    lease_s=None,
    label=None,
    created_s=100.0,
    task=ReviewTask(
        0, "mail", 4000.0, ("x", "y"), b"", "text/plain", (Proposal("fast", "x", 0.6),), Reason.LOW_CONFIDENCE
    ),
)
TRAIL = (
    StageRecord(ROUTE_AT, "", "v2", None, Decision.ESCALATE),
    StageRecord(CLASSIFY, "", "mail", None, Decision.ESCALATE, Reason.UNCLEAR_CLASSIFICATION, "French, 40 %"),
    StageRecord("fast", "3", "x", 0.614, Decision.ESCALATE, Reason.LOW_CONFIDENCE),
    StageRecord("strong", "", None, None, Decision.DEFER, Reason.STAGE_FAILED, "it refused"),
)


def _row(event: str, at_s: float, actor: str | None = None, label: str | None = None, seq: int = 1) -> LogRow:
    digest = b"\xab" * 32 if event == "defer" else None
    return LogRow(0, seq, at_s, "default", "a1", 0, "mail", event, actor, label, None, None, (), None, digest, b"")


HISTORY = ReviewHistory(REVIEW, 99.5, TRAIL, (_row("defer", 99.5),), None, (), (), ())
DECIDED = replace(HISTORY, review=replace(REVIEW, state=ReviewState.DECIDED, fence=9, reviewer="anna", label="y"))
SECRETS = replace(
    HISTORY,
    log=(
        *HISTORY.log,
        _row("decide", 105.0, "person:ben", "secret-x", 2),
        _row("opinion", 110.0, "person:ben", "y", 3),
    ),
    claims=(Claim(1, "ben", 101.0, None), Claim(2, "anna", 102.0, None)),
    statements=(Statement("shop", "secret-x", 120.0),),
)


def _told(history: ReviewHistory) -> tuple[Step, ...]:
    return timeline(history, "anna", sees_all=True)


def _titles(history: ReviewHistory) -> list[str]:
    return [step.title for step in _told(history)]


def test_a_request_its_stages_and_the_queue_come_first() -> None:
    request, routing, fast, strong, queue = _told(DECIDED)

    assert (request.kind, request.at_s, request.details[0]) == (Kind.REQUEST, 99.5, "route mail, version v2")
    assert (routing.title, routing.details[-1]) == ("Routing: mail", "French, 40 %")
    assert fast.title == "fast, version 3: x, 61 % sure"
    assert fast.details == ("the next stage was asked, since it was not sure enough",)
    assert strong.title == "strong: no answer"
    assert strong.details == ("a person was asked, since a model failed on it", "it refused")
    assert (queue.title, queue.at_s, queue.awaits) == ("Handed to people", 100.0, ("to be decided by", 4000.0))
    assert queue.proof == "decision log: chain 0, row 1"
    assert "ab" * 32 in queue.details[-1]


def test_what_people_did_is_told_in_its_order() -> None:
    claims = (Claim(1, "anna", 110.0, 120.0), Claim(2, "ben", 130.0, None), Claim(3, "anna", 500.0, None))
    log = (*HISTORY.log, _row("decide", 600.0, "person:anna", "y", 2))
    said = (Statement("person:anna", "y", 600.0), Statement("shop", "x", 700.0))
    decided = replace(REVIEW, state=ReviewState.DECIDED, fence=3, reviewer="anna", label="y")

    history = replace(HISTORY, review=decided, claims=claims, log=log, statements=said)

    assert _titles(history)[5:] == [
        "anna took it",
        "anna put it back",
        "ben took it",
        "ben had it no longer: the claim ended undecided",
        "anna took it",
        "anna decided: y",
        "Feedback of shop: x",
    ]
    steps = _told(history)
    assert steps[8].at_s is None
    assert [step.later for step in steps[5:]] == ["", "", "", "", "6 min later", "1 min later", "1 min later"]


def test_a_claim_that_lasts_has_not_ended() -> None:
    held = replace(REVIEW, state=ReviewState.CLAIMED, fence=1, reviewer="anna", lease_s=60.0)

    assert _titles(replace(HISTORY, review=held, claims=(Claim(1, "anna", 110.0, None),)))[3:] == ["anna took it"]


def test_a_claim_that_ran_out_has_even_where_nobody_came_after() -> None:
    titles = _titles(replace(HISTORY, claims=(Claim(1, "anna", 110.0, None),)))

    assert titles[3:] == ["anna took it", "anna had it no longer: the claim ended undecided"]


def test_decisions_taken_back_and_events_of_later_versions_are_told() -> None:
    moved = replace(_row("escalate", 114.0), trail=({"stage": "people", "detail": "queue 'leads' has until noon"},))
    log = (_row("decide", 110.0, "person:anna", "x"), _row("undo", 112.0, "person:anna"), _row("sealed", 113.0), moved)
    decided = replace(REVIEW, state=ReviewState.DECIDED, reviewer="ben", label="y")

    told = _told(replace(HISTORY, review=decided, log=log))[5:]

    assert [step.title for step in told] == [
        "anna decided: x",
        "anna took the decision back",
        "sealed",
        "Nobody decided it in time",
    ]
    assert told[3].details == ("queue 'leads' has until noon",)


def test_what_was_decided_and_taken_back_is_told() -> None:
    log = (_row("decide", 110.0, "person:anna", "x"), _row("undo", 112.0, "person:anna"))

    assert _titles(replace(HISTORY, log=log))[3:] == ["anna decided: x", "anna took the decision back"]


def test_what_one_of_several_said_is_told_to_nobody_before_it_is_decided() -> None:
    log = (*HISTORY.log, _row("opinion", 110.0, "person:ben", "secret-y", 2))

    assert _titles(replace(HISTORY, log=log))[3:] == ["ben gave an opinion: hidden until it is decided"]


def test_webhooks_tell_how_far_they_are() -> None:
    message = Message("m1", "crm", "{}")
    deliveries = tuple(
        Delivery(message, "default", AnswerId("a1"), 200.0 + i, state, i + 1, 300.0, last)
        for i, (state, last) in enumerate(
            ((OutboxState.DELIVERED, "204"), (OutboxState.DEAD, "410 Gone"), (OutboxState.WAITING, "503"))
        )
    )

    told = _told(replace(DECIDED, deliveries=deliveries))[5:]

    assert [step.title for step in told] == ["Webhook crm is to be told"] * 3
    assert told[0].details == ("delivered, 1 attempt", "204")
    assert told[1].details == ("given up after 2 attempts", "410 Gone")
    assert told[2].details == ("waiting, 3 attempts so far", "503")
    assert told[2].awaits == ("to be tried at", 300.0)


def test_what_was_taken_back_is_claimed_again_and_told_once() -> None:
    log = (_row("decide", 110.0, "person:anna", "x"), _row("undo", 112.0, "person:anna"))
    claims = (Claim(1, "anna", 105.0, None), Claim(2, "anna", 112.0, None))

    told = _titles(replace(HISTORY, log=log, claims=claims))[3:]

    assert told == [
        "anna took it",
        "anna decided: x",
        "anna took the decision back",
        "anna had it no longer: the claim ended undecided",
    ]


def test_what_has_moved_on_tells_no_queue_and_no_due_time_that_were_not_its_first() -> None:
    moved = replace(REVIEW, escalations=1, task=replace(REVIEW.task, queue="leads", due_s=9000.0))

    queue = _told(replace(HISTORY, review=moved))[-1]

    assert queue.awaits is None
    assert "leads" not in repr(queue)


@pytest.mark.parametrize("state", list(ReviewState))
def test_a_blind_item_tells_nothing_but_what_its_reader_did(state: ReviewState) -> None:
    blind = replace(REVIEW, panel=Panel(Purpose.SECOND, "a1", 2, 2, blind=True), state=state)

    shown = _told(replace(SECRETS, review=blind))

    assert [step.title for step in shown][:2] == ["The request came in", "Handed to people"]
    assert "anna took it" in [step.title for step in shown]
    for secret in ("secret", "61 %", "a1", "ben", "chain", "abab", "decided:"):
        assert secret not in repr(shown)


def test_who_gave_a_second_opinion_sees_that_and_nothing_more() -> None:
    panel = Panel(Purpose.SECOND, "a1", 2, 2, blind=True)
    given = replace(REVIEW, panel=panel, state=ReviewState.DECIDED, fence=2, reviewer="anna", label="z")

    titles = _titles(replace(SECRETS, review=given, decided_s=130.0))

    assert titles == ["The request came in", "Handed to people", "anna took it", "anna decided: z"]


def test_while_a_second_opinion_is_asked_for_only_who_decided_is_told_the_way() -> None:
    asked = replace(REVIEW, state=ReviewState.DECIDED, reviewer="ben", label="secret-x")
    history = replace(SECRETS, review=replace(asked, panel=Panel(second=SecondOpinion.ASKED)))

    assert "secret-x" in repr(timeline(history, "ben", sees_all=True))
    for secret in ("secret", "61 %", "a1", "ben", "chain"):
        assert secret not in repr(timeline(history, "anna", sees_all=True))


@pytest.mark.parametrize(("is_decided", "sees_all"), [(False, True), (False, False), (True, False)])
def test_a_gold_item_has_the_history_of_any_other(is_decided: bool, sees_all: bool) -> None:
    state = ReviewState.DECIDED if is_decided else ReviewState.CLAIMED
    real = replace(REVIEW, state=state, fence=1, reviewer="anna", label="x" if is_decided else None)
    gold = replace(real, panel=Panel(Purpose.GOLD, "g1"))
    claims = (Claim(1, "anna", 110.0, None),)
    log = (*HISTORY.log, *([_row("decide", 120.0, "person:anna", "x", 2)] if is_decided else []))
    decided_s = 120.0 if is_decided else None

    of_real = replace(HISTORY, review=real, log=log, claims=claims, decided_s=decided_s)
    of_gold = replace(of_real, review=gold, log=(), trail=())

    assert timeline(of_gold, "anna", sees_all=sees_all) == timeline(of_real, "anna", sees_all=sees_all)


def test_a_log_that_was_pruned_leaves_the_rest() -> None:
    steps = _told(replace(DECIDED, log=()))

    assert [step.kind for step in steps] == [Kind.REQUEST, Kind.STAGE, Kind.STAGE, Kind.STAGE, Kind.QUEUE]
    assert steps[-1].proof == ""
