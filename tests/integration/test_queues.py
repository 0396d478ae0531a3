"""People as a backend with capacity, on a running gateway: escalation, predicted waits, and what follows overload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
import tritonclient.http as triton_http

from backends.errors import Overloaded
from gateway.answer import Answer, Status
from gateway.catalog import Catalog
from gateway.compose import compose
from gateway.request import Protocol, RawBody, Request
from gateway.settings import load_settings
from pointsman_pb import gateway_pb2 as pb
from pointsman_pb import gateway_pb2_grpc
from router.contract import ModelState, Reason
from tests.integration.process import ROOT, GatewayProcess, running, wait_for
from tests.integration.test_v1 import Reply, call, decide

MODELS = """
models:
  fast:
    backend: python
    target: tests.integration.models:fast
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
  strong:
    backend: python
    target: tests.integration.models:strong
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
"""

ROUTE = """
  {name}:
    input: {{text: {{datatype: BYTES, shape: [1]}}}}
    decode: utf8
    cascade: [fast, strong]
    accept: {{{accept}}}
    human: {{form: labels, {human}}}
    slo: {{deadline: 5s}}
"""


def route(name: str, human: str, accept: str = "min_confidence: 0.9") -> str:
    return ROUTE.format(name=name, human=human, accept=accept)


OVERLOADED = "max_wait: 5s, when_overloaded"
CONFIG = (
    MODELS
    + "routes:"
    + route("words", "queue: desk, due: 1h")
    + route("stands", f"queue: desk, {OVERLOADED}: provisional")
    + route("refuses", f"queue: desk, {OVERLOADED}: refuse")
    + route("insists", f"queue: desk, {OVERLOADED}: stronger")
    + route("unproven", f"queue: desk, {OVERLOADED}: refuse", "max_error: 5%")
    + route("urgent", "queue: desk, priority: 7, callers_priority: true")
    + route("chained", "queue: first, due: 1s")
    + """
queues:
  first: {escalate_to: second}
  second: {due: 1s, escalate_to: third}
  third: {due: 1s}
store: {path: store.db, retention: 1d, limit: 1GiB}
"""
)

UNSURE = "fast=0.5:b strong=0.6:b"


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway in which one review has been decided: there are people, and without more to go by, slow ones."""
    with running(tmp_path_factory.mktemp("queues"), CONFIG) as process:
        first = decide(process, UNSURE)
        assert first.body["predicted_wait_s"] is None
        decide_next(process, "desk")
        wait_for(lambda: "pointsman_review_predicted_wait_seconds{" in call(f"{process.control}/metrics").body)
        yield process


def post(url: str, body: object) -> Reply:
    return call(url, json.dumps(body).encode(), "application/json", X_Pointsman_Reviewer="ana")


def decide_next(gateway: GatewayProcess, queue: str, label: str = "c") -> Reply:
    claimed = post(f"{gateway.control}/v1/reviews:claim-next", {"queue": queue})
    assert claimed.status == 200
    body = {"fence": claimed.body["fence"], "label": label}
    return post(f"{gateway.control}/v1/reviews/{claimed.body['id']}:decide", body)


def reviews(gateway: GatewayProcess, queue: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(f"{gateway.control}/v1/reviews?queue={queue}&limit=200").body["reviews"]
    return found


def test_every_deferral_tells_how_long_people_will_take(queued: GatewayProcess) -> None:
    waiting = decide(queued, UNSURE)
    wait_s = waiting.body["predicted_wait_s"]
    again = call(f"{queued.http}{waiting.headers['location']}")
    client = triton_http.InferenceServerClient(queued.http.removeprefix("http://"))
    text = triton_http.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[UNSURE.encode()]], dtype=object))
    by_oip = client.infer("words", [text]).get_response()["parameters"]
    with grpc.insecure_channel(queued.grpc) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        (by_grpc,) = stub.Decide(pb.DecideRequest(route="words", text=UNSURE))
        asked = stub.GetAnswer(pb.GetAnswerRequest(answer_id=waiting.body["answer_id"]))
        (sure,) = stub.Decide(pb.DecideRequest(route="words", text="fast=0.95:b"))

    assert 5 < wait_s < 300
    assert 5 < again.body["predicted_wait_s"] < 300
    assert by_oip["pointsman_predicted_wait_s"] > wait_s  # it comes behind
    assert by_grpc.predicted_wait_s > wait_s
    assert 5 < asked.predicted_wait_s < 300
    assert not sure.HasField("predicted_wait_s")
    assert "predicted_wait_s" not in decide(queued, "fast=0.95:b").body


