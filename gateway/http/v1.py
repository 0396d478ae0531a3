"""Pointsman's own HTTP interface: `/v1`, for callers that can take an answer in two phases.

    POST /v1/routes/{route}:decide          200 the final answer | 202 open: Location says where the final one will be
    POST /v1/routes/{route}/versions/{version}:decide          the same, of that version of the route
    GET  /v1/answers/{id}                   200 closed | 202 open; `Prefer: wait=N` waits for it; `Accept:
                                            text/event-stream` tells of every change (`gateway.http.events`)
    DELETE /v1/answers/{id}                 200: nobody is asked any more about what was open
    GET  /v1/answers/{id}/revisions         200 what it was, from the first reply on
    POST /v1/answers/{id}/feedback          201 kept
    POST /v1/explain?route=NAME             200 what would become of such a request, for operators; auto by default

An answer is cancelled by DELETE, as jobs are whose 202 has told a Location: a client needs to know that address alone,
and can repeat the call, as proxies do by themselves. The answer stays, and says what became of it.

A body is what its Content-Type says: JSON with inputs and parameters, or one input's text or bytes as they are. Nothing
is guessed: forms, archives and pickles are 415.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.contract import Datatype, ParameterValue, Ragged, Tensor
from backends.errors import InvalidInput, TooLarge, UnsupportedMedia
from backends.oip import json_data
from backends.oip.raw import elements
from backends.quoting import shorten
from backends.trace_context import trace_in
from gateway.answer import Answer, AnswerId, ItemAnswer, Revision
from gateway.http import events, headers
from gateway.http.events import EventStreams
from gateway.http.handler import HttpLimits
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.http.strict_json import loads, members, parameters
from gateway.keys import SUBJECT, parse_answer_id, parse_idempotency_key, parse_label
from gateway.moments import rfc3339
from gateway.oip import fingerprint
from gateway.oip.parameters import deadline_of
from gateway.oip.render import row, subject_in, summarise, take_on_defer, told
from gateway.oip.shapes import route_name
from gateway.request import Caller, JsonInputs, Payload, Protocol, RawBody, Request, Role
from gateway.service import Service
from gateway.status import POLL_AFTER_S
from kernels.images import from_bfloat16
from router.contract import AUTO, route_id

_MAX_ITEM = 2**31 - 1
_MAX_FEEDBACK_BYTES = 64 * 1024
_INLINE_BYTES = 64 * 1024
_NO_STORE = ("cache-control", "no-store")
_TAKEN = "application/json, text/plain, image/* or application/octet-stream"


def v1_endpoints(
    service: Service, limits: HttpLimits, clock: Callable[[], float] = time.monotonic
) -> Sequence[PathEntry]:
    """The entries of `/v1` that decide and answer."""
    v1 = _V1(service, limits, clock, EventStreams(service, limits, answer_json, clock))
    return (
        PathEntry("POST", "/v1/routes/{route}:decide", v1.decide),
        PathEntry("POST", "/v1/routes/{route}/versions/{version}:decide", v1.decide),
        PathEntry("POST", "/v1/explain", v1.explain, role=Role.OPERATOR),
        PathEntry("GET", "/v1/answers/{id}", v1.answer),
        PathEntry("DELETE", "/v1/answers/{id}", v1.cancel),
        PathEntry("GET", "/v1/answers/{id}/revisions", v1.revisions),
        PathEntry("POST", "/v1/answers/{id}/feedback", v1.feedback),
    )


@dataclass(frozen=True, slots=True)
class _V1:
    """The endpoints over one service."""

    service: Service
    limits: HttpLimits
    clock: Callable[[], float]
    streams: EventStreams

    async def decide(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Answer a request, or hand it to a person."""
        route, version = route_name(path["route"]), path.get("version", "")
        answer = await self.service.decide(await self._request(caller, request, route, version))
        return await told(answer, _answered, answer)

    async def explain(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Tell what would become of a request."""
        name, equals, route = request.query.partition("=") if request.query else ("route", "=", AUTO)
        if name != "route" or not equals:
            raise InvalidInput(f"the query is {shorten(request.query)}; it can be route=NAME")
        return json_response(await self.service.explain(await self._request(caller, request, route_name(route))))

    async def _request(self, caller: Caller, request: HttpRequest, route: str, version: str = "") -> Request:
        """*request* as a request for *route*, in *version* ("": any)."""
        started = self.clock()
        media = headers.content_type(request.headers)
        key = parse_idempotency_key(request.headers.get("idempotency-key"))
        deadline = deadline_of(started, headers.timeout_s(request.headers))
        asked = (route_id(route, version), media, request.octets, self.limits.json_bytes, key is not None)
        read = _read(*asked) if len(request.body) <= _INLINE_BYTES else await asyncio.to_thread(_read, *asked)
        subject = subject_in(read.parameters, request.headers)
        read.parameters.pop(SUBJECT, None)
        return Request(
            route=route,
            payload=read.payload,
            protocol=Protocol.V1_HTTP,
            caller=caller,
            parameters=read.parameters,
            deadline=deadline,
            idempotency_key=key,
            fingerprint=read.fingerprint,
            version=version,
            trace=trace_in(request.headers),
            subject=subject,
        )

    async def answer(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """An answer's current state; its final one, where the caller waits; every one, where it wants events."""
        if events.are_wanted(request.headers):
            return await self._events(caller, request, parse_answer_id(path["id"]))
        wait_s = headers.wait_s(request.headers)
        granted_s = None if wait_s is None else min(wait_s, int(self.limits.wait_s))
        answer = await self.service.answer(caller, parse_answer_id(path["id"]), float(granted_s or 0))
        applied = [] if granted_s is None else [("preference-applied", f"wait={granted_s}")]
        return await told(answer, _answered, answer, [*applied, ("vary", "Prefer, Accept"), _NO_STORE])

    async def _events(self, caller: Caller, request: HttpRequest, answer_id: AnswerId) -> HttpResponse:
        answer = await self.service.answer(caller, answer_id)
        seen = events.last_seen(request.headers)
        if answer.revision == seen and not answer.open_items:
            return HttpResponse(204)
        return HttpResponse(200, events.HEADERS, parts=self.streams.open(caller, answer, seen))

    async def cancel(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Ask people no more; the answer as it is then."""
        answer = await self.service.cancel(caller, parse_answer_id(path["id"]))
        return await told(answer, _answered, answer, [_NO_STORE])

    async def revisions(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """What an answer was, revision by revision."""
        answer_id = parse_answer_id(path["id"])
        found = await self.service.revisions(caller, answer_id)
        body = {"answer_id": answer_id, "revisions": [_revision(revision) for revision in found]}
        return json_response(body, 200, [_NO_STORE])

    async def feedback(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Keep what an item's label should have been."""
        answer_id = parse_answer_id(path["id"])
        if headers.content_type(request.headers).name != "application/json":
            raise UnsupportedMedia('feedback is application/json: {"item": 0, "label": "..."}')
        if len(request.body) > _MAX_FEEDBACK_BYTES:
            raise TooLarge(f"the feedback has {len(request.body)} bytes; at most {_MAX_FEEDBACK_BYTES} are read")
        given = members(loads(request.octets), "the body", frozenset({"item", "label"}))
        item, label = given.get("item", 0), parse_label(given.get("label"))
        if type(item) is not int or not 0 <= item <= _MAX_ITEM:
            raise InvalidInput(f"item is {shorten(item)}; it is the index of one of the answer's items")
        await self.service.feedback(caller, answer_id, item, label)
        return json_response({"answer_id": answer_id, "item": item, "label": label}, 201)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A decision request's body, understood; the fingerprint is empty where nobody needs it."""

    payload: Payload
    parameters: dict[str, ParameterValue]
    fingerprint: bytes


def _read(route: str, media: headers.MediaType, body: bytes, json_limit_bytes: int, keyed: bool) -> _Read:
    payload, own = read_body(media, body, json_limit_bytes)
    return _Read(payload, own, _fingerprint(route, payload, own) if keyed else b"")


def _fingerprint(route: str, payload: RawBody | JsonInputs, parameters: Mapping[str, ParameterValue]) -> bytes:
    own = {name: value for name, value in parameters.items() if name != SUBJECT}  # as where a header names the subject
    if isinstance(payload, JsonInputs):
        return fingerprint.of_json(route, payload.values, own)
    return fingerprint.of_body(route, payload.content_type, payload.data, own)


def read_body(
    media: headers.MediaType, body: bytes, json_limit_bytes: int = HttpLimits().json_bytes
) -> tuple[RawBody | JsonInputs, dict[str, ParameterValue]]:
    """A request's body as its Content-Type says, and the caller's own parameters, `pointsman_subject` among them.

    Raises:
        InvalidInput: it is empty, or not what it says.
        TooLarge: there is more JSON than is read.
        UnsupportedMedia: nothing of that type is read here.
    """
    if not body:
        raise InvalidInput(f"the body is empty; send {_TAKEN}")
    match media.name.partition("/"):
        case ("application", _, "json"):
            return _json(body, json_limit_bytes)
        case ("text", _, "plain"):
            return _text(media, body), {}
        case ("image", _, _) | ("application", _, "octet-stream"):
            return RawBody(body, media.name), {}
        case _:
            raise UnsupportedMedia(f"Content-Type {shorten(media.name)} is not read here; send {_TAKEN}")


def _json(body: bytes, limit_bytes: int) -> tuple[JsonInputs, dict[str, ParameterValue]]:
    if len(body) > limit_bytes:
        raise TooLarge(f"the JSON has {len(body)} bytes; at most {limit_bytes} are read: send images as they are")
    given = members(loads(body), "the body", frozenset({"inputs", "parameters"}))
    inputs = given.get("inputs")
    if not isinstance(inputs, dict) or not inputs:
        raise InvalidInput('the body needs inputs: {"inputs": {"name": value}, "parameters": {...}}')
    told_us = parameters(given.get("parameters", {}))
    _, own = take_on_defer(told_us)
    if SUBJECT in told_us:
        own[SUBJECT] = told_us[SUBJECT]  # `_request` takes it
    return JsonInputs(inputs, len(body)), own


def _text(media: headers.MediaType, body: bytes) -> RawBody:
    charset = media.parameters.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "us-ascii"):
        raise UnsupportedMedia(f"charset {shorten(charset)} is not read here; send text as UTF-8")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the text is not UTF-8: byte {error.start} is wrong") from error
    return RawBody(body, media.name)


def _answered(answer: Answer, extra: Sequence[tuple[str, str]] = ()) -> HttpResponse:
    if not answer.open_items:
        return json_response(answer_json(answer), 200, extra)
    where = [("location", f"/v1/answers/{answer.id}"), ("retry-after", str(int(POLL_AFTER_S)))]
    return json_response(answer_json(answer), 202, [*where, *extra])


def answer_json(answer: Answer) -> dict[str, Any]:
    """*answer* as `/v1` tells it (Any: JSON): one item's fields, over a batch a summary and the items."""
    head: dict[str, Any] = {
        "answer_id": answer.id,
        "status": answer.status,
        "revision": answer.revision,
        "route": answer.route,
    }
    if answer.version:
        head["version"] = answer.version
    promise: dict[str, Any] = {"max_error": answer.max_error, "certified": answer.certified}
    waits = {"predicted_wait_s": answer.predicted_wait_s} if answer.open_items else {}
    if len(answer.items) == 1:
        return {**head, **_item(answer.items[0]), **promise, **waits}
    summary = summarise(answer)
    return {
        **head,
        "label": summary.label,
        "stage": summary.stage,
        "confidence": summary.confidence,
        "decided_by": summary.decided_by,
        "reason": summary.reason,
        **promise,
        **waits,
        "items": [{**_item(item), **promise} for item in answer.items],
    }


def _revision(revision: Revision) -> dict[str, Any]:
    found: dict[str, Any] = {
        "revision": revision.number,
        "at": rfc3339(revision.at_s),
        "event": revision.event,
        "by": revision.actor,
    }
    if revision.reason is not None:
        found["reason"] = revision.reason
    items = [
        {
            "item": item.item,
            "status": item.status,
            "label": item.label,
            "confidence": item.confidence,
            "decided_by": item.decided_by,
        }
        for item in revision.items
    ]
    return found | {"items": items}


def _item(item: ItemAnswer) -> dict[str, Any]:
    found: dict[str, Any] = row(item)
    if item.remarks:
        found["remarks"] = item.remarks
    if item.label is None and item.outputs is not None:
        del found["label"]
        found["outputs"] = {name: _value(tensor) for name, tensor in item.outputs.items()}
    return found


def _value(tensor: Tensor) -> Any:
    """One item's output as orjson takes it, its batch axis left out."""
    array = tensor.data.rows[0] if isinstance(tensor.data, Ragged) else tensor.numpy()[0]
    if tensor.datatype is Datatype.BF16:
        return from_bfloat16(array).tolist()
    if tensor.datatype is not Datatype.BYTES:
        if not array.ndim:
            return array.item()
        return json_data.in_pieces(np.ascontiguousarray(array, dtype=tensor.datatype.numpy))
    texts = np.empty(array.shape, dtype=object)
    texts.reshape(-1)[:] = [_text_or_base64(element) for element in elements(np.asarray(array, dtype=object))]
    return texts.tolist()


def _text_or_base64(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}
