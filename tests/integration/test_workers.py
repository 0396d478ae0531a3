"""Several worker processes behind the data plane's ports, as callers, operators and reviewers meet them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.store import StoreOptions, open_store
from tests.integration.process import CONFIG, GatewayProcess, running, wait_for
from tests.integration.test_v1 import UNSURE, Reply, call, claim, decide

WORKERS = 2
TWO = ("--workers", str(WORKERS))

Counts = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of two workers, which tests leave as they found it."""
    with running(tmp_path_factory.mktemp("workers"), arguments=TWO) as process:
        yield process


def scrape(gateway: GatewayProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the exposition, which is read as OpenMetrics, by name and labels."""
    text = call(f"{gateway.control}/metrics", Accept="application/openmetrics-text; version=1.0.0").body
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def value(counts: Counts, name: str, **labels: str) -> float:
    """The sum of the samples of *name* that have *labels*."""
    return sum(v for (n, found), v in counts.items() if n == name and labels.items() <= set(found))


def pids(gateway: GatewayProcess) -> list[int]:
    counts = scrape(gateway)
    return [int(value(counts, "pointsman_worker_pid", worker=str(number))) for number in range(WORKERS)]


def owner(gateway: GatewayProcess, port: int) -> int:
    """The worker that has accepted the connection whose other end is *port*."""
    found: list[int] = []

    def is_found() -> bool:
        for pid in pids(gateway):
            with suppress(psutil.Error):
                if any(c.raddr and c.raddr.port == port for c in psutil.Process(pid).net_connections("tcp")):
                    found.append(pid)
        return bool(found)

    wait_for(is_found)
    return found[0]


@contextmanager
def one_connection_to_each(gateway: GatewayProcess) -> Iterator[dict[int, HTTPConnection]]:
    """Connections by the worker that has accepted them: as many as it takes to have one to each."""
    where = urlsplit(gateway.http)
    found: dict[int, HTTPConnection] = {}
    with ExitStack() as stack:
        while len(found) < WORKERS:
            connection = stack.enter_context(closing(HTTPConnection(where.hostname or "", where.port, timeout=30)))
            connection.connect()
            found[owner(gateway, connection.sock.getsockname()[1])] = connection
        yield found


def ask(connection: HTTPConnection, method: str, path: str, body: str | None = None, **headers: str) -> Reply:
    given = {name.replace("_", "-"): text for name, text in {"Content_Type": "text/plain", **headers}.items()}
    connection.request(method, path, body, given)
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read()))


DECIDE = "/v1/routes/words:decide"


def test_both_ports_are_served_by_every_worker(gateway: GatewayProcess) -> None:
    with one_connection_to_each(gateway) as connections, ExitStack() as stack:
        assert set(connections) == set(pids(gateway))
        assert gateway.process.pid not in connections
        for connection in connections.values():
            assert ask(connection, "POST", DECIDE, "fast=0.95:b").body["label"] == "b"

        for _ in range(40):  # a worker is left out once in 2^39 times
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = stack.enter_context(grpc.insecure_channel(gateway.grpc, options=options))
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=30) == b"\x08\x01"
        port = int(gateway.grpc.rsplit(":", 1)[1])
        assert {pid for pid in pids(gateway) if has_accepted(pid, port)} == set(pids(gateway))


def has_accepted(pid: int, port: int) -> bool:
    return any(c.laddr.port == port and c.raddr for c in psutil.Process(pid).net_connections("tcp"))


def test_metrics_add_up_to_what_was_sent(gateway: GatewayProcess) -> None:
    before = scrape(gateway)
    with one_connection_to_each(gateway) as connections:
        for number, connection in enumerate(connections.values()):
            for _ in range(10 + number):
                ask(connection, "POST", DECIDE, "fast=0.95:b")
    call(f"{gateway.control}/v1/reviews")

    after = scrape(gateway)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    sent = sum(10 + number for number in range(WORKERS))
    assert grown("pointsman_requests_total", route="words", outcome="accepted") == sent
    assert grown("pointsman_request_duration_seconds_count", route="words") == sent
    assert grown("pointsman_request_duration_seconds_bucket", route="words", le="+Inf") == sent
    assert grown("pointsman_http_responses_total", path="/v1/reviews") == 1
    assert value(after, "pointsman_model_ready", model="fast") == 1
    processes = {dict(labels)["worker"] for (name, labels) in after if name == "process_cpu_seconds_total"}
    assert processes == {"0", "1", "supervisor"}


def test_one_key_is_one_answer_over_all_workers(gateway: GatewayProcess) -> None:
    before = scrape(gateway)
    key = '"over-all-workers"'
    with (
        one_connection_to_each(gateway) as one,
        one_connection_to_each(gateway) as other,
        ThreadPoolExecutor(2 * WORKERS) as pool,
    ):
        connections = [*one.values(), *other.values()]
        sent = [
            pool.submit(ask, connection, "POST", DECIDE, "fast=slow", Idempotency_Key=key) for connection in connections
        ]
        replies = [reply.result() for reply in sent]

    assert {reply.status for reply in replies} == {200}
    assert len({reply.body["answer_id"] for reply in replies}) == 1
    assert value(scrape(gateway), "pointsman_batch_size_sum", model="fast") - value(
        before, "pointsman_batch_size_sum", model="fast"
    ) == 1  # fmt: skip


def test_an_answer_can_be_read_at_another_worker_at_once(gateway: GatewayProcess) -> None:
    with one_connection_to_each(gateway) as connections:
        for one, other in itertools.islice(itertools.cycle(itertools.permutations(connections.values(), 2)), 20):
            answer_id = ask(one, "POST", DECIDE, "fast=0.95:b").body["answer_id"]
            assert ask(other, "GET", f"/v1/answers/{answer_id}").status == 200
            feedback = json.dumps({"item": 0, "label": "c"})
            answer_id = ask(one, "POST", DECIDE, "fast=0.95:b").body["answer_id"]
            told = ask(other, "POST", f"/v1/answers/{answer_id}/feedback", feedback, Content_Type="application/json")
            assert told.status == 201


def test_a_decision_at_the_supervisor_ends_long_polls_at_the_workers(gateway: GatewayProcess) -> None:
    answer_id = decide(gateway, UNSURE).body["answer_id"]
    with one_connection_to_each(gateway) as connections, ThreadPoolExecutor(WORKERS) as pool:
        polls = [
            pool.submit(ask, connection, "GET", f"/v1/answers/{answer_id}", Prefer="wait=30")
            for connection in connections.values()
        ]
        review = claim(gateway, answer_id)
        body = json.dumps({"fence": review["fence"], "label": "c"}).encode()
        where = f"{gateway.control}/v1/reviews/{review['id']}:decide"
        assert call(where, body, media="application/json", X_Pointsman_Reviewer="ana").status == 200

        replies = [poll.result() for poll in polls]

    assert [(reply.status, reply.body["label"]) for reply in replies] == [(200, "c")] * WORKERS


def test_the_control_port_offers_what_it_offers_with_one_process(gateway: GatewayProcess) -> None:
    decided = call(f"{gateway.control}/v1/routes/words:decide", b"fast=0.95:b")
    assert (decided.status, decided.body["label"]) == (200, "b")
    assert call(f"{gateway.control}/v1/answers/{decided.body['answer_id']}").status == 200
    assert call(f"{gateway.control}/v1/explain", b"hello").body["route"] == "words"
    assert call(f"{gateway.control}/v1/nothing").status == 404
    status = call(f"{gateway.control}/").body
    assert re.search(r"Status <span[^>]*>ready<", status)
    assert all(f">{pid}<" in status for pid in pids(gateway))


def test_events_are_for_the_ports_that_workers_have(gateway: GatewayProcess) -> None:
    """A worker tells the supervisor whole replies alone; what asks for more is told where it is, and takes no place."""
    where = f"/v1/answers/{call(f'{gateway.http}/v1/routes/words:decide', b'fast=0.95:b').body['answer_id']}"

    refused = call(f"{gateway.control}{where}", Accept="text/event-stream")
    served = call(f"{gateway.http}{where}", Accept="text/event-stream")

    assert (refused.status, served.status) == (501, 200)
    assert "ask for them at the HTTP port of the data plane, or here with `Prefer: wait=N`" in refused.body["detail"]
    assert call(f"{gateway.control}{where}/revisions", Accept="text/event-stream").status == 200
    assert not any("was not answered" in line for line in gateway.log)


def test_what_a_worker_counted_outlives_it(gateway: GatewayProcess) -> None:
    """Ended in order, it loses nothing of it."""
    with one_connection_to_each(gateway) as connections:
        before = scrape(gateway)
        first, *_ = connections
        for _ in range(7):
            ask(connections[first], "POST", DECIDE, "fast=0.95:b")
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: first not in pids(gateway) and is_whole(scrape(gateway)))

        grown = value(scrape(gateway), "pointsman_requests_total") - value(before, "pointsman_requests_total")
    assert grown == 7


def is_whole(counts: Counts) -> bool:
    return value(counts, "pointsman_worker_ready") == WORKERS


def counters(counts: Counts) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What must never fall: all that is counted but what is told of each process."""
    suffixes = ("_total", "_count", "_sum", "_bucket")
    return {
        key: v
        for key, v in counts.items()
        if key[0].endswith(suffixes) and not (key[0].startswith(("process_", "python_")))
    }


def test_a_killed_worker_comes_back_while_the_others_serve(gateway: GatewayProcess) -> None:
    with one_connection_to_each(gateway) as connections:
        victim, survivor = pids(gateway)
        before = scrape(gateway)
        restarts = value(before, "pointsman_worker_restarts_total")
        answered = value(before, "pointsman_requests_total")
        stop = threading.Event()

        def load(connection: HTTPConnection) -> int:
            answered = 0
            while not stop.is_set():
                assert ask(connection, "POST", DECIDE, "fast=0.95:b").status == 200
                answered += 1
            return answered

        def watch() -> int:
            shown = counters(scrape(gateway))
            scrapes = 0
            while not stop.is_set():
                found = counters(scrape(gateway))
                assert {key for key, count in shown.items() if found[key] < count} == set()
                shown, scrapes = found, scrapes + 1
            return scrapes

        with ThreadPoolExecutor(3) as pool:
            dying, serving = pool.submit(load, connections[victim]), pool.submit(load, connections[survivor])
            watching = pool.submit(watch)
            try:
                wait_for(lambda: value(scrape(gateway), "pointsman_requests_total") > answered + 50)
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: value(scrape(gateway), "pointsman_worker_restarts_total") == restarts + 1)
                wait_for(lambda: is_whole(scrape(gateway)))
                for _ in range(20):
                    assert decide(gateway, "fast=0.95:b").status == 200
            finally:
                stop.set()
            assert isinstance(dying.exception(), OSError | HTTPException)
            assert serving.result() > 0
            assert watching.result() > 0

        assert pids(gateway)[0] != victim
        assert pids(gateway)[1] == survivor
        assert any(f"process {victim} ended with exit code -9" in line for line in gateway.log)


