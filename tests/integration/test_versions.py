"""Versions of a route, by real clients over HTTP and gRPC: who answers, what is compared, and what is halted."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from grpc import aio
from tritonclient.utils import InferenceServerException

from backends.contract import Batch, Deadline, State, Tensors
from gateway.answer import ROUTE_AT, AnswerId
from gateway.compose import Gateway, compose
from gateway.control.overview import overview_of
from gateway.http.asgi import AsgiApp
from gateway.http.listener import HttpListener
from gateway.observe import Mirrored
from gateway.request import Caller, Protocol, RawBody, Request
from gateway.settings import load_settings
from pointsman_pb import gateway_pb2 as pb
from pointsman_pb import gateway_pb2_grpc
from router.contract import Uncertified
from tests.integration.process import GatewayProcess, running, wait_for
from tests.integration.test_v1 import call
from tests.integration.test_workers import TWO, Counts, pids, scrape, value

CONFIG = """
models:
  one:
    backend: python
    target: tests.integration.models:fast
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
  two:
    backend: python
    target: tests.integration.models:strong
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
routes:
  tickets:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    accept: {min_confidence: 0.5}
    human: {queue: tickets, due: 1h, form: labels}
    slo: {deadline: 5s}
    versions:
      "1": {cascade: [one]}
      "2": {cascade: [two]}
    traffic: TRAFFIC
server: {model_control: explicit, http_port: 0, grpc_port: 0, control_port: 0}
"""

START_S = 1_790_000_000.0
CANARY = "{canary: {version: '2', ramp: [10%, 50%, 100%], every: 10m, starts: '2026-09-21T14:13:20Z'}STICKY}"
"""It starts at `START_S`."""

SURE = "fast=0.95:b strong=0.9:c"
"""Version 1 says b, and version 2 says c."""


@dataclass
class Clock:
    """Unix time, as the test has it."""

    now_s: float = START_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Served:
    """A gateway that real clients talk to."""

    gateway: Gateway
    http: Any  # tritonclient's clients are untyped
    grpc: Any
    clock: Clock
    asked: int = field(default=0)

    async def ask(self, text: str = SURE, version: str = "", parameters: Mapping[str, Any] | None = None) -> str:
        """The version that answers, by each protocol in turn."""
        self.asked += 1
        return await (self.by_http if self.asked % 2 else self.by_grpc)(text, version, parameters)

    async def by_http(self, text: str = SURE, version: str = "", parameters: Mapping[str, Any] | None = None) -> str:
        result = await self.http.infer(
            "tickets", [_text(triton_http, text)], model_version=version, parameters=parameters and dict(parameters)
        )
        return str(result.get_response()["model_version"])

    async def by_grpc(self, text: str = SURE, version: str = "", parameters: Mapping[str, Any] | None = None) -> str:
        result = await self.grpc.infer(
            "tickets", [_text(triton_grpc, text)], model_version=version, parameters=parameters and dict(parameters)
        )
        return str(result.get_response().model_version)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of what Prometheus would scrape; 0 where there is none."""
        wanted = tuple(sorted(labels.items()))
        families = self.gateway.telemetry.families()
        return sum(s.value for f in families for s in f.samples if s.name == name and s.labels == wanted)

    def mirrored(self) -> Mapping[Mirrored, int]:
        return self.gateway.pipeline.shadows.counts("tickets", "2").outcomes

    async def all_mirrored(self, count: int) -> None:
        """Until *count* items have been compared, or were not."""
        await until(lambda: sum(self.mirrored().values()) == count)


def _text(module: Any, text: str) -> Any:
    tensor = module.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    return tensor


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(folder: Path, traffic: str, config: str = CONFIG) -> AsyncIterator[Served]:
    """*config* with *traffic*, at `START_S`."""
    file = folder / "gateway.yaml"
    file.write_text(config.replace("TRAFFIC", traffic))
    clock = Clock()
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(compose(load_settings(file), clock))
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        await stack.enter_async_context(HttpListener(gateway.http, bound, 5.0))
        await stack.enter_async_context(gateway.grpc)
        http = triton_http.InferenceServerClient(f"127.0.0.1:{bound.getsockname()[1]}")
        stack.push_async_callback(http.close)
        grpc = triton_grpc.InferenceServerClient(gateway.grpc.address)
        stack.push_async_callback(grpc.close)
        yield Served(gateway, http, grpc, clock)


