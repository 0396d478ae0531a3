"""`/v1/reviews`: what the review inbox does, for programs.

A reviewer claims a review, which gives it a lease and a fence, and decides or releases it under that fence; the store
turns everybody else away. `POST /v1/reviews:claim-next` is the loop of a tool of one's own: claim, decide, repeat until
204.

Who reviews is the API key's name. Where no keys are configured it is whatever `X-Pointsman-Reviewer` says.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from backends.errors import Conflict, InvalidInput, NotFound, TooLarge, UnsupportedMedia
from gateway.http import strict_json
from gateway.http.messages import Endpoint, HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.request import Caller, Role
from gateway.security import ANONYMOUS
from gateway.store.contract import Review, ReviewState, Store

DEFAULT_LEASE_S = 300.0
"""How long a claim lasts when nobody says."""

MAX_LEASE_S = 3600.0
MAX_LIST = 200
MAX_LABEL_CHARACTERS = 10_000
_MAX_BODY_BYTES = 64 * 1024
_INLINE_BYTES = 64 * 1024  # rendering more than this would hold up the event loop
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")

# Any: JSON values.
_Json: TypeAlias = Mapping[str, Any]


def review_endpoints(store: Store) -> Sequence[PathEntry]:
    """The entries of `/v1/reviews`, for callers with the role reviewer."""
    reviews = _Reviews(store)
    rows: tuple[tuple[str, str, Endpoint], ...] = (
        ("GET", "/v1/reviews", reviews.list),
        ("POST", "/v1/reviews:claim-next", reviews.claim_next),
        ("GET", "/v1/reviews/{id}", reviews.read),
        ("POST", "/v1/reviews/{id}:claim", reviews.claim),
        ("POST", "/v1/reviews/{id}:decide", reviews.decide),
        ("POST", "/v1/reviews/{id}:release", reviews.release),
    )
    return tuple(PathEntry(*row, role=Role.REVIEWER) for row in rows)


@dataclass(frozen=True, slots=True)
class _Reviews:
    """The endpoints over one store."""

    store: Store

    async def list(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Reviews by due time, payloads left out; `next` is what to pass as `after`, null on the last page."""
        _reviewer(caller, request)
        query = _query(request.query, {"queue", "state", "after", "limit"})
        limit = _limit(query.get("limit", "50"))
        after = _review_id(query["after"]) if "after" in query else None
        found = await self.store.reviews(
            caller.tenant, _queue(query.get("queue")), _state(query.get("state", "open")), after=after, limit=limit
        )
        following = found[-1].id if len(found) == limit else None
        return json_response({"reviews": [summary(review) for review in found], "next": following})

    async def read(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """One review, with its payload."""
        _reviewer(caller, request)
        return await _detail_response(await self._find(caller, path))

    async def claim(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Take one review."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"lease_s"}))
        review = await self.store.claim(caller.tenant, _review_id(path["id"]), reviewer, _lease_s(body))
        return await _detail_response(review)

    async def claim_next(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Take the review of a queue that is due first; 204 where none is open."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"queue", "lease_s"}))
        queue = _queue(body.get("queue"))
        if queue is None:
            raise InvalidInput('`queue` is missing; send {"queue": "NAME"}')
        review = await self.store.claim_next(caller.tenant, queue, reviewer, _lease_s(body))
        return HttpResponse(204) if review is None else await _detail_response(review)

    async def decide(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Give a claimed review its label."""
        reviewer = _reviewer(caller, request)
        body = _body(request, frozenset({"fence", "label"}))
        review_id, label = _review_id(path["id"]), check_label(body.get("label"))
        answer = await self.store.decide(caller.tenant, review_id, reviewer, _fence(body), label)
        return json_response(
            {
                "id": review_id,
                "state": ReviewState.DECIDED,
                "label": label,
                "reviewer": reviewer,
                "answer_id": answer.id,
                "answer_status": answer.status,
            }
        )

    async def release(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Put a claimed review back: 204."""
        reviewer = _reviewer(caller, request)
        fence = _fence(_body(request, frozenset({"fence"})))
        review = await self._find(caller, path)
        if (review.state, review.reviewer, review.fence) != (ReviewState.CLAIMED, reviewer, fence):
            raise Conflict(f"review {review.id} is not claimed by {reviewer!r} under fence {fence}; read it again")
        await self.store.release(caller.tenant, review.id, reviewer, fence)
        return HttpResponse(204)

    async def _find(self, caller: Caller, path: PathParameters) -> Review:
        review_id = _review_id(path["id"])
        review = await self.store.review(caller.tenant, review_id)
        if review is None:
            raise NotFound(f"there is no review {review_id}")
        return review


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
        "answer_id": review.answer_id,
        "item": task.item,
        "state": review.state,
        "fence": review.fence,
        "reviewer": review.reviewer,
        "lease_s": review.lease_s,
        "label": review.label,
        "labels": task.labels,
        "proposals": [{"stage": p.stage, "label": p.label, "confidence": p.confidence} for p in task.proposals],
        "reason": task.reason,
        "due": _rfc3339(task.due_s),
        "created": _rfc3339(review.created_s),
        "content_type": task.content_type,
    }


def _detail(review: Review) -> HttpResponse:
    return json_response({**summary(review), **_payload(review.task.payload, review.task.content_type)})


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


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _review_id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise NotFound("there is no such review")
    return text


def _query(query: str, known: set[str]) -> dict[str, str]:
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


def _queue(name: Any) -> str | None:
    """A queue's name as sent (Any: a JSON value), or None where none was."""
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


def _fence(body: _Json) -> int:
    value = body.get("fence")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InvalidInput("`fence` must be the whole number that the claim gave")
    return value
