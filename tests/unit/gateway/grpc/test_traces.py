"""What gRPC callers say of their traces reaches the service, on each transport and in each kind of call."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backends.trace_context import TraceContext
from pointsman_pb import gateway_pb2 as pb
from pointsman_pb import gateway_pb2_grpc
from tests.unit.gateway.scripted import ScriptedService

CALLER = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1,b=2")
TENSOR = {"name": "FP32", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1.0]}}
REQUEST = service_pb2.ModelInferRequest(model_name="echo", inputs=[TENSOR])
MALFORMED = (("traceparent", "00-0-0-0"), ("tracestate", "a=1"))


async def infer(channel: Any, metadata: Any) -> None:
    await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(REQUEST, metadata=metadata)


async def stream(channel: Any, metadata: Any) -> None:
    async def requests() -> Any:
        yield REQUEST

    call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), metadata=metadata)
    assert [reply.error_message async for reply in call] == [""]


async def decide(channel: Any, metadata: Any) -> None:
    call = gateway_pb2_grpc.GatewayStub(channel).Decide(pb.DecideRequest(route="tickets", text="hi"), metadata=metadata)
    assert len([reply async for reply in call]) == 1


@pytest.mark.parametrize("ask", [infer, stream, decide])
@pytest.mark.parametrize(("metadata", "wanted"), [(CALLER.headers(), CALLER), (MALFORMED, None), ((), None)])
async def test_a_callers_span_comes_with_its_request(
    channel: Any, service: ScriptedService, ask: Any, metadata: Any, wanted: TraceContext | None
) -> None:
    await ask(channel, metadata)

    (request,) = service.requests
    assert request.trace == wanted