def is_near(count: int, share: float, of: int) -> bool:
    """Within five standard deviations: chance alone fails it once in a million."""
    return abs(count - share * of) <= 5 * math.sqrt(of * share * (1 - share))


async def test_weights_split_the_traffic_of_both_protocols(tmp_path: Path) -> None:
    async with serving(tmp_path, "{split: {'1': 3, '2': 1}}") as served:
        seen = {ask: Counter([await ask() for _ in range(200)]) for ask in (served.by_http, served.by_grpc)}

        for one in seen.values():
            assert is_near(one["2"], 0.25, 200), seen
        counted = [served.metric("pointsman_route_version_requests_total", route="tickets", version=version,
                                 outcome="accepted") for version in ("1", "2")]  # fmt: skip
        assert counted == [sum(one[version] for one in seen.values()) for version in ("1", "2")]
        assert served.metric("pointsman_route_version_share", route="tickets", version="2") == 0.25


async def test_a_caller_s_key_decides_the_version_whatever_it_speaks(tmp_path: Path) -> None:
    async with serving(tmp_path, "{split: {'1': 1, '2': 1}, sticky: 'parameter:customer'}") as served:
        customers = [{"customer": f"c{number}"} for number in range(60)]
        first = [await served.by_http(parameters=customer) for customer in customers]
        again = [await served.by_grpc(parameters=customer) for customer in customers]

    assert first == again
    assert is_near(first.count("2"), 0.5, 60)


async def test_a_version_that_is_named_answers_and_one_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path, '{use: "1"}') as served:
        named = [await served.by_http(version="2"), await served.by_grpc(version="2")]
        unnamed = [await served.by_http(), await served.by_grpc()]
        with pytest.raises(InferenceServerException, match="its versions are 1, 2") as by_http:
            await served.by_http(version="3")
        with pytest.raises(InferenceServerException, match="its versions are 1, 2") as by_grpc:
            await served.by_grpc(version="3")
        about = await served.http.get_model_metadata("tickets")
        about_two = await served.grpc.get_model_metadata("tickets", "2", as_json=True)
        config = await served.http.get_model_config("tickets")
        ready = [await served.grpc.is_model_ready("tickets", version) for version in ("1", "2", "3")]
        index = await served.http.get_model_repository_index()
        statistics = (await served.http.get_inference_statistics("tickets"))["model_stats"]
        of_two = (await served.http.get_inference_statistics("tickets", "2"))["model_stats"]

    assert (named, unnamed) == (["2", "2"], ["1", "1"])
    assert "404" in str(by_http.value.status())
    assert "NOT_FOUND" in str(by_grpc.value.status())
    assert about["versions"] == ["1", "2"]
    assert about_two["versions"] == ["2"]
    assert config["version_policy"] == {"all": {}}
    assert ready == [True, True, False]
    assert [(row["name"], row["version"]) for row in index] == [("tickets", "1"), ("tickets", "2")]
    assert [(row["version"], row["inference_stats"]["success"]["count"]) for row in statistics] == [("1", 2), ("2", 2)]
    assert of_two == statistics[1:]


async def test_versions_are_named_and_told_in_our_own_protocol_too(tmp_path: Path) -> None:
    async with serving(tmp_path, '{use: "1"}') as served:
        asgi = httpx.ASGITransport(AsgiApp(served.gateway.http))
        async with httpx.AsyncClient(transport=asgi, base_url="http://127.0.0.1") as browser:
            plain = {"content-type": "text/plain"}
            keyed = {**plain, "idempotency-key": '"k"'}
            of_two = "/v1/routes/tickets/versions/2:decide"
            first = await browser.post("/v1/routes/tickets:decide", content=SURE, headers=keyed)
            other = await browser.post(of_two, content=SURE, headers=keyed)
            two = await browser.post(of_two, content=SURE, headers=plain)
            none = await browser.post("/v1/routes/tickets/versions/3:decide", content=SURE, headers=plain)
        async with aio.insecure_channel(served.gateway.grpc.address) as channel:
            stub: Any = gateway_pb2_grpc.GatewayStub(channel)
            (by_grpc,) = [one async for one in stub.Decide(pb.DecideRequest(route="tickets", version="2", text=SURE))]

    assert (first.json()["version"], first.json()["label"]) == ("1", "b")
    assert other.status_code == 422  # the key was another request's
    assert (two.json()["version"], two.json()["label"]) == ("2", "c")
    assert none.status_code == 404
    assert by_grpc.version == "2"


