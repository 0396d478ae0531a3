"""KServe's own client against a running gateway: run it by hand, in an environment of its own.

    pointsman serve loadtests/configs/null.yaml
    python3 -m venv /tmp/kserve && /tmp/kserve/bin/pip install kserve==0.21.0
    /tmp/kserve/bin/python tests/conformance/kserve_client.py http://127.0.0.1:8000 127.0.0.1:8001

It is no part of the test run: the package takes 450 MB, and its copy of the protocol's descriptors cannot be loaded
beside tritonclient's, which the gateway and the tests use.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import httpx  # type: ignore[import-not-found]  # comes with kserve
import numpy as np
from kserve import (  # type: ignore[import-not-found]  # see above
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]

_ROWS = np.arange(48, dtype=np.float32).reshape(3, 16)

# Any, throughout: the package is not installed where types are checked.


def _request(model: str = "dbl", width: int = 16, *, binary: bool = True, outputs: Any = None, **more: Any) -> Any:
    rows = _ROWS[:, :width]
    tensor = InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model, [tensor], request_id="seven", request_outputs=outputs, **more)


def _check(what: str, response: Any) -> None:
    (output,) = response.outputs
    found = output.as_numpy().reshape(output.shape)
    assert (response.model_name, response.id, output.name) == ("dbl", "seven", "y"), response
    np.testing.assert_array_equal(found, _ROWS * 2)
    print(f"{what}: {output.datatype} {list(output.shape)}")


async def over_http(url: str) -> None:
    """Health, inference in each form, and refusals."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True
        assert await client.is_model_ready(url, "dbl") is True
        assert await client.is_model_ready(url, "nowhere") is False
        print("HTTP health: live, ready, model ready, no such model")
        _check("HTTP, JSON", await client.infer(url, _request(binary=False), "dbl"))
        _check("HTTP, binary", await client.infer(url, _request(), "dbl"))
        wanted = [RequestedOutput("y", {"binary_data": True})]
        _check("HTTP, binary both ways", await client.infer(url, _request(outputs=wanted), "dbl"))
        _check("HTTP, own parameters", await client.infer(url, _request(parameters={"note": "a", "n": 7}), "dbl"))
        for model, width in (("nowhere", 16), ("dbl", 15)):
            try:
                await client.infer(url, _request(model, width), model)
            except httpx.HTTPStatusError as error:
                print(f"HTTP, refused: {error.response.status_code} {error}")
            else:
                raise AssertionError(f"{model} of width {width} was answered")


async def over_grpc(address: str) -> None:
    """The same."""
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("dbl") is True
        assert await client.is_model_ready("nowhere") is False
        print("gRPC health: live, ready, model ready, no such model")
        _check("gRPC, raw", await client.infer(_request()))
        _check("gRPC, typed", await client.infer(_request(binary=False)))
        _check("gRPC, own parameters", await client.infer(_request(parameters={"note": "a", "n": 7})))
        for model, width in (("nowhere", 16), ("dbl", 15)):
            try:
                await client.infer(_request(model, width))
            except grpc.RpcError as error:
                print(f"gRPC, refused: {error.code().name} {error.details()}")
            else:
                raise AssertionError(f"{model} of width {width} was answered")


if __name__ == "__main__":
    asyncio.run(over_http(sys.argv[1]))
    asyncio.run(over_grpc(sys.argv[2]))
    print("KServe's client works")
