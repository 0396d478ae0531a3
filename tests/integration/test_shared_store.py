"""Gateways that share a store on PostgreSQL, as callers, reviewers and operators of either meet them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from gateway.store import Postgres
from tests.integration.process import CONFIG, ROOT, GatewayProcess, running
from tests.integration.test_v1 import UNSURE, call, claim, decide
from tests.postgres import PostgresServer


def config_of(place: Postgres) -> str:
    return CONFIG.replace("path: store.db", f"postgres: {{url_file: {place.url_file}}}")


@pytest.fixture
def gateways(postgres: Postgres, tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    """One gateway of one process, and one of two workers."""
    with ExitStack() as stack:
        found = []
        for name, arguments in (("one", ()), ("other", ("--workers", "2"))):
            (tmp_path / name).mkdir()
            found.append(stack.enter_context(running(tmp_path / name, config_of(postgres), arguments)))
        yield found


def test_gateways_share_answers_keys_and_people(gateways: list[GatewayProcess], tmp_path: Path) -> None:
    one, other = gateways
    first = decide(one, UNSURE, Idempotency_Key='"ticket-1"')
    assert first.status == 202
    answer_id = first.body["answer_id"]
    assert decide(other, UNSURE, Idempotency_Key='"ticket-1"').body["answer_id"] == answer_id
    assert decide(other, "fast=0.95:a", Idempotency_Key='"ticket-1"').status == 422

    for asked, told in ((one, other), (other, one)):
        accepted = decide(asked, "fast=0.95:b").body["answer_id"]
        assert call(f"{told.http}/v1/answers/{accepted}").body["label"] == "b"

    review = claim(other, answer_id)
    decided = call(
        f"{other.control}/v1/reviews/{review['id']}:decide",
        json.dumps({"fence": review["fence"], "label": "c"}).encode(),
        media="application/json",
        X_Pointsman_Reviewer="ana",
    )
    assert decided.status == 200
    started = time.monotonic()
    final = call(f"{one.http}/v1/answers/{answer_id}", Prefer="wait=20")
    assert (final.status, final.body["label"], final.body["decided_by"]) == (200, "c", "person:ana")
    assert time.monotonic() - started < 5.0

    command = [sys.executable, "-m", "gateway.cli", "audit", "verify", str(tmp_path / "one" / "gateway.yaml")]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert verified.stdout == "the decision log is whole\n", verified.stderr


def test_a_reviewer_s_session_goes_on_at_the_other_gateway_and_ends_at_both(gateways: list[GatewayProcess]) -> None:
    one, other = gateways
    answer_id = decide(one, UNSURE).body["answer_id"]
    browser = build_opener(HTTPCookieProcessor())  # cookies are of a host, whatever the port

    def send(url: str, **form: str) -> str:
        with browser.open(url, urlencode(form).encode() if form else None, timeout=20) as response:
            return str(response.read().decode())

    def field(page: str, name: str) -> str:
        found = re.search(rf'name="{name}" value="([^"]*)"', page)
        assert found is not None, page
        return found[1]

    assert "Review inbox" in send(f"{one.control}/login", name="ana", next="/inbox")
    shown = send(f"{other.control}/inbox/words/next")
    review = re.search(r'action="(/inbox/reviews/\w+)/decide"', shown)
    assert review is not None
    sent = {name: field(shown, name) for name in ("token", "fence", "queue")}
    following = send(f"{one.control}{review[1]}/decide", label="c", **sent)
    assert "Decided <strong>c</strong>" in following
    listed = send(f"{other.control}/inbox")
    assert "Decided <strong>c</strong>" in listed
    send(f"{other.control}{review[1]}/undo", token=sent["token"], fence=sent["fence"])
    assert call(f"{one.http}/v1/answers/{answer_id}").status == 202
    send(f"{other.control}/logout", token=sent["token"])
    for gateway in gateways:
        assert "Who is reviewing?" in send(f"{gateway.control}/inbox")


def test_a_hundred_retries_at_once_at_both_gateways_are_one_inference_and_one_task(
    gateways: list[GatewayProcess],
) -> None:
    with ThreadPoolExecutor(50) as pool:
        sent = [pool.submit(decide, gateways[i % 2], UNSURE, Idempotency_Key='"ticket-2"') for i in range(100)]
        replies = [reply.result() for reply in sent]
    metrics = [call(f"{gateway.control}/metrics").body for gateway in gateways]
    reviews = call(f"{gateways[0].control}/v1/reviews?queue=words").body["reviews"]

    assert {reply.status for reply in replies} == {202}
    (answer_id,) = {reply.body["answer_id"] for reply in replies}
    assert [review["answer_id"] for review in reviews] == [answer_id]
    for model in ("fast", "strong"):
        asked = [re.findall(rf'^pointsman_batch_size_sum{{model="{model}"}} (\S+)$', text, re.M) for text in metrics]
        assert sum(float(items) for found in asked for items in found) == 1


def test_a_server_that_goes_is_503_and_is_found_again(
    postgres_server: PostgresServer, gateways: list[GatewayProcess]
) -> None:
    before = [decide(gateway, UNSURE).body["answer_id"] for gateway in gateways]
    postgres_server.stop()
    try:
        for gateway in gateways:
            refused = decide(gateway, UNSURE)
            assert refused.status == 503
            assert "the store cannot write now; nothing was acknowledged, try again" in refused.body["detail"]
            assert "PostgreSQL" not in refused.body["detail"]
            assert call(f"{gateway.http}/v2/health/live").status == 200
    finally:
        postgres_server.start()
    for gateway in gateways:
        deadline = time.monotonic() + 20
        while decide(gateway, UNSURE).status != 202:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for answer_id in before:
            assert call(f"{gateway.http}/v1/answers/{answer_id}").status == 202


def test_a_store_that_cannot_be_reached_ends_the_start(tmp_path: Path) -> None:
    address = tmp_path / "address"
    address.write_text("postgresql://anna:secret@127.0.0.1:1/store")
    with (
        pytest.raises(AssertionError, match="check that it runs, its address") as told,
        running(tmp_path, config_of(Postgres(url_file=address))),
    ):
        pass
    assert "secret" not in str(told.value)
