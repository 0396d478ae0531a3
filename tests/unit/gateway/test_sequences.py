"""Models that keep state, in a gateway: where they can stand, whose sequences are whose, what is not done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from backends.contract import Tensor
from backends.errors import (
    BackendFailed,
    InvalidInput,
    PointsmanError,
    SequenceOver,
    SequenceUnknown,
    Unavailable,
)
from gateway.answer import Answer
from gateway.compose import check_models, compose
from gateway.pipeline import Pipeline
from gateway.request import Caller, Protocol, Request, SequencePlace, TensorInputs
from tests.unit.backends.oip.scripted import Request as Asked
from tests.unit.backends.oip.scripted import http, over_http
from tests.unit.gateway.test_compose import settings_of

JSON = {"Content_Type": "application/json"}
METADATA = {
    "name": "m",
    "versions": ["1"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}


class Triton:
    """Adds up, sequence by sequence, as a Triton would; a model `plain` keeps no state, a `patient` one for long."""

    def __init__(self) -> None:
        self.totals: dict[Any, float] = {}

    def __call__(self, asked: Asked) -> bytes:
        if asked.path.endswith("/v2"):
            return http(200, orjson.dumps({"name": "triton", "version": "2.60.0", "extensions": []}), **JSON)
        if asked.path.endswith("/config"):
            batching: dict[str, Any] = {} if "plain" in asked.path else {"sequence_batching": {"direct": {}}}
            if "patient" in asked.path:
                batching["sequence_batching"]["max_sequence_idle_microseconds"] = 60_000_000
            return http(200, orjson.dumps({"max_batch_size": 8, **batching}), **JSON)
        if not asked.path.endswith("/infer"):
            return http(200, orjson.dumps(METADATA), **JSON)
        if "broken" in asked.path:
            return http(500, b'{"error": "it is broken"}', **JSON)
        said = asked.json()
        parameters = said["parameters"]
        sequence = parameters.get("sequence_id")
        if parameters.get("sequence_start"):
            self.totals[sequence] = 0.0
        self.totals[sequence] = self.totals.get(sequence, 0.0) + said["inputs"][0]["data"][0]
        outputs = [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [self.totals[sequence]]}]
        return http(200, orjson.dumps({"id": said["id"], "model_version": "1", "outputs": outputs}), **JSON)


CONFIG = """
models:
  sums: {{backend: triton, url: "http://{address}", expose: true}}
  plain: {{backend: triton, url: "http://{address}", expose: true}}
routes:
  totals:
    input: {{x: {{datatype: FP32, shape: [1]}}}}
    cascade: [sums]
    accept: {{any: true}}
store: {{path: store.db, retention: 1d, limit: 1GiB}}
"""


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Pipeline]:
    async with (
        over_http(Triton()) as (_, server),
        compose(settings_of(folder, CONFIG.format(address=server.address))) as gateway,
    ):
        yield gateway.pipeline


async def add(
    pipeline: Pipeline,
    value: float,
    sequence: int | str | None = 5,
    *,
    starts: bool = False,
    route: str = "totals",
    tenant: str = "default",
    key: str | None = None,
) -> float:
    """The total after a step."""
    return total(await step(pipeline, value, sequence, starts=starts, route=route, tenant=tenant, key=key))


def total(answer: Answer) -> float:
    outputs = answer.items[0].outputs
    assert outputs is not None
    return float(outputs["y"].numpy()[0, 0])


async def step(
    pipeline: Pipeline,
    value: float,
    sequence: int | str | None = 5,
    *,
    starts: bool = False,
    ends: bool = False,
    route: str = "totals",
    tenant: str = "default",
    key: str | None = None,
    version: str = "",
) -> Answer:
    """What becomes of a step."""
    return await pipeline.decide(
        Request(
            route,
            TensorInputs({"x": Tensor.of(np.array([[value]], np.float32))}),
            Protocol.OIP_HTTP,
            Caller(tenant=tenant),
            idempotency_key=key,
            fingerprint=b"x" * 32 if key else b"",
            version=version,
            sequence=None if sequence is None else SequencePlace(sequence, starts, ends),
        )
    )


async def test_equal_ids_of_tenants_and_of_routes_share_no_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as pipeline:
        await add(pipeline, 1, starts=True, tenant="a")
        with pytest.raises(SequenceUnknown):
            await add(pipeline, 1, tenant="b")
        await add(pipeline, 10, starts=True, tenant="b")
        await add(pipeline, 100, starts=True, tenant="a", route="sums")

        assert await add(pipeline, 1, tenant="a") == 2
        assert await add(pipeline, 10, tenant="b") == 20
        assert await add(pipeline, 100, tenant="a", route="sums") == 200


async def test_a_request_without_a_sequence_is_refused_and_a_model_without_state_takes_both(tmp_path: Path) -> None:
    async with serving(tmp_path) as pipeline:
        with pytest.raises(InvalidInput, match="correlation ID"):
            await add(pipeline, 1, None)

        assert await add(pipeline, 1, None, route="plain") == 1
        assert await add(pipeline, 1, route="plain", starts=True) == 2


async def test_a_repeated_key_takes_no_step(tmp_path: Path) -> None:
    async with serving(tmp_path) as pipeline:
        await add(pipeline, 1, starts=True)

        assert [await add(pipeline, 1, key="k") for _ in range(3)] == [2, 2, 2]
        assert await add(pipeline, 1) == 3


async def test_a_step_that_could_not_be_kept_is_not_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller hears of an error, keeps its key, and comes back: the model took the step, so nothing can go on."""

    async def fails(*args: object) -> None:
        raise Unavailable("the store is full")

    async with serving(tmp_path) as pipeline:
        await add(pipeline, 1, starts=True)
        with monkeypatch.context() as broken:
            broken.setattr(pipeline._store, "commit", fails)
            with pytest.raises(Unavailable, match="the store is full"):
                await add(pipeline, 1, key="k")

        for key in ("k", None):
            with pytest.raises(SequenceOver, match="begin it anew"):
                await add(pipeline, 1, key=key)
        assert pipeline.catalog.models["sums"].sequences() is not None
        assert await add(pipeline, 5, starts=True) == 5


