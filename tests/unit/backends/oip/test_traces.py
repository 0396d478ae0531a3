"""What servers are told of the trace of a call: with inferences, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from backends.contract import TRACE
from backends.trace_context import TraceContext
from tests.unit.backends.oip.scripted import NEVER, Context, Message, call_of, http, over_grpc, over_http

CALL = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1,b=2")
OUTPUT: Any = {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [0.0] * 6}


@pytest.fixture(params=[CALL, TraceContext(CALL.traceparent), None], ids=["with state", "without", "untraced"])
def trace(request: pytest.FixtureRequest) -> Iterator[TraceContext | None]:
    """Of the call at hand."""
    before = TRACE.set(request.param)
    yield request.param
    TRACE.reset(before)


def headers_of(trace: TraceContext | None) -> dict[str, str]:
    return {} if trace is None else dict(trace.headers())


def traced(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("trace")}


async def test_over_http(trace: TraceContext | None) -> None:
    TRACE.set(trace)
    async with over_http(http(200), http(200, json.dumps({"outputs": [OUTPUT]}).encode())) as (remote, server):
        assert await remote.is_ready("dbl", "", NEVER)
        await remote.infer(call_of(), NEVER)

    ready, asked = server.requests
    assert traced(ready.headers) == {}
    assert traced(asked.headers) == headers_of(trace)


@pytest.mark.parametrize("token", [None, "key"])
@pytest.mark.parametrize("triton", ["2.51.0", "2.60.0"])  # the first is never told that a call has ended
async def test_over_grpc(trace: TraceContext | None, token: str | None, triton: str) -> None:
    TRACE.set(trace)

    async def answer(name: str, request: Message, context: Context) -> Message:
        if name == "ServerMetadata":
            return service_pb2.ServerMetadataResponse(name="triton", version=triton)
        reply = service_pb2.ModelInferResponse(model_name="dbl", raw_output_contents=[bytes(24)])
        reply.outputs.add(name="y", datatype="FP32", shape=[2, 3])
        return reply

    async with over_grpc(answer, token=token) as (remote, server):
        await remote.about(NEVER)
        await remote.infer(call_of(), NEVER)

    about, asked = server.metadata
    assert traced(about) == {}
    assert traced(asked) == headers_of(trace)
    assert asked.get("authorization") == (f"Bearer {token}" if token else None)