def test_a_drain_under_load_loses_nothing(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with (
        running(tmp_path, arguments=TWO) as gateway,
        one_connection_to_each(gateway) as connections,
        ThreadPoolExecutor(4 + WORKERS) as pool,
    ):
        deferring = [pool.submit(defer_until_nobody_listens, gateway, acknowledged) for _ in range(4)]
        wait_for(lambda: len(acknowledged) >= 20)
        slow = [pool.submit(ask, connection, "POST", DECIDE, "fast=slow") for connection in connections.values()]
        wait_for(lambda: value(scrape(gateway), "pointsman_batches_in_flight") >= WORKERS)

        assert gateway.terminate() == 0

        assert [reply.result().status for reply in slow] == [200] * WORKERS
        for done in deferring:
            done.result()
    kept = asyncio.run(answers_with_reviews(tmp_path / "store.db"))
    assert len(set(kept)) == len(kept)
    assert set(acknowledged) <= set(kept)


def defer_until_nobody_listens(gateway: GatewayProcess, acknowledged: list[str]) -> None:
    while True:
        try:
            reply = decide(gateway, UNSURE)
        except OSError:
            return
        assert reply.status in (202, 503)
        if reply.status == 202:
            acknowledged.append(reply.body["answer_id"])


def test_a_second_signal_waits_for_no_worker(tmp_path: Path) -> None:
    patient = CONFIG.replace("slo: {deadline: 5s}", "slo: {deadline: 100s}") + "server: {drain: 100s}\n"
    with (
        running(tmp_path, patient, TWO) as gateway,
        one_connection_to_each(gateway) as connections,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        hanging = [pool.submit(ask, connection, "POST", DECIDE, "fast=hang") for connection in connections.values()]
        wait_for(lambda: value(scrape(gateway), "pointsman_batches_in_flight") == WORKERS)
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: sum("stopping: 1 requests in flight" in line for line in gateway.log) == WORKERS)

        assert gateway.terminate() == 0  # which waits for 30 s
        for reply in hanging:
            assert reply.exception() is not None or reply.result().status != 200


async def answers_with_reviews(path: Path) -> list[str]:
    store = await open_store(StoreOptions(path))
    found: list[Any] = []
    while page := await store.reviews("default", None, None, after=found[-1].id if found else None, limit=200):
        found += page
    await store.aclose()
    return [review.answer_id for review in found]


def test_no_worker_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, arguments=TWO) as gateway:
        workers = pids(gateway)

        gateway.kill()

        wait_for(lambda: not any(is_running(pid) for pid in workers))


def is_running(pid: int) -> bool:
    """Whether it does anything; whoever should take note of its end may be late."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_port_that_others_share_is_refused(tmp_path: Path, gateway: GatewayProcess) -> None:
    port = gateway.http.rsplit(":", 1)[1]
    with (
        pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}.*choose another port"),
        running(tmp_path, arguments=(*TWO, "--http-port", port)),
    ):
        pass


def test_what_keeps_workers_from_starting_is_told_once(tmp_path: Path) -> None:
    config = CONFIG.replace("tests.integration.models:double", "tests.integration.models:nothing_there")
    with pytest.raises(AssertionError, match="nothing_there") as told, running(tmp_path, config, TWO):
        pass
    assert str(told.value).count("Error: model 'double'") == 1
    assert len(str(told.value).splitlines()) == 1