async def test_an_unknown_sequence_is_not_kept_under_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as pipeline:
        with pytest.raises(SequenceUnknown):
            await add(pipeline, 1, key="k")
        await add(pipeline, 1, starts=True)

        assert await add(pipeline, 1, key="k") == 2


async def test_a_model_that_keeps_state_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as pipeline:
        assert [pipeline.metadata(name).sequence_idle_s for name in ("sums", "totals", "plain")] == [1.0, 1.0, None]
        assert (pipeline.metadata("totals").max_batch, pipeline.metadata("totals").max_delay_s) == (1, None)


# --- versions ---


VERSIONED = """
models:
  sums: {{backend: triton, url: "http://{address}", model: patient}}
  more: {{backend: {backend}, url: "http://{address}", model: {model}}}
routes:
  totals:
    input: {{x: {{datatype: FP32, shape: [1]}}}}
    accept: {{any: true}}
    versions:
      "1": {{cascade: [sums]}}
      "2": {{cascade: [more]}}
    traffic: {traffic}
store: {{path: store.db, retention: 1d, limit: 1GiB}}
"""
RAMP = "{use: '1', canary: {version: '2', ramp: [50%, 100%], every: 1h, starts: 1970-01-01T01:00:00Z}}"
BEFORE_S, HALF_S, WHOLE_S = 0.0, 3600.0, 7200.0


@asynccontextmanager
async def versioned(folder: Path, traffic: str, model: str = "patient") -> AsyncIterator[tuple[Pipeline, list[float]]]:
    """A gateway with two versions of a model that keeps state, and its clock."""
    now_s = [BEFORE_S]
    async with over_http(Triton()) as (_, server):
        text = VERSIONED.format(address=server.address, traffic=traffic, backend="triton", model=model)
        async with compose(settings_of(folder, text), lambda: now_s[0]) as gateway:
            yield gateway.pipeline, now_s


async def test_a_sequence_stays_with_the_version_that_it_began_with(tmp_path: Path) -> None:
    async with versioned(tmp_path, RAMP) as (pipeline, now_s):
        old = [await step(pipeline, 1, sequence, starts=True) for sequence in range(1, 21)]
        now_s[0] = HALF_S
        half = [await step(pipeline, 1, sequence, starts=True) for sequence in range(21, 61)]
        now_s[0] = WHOLE_S
        on = [await step(pipeline, 1, sequence) for sequence in range(1, 61)]
        last = await step(pipeline, 1, 1, ends=True)
        anew = [await step(pipeline, 10, sequence, starts=True) for sequence in (1, 61)]

        begun = [answer.version for answer in (*old, *half)]
        assert set(begun[:20]) == {"1"}
        assert 8 < begun[20:].count("2") < 32
        assert [answer.version for answer in on] == begun
        assert {total(answer) for answer in on} == {2}
        assert (last.version, total(last)) == ("1", 3)
        assert [(answer.version, total(answer)) for answer in anew] == [("2", 10), ("2", 10)]


