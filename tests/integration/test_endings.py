"""Answers that do not end by one decision, on a running gateway: cancelled, expired, taken back, corrected, told of."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from pointsman_pb import gateway_pb2 as pb
from pointsman_pb import gateway_pb2_grpc
from tests.integration.process import GatewayProcess, running
from tests.integration.test_v1 import UNSURE, Reply, call, claim, decide
from tests.integration.test_webhooks import receiving, telling

ANA = {"X_Pointsman_Reviewer": "ana"}


def ask(gateway: GatewayProcess, review_id: str, verb: str, **body: Any) -> Reply:
    """Have `ana` do something with a review."""
    url = f"{gateway.control}/v1/reviews/{review_id}:{verb}"
    return call(url, json.dumps(body).encode(), media="application/json", **ANA)


def cancel(gateway: GatewayProcess, answer_id: str) -> Reply:
    return call(f"{gateway.http}/v1/answers/{answer_id}", method="DELETE")


def revisions(gateway: GatewayProcess, answer_id: str) -> list[tuple[str, str | None]]:
    found = call(f"{gateway.http}/v1/answers/{answer_id}/revisions").body["revisions"]
    assert [revision["revision"] for revision in found] == list(range(1, len(found) + 1))
    return [(revision["event"], revision["items"][0]["label"]) for revision in found]


class Events:
    """Follows an answer over a plain socket."""

    def __init__(self, gateway: GatewayProcess, answer_id: str, seen: int | None = None) -> None:
        host, port = gateway.http.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        last = "" if seen is None else f"Last-Event-ID: {seen}\r\n"
        self.socket.sendall(
            f"GET /v1/answers/{answer_id} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{last}\r\n".encode()
        )
        self.lines = self.socket.makefile("rb")
        self.status = int(self.lines.readline().split()[1])
        while self.lines.readline().strip():
            pass

    def __iter__(self) -> Iterator[bytes]:
        """What comes, event by event, until the stream or the connection ends."""
        while size := self.lines.readline():
            part = self.lines.read(int(size, 16) + 2)
            if int(size, 16) == 0:
                return
            yield part[:-2]

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def data(event: bytes) -> Any:
    return json.loads(event.split(b"data: ")[1])


def test_an_answer_that_nobody_needs_any_more_is_cancelled(gateway: GatewayProcess) -> None:
    reply = decide(gateway, UNSURE, Idempotency_Key="cancel-me")
    answer_id = reply.body["answer_id"]
    review = claim(gateway, answer_id)

    assert [cancel(gateway, answer_id).body["status"] for _ in range(2)] == ["cancelled"] * 2

    refused = ask(gateway, review["id"], "decide", fence=review["fence"], label="c")
    assert (refused.status, f"review {review['id']} is cancelled" in refused.body["detail"]) == (409, True)
    again = decide(gateway, UNSURE, Idempotency_Key="cancel-me")
    assert (again.status, again.body["status"], again.body["answer_id"]) == (200, "cancelled", answer_id)
    assert revisions(gateway, answer_id) == [("answer", "b"), ("cancel", "b")]


def test_a_decision_is_taken_back_made_anew_and_corrected(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, UNSURE).body["answer_id"]
    review = claim(gateway, answer_id)
    first = ask(gateway, review["id"], "decide", fence=review["fence"], label="c")
    assert first.body["undo_s"] == 10.0

    back = ask(gateway, review["id"], "undo", fence=review["fence"])
    assert (back.status, back.body["state"], back.body["reviewer"]) == (200, "claimed", "ana")
    assert back.body["payload"] == UNSURE
    assert call(f"{gateway.http}/v1/answers/{answer_id}").status == 202
    second = ask(gateway, review["id"], "decide", fence=back.body["fence"], label="a")
    assert second.body["answer_revision"] == 4
    corrected = ask(gateway, review["id"], "correct", label="c", reason="it says so")
    assert (corrected.status, corrected.body["answer_revision"]) == (200, 5)
    assert ask(gateway, review["id"], "undo", fence=back.body["fence"]).status == 409

    assert revisions(gateway, answer_id) == [
        ("answer", "b"), ("decide", "c"), ("undo", "b"), ("decide", "a"), ("correct", "c")
    ]  # fmt: skip
    assert call(f"{gateway.http}/v1/answers/{answer_id}").body["label"] == "c"


def test_who_follows_an_answer_is_told_of_every_change(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, UNSURE).body["answer_id"]
    with closing(Events(gateway, answer_id)) as events:
        following = iter(events)
        assert data(next(following))["status"] == "provisional"
        review = claim(gateway, answer_id)
        ask(gateway, review["id"], "decide", fence=review["fence"], label="c")
        final = data(next(following))
        assert (final["status"], final["label"], final["revision"]) == ("final", "c", 2)
        assert next(following, None) is None
    with closing(Events(gateway, answer_id, seen=2)) as events:
        assert events.status == 204


def test_a_grpc_caller_cancels_and_its_stream_ends(gateway: GatewayProcess) -> None:
    with grpc.insecure_channel(gateway.grpc) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        stream = stub.Decide(pb.DecideRequest(route="words", text=UNSURE, wait=True), timeout=30)
        known = next(stream)
        assert known.status == pb.STATUS_PROVISIONAL
        assert stub.Cancel(pb.CancelRequest(answer_id=known.answer_id)).status == pb.STATUS_CANCELLED
        assert [(answer.status, answer.revision) for answer in stream] == [(pb.STATUS_CANCELLED, 2)]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Cancel(pb.CancelRequest(answer_id="0" * 32))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_nobody_decides_expires_and_whoever_waits_and_the_webhook_are_told(tmp_path: Path, workers: str) -> None:
    with receiving() as receiver:
        receiver.open.set()
        config = telling(tmp_path, receiver).replace("due: 1h,", "due: 1s, expires: 1s,", 1)
        with running(tmp_path, config, ["--workers", workers]) as gateway:
            answer_id = decide(gateway, UNSURE).body["answer_id"]
            with closing(Events(gateway, answer_id)) as events:
                polled = call(f"{gateway.http}/v1/answers/{answer_id}", Prefer="wait=30")
                told = [data(event)["status"] for event in events if event.startswith(b"id: ")]
            assert (polled.status, polled.body["status"], polled.body["decided_by"]) == (200, "expired", None)
            assert told == ["provisional", "expired"]
            receiver.wait(lambda: receiver.events)
        (event,) = receiver.events
        assert (event["type"], event["subject"]) == ("pointsman.answer.expired", answer_id)
        assert event["data"]["revision"] == 2


def test_a_decision_that_was_taken_back_is_told_to_no_webhook(tmp_path: Path) -> None:
    with receiving() as receiver:
        receiver.open.set()
        with running(tmp_path, telling(tmp_path, receiver)) as gateway:
            answer_id = decide(gateway, UNSURE).body["answer_id"]
            review = claim(gateway, answer_id)
            ask(gateway, review["id"], "decide", fence=review["fence"], label="c")
            back = ask(gateway, review["id"], "undo", fence=review["fence"])
            assert back.status == 200
            ask(gateway, review["id"], "decide", fence=back.body["fence"], label="a")
            receiver.wait(lambda: receiver.events)
            ask(gateway, review["id"], "correct", label="b")
            receiver.wait(lambda: len(receiver.events) == 2)
        assert [(e["type"], e["data"]["label"], e["data"]["revision"]) for e in receiver.events] == [
            ("pointsman.answer.final", "a", 4),
            ("pointsman.answer.final", "b", 5),
        ]


def test_streams_end_when_the_gateway_does_and_miss_nothing_after_a_kill(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        answer_id = decide(gateway, UNSURE).body["answer_id"]
        events = Events(gateway, answer_id)
        following = iter(events)
        assert data(next(following))["revision"] == 1
        began = time.monotonic()
        assert gateway.terminate() == 0
        assert next(following).startswith(b"retry: ")
        assert next(following, None) is None
        assert time.monotonic() - began < 10.0
        events.close()
    with running(tmp_path) as gateway:
        events = Events(gateway, answer_id, seen=1)
        review = claim(gateway, answer_id)
        assert ask(gateway, review["id"], "decide", fence=review["fence"], label="c").status == 200
        gateway.kill()  # what was acknowledged is told by whoever serves next
        events.close()
    with running(tmp_path) as gateway, closing(Events(gateway, answer_id, seen=1)) as events:
        assert [data(event)["label"] for event in events] == ["c"]
