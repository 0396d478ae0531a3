"""`/v1/reviews`: what the review inbox does, for programs.

A reviewer claims a review, which gives it a lease and a fence, and decides or releases it under that fence, or renews
the lease; the store turns everybody else away. `POST /v1/reviews:claim-next` is the loop of a tool of one's own: claim,
decide, repeat until 204. A review that several people are asked about is open again after a decision that did not end
it. A decision can be taken back under the same fence for a short while, and corrected later, by who made it or by an
operator.

Who reviews is the API key's name. Where no keys are configured it is whatever `X-Pointsman-Reviewer` says.

A key's owner sees and takes what its scope admits (`gateway.people.scope`): the rest of their tenant's is 403, of
another tenant's nothing exists. The lead of a queue may put back what another reviewer holds, naming them, and give a
review to somebody.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from backends.errors import Conflict, InvalidInput, NotFound, PermissionDenied, TooLarge, UnsupportedMedia
from gateway.answer import Answer
from gateway.http import strict_json
from gateway.http.messages import Endpoint, HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.keys import parse_review_id
from gateway.moments import rfc3339
from gateway.request import Caller, Role
from gateway.security import ANONYMOUS, Authenticator
from gateway.sight import as_seen_by
from gateway.store.contract import Purpose, Review, ReviewState, Store

DEFAULT_LEASE_S = 300.0
"""How long a claim lasts when nobody says."""

MAX_LEASE_S = 3600.0
MAX_LIST = 200
MAX_LABEL_CHARACTERS = 10_000
MAX_REASON_CHARACTERS = 1000
_MAX_BODY_BYTES = 64 * 1024
_INLINE_BYTES = 64 * 1024  # rendering more than this would hold up the event loop

# Any: JSON values.
_Json: TypeAlias = Mapping[str, Any]


def review_endpoints(store: Store, staff: Authenticator) -> Sequence[PathEntry]:
    """The entries of `/v1/reviews`, for callers with the role reviewer.

    Args:
        staff: knows who else reviews.
    """
    reviews = _Reviews(store, staff)
    rows: tuple[tuple[str, str, Endpoint], ...] = (
        ("GET", "/v1/reviews", reviews.list),
        ("POST", "/v1/reviews:claim-next", reviews.claim_next),
        ("GET", "/v1/reviews/{id}", reviews.read),
        ("POST", "/v1/reviews/{id}:claim", reviews.claim),
        ("POST", "/v1/reviews/{id}:renew", reviews.renew),
        ("POST", "/v1/reviews/{id}:assign", reviews.assign),
        ("POST", "/v1/reviews/{id}:decide", reviews.decide),
        ("POST", "/v1/reviews/{id}:release", reviews.release),
        ("POST", "/v1/reviews/{id}:undo", reviews.undo),
        ("POST", "/v1/reviews/{id}:correct", reviews.correct),
    )
    return tuple(PathEntry(*row, role=Role.REVIEWER) for row in rows)


@dataclass(frozen=True, slots=True)
class _Reviews:
    """The endpoints over one store."""

    store: Store
    staff: Authenticator

    async def list(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Reviews by priority and due time, payloads left out; `next` is what to pass as `after`, null at the end."""
        reviewer = _reviewer(caller, request)
        query = query_of(request.query, {"queue", "state", "after", "limit"})
        limit = _limit(query.get("limit", "50"))
        after = parse_review_id(query["after"]) if "after" in query else None
        queue, state = queue_name(query.get("queue")), _state(query.get("state", "open"))
        _check_queue(caller, queue)
        found = await self.store.reviews(caller.tenant, queue, state, after=after, limit=limit, scope=caller.scope)
        following = found[-1].id if len(found) == limit else None
        shown = [summary(as_seen_by(reviewer, review)) for review in found]
        return json_response({"reviews": shown, "next": following})

    async def read(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """One review, with its payload."""
        reviewer = _reviewer(caller, request)
        return await _detail_response(as_seen_by(reviewer, await self._find(caller, path)))

    async def claim(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Take one review."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"lease_s"}))
        review = await self.store.claim(
            caller.tenant, parse_review_id(path["id"]), reviewer, _lease_s(body), caller.scope
        )
        return await _detail_response(as_seen_by(reviewer, review))

    async def renew(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Hold a claimed review for longer; `lease_s` says how long it is held now."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"fence", "lease_s"}))
        review_id, fence = parse_review_id(path["id"]), _fence(body)
        review = await self.store.renew(caller.tenant, review_id, reviewer, fence, _lease_s(body))
        return json_response(summary(as_seen_by(reviewer, review)))

    async def assign(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Give a review to another reviewer, for a lead; whoever holds it loses it."""
        lead = _reviewer(caller, request)
        body = _body(request, frozenset({"fence", "lease_s", "reviewer"}))
        fence, lease_s, reviewer = _fence(body), _lease_s(body), _named_reviewer(body)
        review = await self._find(caller, path)
        check_lead(caller, review)
        if self.staff.needs_key:
            self._check_staff(caller, review, reviewer)
        given = await self.store.assign(caller.tenant, review.id, reviewer, fence, lease_s)
        return json_response(summary(as_seen_by(lead, given)))

    def _check_staff(self, caller: Caller, review: Review, reviewer: str) -> None:
        """Refuse to give *review* to somebody who could not have taken it."""
        key = self.staff.named(reviewer)
        if key is None or key.tenant != caller.tenant or Role.REVIEWER not in key.roles:
            raise InvalidInput("`reviewer` is nobody who reviews here; name an API key with the role reviewer")
        if (why := key.scope.why_not(review.task.queue, review.task.skills)) is not None:
            raise InvalidInput(f"{reviewer!r} cannot take this review: {why}")

    async def claim_next(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Take the first review of a queue, by priority and due time; 204 where none is open."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"queue", "lease_s"}))
        queue = queue_name(body.get("queue"))
        if queue is None:
            raise InvalidInput('`queue` is missing; send {"queue": "NAME"}')
        _check_queue(caller, queue)
        review = await self.store.claim_next(caller.tenant, queue, reviewer, _lease_s(body), caller.scope)
        return HttpResponse(204) if review is None else await _detail_response(as_seen_by(reviewer, review))

    async def decide(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Give a claimed review its label."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"fence", "label"}))
        review_id, label = parse_review_id(path["id"]), check_label(body.get("label"))
        answer = await self.store.decide(caller.tenant, review_id, reviewer, _fence(body), label)
        review = await self.store.review(caller.tenant, review_id)
        return json_response(_decided(review_id, reviewer, label, answer, review) | {"undo_s": self.store.undo_s})

    async def undo(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Take one's own decision back: the review, claimed again under a new fence."""
        reviewer = _reviewer(caller, request)
        fence = _fence(_body(request, frozenset({"fence"})))
        review = await self.store.undo(caller.tenant, parse_review_id(path["id"]), reviewer, fence)
        return await _detail_response(as_seen_by(reviewer, review))

    async def correct(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Give a decided review another label."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"label", "reason"}))
        review_id, label = parse_review_id(path["id"]), check_label(body.get("label"))
        of_anybody = Role.OPERATOR in caller.roles
        answer = await self.store.correct(
            caller.tenant, review_id, reviewer, label, _reason(body), of_anybody=of_anybody
        )
        return json_response(_decided(review_id, reviewer, label, answer, None))

    async def release(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Put a claimed review back: 204. A lead names the `reviewer` who has claimed it, if it is another one."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"fence", "reviewer"}))
        fence = _fence(body)
        review = await self._find(caller, path)
        if "reviewer" in body:
            reviewer = _named_reviewer(body)
            check_lead(caller, review)
        if (review.state, review.reviewer, review.fence) != (ReviewState.CLAIMED, reviewer, fence):
            raise Conflict(f"review {review.id} is not claimed by {reviewer!r} under fence {fence}; read it again")
        await self.store.release(caller.tenant, review.id, reviewer, fence)
        return HttpResponse(204)

    async def _find(self, caller: Caller, path: PathParameters) -> Review:
        review_id = parse_review_id(path["id"])
        review = await self.store.review(caller.tenant, review_id)
        if review is None:
            raise NotFound(f"there is no review {review_id}")
        check_scope(caller, review)
        return review


def _decided(review_id: str, reviewer: str, label: str, answer: Answer, review: Review | None) -> dict[str, Any]:
    """What who said *label* is told; *review* as it is then, where it may be open for others or blind."""
    is_over = review is None or review.state is ReviewState.DECIDED
    is_blind = review is not None and (review.panel.blind or review.panel.purpose is Purpose.SECOND)
    return {
        "id": review_id,
        "state": ReviewState.DECIDED if is_over else ReviewState.OPEN,
        "label": label,
        "reviewer": reviewer,
        "answer_id": None if is_blind else answer.id,
        "answer_status": None if is_blind else answer.status,
        "answer_revision": None if is_blind else answer.revision,
    }


def check_scope(caller: Caller, review: Review) -> None:
    """Refuse a review of *caller*'s tenant that is not for them; one that they hold is.

    Raises:
        PermissionDenied: says what they lack.
    """
    why = caller.scope.why_not(review.task.queue, review.task.skills)
    if why is not None and (review.state is not ReviewState.CLAIMED or review.reviewer != caller.name):
        raise PermissionDenied(why)


def _check_queue(caller: Caller, queue: str | None) -> None:
    if queue is not None and (why := caller.scope.why_not(queue, ())) is not None:
        raise PermissionDenied(why)


def check_lead(caller: Caller, review: Review) -> None:
    """Refuse to do with *review* what is for leads of its queue.

    Raises:
        PermissionDenied: *caller* is none.
    """
    if not caller.scope.is_lead(review.task.queue):
        raise PermissionDenied(f"this is for a lead of queue {review.task.queue!r}, which {caller.name!r} is not")


def _named_reviewer(body: _Json) -> str:
    """The reviewer whom a lead names."""
    name = body.get("reviewer")
    if not isinstance(name, str):
        raise InvalidInput("`reviewer` must be a reviewer's name, as text")
    return check_reviewer(name)


def _reviewer(caller: Caller, request: HttpRequest) -> str:
    """Under what name *caller* reviews."""
    if caller.name != ANONYMOUS:
        return caller.name
    return check_reviewer(request.headers.get("x-pointsman-reviewer", ANONYMOUS))


def check_reviewer(name: str) -> str:
    """*name* without surrounding space, as the decision log will have it.

    Raises:
        InvalidInput: it is not 1 to 64 printable characters.
    """
    stripped = name.strip()
    if not (0 < len(stripped) <= 64 and stripped.isprintable()):
        raise InvalidInput("a reviewer's name is 1 to 64 printable characters")
    return stripped


def check_label(label: Any) -> str:
    """*label* (Any: a JSON value), fit to be stored; whether the form has it is for the store to say.

    Raises:
        InvalidInput: it is no text, empty, too long, or holds a NUL, which not every database keeps.
    """
    if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL_CHARACTERS:
        raise InvalidInput(f"`label` must be a text of 1 to {MAX_LABEL_CHARACTERS} characters")
    if "\0" in label:
        raise InvalidInput("`label` holds a NUL character")
    return label


def summary(review: Review) -> dict[str, Any]:
    """*review* without its payload (Any: JSON values)."""
    task = review.task
    return {
        "id": review.id,
        "queue": task.queue,
        "route": review.route,
        "answer_id": review.answer_id or None,
        "item": task.item,
        "state": review.state,
        "fence": review.fence,
        "reviewer": review.reviewer,
        "lease_s": review.lease_s,
        "label": review.label,
        "labels": task.labels,
        "proposals": [{"stage": p.stage, "label": p.label, "confidence": p.confidence} for p in task.proposals],
        "blind": review.panel.blind,
        "opinions": review.opinions,
        "reason": task.reason,
        "due": rfc3339(task.due_s),
        "expires": None if task.expires_s is None else rfc3339(task.expires_s),
        "created": rfc3339(review.created_s),
        "priority": task.priority,
        "skills": task.skills,
        "escalations": review.escalations,
        "recalled": review.recalled,
        "overdue": None if review.overdue_s is None else rfc3339(review.overdue_s),
        "content_type": task.content_type,
    }


def detail(review: Review) -> dict[str, Any]:
    """*review* with its payload (Any: JSON values): text as it is, anything else in base64; null where it is gone."""
    if review.task.is_forgotten:
        return {**summary(review), "payload": None}
    return {**summary(review), **_payload(review.task.payload, review.task.content_type)}


def _detail(review: Review) -> HttpResponse:
    return json_response(detail(review))


def _payload(payload: bytes, content_type: str) -> dict[str, str]:
    if content_type.startswith("text/"):
        try:
            return {"payload": payload.decode()}
        except UnicodeDecodeError:
            pass  # another character set: the bytes themselves are the truth
    return {"payload_b64": base64.b64encode(payload).decode()}


async def _detail_response(review: Review) -> HttpResponse:
    if len(review.task.payload) <= _INLINE_BYTES:
        return _detail(review)
    return await asyncio.to_thread(_detail, review)


def query_of(query: str, known: set[str]) -> dict[str, str]:
    """The parameters of *query*, which are some of *known*.

    Raises:
        InvalidInput: one is none of these, or there twice, or cannot be read.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError as error:
        raise InvalidInput("the query string cannot be read") from error
    values = dict(pairs)
    if unknown := sorted(values.keys() - known):
        raise InvalidInput(f"query parameter {unknown[0]!r} is unknown; known are {sorted(known)}")
    if len(values) != len(pairs):
        raise InvalidInput("a query parameter is given twice")
    return values


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_LIST):
        raise InvalidInput(f"`limit` must be a whole number from 1 to {MAX_LIST}")
    return int(text)


def _state(text: str) -> ReviewState | None:
    if text == "all":
        return None
    try:
        return ReviewState(text)
    except ValueError as error:
        raise InvalidInput(f"`state` must be one of {[*map(str, ReviewState), 'all']}") from error


def queue_name(name: Any) -> str | None:
    """A queue's name as sent (Any: a JSON value), or None where none was.

    Raises:
        InvalidInput: it is none.
    """
    if name is None:
        return None
    if not (isinstance(name, str) and 0 < len(name) <= 128 and name.isprintable()):
        raise InvalidInput("`queue` must be a name of 1 to 128 printable characters")
    return name


def _body(request: HttpRequest, known: frozenset[str]) -> _Json:
    """The JSON object that *request* carries; nothing at all stands for {}."""
    if not request.body:
        return {}
    if len(request.body) > _MAX_BODY_BYTES:
        raise TooLarge(f"the body exceeds {_MAX_BODY_BYTES} bytes")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("send the body as application/json")
    return strict_json.members(strict_json.loads(request.octets), "the body", known)


def _lease_s(body: _Json) -> float:
    value = body.get("lease_s", DEFAULT_LEASE_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MAX_LEASE_S:
        raise InvalidInput(f"`lease_s` must be a number of seconds from 1 to {MAX_LEASE_S:.0f}")
    return float(value)


def _reason(body: _Json) -> str | None:
    """What is said of a correction; None where nothing is."""
    reason = body.get("reason")
    if reason is None:
        return None
    if not isinstance(reason, str) or not 0 < len(reason) <= MAX_REASON_CHARACTERS or "\0" in reason:
        raise InvalidInput(f"`reason` must be a text of 1 to {MAX_REASON_CHARACTERS} characters, and none of them NUL")
    return reason


def _fence(body: _Json) -> int:
    value = body.get("fence")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InvalidInput("`fence` must be the whole number that the claim gave")
    return value