async def test_one_that_is_begun_anew_while_it_lives_stays_and_one_that_is_named_goes_where_it_says(
    tmp_path: Path,
) -> None:
    async with versioned(tmp_path, RAMP) as (pipeline, now_s):
        await step(pipeline, 1, starts=True)
        now_s[0] = WHOLE_S

        again = await step(pipeline, 5, starts=True)
        with pytest.raises(SequenceUnknown):
            await step(pipeline, 5, version="2")

        assert (again.version, total(again)) == ("1", 5)


async def test_the_version_that_lost_a_sequence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*args: object) -> None:
        raise Unavailable("the store is full")

    async with versioned(tmp_path, RAMP) as (pipeline, now_s):
        await step(pipeline, 1, starts=True)
        with monkeypatch.context() as broken:
            broken.setattr(pipeline._store, "record", fails)
            with pytest.raises(Unavailable, match="the store is full"):
                await step(pipeline, 1)
        now_s[0] = WHOLE_S

        with pytest.raises(SequenceOver, match="begin it anew"):
            await step(pipeline, 1)
        assert (await step(pipeline, 1, starts=True)).version == "2"


async def test_a_canary_that_fails_the_steps_of_its_sequences_is_halted(tmp_path: Path) -> None:
    async with versioned(tmp_path, RAMP, model="broken") as (pipeline, now_s):
        now_s[0] = HALF_S
        failed = 0
        for sequence in range(1, 201):
            try:
                await step(pipeline, 1, sequence, starts=True)
            except BackendFailed:
                failed += 1

        assert 10 <= failed < 60
        assert "stages failed on" in pipeline.traffic.halted["totals"]


@pytest.mark.parametrize(
    ("backend", "model", "traffic", "told"),
    [
        ("triton", "plain", "latest", "version '1' keeps state over sequences and version '2' does not"),
        ("oip", "sums", "latest", "version '1' keeps state over sequences and version '2' does not"),
        ("triton", "patient", "{use: '1', shadow: {version: '2'}}", "remove `shadow`"),
    ],
)
async def test_versions_of_which_one_would_forget_or_miss_steps_are_refused(
    tmp_path: Path, backend: str, model: str, traffic: str, told: str
) -> None:
    async with over_http(Triton()) as (_, server):
        text = VERSIONED.format(address=server.address, traffic=traffic, backend=backend, model=model)
        with pytest.raises(InvalidInput, match=told):
            await check_models(settings_of(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("cascade: [sums]\n    accept: {any: true}", "cascade: [sums]\n    accept: {min_confidence: 0}", "any: true"),
        ("cascade: [sums]\n    accept: {any: true}", "cascade: [sums]\n    accept: {observe: true}", "any: true"),
        (
            "cascade: [sums]\n    accept: {any: true}",
            "cascade: [plain, sums]\n    accept: {min_confidence: 0}",
            "make it the only stage",
        ),
        ("accept: {any: true}", "accept: {any: true}\n    human: {queue: q, form: text}", "set `human: none`"),
        (
            "routes:",
            "  more: {backend: triton, url: 'http://ADDRESS', model: sums, warm: {keep: 0}}\nroutes:",
            "keep: 1",
        ),
        (
            "routes:",
            "  more: {backend: triton, url: 'http://ADDRESS', model: sums, batching: {max_delay: 2ms, warm_up: [1]}}\n"
            "routes:",
            "remove max_delay_s, warm_up from its `batching`",
        ),
        (
            "routes:",
            "  more: {backend: triton, url: 'http://ADDRESS', model: plain, sequences: {max_live: 3}}\nroutes:",
            "'more' keeps no state over sequences; remove `sequences`",
        ),
        ("store:", "classify:\n  - otherwise: totals\nstore:", "let clients name this route"),
        ("store:", "server: {workers: 2}\nstore:", "workers: 1"),
    ],
)
async def test_where_a_model_that_keeps_state_cannot_stand_the_start_says_so(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    async with over_http(Triton()) as (_, server):
        text = CONFIG.format(address=server.address)
        assert old in text
        changed = text.replace(old, new.replace("ADDRESS", server.address), 1)

        with pytest.raises(PointsmanError, match=told):
            await check_models(settings_of(tmp_path, changed))
