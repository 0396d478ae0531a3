"""A person's decision reaches a webhook, from one process and from several, and through a kill -9 of the gateway."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from gateway.webhooks.signing import Secret
from tests.integration.process import CONFIG, ROOT, GatewayProcess, running
from tests.integration.test_v1 import UNSURE, call, decide

SECRET = Secret.new()


@dataclass(slots=True)
class Receiver:
    """What a web server was sent; it takes messages while `open` is set, else says 503."""

    url: str = ""
    open: Event = field(default_factory=Event)
    events: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    def wait(self, condition: Any) -> None:
        until = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < until, f"{len(self.events)} events, {self.refused} refused"
            time.sleep(0.02)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Hooks(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            Webhook(SECRET.text()).verify(body, dict(self.headers))
            if receiver.open.is_set():
                receiver.events.append(json.loads(body))
            else:
                receiver.refused += 1
            self.send_response(204 if receiver.open.is_set() else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hooks)
    receiver.url = f"http://127.0.0.1:{server.server_port}/"
    serving = Thread(target=server.serve_forever)
    serving.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def telling(folder: Path, receiver: Receiver) -> str:
    """A configuration that tells *receiver*; decisions can be taken back for a second."""
    (folder / "secret").write_text(SECRET.text())
    config = CONFIG.replace("store: {path: store.db", "store: {undo: 1s, path: store.db")
    return f"{config}\nwebhooks:\n  crm: {{url: '{receiver.url}', secret_file: secret, private: true}}\n"


def _decide_all(gateway: GatewayProcess) -> None:
    """Be the person who decides everything that is open."""
    anna = {"X_Pointsman_Reviewer": "anna"}
    while True:
        claimed = call(f"{gateway.control}/v1/reviews:claim-next", b'{"queue": "words"}', "application/json", **anna)
        if claimed.status != 200:
            assert claimed.status == 204
            return
        body = json.dumps({"fence": claimed.body["fence"], "label": "c"}).encode()
        url = f"{gateway.control}/v1/reviews/{claimed.body['id']}:decide"
        assert call(url, body, "application/json", **anna).status == 200


def _pointsman(*arguments: str) -> str:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_webhook_is_told_what_a_person_decided(tmp_path: Path, workers: str) -> None:
    with receiving() as receiver:
        receiver.open.set()
        with running(tmp_path, telling(tmp_path, receiver), ["--workers", workers]) as gateway:
            sure, unsure = decide(gateway, "fast=0.95:b"), decide(gateway, UNSURE)
            assert (sure.status, unsure.status) == (200, 202)
            _decide_all(gateway)
            receiver.wait(lambda: receiver.events)
            receiver.wait(lambda: _DELIVERED in call(f"{gateway.control}/metrics").body)

        (event,) = receiver.events
        assert event["subject"] == unsure.body["answer_id"]
        assert (event["source"], event["data"]["label"]) == ("/v1/routes/words", "c")
        assert event["data"]["decided_by"] == "person:anna"


def test_what_was_decided_before_a_kill_is_told_after_it(tmp_path: Path) -> None:
    with receiving() as receiver:
        config = telling(tmp_path, receiver)
        with running(tmp_path, config) as gateway:
            asked = {decide(gateway, UNSURE).body["answer_id"] for _ in range(5)}
            _decide_all(gateway)
            gateway.kill()
        receiver.open.set()
        assert _pointsman("webhooks", "redeliver", str(tmp_path / "gateway.yaml"), *_waiting(tmp_path))
        with running(tmp_path, config):
            receiver.wait(lambda: len(receiver.events) >= 5)

        assert {event["subject"] for event in receiver.events} == asked
        assert len({event["id"] for event in receiver.events}) == 5
        assert _pointsman("webhooks", "list", str(tmp_path / "gateway.yaml"), "--state", "dead") == ""


_DELIVERED = 'pointsman_webhook_attempts_total{outcome="delivered",webhook="crm"} 1.0'


def _waiting(folder: Path) -> list[str]:
    told = _pointsman("webhooks", "list", str(folder / "gateway.yaml"), "--state", "waiting", "--json")
    return [json.loads(line)["id"] for line in told.splitlines()]