async def test_a_canary_grows_by_the_clock_and_keeps_the_callers_that_it_has(tmp_path: Path) -> None:
    customers = [{"customer": f"c{number}"} for number in range(100)]
    async with serving(tmp_path, CANARY.replace("STICKY", ", sticky: 'parameter:customer'")) as served:
        held: list[set[int]] = []
        for now_s in (START_S - 1, START_S, START_S + 600, START_S + 1200):
            served.clock.now_s = now_s
            seen = [await served.ask(parameters=customer) for customer in customers]
            held.append({index for index, version in enumerate(seen) if version == "2"})

    assert held[0] == set()
    assert is_near(len(held[1]), 0.1, 100)
    assert is_near(len(held[2]), 0.5, 100)
    assert len(held[3]) == 100
    assert held[0] <= held[1] <= held[2] <= held[3]


async def test_a_canary_that_fails_is_halted_and_everybody_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, CANARY.replace("STICKY", "")) as served:
        served.clock.now_s = START_S + 600
        fails_in_two = "fast=0.95:b strong=fail"
        with caplog.at_level(logging.ERROR, "pointsman.traffic"):
            before = Counter([await served.ask(SURE) for _ in range(40)])
            for _ in range(200):
                with suppress(InferenceServerException):
                    await served.ask(fails_in_two)
                if served.metric("pointsman_canary_halted", route="tickets", version="2"):
                    break
            else:
                pytest.fail("it was never halted")
        after = Counter([await served.ask(fails_in_two) for _ in range(30)])
        served.clock.now_s = START_S + 1_000_000
        later = await served.ask(fails_in_two)
        pinned = await served.by_http(SURE, version="2")
        rows = {row.version: row for row in overview_of(served.gateway.pipeline).versions}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served.gateway.control_app)) as browser:
            status = (await browser.get("http://127.0.0.1/")).text
        told = [record.getMessage() for record in caplog.records if record.name == "pointsman.traffic"]

    assert before.keys() == {"1", "2"}
    assert after == {"1": 30}
    assert (later, pinned) == ("1", "2")
    assert len(told) == 1
    assert "the canary of route tickets is halted: stages failed on" in told[0]
    assert rows["2"].is_halted
    assert rows["2"].share == 0.0
    assert rows["2"].state.startswith("halted: stages failed on")
    assert rows["1"].share == 1.0
    assert "halted: stages failed on" in status


async def test_a_shadow_is_compared_and_never_answers(tmp_path: Path) -> None:
    async with serving(tmp_path, "{use: '1', shadow: {version: '2'}}") as served:
        texts = ["fast=0.95:b strong=0.8:b", SURE, "fast=0.95:b strong=fail", "fast=0.4:a strong=0.4:a"]
        answered = []
        for count, text in enumerate(texts, start=1):
            answered.append(await served.ask(text))
            await served.all_mirrored(count)
        outcomes = dict(served.mirrored())
        agreed = served.metric("pointsman_shadow_total", route="tickets", version="2", outcome="agreed")
        runs = served.metric("pointsman_stage_duration_seconds_count", route="tickets", stage="two")
        depths = await served.gateway.store.queue_depths()
        (_, row) = overview_of(served.gateway.pipeline).versions
        pinned = await served.by_http(version="2")

    assert answered == ["1"] * 4
    assert outcomes == {Mirrored.AGREED: 2, Mirrored.DIFFERED: 1, Mirrored.FAILED: 1, Mirrored.DROPPED: 0}
    assert agreed == 2
    assert runs == 0
    assert depths["tickets"].open == 1  # version 1's own doubt; version 2's is nobody's business
    assert row.state == "is shown requests"
    assert row.confidence_change == pytest.approx((-0.15 - 0.05 + 0.0) / 3, abs=1e-4)
    assert pinned == "2"
    assert sum(outcomes.values()) == 4  # what the shadow answers itself is not shown to it


