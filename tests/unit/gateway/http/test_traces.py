"""What HTTP callers say of their traces reaches the service, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from backends.trace_context import TraceContext
from tests.unit.gateway.http.conftest import Plane

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFER: Any = {"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
ASKED = [("/v2/models/echo/infer", INFER), ("/v1/routes/tickets:decide", {"inputs": {"text": "hi"}})]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_callers_span_comes_with_its_request(plane: Plane, path: str, body: Any) -> None:
    response = await plane.send("POST", path, body, {"traceparent": PARENT, "tracestate": "a=1, b=2"})

    assert response.status == 200
    (request,) = plane.service.requests
    assert request.trace == TraceContext(PARENT, "a=1,b=2")
    assert not [name for name, _ in response.headers if name.startswith("trace")]


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("headers", [{}, {"tracestate": "a=1"}, {"traceparent": f"{PARENT}, {PARENT}"}])
async def test_none_and_a_malformed_one_are_no_error(
    plane: Plane, path: str, body: Any, headers: dict[str, str]
) -> None:
    response = await plane.send("POST", path, body, headers)

    assert response.status == 200
    (request,) = plane.service.requests
    assert request.trace is None
