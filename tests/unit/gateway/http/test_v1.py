"""`/v1`: what a body means, how an answer reads, and how the final one is waited for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from backends.contract import Datatype, Tensor
from gateway.answer import Answer, AnswerId, ItemAnswer, StageRecord, Status
from gateway.http.messages import HttpResponse
from gateway.http.v1 import answer_json
from gateway.request import JsonInputs, Protocol, RawBody
from router.contract import Decision, Reason
from tests.unit.gateway.http.conftest import KEY, LIMITS, OPERATOR_KEY, Plane

DECIDE = "/v1/routes/tickets:decide"
TEXT = {"content-type": "text/plain"}


def told(response: HttpResponse) -> Any:
    return orjson.loads(response.body)


async def deferred(plane: Plane) -> AnswerId:
    """The id of an answer that waits for a person."""
    response = await plane.send("POST", DECIDE, {"inputs": {"text": "hi"}, "parameters": {"script": "defer"}})
    return AnswerId(told(response)["answer_id"])


async def test_a_text_is_answered_at_once(plane: Plane) -> None:
    response = await plane.send("POST", DECIDE, b"hello", {"content-type": "text/plain; charset=UTF-8"})

    answer = told(response)
    (request,) = plane.service.requests
    assert response.status == 200
    assert request.payload == RawBody(b"hello", "text/plain")
    assert (request.route, request.protocol) == ("tickets", Protocol.V1_HTTP)
    assert answer == {
        "answer_id": answer["answer_id"],
        "status": "final",
        "revision": 1,
        "route": "tickets",
        "label": "label-0",
        "stage": "fast",
        "confidence": 0.9,
        "decided_by": "model:fast",
        "reason": None,
        "max_error": 0.01,
        "certified": False,
    }


async def test_what_routing_had_to_say_is_told(plane: Plane) -> None:
    answer_id = await deferred(plane)
    (item,) = plane.service.kept[answer_id].items
    remark = StageRecord("classify", "", None, None, Decision.DEFER, Reason.ROUTED_TO_PERSON, "language is 'fr'")
    scored = StageRecord("fast", "1", "a", 0.5, Decision.ESCALATE, Reason.NO_CERTIFICATE, "a digest")
    plane.service.kept[answer_id] = replace(
        plane.service.kept[answer_id], items=(replace(item, trail=(remark, scored)),)
    )

    assert told(await plane.send("GET", f"/v1/answers/{answer_id}"))["remarks"] == ["language is 'fr'"]


async def test_an_open_answer_tells_how_long_people_take_and_a_final_one_does_not(plane: Plane) -> None:
    answer_id = await deferred(plane)
    unknown = told(await plane.send("GET", f"/v1/answers/{answer_id}"))
    plane.service.kept[answer_id] = replace(plane.service.kept[answer_id], predicted_wait_s=5400.0)
    known = told(await plane.send("GET", f"/v1/answers/{answer_id}"))
    await plane.service.decide_open(answer_id, "spam")
    final = told(await plane.send("GET", f"/v1/answers/{answer_id}"))

    assert (unknown["predicted_wait_s"], known["predicted_wait_s"]) == (None, 5400.0)
    assert "predicted_wait_s" not in final


# --- explain ---


async def test_explain_is_told_of_the_same_request_that_would_be_decided(plane: Plane) -> None:
    response = await plane.send("POST", "/v1/explain?route=tickets", b"hello", TEXT)
    unnamed = await plane.send("POST", "/v1/explain", b"hello", TEXT)

    assert told(response) == {"route": "tickets", "size_bytes": 5}
    assert told(unnamed)["route"] == "auto"
    assert plane.service.requests[0].payload == RawBody(b"hello", "text/plain")
    assert not plane.service.kept


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("?route=", b"x", 400),
        ("?route=../etc", b"x", 400),
        ("?rout=tickets", b"x", 400),
        ("?route", b"x", 400),
        ("?", b"", 400),
    ],
)
async def test_an_explanation_needs_a_route_that_can_be_and_a_body(
    plane: Plane, query: str, body: bytes, status: int
) -> None:
    assert (await plane.send("POST", f"/v1/explain{query}", body, TEXT)).status == status


async def test_explanations_are_for_operators(locked_plane: Plane) -> None:
    def key(secret: str) -> dict[str, str]:
        return {**TEXT, "authorization": f"Bearer {secret}"}

    statuses = [
        (await locked_plane.send("POST", "/v1/explain", b"hello", headers)).status
        for headers in (TEXT, key(KEY), key(OPERATOR_KEY))
    ]

    assert statuses == [401, 403, 200]


async def test_json_carries_inputs_and_parameters(plane: Plane) -> None:
    body = {"inputs": {"text": "hi"}, "parameters": {"lang": "de", "pointsman_on_defer": "error"}}

    assert (await plane.send("POST", DECIDE, body)).status == 200

    (request,) = plane.service.requests
    assert request.payload == JsonInputs({"text": "hi"}, len(orjson.dumps(body)))
    assert request.parameters == {"lang": "de"}


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/JPEG", "application/octet-stream"])
async def test_an_image_is_taken_as_it_is(plane: Plane, content_type: str) -> None:
    assert (await plane.send("POST", DECIDE, b"\x89PNG", {"content-type": content_type})).status == 200

    assert plane.service.requests[0].payload == RawBody(b"\x89PNG", content_type.lower())


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        ("text/plain; charset=latin-1", b"caf\xe9", 415, "send text as UTF-8"),
        ("text/plain", b"caf\xe9", 400, "the text is not UTF-8: byte 3 is wrong"),
        ("text/html", b"<p>", 415, "is not read here"),
        ("multipart/form-data; boundary=x", b"--x", 415, "is not read here"),
        ("application/x-www-form-urlencoded", b"a=1", 415, "is not read here"),
        ("application/python-pickle", b"\x80\x04", 415, "is not read here"),
        ("application/zip", b"PK", 415, "is not read here"),
        ("", b"x", 415, "is not read here"),
        ("text", b"x", 415, "is not a media type"),
        ("text/plain", b"", 400, "the body is empty"),
        ("application/json", b"[]", 400, "the body must be a JSON object"),
        ("application/json", b"{}", 400, "the body needs inputs"),
        ("application/json", b'{"inputs": []}', 400, "the body needs inputs"),
        ("application/json", b'{"inputs": {}}', 400, "the body needs inputs"),
        ("application/json", b'{"input": {"text": "a"}}', 400, "has a member 'input'; known members"),
        ("application/json", b'{"inputs": {"a": 1, "a": 2}}', 400, "the key 'a' twice"),
        ("application/json", b'{"inputs": {"a": 1}, "parameters": {"pointsman_x": 1}}', 400, "is unknown"),
        ("application/json", b"\x80\x04]", 400, "the body is not JSON"),
        ("application/json", b" " * (LIMITS.json_bytes + 1), 413, "send images as they are"),
    ],
)
async def test_a_body_that_means_nothing_is_refused(
    plane: Plane, content_type: str, body: bytes, status: int, message: str
) -> None:
    response = await plane.send("POST", DECIDE, body, {"content-type": content_type} if content_type else {})

    assert (response.status, told(response)["status"]) == (status, status)
    assert message in told(response)["detail"]
    assert plane.service.requests == []


async def test_a_key_makes_a_fingerprint_of_route_type_and_body(plane: Plane) -> None:
    key = {"idempotency-key": '"k"'}
    await plane.send("POST", DECIDE, b"a", {**TEXT, **key})
    await plane.send(
        "POST", DECIDE, b"a", {"content-type": "text/plain;charset=utf-8", **key, "pointsman-timeout-ms": "9"}
    )
    await plane.send("POST", DECIDE, b"b", {**TEXT, **key})
    await plane.send("POST", DECIDE, b"a", {"content-type": "image/png", **key})
    await plane.send("POST", "/v1/routes/echo:decide", b"a", {**TEXT, **key})

    first, same, *others = [request.fingerprint for request in plane.service.requests]
    assert first == same
    assert len({first, *others}) == 4


async def test_json_is_the_same_request_in_any_order_and_with_any_spaces(plane: Plane) -> None:
    for body in (
        b'{"inputs":{"text":"hi","more":{"a":1,"b":2}},"parameters":{"lang":"de"}}',
        b'{"parameters": {"lang": "de"},\n "inputs": {"more": {"b": 2, "a": 1}, "text": "\\u0068i"}}',
        b'{"inputs":{"text":"hi","more":{"a":2,"b":1}},"parameters":{"lang":"de"}}',
        b'{"inputs":{"text":"hi","more":{"a":1,"b":2}},"parameters":{"lang":"en"}}',
        b'{"inputs":{"text":"ho","more":{"a":1,"b":2}},"parameters":{"lang":"de"}}',
    ):
        await plane.send("POST", DECIDE, body, {"content-type": "application/json", "idempotency-key": '"k"'})

    first, same, *others = [request.fingerprint for request in plane.service.requests]
    assert first == same
    assert len({first, *others}) == 4


async def test_whom_a_request_is_about_makes_it_no_other_request_however_it_is_said(plane: Plane) -> None:
    key = {"content-type": "application/json", "idempotency-key": '"k"'}
    named = {"inputs": {"text": "hi"}, "parameters": {"pointsman_subject": "anna", "lang": "de"}}
    plain = {"inputs": {"text": "hi"}, "parameters": {"lang": "de"}}
    await plane.send("POST", DECIDE, named, key)
    await plane.send("POST", DECIDE, plain, key | {"pointsman-subject": "anna"})
    await plane.send("POST", DECIDE, plain, key)

    assert [request.subject for request in plane.service.requests] == ["anna", "anna", ""]
    assert len({request.fingerprint for request in plane.service.requests}) == 1


async def test_a_deferred_request_is_202_and_says_where_the_answer_will_be(plane: Plane) -> None:
    response = await plane.send("POST", DECIDE, {"inputs": {"text": "hi"}, "parameters": {"script": "defer"}})

    answer = told(response)
    assert response.status == 202
    assert dict(response.headers)["location"] == f"/v1/answers/{answer['answer_id']}"
    assert dict(response.headers)["retry-after"] == "5"
    assert (answer["status"], answer["label"], answer["decided_by"]) == ("provisional", "label-0", None)
    assert answer["reason"] == "low_confidence"


async def test_an_uncertain_answer_that_nobody_will_confirm_is_200(plane: Plane) -> None:
    response = await plane.send("POST", DECIDE, {"inputs": {"text": "hi"}, "parameters": {"script": "unsure"}})

    assert (response.status, told(response)["status"]) == (200, "provisional")


async def test_an_answer_is_202_while_open_and_200_when_final(plane: Plane) -> None:
    answer_id = await deferred(plane)

    before = await plane.send("GET", f"/v1/answers/{answer_id}")
    await plane.service.decide_open(answer_id, "spam")
    after = await plane.send("GET", f"/v1/answers/{answer_id}")

    assert (before.status, after.status) == (202, 200)
    assert (told(after)["label"], told(after)["decided_by"]) == ("spam", "person:ann")
    assert dict(after.headers)["vary"] == "Prefer, Accept"
    assert "preference-applied" not in dict(after.headers)


async def test_a_cancelled_answer_is_closed_and_stays(plane: Plane) -> None:
    answer_id = await deferred(plane)
    waiting = asyncio.create_task(plane.send("GET", f"/v1/answers/{answer_id}", headers={"prefer": "wait=60"}))
    await asyncio.sleep(0)

    cancelled = [await plane.send("DELETE", f"/v1/answers/{answer_id}") for _ in range(2)]

    found = [*cancelled, await asyncio.wait_for(waiting, 2), await plane.send("GET", f"/v1/answers/{answer_id}")]
    assert [response.status for response in found] == [200] * 4
    assert {told(response)["status"] for response in found} == {"cancelled"}
    assert {(told(r)["revision"], told(r)["label"], told(r)["decided_by"]) for r in found} == {(2, "label-0", None)}
    assert ("cache-control", "no-store") in cancelled[0].headers


async def test_a_final_answer_is_not_cancelled(plane: Plane) -> None:
    decided = await plane.send("POST", DECIDE, b"hello", TEXT)

    response = await plane.send("DELETE", f"/v1/answers/{told(decided)['answer_id']}")

    assert (response.status, told(response)) == (200, told(decided))


async def test_revisions_tell_what_an_answer_was(plane: Plane) -> None:
    answer_id = await deferred(plane)

    response = await plane.send("GET", f"/v1/answers/{answer_id}/revisions")

    state = {"item": 0, "status": "provisional", "label": "label-0", "confidence": 0.9, "decided_by": None}
    assert told(response) == {
        "answer_id": answer_id,
        "revisions": [
            {"revision": 1, "at": "1970-01-01T00:00:01.000Z", "event": "answer", "by": None, "items": [state]}
        ],
    }


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("GET", "/revisions")])
@pytest.mark.parametrize("answer_id", ["0" * 32, "x"])
async def test_what_is_no_answer_is_neither_cancelled_nor_told(
    plane: Plane, method: str, path: str, answer_id: str
) -> None:
    assert (await plane.send(method, f"/v1/answers/{answer_id}{path}")).status == 404


async def test_a_long_poll_returns_as_soon_as_a_person_has_decided(plane: Plane) -> None:
    answer_id = await deferred(plane)

    waiting = asyncio.create_task(plane.send("GET", f"/v1/answers/{answer_id}", headers={"prefer": "wait=60"}))
    await asyncio.sleep(0)
    await plane.service.decide_open(answer_id, "spam")
    response = await asyncio.wait_for(waiting, 2)

    assert response.status == 200
    assert dict(response.headers)["preference-applied"] == f"wait={LIMITS.wait_s:.0f}"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ("respond-async, wait=0", "wait=0"),
        ('WAIT="0"; foo', "wait=0"),
        ("respond-async", None),
        ("wait=-1", None),
        ("wait=x", None),
        ("await=0", None),
    ],
)
async def test_a_preference_that_is_malformed_is_ignored(plane: Plane, prefer: str, applied: str | None) -> None:
    response = await plane.send("GET", f"/v1/answers/{await deferred(plane)}", headers={"prefer": prefer})

    assert (response.status, dict(response.headers).get("preference-applied")) == (202, applied)


@pytest.mark.parametrize("answer_id", ["0" * 32, "x", "0" * 31, "A" * 32, "0" * 33])
async def test_an_unknown_answer_is_404(plane: Plane, answer_id: str) -> None:
    for method, path in (("GET", f"/v1/answers/{answer_id}"), ("POST", f"/v1/answers/{answer_id}/feedback")):
        response = await plane.send(method, path, {"label": "a"} if method == "POST" else b"")

        assert (response.status, told(response)["title"]) == (404, "Not found")


async def test_feedback_is_kept(plane: Plane) -> None:
    answer_id = await deferred(plane)

    response = await plane.send("POST", f"/v1/answers/{answer_id}/feedback", {"item": 0, "label": "7"})

    assert response.status == 201
    assert plane.service.feedbacks == [(answer_id, 0, "7")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"item": -1, "label": "7"}, 400),
        ({"item": True, "label": "7"}, 400),
        ({"item": 0.5, "label": "7"}, 400),
        ({"item": 2**64, "label": "7"}, 400),
        ({"item": 0}, 400),
        ({"item": 0, "label": ""}, 400),
        ({"item": 0, "label": 7}, 400),
        ({"item": 0, "label": "7" * 10_001}, 400),
        ({"item": 0, "label": "7", "more": 1}, 400),
        ([], 400),
        (b"item=0", 400),
        ({"label": "7" * 70_000}, 413),
        ({"item": 7, "label": "7"}, 404),
    ],
)
async def test_feedback_names_an_item_and_a_label(plane: Plane, body: Any, status: int) -> None:
    path = f"/v1/answers/{await deferred(plane)}/feedback"

    text = body if isinstance(body, bytes) else json.dumps(body).encode()

    response = await plane.send("POST", path, text, {"content-type": "application/json"})

    assert response.status == status
    assert plane.service.feedbacks == []


def an_answer(*items: ItemAnswer) -> Answer:
    return Answer(AnswerId("0" * 32), "default", "pets", 1.0, items)


ITEM = ItemAnswer(Status.FINAL, "fast", "cat", None, 0.9, "model:fast", None)


def test_an_answer_without_label_tells_its_outputs_without_the_batch_axis() -> None:
    texts = np.empty((1, 2), dtype=object)
    texts[0] = [b"caf\xc3\xa9", b"\xff"]
    outputs = {
        "scores": Tensor.of(np.array([[0.25, 0.75]], np.float32)),
        "half": Tensor.of(np.array([[0x3FC0]], np.uint16), Datatype.BF16),
        "texts": Tensor.of(texts),
        "rows": Tensor.ragged(Datatype.INT8, (np.array([1, 2, 3], np.int8),)),
    }

    answer = answer_json(an_answer(replace(ITEM, label=None, outputs=outputs)))
    told = orjson.loads(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    assert "label" not in told
    assert told["outputs"] == {
        "scores": [0.25, 0.75],
        "half": [1.5],
        "texts": ["café", {"b64": "/w=="}],
        "rows": [1, 2, 3],
    }


def test_a_batch_tells_a_summary_and_its_items() -> None:
    told = answer_json(an_answer(ITEM, replace(ITEM, label="dog", confidence=0.5)))

    assert (told["status"], told["label"], told["confidence"]) == ("final", None, 0.5)
    assert [item["label"] for item in told["items"]] == ["cat", "dog"]
    assert {"status", "stage", "label", "confidence", "decided_by", "reason", "max_error", "certified"} == set(
        told["items"][0]
    )


async def test_whom_a_request_is_about_comes_as_a_header_or_a_parameter(plane: Plane) -> None:
    named = {"inputs": {"text": "hi"}, "parameters": {"pointsman_subject": "anna", "team": "billing"}}
    await plane.send("POST", DECIDE, b"hello", TEXT | {"pointsman-subject": "bert"})
    await plane.send("POST", DECIDE, named)
    await plane.send("POST", DECIDE, named, {"pointsman-subject": "bert"})
    await plane.send("POST", DECIDE, b"hello", TEXT)
    bad = await plane.send("POST", DECIDE, b"hello", TEXT | {"pointsman-subject": "x" * 256})

    assert [request.subject for request in plane.service.requests] == ["bert", "anna", "anna", ""]
    assert plane.service.requests[1].parameters == {"team": "billing"}
    assert "anna" not in repr(plane.service.requests[1])
    assert bad.status == 400
    assert told(bad)["detail"] == "the subject is not a text of 1 to 255 printable characters; send an opaque id"
