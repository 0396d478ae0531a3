"""A gateway that starts while no server of a model is there: what it serves, what it says, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.errors import Unavailable
from gateway.compose import Gateway, check_models, compose
from gateway.http.listener import HttpListener
from gateway.http.messages import HttpRequest
from gateway.ports import bind, port_of
from gateway.request import JsonInputs, Protocol, RawBody, Request
from gateway.settings import Settings, load_settings
from tests.integration.process import CONFIG

FRONT = """
models:
  here: {backend: echo, expose: true}
  far: {backend: oip, url: "http://127.0.0.1:PORT", model: double, expose: true, REQUIRED}
  kind: {backend: oip, url: "http://127.0.0.1:PORT", model: alone, required: false}
routes:
  doubled:
    input: {x: {datatype: FP32, shape: [-1]}}
    cascade: [far]
    accept: {min_confidence: 0}
    slo: {deadline: 5s}
  judged:
    input: {text: {datatype: BYTES, shape: [1]}}
    cascade: [kind]
    accept: {min_confidence: 0.9}
    human: {queue: judged, due: 1h, form: text}
    slo: {deadline: 5s}
detectors: {kind: {model: kind}}
classify:
  - when: {route: auto, traits: {kind: a}}
    route: judged
  - unsure: judged
  - otherwise: none
store: {path: front.db}
"""


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    with bind("127.0.0.1", 0) as found:
        return port_of(found)


def front(folder: Path, port: int, required: str = "required: false") -> Settings:
    file = folder / "front.yaml"
    file.write_text(FRONT.replace("PORT", str(port)).replace("REQUIRED", required))
    return load_settings(file)


@asynccontextmanager
async def server(folder: Path, port: int) -> AsyncIterator[None]:
    """The server that the models of `FRONT` are on: another Pointsman."""
    file = folder / "server.yaml"
    file.write_text(CONFIG)
    with bind("127.0.0.1", port) as bound:
        async with compose(load_settings(file)) as gateway, HttpListener(gateway.http, bound, 1.0):
            yield


async def get(gateway: Gateway, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:  # Any: JSON
    method, data = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
    headers = {"host": "localhost", "content-type": "application/json"}
    response = await gateway.http.handle(HttpRequest(method, path, "", headers, data))
    return response.status, json.loads(response.body) if response.body else None


def infer(numbers: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(numbers)], "data": numbers}]}


async def mended(gateway: Gateway) -> None:
    """Return once upkeep has opened everything."""
    async with asyncio.timeout(30):
        while any(model.is_absent for model in gateway.pipeline.catalog.models.values()):
            await gateway.maintain()
            await asyncio.sleep(0.02)


async def test_a_gateway_starts_without_models_that_are_not_required_and_opens_them_later(
    tmp_path: Path, port: int
) -> None:
    async with compose(front(tmp_path, port)) as gateway:
        assert (await get(gateway, "/v2/health/ready"))[0] == 200
        assert (await get(gateway, "/v2/models/here/ready"))[0] == 200
        assert (await get(gateway, "/v1/routes/here:decide", {"inputs": {"input": [[1.0]]}}))[0] == 200
        for name in ("far", "doubled"):
            assert (await get(gateway, f"/v2/models/{name}/ready"))[0] == 503
            for path, body in ((f"/v2/models/{name}", None), (f"/v2/models/{name}/infer", infer([1.5]))):
                status, told = await get(gateway, path, body)
                assert (status, told["error"]) == (503, f"no model of {name!r} could be opened yet; try again later")
        assert (await get(gateway, "/v1/routes/far:decide", {"inputs": {"x": [[1.5]]}}))[0] == 503
        _, index = await get(gateway, "/v2/repository/index", {})
        rows = {row["name"]: row for row in index}
        assert (rows["here"]["state"], rows["far"]["state"]) == ("READY", "UNAVAILABLE")
        assert 'pointsman_model_ready{model="far"} 0.0' in gateway.telemetry.exposition("text/plain")[0].decode()

        async with server(tmp_path, port):
            await mended(gateway)

            for name in ("far", "doubled"):
                status, answer = await get(gateway, f"/v2/models/{name}/infer", infer([1.5, 2.0]))
                assert (status, answer["outputs"][0]["data"]) == (200, [3.0, 4.0])
                assert (await get(gateway, f"/v2/models/{name}"))[1]["inputs"][0]["shape"] == [-1, -1]
            assert (await get(gateway, "/v2/health/ready"))[0] == 200


async def test_people_decide_where_no_model_is_there_yet(tmp_path: Path, port: int) -> None:
    async with compose(front(tmp_path, port)) as gateway:
        for route in ("judged", "auto"):  # whose detector is not there either
            payload = RawBody(b"fast=0.99", "text/plain")
            (item,) = (await gateway.pipeline.decide(Request(route, payload, Protocol.V1_HTTP))).items
            assert item.status == "pending"

        async with server(tmp_path, port):
            await mended(gateway)
            (item,) = (
                await gateway.pipeline.decide(Request("judged", JsonInputs({"text": "fast=0.99"}, 0), Protocol.V1_HTTP))
            ).items
            assert (item.status, item.label) == ("final", "a")


async def test_a_required_model_that_cannot_be_reached_stops_the_start(tmp_path: Path, port: int) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        async with compose(front(tmp_path, port, "required: true")):
            pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        await check_models(front(tmp_path, port))


async def test_what_time_does_not_mend_stops_the_start_all_the_same(tmp_path: Path, port: int) -> None:
    wrong = front(tmp_path, port).file
    wrong.write_text(wrong.read_text().replace("model: double", "model: nobody"))
    async with server(tmp_path, port):
        with pytest.raises(Exception, match="nobody"):
            async with compose(load_settings(wrong)):
                pass
