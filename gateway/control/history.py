"""The way an item took, as a timeline for people: what was said of it, who had it, what became of it, who was told.

The stages of one request have no times of their own; they stand under it, in their order. What a reviewer
must not see (`gateway.sight`) is left out. Before the review is decided, and for whoever is no operator, only that is
told which a gold item has, too: nobody can tell by its history that they are being tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest
from typing import TypeAlias

from gateway.answer import CLASSIFY, ROUTE_AT, StageRecord
from gateway.control import pages
from gateway.sight import hides
from gateway.store.audit import LogRow
from gateway.store.contract import (
    Claim,
    Delivery,
    OutboxState,
    Proposal,
    Purpose,
    Review,
    ReviewHistory,
    ReviewState,
    Statement,
)
from router.contract import Decision, Reason


class Kind(StrEnum):
    """What sort of thing happened."""

    REQUEST = "request"
    STAGE = "stage"
    QUEUE = "queue"
    CLAIM = "claim"
    DECISION = "decision"
    FEEDBACK = "feedback"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to an item.

    Attributes:
        at_s: Unix time, in seconds; None where nobody knows better than that it was between its neighbours.
        details: more of it, a line each.
        awaits: what is due after it, and when (Unix time, in seconds).
        proof: where the decision log has it; "" where it does not.
        later: how long after the one before it, in words; "" where that is next to nothing.
    """

    kind: Kind
    at_s: float | None
    title: str
    details: tuple[str, ...] = ()
    awaits: tuple[str, float] | None = None
    proof: str = ""
    later: str = ""


_DECISIONS = {
    Decision.ACCEPT: "accepted",
    Decision.ESCALATE: "the next stage was asked",
    Decision.DEFER: "a person was asked",
}

_OF_STAGE = {Reason.LOW_CONFIDENCE: "it was not sure enough"}
"""Reasons whose words are other ones where a single stage is meant."""

_RULED = {
    "decide": "{actor} decided: {label}",
    "correct": "{actor} corrected it: {label}",
    "undo": "{actor} took the decision back",
    "cancel": "{actor} cancelled it",
    "expire": "It expired undecided",
    "escalate": "Nobody decided it in time",
    "opinion": "{actor} gave an opinion: {label}",
}
"""What people and time did to it, by the log's events; `defer` is told by where it waits."""

_ENDS = ("decide", "opinion", "cancel", "expire")
"""Events that a claim ends with, if it ends in time."""

_HIDDEN = "what was said of it is not shown: this one is for your own opinion"
_NOTEWORTHY_S = 60.0


def timeline(history: ReviewHistory, reviewer: str, *, sees_all: bool) -> tuple[Step, ...]:
    """*history* as *reviewer* may see it, in the order in which it happened.

    Args:
        sees_all: they may see what the log has, and who was told, once it is decided.
    """
    is_hidden = hides(reviewer, history.review)
    is_whole = sees_all and not is_hidden and not history.review.state.is_undecided
    dated = [*_handed_over(history, is_whole), *_claims(history, reviewer if is_hidden else None)]
    if is_hidden or history.review.panel.purpose is Purpose.GOLD:
        dated += _decision(history, reviewer if is_hidden else None)
    else:
        dated += _rulings(history, is_whole)
    if is_whole:
        dated += [*_deliveries(history.deliveries), *_feedback(history.statements, history.log)]
    ordered = sorted(dated, key=lambda found: found[0])
    first = _request_in_full(history) if is_whole else _request(history, is_hidden)
    return tuple(_with_gaps([*first, *(step for _, step in ordered)]))


# Each with the moment by which it is ordered.
_Dated: TypeAlias = tuple[float, Step]


def _request(history: ReviewHistory, is_hidden: bool) -> Iterator[Step]:
    """What a review itself tells."""
    review = history.review
    at_s = review.created_s if is_hidden else history.requested_s
    about = _HIDDEN if is_hidden else _about(review)
    yield Step(Kind.REQUEST, at_s, "The request came in", (f"route {review.route}", about))
    if not is_hidden:
        yield from map(_proposal, review.task.proposals)


def _request_in_full(history: ReviewHistory) -> Iterator[Step]:
    review = history.review
    versions = [record.label for record in history.trail if record.stage == ROUTE_AT]
    details = (f"route {review.route}" + "".join(f", version {version}" for version in versions), _about(review))
    yield Step(Kind.REQUEST, history.requested_s, "The request came in", details)
    yield from (_stage(record) for record in history.trail if record.stage != ROUTE_AT)


def _about(review: Review) -> str:
    return f"answer {review.answer_id}, item {review.task.item}"


def _proposal(proposal: Proposal) -> Step:
    told = f"{proposal.stage}: {proposal.label or 'no label'}"
    if proposal.confidence is not None:
        told += f", {pages.percent(proposal.confidence)} sure"
    return Step(Kind.STAGE, None, told)


def _stage(record: StageRecord) -> Step:
    if record.stage == CLASSIFY:
        told = "Routing: " + (record.label or "no label")
    else:
        version = f", version {record.version}" if record.version else ""
        said = "no answer" if not record.version else "no label" if record.label is None else record.label
        told = f"{record.stage}{version}: {said}"
    if record.confidence is not None:
        told += f", {pages.percent(record.confidence)} sure"
    reason = "" if record.reason is None else _OF_STAGE.get(record.reason, pages.REASONS[record.reason])
    became = _DECISIONS[record.decision] + (f", since {reason}" if reason else "")
    return Step(Kind.STAGE, None, told, tuple(line for line in (became, record.detail) if line))


