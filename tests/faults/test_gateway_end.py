"""However the process ends, what it acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.integration.process import CONFIG, GatewayProcess, running
from tests.integration.test_v1 import UNSURE, Reply, call, decide

KILLS = int(os.environ.get("POINTSMAN_KILLS", "6"))
"""How many processes the kill test ends; set it higher for a long run."""


def defer_until_it_dies(gateway: GatewayProcess, seed: int) -> dict[str, str]:
    """Defer as fast as four callers can, until a SIGKILL at a random moment: acknowledged ids and their texts."""
    acknowledged: dict[str, str] = {}

    def caller(number: int) -> None:
        count = 0
        while True:
            text = f"{UNSURE} #{seed}.{number}.{count}"
            try:
                reply = decide(gateway, text)
            except (OSError, HTTPException):  # killed before, or in the middle of, the reply
                return
            assert reply.status == 202
            acknowledged[reply.body["answer_id"]] = text
            count += 1

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(caller, number) for number in range(4)]
        while not acknowledged:
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0.0, 0.3))
        gateway.kill()
        for done in callers:
            done.result()
    return acknowledged


def all_reviews(gateway: GatewayProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = call(f"{gateway.control}/v1/reviews?queue=words&limit=200{after}").body["reviews"]
        found += page
        if len(page) < 200:
            return found
        after = f"&after={page[-1]['id']}"


def test_kill_9_loses_no_acknowledged_deferral_and_duplicates_none(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    for seed in range(KILLS):
        with running(tmp_path) as gateway:
            acknowledged |= defer_until_it_dies(gateway, seed)

    with running(tmp_path) as gateway:
        reviews = all_reviews(gateway)
        answers = [review["answer_id"] for review in reviews]
        assert len(set(answers)) == len(answers)
        assert acknowledged.keys() <= set(answers)
        some = random.Random(0).sample(sorted(acknowledged), min(20, len(acknowledged)))
        for answer_id in some:
            assert call(f"{gateway.http}/v1/answers/{answer_id}").status == 202
        by_answer = {review["answer_id"]: review["id"] for review in reviews}
        for answer_id in some:
            review = call(f"{gateway.control}/v1/reviews/{by_answer[answer_id]}").body
            assert review["payload"] == acknowledged[answer_id]


def test_a_key_in_progress_when_the_process_was_killed_can_be_used_again(tmp_path: Path) -> None:
    key = '"after-the-crash"'
    with running(tmp_path) as gateway, ThreadPoolExecutor(1) as pool:
        first = pool.submit(decide, gateway, "fast=slow strong=slow", Idempotency_Key=key)
        wait_until_running(gateway)
        gateway.kill()
        assert isinstance(first.exception(), OSError | HTTPException)

    with running(tmp_path) as gateway:
        reply = decide(gateway, "fast=slow strong=slow", Idempotency_Key=key)

    assert reply.status == 200


def wait_until_running(gateway: GatewayProcess) -> None:
    deadline = time.monotonic() + 10
    while 'pointsman_batches_in_flight{model="fast"} 1.0' not in call(f"{gateway.control}/metrics").body:
        assert time.monotonic() < deadline, "the batch never started"
        time.sleep(0.01)


async def test_sigterm_finishes_what_was_accepted_and_exits_with_0(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        accepted = asyncio.create_task(asyncio.to_thread(decide, gateway, "fast=slow"))
        await asyncio.to_thread(wait_until_running, gateway)

        status = await asyncio.to_thread(gateway.terminate)

        reply = await accepted
    assert (reply.status, status) == (200, 0)


async def test_a_long_poll_ends_when_the_gateway_stops(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        answer_id = decide(gateway, UNSURE).body["answer_id"]
        started = threading.Event()

        def poll() -> Reply:
            started.set()
            return call(f"{gateway.http}/v1/answers/{answer_id}", Prefer="wait=50")

        polling = asyncio.create_task(asyncio.to_thread(poll))
        await asyncio.to_thread(started.wait)
        await asyncio.sleep(0.3)  # the request is on its way; nothing outside tells when it has arrived

        before = time.monotonic()
        status = await asyncio.to_thread(gateway.terminate)

        assert (await polling).status == 202
        assert status == 0
        assert time.monotonic() - before < 15


def test_a_port_in_use_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with running(tmp_path / "first") as gateway:
        port = gateway.http.rsplit(":", 1)[1]
        with (
            pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}.*choose another port"),
            running(tmp_path / "second", arguments=("--http-port", port)),
        ):
            pass


def test_a_model_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    config = CONFIG.replace("store: {path", "server: {drain: 1s}\nstore: {path")
    with running(tmp_path, config) as gateway, ThreadPoolExecutor(1) as pool:
        kept = decide(gateway, UNSURE).body["answer_id"]
        hanging = pool.submit(decide, gateway, "fast=hang")
        wait_until_running(gateway)
        before = time.monotonic()

        status = gateway.terminate()

        assert time.monotonic() - before < 10
        assert status == 0
    handed_over = hanging.result()
    assert (handed_over.status, handed_over.body["reason"]) == (202, "stage_unavailable")
    with running(tmp_path) as gateway:
        for answer_id in (kept, handed_over.body["answer_id"]):
            assert call(f"{gateway.http}/v1/answers/{answer_id}").status == 202


def test_a_caller_that_leaves_gives_its_key_back(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        for attempt in range(30):
            leave_early(gateway, "fast=0.95:b", key=f"left-{attempt}", after_s=attempt / 5000)
        replies = [decide(gateway, "fast=0.95:b", Idempotency_Key=f'"left-{i}"') for i in range(30)]

    assert {reply.status for reply in replies} == {200}


def leave_early(gateway: GatewayProcess, text: str, key: str, after_s: float) -> None:
    """Send a whole request, and reset the connection a moment later."""
    host, port = gateway.http.removeprefix("http://").split(":")
    head = (
        f"POST /v1/routes/words:decide HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\n"
        f'Idempotency-Key: "{key}"\r\nContent-Length: {len(text)}\r\n\r\n{text}'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head.encode())
        time.sleep(after_s)


def test_what_callers_send_is_in_no_log_even_when_a_model_quotes_it(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        decide(gateway, "fast=quote-CANARY-4711 strong=quote-CANARY-4711")
        gateway.terminate()

    log = "".join(gateway.log)
    assert "a batch of 1 failed in model fast" in log
    assert "builtins.ValueError at" in log
    assert "CANARY" not in log