class Gate:
    """Holds the calls of one backend until it is opened."""

    def __init__(self, gateway: Gateway, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.states: list[State] = []
        one = gateway.pipeline.catalog.models[name].backend
        kind: Any = type(one)
        original = kind.infer

        async def infer(backend: Any, batch: Batch, deadline: Deadline) -> Tensors:
            if backend is one:
                self.reached.set()
                await self.opened.wait()
                self.states.append(backend.state)
            found: Tensors = await original(backend, batch, deadline)
            return found

        monkeypatch.setattr(kind, "infer", infer)


async def test_a_shadow_that_hangs_holds_up_nobody_and_what_comes_meanwhile_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, "{use: '1', shadow: {version: '2', max_running: 1}}") as served:
        gate = Gate(served.gateway, "two", monkeypatch)
        answered = [await served.ask() for _ in range(5)]
        await gate.reached.wait()
        dropped = served.mirrored()[Mirrored.DROPPED]
        in_flight = served.gateway.pipeline.in_flight
        served.gateway.pipeline.drain()
        async with asyncio.timeout(2):
            await served.gateway.pipeline.idle()
        gate.opened.set()

    assert answered == ["1"] * 5
    assert dropped == 4
    assert in_flight == 1


async def test_a_model_is_not_closed_beneath_a_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, "{use: '1', shadow: {version: '2'}}") as served:
        old = served.gateway.pipeline.catalog.models["two"].backend
        gate = Gate(served.gateway, "two", monkeypatch)
        await served.ask()
        await gate.reached.wait()

        await served.http.load_model("two")
        new = served.gateway.pipeline.catalog.models["two"].backend
        meanwhile = old.state
        gate.opened.set()
        await served.all_mirrored(1)
        await until(lambda: old.state is State.CLOSED)

    assert new is not old
    assert meanwhile is State.READY
    assert gate.states == [State.READY]
    assert served.mirrored()[Mirrored.DIFFERED] == 1


async def test_a_shadow_waits_until_its_model_has_nothing_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, "{use: '1', shadow: {version: '2'}}") as served:
        gate = Gate(served.gateway, "two", monkeypatch)
        pinned = asyncio.create_task(served.by_http(version="2"))
        await gate.reached.wait()
        queued = asyncio.create_task(served.by_grpc(version="2"))
        batcher = served.gateway.pipeline.catalog.models["two"].batcher
        await until(lambda: batcher.statistics().queued_items == 1)
        await served.by_http()
        await asyncio.sleep(0.05)  # ten looks at the model
        waiting = batcher.statistics().queued_items
        gate.opened.set()
        await served.all_mirrored(1)
        answered = [await pinned, await queued]

    assert waiting == 1
    assert answered == ["2", "2"]
    assert served.mirrored()[Mirrored.DIFFERED] == 1


async def test_models_of_versions_are_loaded_under_traffic_and_no_request_fails(tmp_path: Path) -> None:
    async with serving(tmp_path, "{split: {'1': 1, '2': 1}, shadow: {version: '2', share: 50%}}") as served:
        before = {name: model.backend for name, model in served.gateway.pipeline.catalog.models.items()}
        seen: Counter[str] = Counter()
        done = asyncio.Event()

        async def keep_asking() -> None:
            while not done.is_set():
                seen[await served.ask()] += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(6):
                callers.create_task(keep_asking())
            for _ in range(3):
                await served.http.load_model("tickets")
                await served.grpc.load_model("two")
            done.set()
        after = served.gateway.pipeline.catalog.models
        await until(lambda: all(backend.state is State.CLOSED for backend in before.values()))

    assert all(after[name].backend is not backend for name, backend in before.items())
    assert seen.keys() == {"1", "2"}
    assert served.mirrored()[Mirrored.FAILED] == 0