def test_a_repeated_key_is_told_how_long_people_take_still(queued: GatewayProcess) -> None:
    key = f'"{uuid4()}"'

    first, second = (decide(queued, UNSURE, Idempotency_Key=key) for _ in range(2))

    assert first.body["answer_id"] == second.body["answer_id"]
    assert second.body["predicted_wait_s"] > 5


def test_where_people_are_overloaded_the_model_s_answer_stands_and_asks_nobody(queued: GatewayProcess) -> None:
    before = len(reviews(queued, "desk"))
    stands = decide(queued, UNSURE, route="stands")
    sure = decide(queued, "fast=0.95:a", route="stands")

    assert (stands.status, stands.body["status"], stands.body["decided_by"]) == (200, "provisional", "model:strong")
    assert (stands.body["label"], stands.body["reason"]) == ("b", "low_confidence")
    assert stands.body["remarks"][0].startswith("people of queue 'desk' need about ")
    assert stands.body["remarks"][0].endswith("and this route allows 5 s")
    assert "predicted_wait_s" not in stands.body
    assert (sure.body["status"], sure.body.get("remarks")) == ("final", None)
    assert len(reviews(queued, "desk")) == before
    assert call(f"{queued.http}/v1/answers/{stands.body['answer_id']}").status == 200


def test_what_no_model_has_answered_waits_for_people_all_the_same(queued: GatewayProcess) -> None:
    pending = decide(queued, "fast=fail strong=fail", route="stands")

    assert (pending.status, pending.body["status"], pending.body["decided_by"]) == (202, "pending", None)


