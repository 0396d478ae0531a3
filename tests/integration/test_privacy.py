"""Masks, erasure and notices on a running gateway: what is masked is nowhere, what is erased is nowhere any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite3
import pytest

from tests import otlp
from tests.integration.process import CONFIG, ROOT, GatewayProcess, running
from tests.integration.test_v1 import call, decide
from tests.integration.test_webhooks import SECRET, receiving

MASKED, ERASED, NAME = "canary-masked-1", "canary-erased-2", "canary-subject-3"
JSON = "application/json"


def _config(folder: Path, hook: str, spans: str) -> str:
    (folder / "secret").write_text(SECRET.text())
    return f"""{CONFIG}
mask: [{{text: {MASKED}}}]
telemetry: {{traces: {{endpoint: '{spans}', sample: 100%}}}}
webhooks: {{crm: {{url: '{hook}', secret_file: secret, private: true}}}}
notify: [{{queue: words, webhook: crm, on: [new], digest: 1h}}]
"""


def _store(folder: Path) -> dict[str, bytes]:
    """The files of the store, its key excepted, and the rows of its tables."""
    found = {file.name: file.read_bytes() for file in folder.glob("store.db*") if not file.name.endswith("-key")}
    with closing(sqlite3.connect(os.fspath(folder / "store.db"))) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found[table] = repr(connection.execute(f"SELECT * FROM {table}").fetchall()).encode()
    return found


def _holding(found: dict[str, bytes], canary: str) -> set[str]:
    return {name for name, content in found.items() if canary.encode() in content}


def _erase(gateway: GatewayProcess, base: str, **what: str) -> Any:
    reply = call(f"{base}/v1/erasures", json.dumps(what).encode(), JSON)
    return reply.status, reply.body


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_masked_is_nowhere_and_what_is_erased_is_nowhere_any_more(tmp_path: Path, workers: str) -> None:
    with receiving() as hooks, otlp.receiving() as spans:
        hooks.open.set()
        with running(tmp_path, _config(tmp_path, hooks.url, spans.endpoint), ["--workers", workers]) as gateway:
            text = f"fast=0.5 strong=0.6:b {MASKED} {ERASED}"
            about = {"Pointsman_Subject": NAME}
            replies = [decide(gateway, text, **about) for _ in range(4)]
            other = decide(gateway, text)
            assert {reply.status for reply in (*replies, other)} == {202}
            shown = call(f"{gateway.control}/v1/reviews:claim-next", b'{"queue": "words"}', JSON)
            assert shown.body["payload"] == f"fast=0.5 strong=0.6:b [masked] {ERASED}"
            hooks.wait(lambda: any(event["type"] == "pointsman.reviews.new" for event in hooks.events))
            before = _store(tmp_path)
            assert "reviews" in _holding(before, ERASED)

            status, erased = _erase(gateway, gateway.http, subject=NAME)
            assert (status, erased["answers"], erased["reviews_cancelled"]) == (200, 4, 4)
            status, erased = _erase(gateway, gateway.control, answer_id=other.body["answer_id"])
            assert (status, erased["answers"], erased["overwritten"]) == (200, 1, True)
            assert _erase(gateway, gateway.http, subject=NAME)[1]["answers"] == 0

            final = call(f"{gateway.http}/v1/answers/{replies[0].body['answer_id']}")
            assert (final.status, final.body["status"], final.body["decided_by"]) == (200, "cancelled", None)
            hooks.wait(lambda: sum(event["type"] == "pointsman.answer.cancelled" for event in hooks.events) >= 5)
            spans.wait_for("POST /v1/routes/{route}:decide")
            metrics = call(f"{gateway.control}/metrics").body
            gateway.terminate()

        after = _store(tmp_path)
        told = {"metrics": metrics.encode(), "log": "".join(gateway.log).encode(), "spans": repr(spans.spans).encode()}
        told["events"] = json.dumps(hooks.events).encode()
    for found in (before, after, told):
        assert _holding(found, MASKED) == set()
        assert _holding(found, NAME) == set()
    assert _holding(after, ERASED) == set()
    assert _holding(told, ERASED) == set()
    command = [sys.executable, "-m", "gateway.cli", "audit", "verify", str(tmp_path / "gateway.yaml")]
    verified = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert verified.stdout == "the decision log is whole\n"
