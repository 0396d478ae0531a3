"""What is read from a Triton's configuration, and what goes along with a call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from backends.contract import SEQUENCE, URGENCY, Backend, Batch, Deadline, Home, SequenceCall, Tensor
from backends.errors import PointsmanError, SequenceOver
from backends.triton.model import TritonOptions, open_triton
from tests.unit.backends.oip.scripted import NEVER, HttpServer, Request, http, over_http

JSON = {"Content_Type": "application/json"}
METADATA = {
    "name": "mine",
    "versions": ["1", "10", "9"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}
HOME = Home()
BATCH = Batch.of({"x": Tensor.of(np.ones((1, 3), np.float32))})


def answering(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Callable[[Request], bytes]:
    """As a Triton answers that serves one model."""

    def answer(request: Request) -> bytes:
        match request.path.rsplit("/", 1)[-1]:
            case "v2":
                found: Mapping[str, Any] = {"name": "triton", "version": "2.51.0", "extensions": []}
            case "config":
                found = config
            case "infer":
                outputs = [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 1.0, 1.0]}]
                found = {"id": request.json()["id"], "model_version": "10", "outputs": outputs}
            case _:
                found = metadata
        return http(200, orjson.dumps(found), **JSON)

    return answer


@asynccontextmanager
async def opened(
    config: Mapping[str, Any], metadata: Mapping[str, Any] = METADATA, **options: Any
) -> AsyncIterator[tuple[Backend, HttpServer]]:
    async with over_http(answering(config, metadata)) as (_, server):
        backend = await open_triton("mine", TritonOptions(f"http://{server.address}", **options))
        try:
            yield backend, server
        finally:
            await backend.aclose()


async def parameters_of(server: HttpServer, backend: Backend, deadline: Deadline = NEVER) -> Mapping[str, Any]:
    await backend.infer(BATCH, deadline)
    found: Mapping[str, Any] = server.requests[-1].json()["parameters"]
    return found


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], 2),
        ([{"count": 3}], 4),
        ([{"count": 2, "gpus": [0, 1]}, {"count": 1}], 6),
    ],
)
async def test_calls_under_way_are_one_more_than_there_are_instances(groups: list[Any], expected: int) -> None:
    async with opened({"max_batch_size": 8, "instance_group": groups}) as (backend, _):
        assert (backend.limits.max_in_flight, backend.limits.max_batch, backend.version) == (expected, 8, "10")


async def test_a_model_without_batching_takes_what_the_operator_says_or_one_item() -> None:
    async with opened({"max_batch_size": 0}) as (backend, _):
        assert backend.limits.max_batch == 1
    async with opened({"max_batch_size": 0}, max_batch=16) as (backend, _):
        assert backend.limits.max_batch == 16


@pytest.mark.parametrize("batching", [{}, {"sequence_batching": {}}])
async def test_a_model_that_gives_any_number_of_answers_is_refused(batching: Mapping[str, Any]) -> None:
    config = {"max_batch_size": 8, "model_transaction_policy": {"decoupled": True}, **batching}

    with pytest.raises(PointsmanError, match="decoupled"):
        async with opened(config):
            pass


@pytest.mark.parametrize(("stated", "idle_s"), [({}, 1.0), ({"max_sequence_idle_microseconds": "2500000"}, 2.5)])
async def test_a_model_that_keeps_state_takes_one_item_a_call(stated: Mapping[str, Any], idle_s: float) -> None:
    async with opened({"max_batch_size": 8, "sequence_batching": stated}) as (backend, _):
        assert (backend.limits.max_batch, backend.limits.sequence_idle_s) == (1, idle_s)
    async with opened({"max_batch_size": 8}) as (backend, _):
        assert backend.limits.sequence_idle_s is None


@pytest.mark.parametrize(("corrid", "written"), [("TYPE_UINT64", 2**63 - 1), ("TYPE_STRING", str(2**63 - 1))])
async def test_what_a_call_is_in_its_sequence_goes_along_with_it(corrid: str, written: int | str) -> None:
    controls = [
        {"name": "START", "control": [{"fp32_false_true": [0, 1]}]},
        {"name": "ID", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": corrid}]},
    ]
    async with opened({"max_batch_size": 8, "sequence_batching": {"control_input": controls}}) as (backend, server):
        for starts, ends in ((True, False), (False, True)):
            token = SEQUENCE.set(SequenceCall(2**63 - 1, starts, ends, HOME))
            parameters = await parameters_of(server, backend)
            SEQUENCE.reset(token)

            assert parameters["sequence_id"] == written
            assert (parameters["sequence_start"], parameters["sequence_end"]) == (starts, ends)


async def test_a_server_that_knows_no_such_sequence_says_that_it_is_over() -> None:
    said = b'{"error": "inference request for sequence 9 to model m must specify the START flag on the first request"}'
    known = answering({"max_batch_size": 8, "sequence_batching": {}}, METADATA)

    def answer(request: Request) -> bytes:
        return http(400, said, **JSON) if request.path.endswith("infer") else known(request)

    async with over_http(answer) as (_, server):
        backend = await open_triton("mine", TritonOptions(f"http://{server.address}"))
        token = SEQUENCE.set(SequenceCall(9, True, False, Home()))
        try:
            with pytest.raises(SequenceOver, match="no longer; begin a new one"):
                await backend.infer(BATCH, NEVER)
        finally:
            SEQUENCE.reset(token)
            await backend.aclose()


async def test_a_model_whose_first_axis_is_no_batch_axis_is_refused() -> None:
    fixed = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [4, 3]}]}

    with pytest.raises(PointsmanError, match="no batch axis"):
        async with opened({"max_batch_size": 0}, fixed):
            pass


async def test_the_time_that_is_left_goes_along_as_a_timeout_in_microseconds() -> None:
    async with opened({"max_batch_size": 8}) as (backend, server):
        timeout = (await parameters_of(server, backend, Deadline(time.monotonic() + 2.0)))["timeout"]

    assert 500_000 < timeout <= 1_000_000  # half of it is kept for another attempt


async def test_a_priority_goes_along_of_the_model_or_of_the_most_urgent_caller() -> None:
    async with opened({"max_batch_size": 8}, priority=5) as (backend, server):
        assert (await parameters_of(server, backend))["priority"] == 5
    async with opened({"max_batch_size": 8}) as (backend, server):
        assert "priority" not in await parameters_of(server, backend)
        urgency = URGENCY.set(2)
        try:
            assert (await parameters_of(server, backend))["priority"] == 2
        finally:
            URGENCY.reset(urgency)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_in_flight": -1}, "max_in_flight is -1"),
        ({"priority": -1}, "priority is -1"),
        ({"shared_memory_from": -1}, "shared_memory_from is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TritonOptions("http://host:8000", **options)  # type: ignore[arg-type]  # whole numbers, all of them
