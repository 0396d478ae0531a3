"""`/v1` on a running gateway: decisions, two-phase answers, people, idempotency, metrics."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.process import GatewayProcess


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, whatever its status."""

    status: int
    headers: dict[str, str]
    body: Any


def call(
    url: str, body: bytes | None = None, media: str = "text/plain", method: str | None = None, **headers: str
) -> Reply:
    """GET, or POST where there is a body; header names are written with underscores."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": media}, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Reply(response.status, _lower(response.headers), _parsed(response.read()))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, _lower(error.headers), _parsed(error.read()))


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def decide(gateway: GatewayProcess, text: str, route: str = "words", **headers: str) -> Reply:
    return call(f"{gateway.http}/v1/routes/{route}:decide", text.encode(), **headers)


UNSURE = "fast=0.5 strong=0.6:b"


def test_a_sure_answer_is_final(gateway: GatewayProcess) -> None:
    reply = decide(gateway, "fast=0.95:b")

    assert reply.status == 200
    assert {k: v for k, v in reply.body.items() if k not in ("answer_id", "confidence")} == {
        "status": "final",
        "revision": 1,
        "route": "words",
        "stage": "fast",
        "label": "b",
        "decided_by": "model:fast",
        "reason": None,
        "max_error": 0.05,
        "certified": False,
    }
    assert reply.body["confidence"] == pytest.approx(0.95, abs=1e-6)


def test_an_accepted_answer_can_be_read_again(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, "fast=0.95:b").body["answer_id"]

    assert call(f"{gateway.http}/v1/answers/{answer_id}").body["label"] == "b"


def test_auto_takes_the_route_that_the_rules_say(gateway: GatewayProcess) -> None:
    assert decide(gateway, "hello", route="auto").body["route"] == "words"
    refused = call(f"{gateway.http}/v1/routes/auto:decide", b"\x00\x01", media="application/octet-stream")
    assert refused.status == 400
    assert "no rule" in refused.body["detail"]


def test_a_deferred_request_is_decided_by_a_person(gateway: GatewayProcess) -> None:
    reply = decide(gateway, UNSURE)
    assert reply.status == 202
    assert reply.body["status"] == "provisional"
    assert (reply.body["label"], reply.body["reason"], reply.body["decided_by"]) == ("b", "low_confidence", None)
    location = gateway.http + reply.headers["location"]
    assert call(location).status == 202

    review = claim(gateway, reply.body["answer_id"])
    assert review["payload"] == UNSURE
    assert [proposal["stage"] for proposal in review["proposals"]] == ["fast", "strong"]
    decided = call(
        f"{gateway.control}/v1/reviews/{review['id']}:decide",
        json.dumps({"fence": review["fence"], "label": "c"}).encode(),
        media="application/json",
        X_Pointsman_Reviewer="ana",
    )
    assert decided.status == 200

    final = call(location, Prefer="wait=10")
    assert final.status == 200
    assert (final.body["status"], final.body["label"], final.body["decided_by"]) == ("final", "c", "person:ana")


def claim(gateway: GatewayProcess, answer_id: str) -> Any:
    """Claim the review of one answer, as `ana`."""
    reviews = call(f"{gateway.control}/v1/reviews?queue=words&limit=200").body["reviews"]
    found = next(review for review in reviews if review["answer_id"] == answer_id)
    claimed = call(
        f"{gateway.control}/v1/reviews/{found['id']}:claim",
        b"{}",
        media="application/json",
        X_Pointsman_Reviewer="ana",
    )
    assert claimed.status == 200
    return claimed.body


async def test_a_long_poll_is_woken_by_the_decision(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, UNSURE).body["answer_id"]
    review = claim(gateway, answer_id)
    waiting = asyncio.create_task(
        asyncio.to_thread(call, f"{gateway.http}/v1/answers/{answer_id}", None, "", Prefer="wait=20")
    )
    body = json.dumps({"fence": review["fence"], "label": "a"}).encode()
    url = f"{gateway.control}/v1/reviews/{review['id']}:decide"
    await asyncio.to_thread(call, url, body, "application/json", X_Pointsman_Reviewer="ana")

    assert (await waiting).body["status"] == "final"


@pytest.mark.parametrize(
    ("text", "reason", "status"),
    [
        ("fast=nan strong=nan", "no_confidence", "provisional"),
        ("fast=fail strong=fail", "stage_failed", "pending"),
        ("fast=0.2:b strong=fail", "stage_failed", "provisional"),
    ],
)
def test_what_no_stage_can_vouch_for_goes_to_a_person(
    gateway: GatewayProcess, text: str, reason: str, status: str
) -> None:
    reply = decide(gateway, text)

    assert (reply.status, reply.body["reason"], reply.body["status"]) == (202, reason, status)
    assert "secret-internal-detail" not in json.dumps(reply.body)


def test_a_failing_stage_is_passed_over(gateway: GatewayProcess) -> None:
    reply = decide(gateway, "fast=fail strong=0.95:c")

    assert (reply.status, reply.body["decided_by"], reply.body["label"]) == (200, "model:strong", "c")


def test_out_of_time_goes_to_a_person_or_is_refused(gateway: GatewayProcess) -> None:
    late = decide(gateway, "fast=slow strong=slow", Pointsman_Timeout_Ms="150")
    assert (late.status, late.body["reason"], late.body["status"]) == (202, "out_of_time", "pending")

    refused = decide(gateway, "fast=slow", route="alone")
    assert refused.status == 504
    assert refused.body["error"] == refused.body["detail"]


def test_without_a_person_an_unsure_request_is_refused(gateway: GatewayProcess) -> None:
    reply = decide(gateway, "fast=0.5", route="alone")

    assert reply.status == 503
    assert "no person to ask" in reply.body["detail"]


async def test_one_key_is_one_answer_and_one_task_however_often_it_is_sent(gateway: GatewayProcess) -> None:
    key = f'"{uuid.uuid4()}"'

    replies = await asyncio.gather(
        *(asyncio.to_thread(decide, gateway, UNSURE, Idempotency_Key=key) for _ in range(20))
    )

    assert {reply.status for reply in replies} == {202}
    (answer_id,) = {reply.body["answer_id"] for reply in replies}
    reviews = call(f"{gateway.control}/v1/reviews?queue=words&limit=200").body["reviews"]
    assert sum(review["answer_id"] == answer_id for review in reviews) == 1
    assert decide(gateway, "another body", Idempotency_Key=key).status == 422


def test_a_stored_refusal_is_replayed(gateway: GatewayProcess) -> None:
    key = f'"{uuid.uuid4()}"'
    url = f"{gateway.http}/v1/routes/words:decide"

    first, second = (call(url, b"\xff", Idempotency_Key=key) for _ in range(2))

    assert (first.status, second.status) == (400, 400)
    assert first.body["detail"] == second.body["detail"]


def test_feedback_is_kept(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, "fast=0.95:b").body["answer_id"]
    url = f"{gateway.http}/v1/answers/{answer_id}/feedback"

    assert call(url, b'{"item": 0, "label": "c"}', "application/json").status == 201
    assert call(url, b'{"item": 9, "label": "c"}', "application/json").status == 404


def test_metrics_tell_what_happened(gateway: GatewayProcess) -> None:
    decide(gateway, "fast=0.95:b")
    decide(gateway, UNSURE)

    text = call(f"{gateway.control}/metrics").body

    for series in (
        'pointsman_requests_total{outcome="accepted",protocol="v1_http",route="words"}',
        'pointsman_requests_total{outcome="deferred",protocol="v1_http",route="words"}',
        'pointsman_request_duration_seconds_bucket{le="0.01",protocol="v1_http",route="words"}',
        'pointsman_stage_duration_seconds_count{route="words",stage="fast"}',
        'pointsman_decisions_total{decision="escalate",route="words",stage="fast"}',
        'pointsman_confidence_count{model="strong",route="words"}',
        'pointsman_batch_size_count{model="fast"}',
        'pointsman_queue_depth{model="fast"}',
        'pointsman_reviews_open{queue="words"}',
    ):
        assert series in text, series


def test_invented_names_make_no_new_series(gateway: GatewayProcess) -> None:
    def series() -> set[str]:
        lines = call(f"{gateway.control}/metrics").body.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    decide(gateway, "x", route="invented-0")
    before = series()
    for number in range(1, 50):
        decide(gateway, "x", route=f"invented-{number}")

    assert series() == before