def _handed_over(history: ReviewHistory, is_whole: bool) -> Iterator[_Dated]:
    review = history.review
    details = [f"since {pages.REASONS[review.task.reason]}"]
    awaits = None
    if not review.escalations and not review.panel.adjudicating:  # else both are of where it is now
        details.append(f"queue {review.task.queue}")
        awaits = ("to be decided by", review.task.due_s)
    row = next((row for row in history.log if row.event == "defer"), None) if is_whole else None
    if row is not None and row.payload_sha256 is not None:
        details.append(f"input, keyed: {row.payload_sha256.hex()}")
    proof = "" if row is None else _proof(row)
    yield review.created_s, Step(Kind.QUEUE, review.created_s, "Handed to people", tuple(details), awaits, proof)


def _claims(history: ReviewHistory, only_of: str | None) -> Iterator[_Dated]:
    """Who took it; *only_of* one reviewer, where that is given."""
    claims = history.claims
    taken_back_s = {row.at_s for row in history.log if row.event == "undo"}  # told as that
    for claim, following in zip_longest(claims, claims[1:]):
        if only_of not in (None, claim.reviewer):
            continue
        if claim.at_s not in taken_back_s:
            yield claim.at_s, Step(Kind.CLAIM, claim.at_s, f"{claim.reviewer} took it")
        if claim.returned_s is not None:
            yield claim.returned_s, Step(Kind.CLAIM, claim.returned_s, f"{claim.reviewer} put it back")
        elif _ran_out(claim, following, history):
            before = float("inf") if following is None else following.at_s - 1e-6
            yield before, Step(Kind.CLAIM, None, f"{claim.reviewer} had it no longer: the claim ended undecided")


def _ran_out(claim: Claim, following: Claim | None, history: ReviewHistory) -> bool:
    """Whether *claim*, which was not given back, ended without a decision."""
    review = history.review
    if review.state in (ReviewState.CLAIMED, ReviewState.DECIDED) and review.fence == claim.fence:
        return False
    until_s = float("inf") if following is None else following.at_s
    return not any(row.event in _ENDS and claim.at_s <= row.at_s <= until_s for row in history.log)


def _decision(history: ReviewHistory, only_of: str | None) -> Iterator[_Dated]:
    """What became of a review by itself; *only_of* one reviewer, where that is given."""
    review, at_s = history.review, history.decided_s
    if at_s is not None and review.state is ReviewState.DECIDED and only_of in (None, review.reviewer):
        yield at_s, Step(Kind.DECISION, at_s, f"{review.reviewer} decided: {review.label}")


def _rulings(history: ReviewHistory, is_whole: bool) -> Iterator[_Dated]:
    review = history.review
    for row in history.log:
        if row.event == "defer":
            continue
        # What one of several said must not sway the next.
        is_hidden = row.event == "opinion" and review.state.is_undecided
        label = "hidden until it is decided" if is_hidden else row.label
        title = _RULED.get(row.event, row.event).format(actor=_person(row.actor), label=label)
        details = tuple(stage["detail"] for stage in row.trail if stage.get("detail"))
        yield row.at_s, Step(Kind.DECISION, row.at_s, title, details, proof=_proof(row) if is_whole else "")


def _feedback(statements: Sequence[Statement], log: Sequence[LogRow]) -> Iterator[_Dated]:
    decided = {(row.actor, row.label) for row in log}
    for statement in statements:
        if (statement.source, statement.label) not in decided:  # a decision is told as one
            title = f"Feedback of {_person(statement.source)}: {statement.label}"
            yield statement.at_s, Step(Kind.FEEDBACK, statement.at_s, title)


def _deliveries(deliveries: Sequence[Delivery]) -> Iterator[_Dated]:
    for delivery in deliveries:
        awaits = None
        attempts = f"{delivery.attempts} attempt{'' if delivery.attempts == 1 else 's'}"
        match delivery.state:
            case OutboxState.DELIVERED:
                became = f"delivered, {attempts}"
            case OutboxState.DEAD:
                became = f"given up after {attempts}"
            case OutboxState.WAITING:
                became = f"waiting, {attempts} so far"
                awaits = ("to be tried at", delivery.next_s)
        details = tuple(line for line in (became, delivery.last) if line)
        title = f"Webhook {delivery.message.webhook} is to be told"
        yield delivery.created_s, Step(Kind.WEBHOOK, delivery.created_s, title, details, awaits)


def _person(actor: str | None) -> str:
    return "Somebody" if actor is None else actor.removeprefix("person:")


def _proof(row: LogRow) -> str:
    return f"decision log: chain {row.chain}, row {row.seq}"


def _with_gaps(steps: Sequence[Step]) -> Iterator[Step]:
    last_s: float | None = None
    for step in steps:
        gap_s = 0.0 if step.at_s is None or last_s is None else step.at_s - last_s
        later = f"{pages.duration(gap_s)} later" if gap_s >= _NOTEWORTHY_S else ""
        yield replace(step, later=later)
        last_s = last_s if step.at_s is None else step.at_s