async def test_a_retry_with_a_key_gets_the_first_answer_whatever_the_traffic_says(tmp_path: Path) -> None:
    async with serving(tmp_path, CANARY.replace("STICKY", "")) as served:
        headers = {"idempotency-key": '"ticket-4711"'}

        async def infer() -> tuple[str, str]:
            result = await served.http.infer("tickets", [_text(triton_http, SURE)], headers=headers)
            response = result.get_response()
            return response["model_version"], response["parameters"]["pointsman_answer_id"]

        served.clock.now_s = START_S - 1
        first = await infer()
        served.clock.now_s = START_S + 1200
        again, fresh = await infer(), await served.by_http()
        kept = await served.gateway.pipeline.answer(Caller(), AnswerId(first[1]))

    assert again == first
    assert (first[0], fresh) == ("1", "2")
    assert kept.version == "1"
    assert kept.items[0].trail[0].stage == ROUTE_AT


async def test_a_version_without_its_certificate_leaves_its_requests_to_people(tmp_path: Path) -> None:
    config = CONFIG.replace('"2": {cascade: [two]}', '"2": {cascade: [two], accept: {max_error: 1%}}')
    async with serving(tmp_path, '{use: "1"}', config) as served:
        texts = [_text(triton_http, SURE)]
        found = [
            (await served.http.infer("tickets", texts, model_version=version)).get_response()["parameters"]
            for version in ("1", "2")
        ]
        routes = served.gateway.pipeline.catalog.routes

    assert [one["pointsman_status"] for one in found] == ["final", "provisional"]
    assert found[1]["pointsman_reason"] == "no_certificate"
    assert isinstance(routes["tickets@2"].accept, Uncertified)
    assert routes["tickets@2"].subject != ""
    assert routes["tickets@1"].subject == ""


async def test_an_operator_is_told_which_version_a_request_would_get(tmp_path: Path) -> None:
    async with serving(tmp_path, "{split: {'1': 3, '2': 1}, sticky: 'parameter:customer'}") as served:
        parameters = {"customer": "c1"}
        request = Request("tickets", RawBody(b"x", "text/plain"), Protocol.V1_HTTP, parameters=parameters)
        told = await served.gateway.pipeline.explain(request)
        answered = await served.by_http(parameters=parameters)

    assert [(one["version"], one["share"]) for one in told["versions"]] == [("1", 0.75), ("2", 0.25)]
    (chosen,) = [one["version"] for one in told["versions"] if one["why"]]
    assert chosen == answered
    assert [stage["model"] for stage in told["stages"]] == [{"1": "one", "2": "two"}[answered]]


def test_a_worker_s_halt_is_all_workers_and_that_of_whatever_is_started_again(tmp_path: Path) -> None:
    traffic = "{use: '1', canary: {version: '2', ramp: [50%], starts: 2026-01-01T00:00:00Z}}"
    config = CONFIG.replace("TRAFFIC", traffic).replace("model_control: explicit, ", "")

    def shares(counts: Counts) -> dict[str, float]:
        return {str(n): value(counts, "pointsman_route_version_share", version="2", worker=str(n)) for n in range(2)}

    def ask(gateway: GatewayProcess, text: str, count: int) -> None:
        for _ in range(count):
            call(f"{gateway.http}/v1/routes/tickets:decide", text.encode())

    with running(tmp_path, config, TWO) as gateway:
        before = shares(scrape(gateway))
        ask(gateway, SURE, 60)
        ask(gateway, "fast=0.95:b strong=fail", 160)
        wait_for(lambda: set(shares(scrape(gateway)).values()) == {0.0})
        killed, _ = pids(gateway)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: pids(gateway)[0] not in (0, killed) and value(scrape(gateway), "pointsman_worker_up") == 2)
        counts = scrape(gateway)
        after = shares(counts)
        assert gateway.terminate() == 0

    with running(tmp_path, config, TWO) as gateway:  # all of it anew
        later = shares(scrape(gateway))

    assert before == {"0": 0.5, "1": 0.5}
    assert value(counts, "pointsman_canary_halted", version="2") == 1.0
    assert after == later == {"0": 0.0, "1": 0.0}