def test_where_people_are_overloaded_a_request_is_refused_and_told_when_to_come_again(queued: GatewayProcess) -> None:
    key = f'"{uuid4()}"'
    before = len(reviews(queued, "desk"))
    refused = decide(queued, UNSURE, route="refuses", Idempotency_Key=key)
    answered = decide(queued, "fast=0.95:a", route="refuses")
    again = decide(queued, UNSURE, route="refuses", Idempotency_Key=key)

    assert (refused.status, again.status, answered.status) == (503, 503, 200)
    assert "people of queue 'desk' need about " in refused.body["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert len(reviews(queued, "desk")) == before


def asked(gateway: GatewayProcess, name: str) -> str:
    """How often models were asked for the route *name*."""
    lines = call(f"{gateway.control}/metrics").body.splitlines()
    counts = [line for line in lines if line.startswith("pointsman_stage_duration_seconds_count{") and name in line]
    return "".join(counts)


def test_what_only_people_could_decide_is_refused_before_a_model_has_scored_it(queued: GatewayProcess) -> None:
    """Which items get a label must not depend on what is to be proven of them."""
    before = asked(queued, 'route="unproven"')
    refused = decide(queued, UNSURE, route="unproven")

    assert refused.status == 503
    assert asked(queued, 'route="unproven"') == before


def test_a_caller_s_priority_counts_where_the_route_lets_it(queued: GatewayProcess) -> None:
    def priority(body: dict[str, Any], name: str) -> int:
        url = f"{queued.http}/v1/routes/{name}:decide"
        answer_id = call(url, json.dumps(body).encode(), "application/json").body["answer_id"]
        (review,) = [one for one in reviews(queued, "desk") if one["answer_id"] == answer_id]
        return int(review["priority"])

    inputs = {"inputs": {"text": UNSURE}}
    assert priority(inputs, "urgent") == 7
    assert priority({**inputs, "parameters": {"priority": 1}}, "urgent") == 1
    assert priority({**inputs, "parameters": {"priority": 10}}, "urgent") == 7
    assert priority({**inputs, "parameters": {"priority": 1}}, "words") == 5
    assert reviews(queued, "desk")[0]["priority"] == 1


def test_what_is_due_moves_up_its_chain_stays_open_and_is_on_record(queued: GatewayProcess) -> None:
    deferred = decide(queued, UNSURE, route="chained")

    def at_the_end() -> bool:
        return any(review["overdue"] for review in reviews(queued, "third"))

    wait_for(at_the_end)
    (review,) = reviews(queued, "third")
    assert (review["escalations"], review["state"], review["reviewer"]) == (2, "open", None)
    assert call(f"{queued.http}{deferred.headers['location']}").status == 202
    assert reviews(queued, "first") == reviews(queued, "second") == []
    decided = decide_next(queued, "third")
    assert (decided.status, decided.body["answer_status"]) == (200, "final")
    arguments = queued.process.args
    assert isinstance(arguments, list)
    config = next(str(one) for one in arguments if str(one).endswith("gateway.yaml"))
    told = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "audit", "show", config, deferred.body["answer_id"]],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    ).stdout
    happened = [
        "handed to people",
        "escalated to queue:second",
        "escalated to queue:third",
        "escalated to nobody",
        "decided by person:ana",
    ]
    assert [told.index(words) for words in happened] == sorted(told.index(words) for words in happened)
    assert "people: undecided in queue 'first', where it was due " in told
    metrics = call(f"{queued.control}/metrics").body
    for queue, to in (("first", "second"), ("second", "third"), ("third", "")):
        assert f'pointsman_review_escalations_total{{queue="{queue}",to="{to}"}} 1.0' in metrics


async def test_a_stage_that_seemed_too_slow_is_asked_before_people_who_have_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What seems so is set here; all else is real: the pipeline, the models, the store and its people."""
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    sees = Catalog.states

    def seems_slow(self: Catalog, *arguments: Any) -> Mapping[str, ModelState]:
        found = sees(self, *arguments)
        return {name: replace(s, predicted_wait_s=60.0) if name == "strong" else s for name, s in found.items()}

    async with compose(load_settings(file)) as gateway:

        async def ask(name: str, text: str) -> Answer:
            request = Request(name, RawBody(text.encode(), "text/plain"), Protocol.V1_HTTP)
            return await gateway.pipeline.decide(request)

        monkeypatch.setattr(Catalog, "states", seems_slow)
        skipped = await ask("insists", "fast=0.5:b strong=0.95:c")
        review = await gateway.store.claim_next("default", "desk", "ana", 60.0)
        assert review is not None
        await gateway.store.decide("default", review.id, "ana", review.fence, "c")
        await gateway.people.look()
        insisted = await ask("insists", "fast=0.5:b strong=0.95:c")
        waits = await ask("words", "fast=0.5:b strong=0.95:c")
        unsure = await ask("insists", UNSURE)
        with pytest.raises(Overloaded, match="people of queue 'desk' need about"):
            await ask("refuses", "fast=0.5:b strong=0.95:c")

    assert (skipped.status, skipped.items[0].reason) == (Status.PROVISIONAL, Reason.OVERLOADED)
    assert (insisted.status, insisted.items[0].decided_by, insisted.items[0].label) == (
        Status.FINAL,
        "model:strong",
        "c",
    )
    assert (waits.status, waits.items[0].stage) == (Status.PROVISIONAL, "fast")
    assert (unsure.status, unsure.items[0].stage, unsure.items[0].decided_by) == (Status.PROVISIONAL, "strong", None)
