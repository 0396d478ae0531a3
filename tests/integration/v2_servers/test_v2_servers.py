"""The real servers answer real clients, and differ from the protocol as the docstring of `servers` says."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.integration.v2_servers.servers import Address

_JSON = {"Content-Type": "application/json"}
_X = np.arange(32, dtype=np.float32).reshape(2, 16)


@pytest.fixture(params=["mlserver_address", "kserve_address"])
def address(request: pytest.FixtureRequest) -> Address:
    """Each server in turn."""
    found: Address = request.getfixturevalue(request.param)
    return found


# Any: tritonclient is untyped.
def _by_http(address: Address, model: str, output: str, **inputs: tuple[str, Any]) -> Any:
    client = tritonclient.http.InferenceServerClient(address.http)
    try:
        answer = client.infer(
            model,
            [_filled(tritonclient.http, name, *given, binary_data=False) for name, given in inputs.items()],
            outputs=[tritonclient.http.InferRequestedOutput(output, binary_data=False)],
            headers=_JSON,
        )
    finally:
        client.close()
    return answer.as_numpy(output)


def _by_grpc(address: Address, model: str, output: str, **inputs: tuple[str, Any]) -> Any:
    client = tritonclient.grpc.InferenceServerClient(address.grpc)
    try:
        answer = client.infer(
            model, [_filled(tritonclient.grpc, name, *given) for name, given in inputs.items()], client_timeout=20
        )
    finally:
        client.close()
    return answer.as_numpy(output)


def _filled(library: Any, name: str, datatype: str, array: Any, **options: bool) -> Any:
    tensor = library.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array, **options)
    return tensor


@contextmanager
def _stub(address: Address) -> Iterator[Any]:
    with grpc.insecure_channel(address.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def _post(
    address: Address, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(address.http, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def _json_request(model: str) -> bytes:
    names = ("a", "b") if model == "sums" else ("x",)
    datatype = "INT32" if model == "sums" else "FP32"
    inputs = [{"name": name, "shape": [1, 16], "datatype": datatype, "data": list(range(16))} for name in names]
    return json.dumps({"id": "1", "parameters": {"binary_data_output": True}, "inputs": inputs}).encode()


def _raw_request(model: str, *arrays: tuple[str, str, Any], version: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="1")
    for name, datatype, array in arrays:
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


@pytest.mark.parametrize("ask", [_by_http, _by_grpc])
def test_numbers_are_doubled(address: Address, ask: Any) -> None:
    answer = ask(address, "dbl", "y", x=("FP32", _X))
    np.testing.assert_array_equal(answer, _X * 2)


def test_texts_come_back_by_http(address: Address) -> None:
    given = np.array([["Weiche"], ["zwölf"], [""]], dtype=object)
    np.testing.assert_array_equal(_by_http(address, "text", "y", x=("BYTES", given)), given)


def test_any_bytes_come_back_by_grpc(address: Address) -> None:
    given = np.array([["zwölf".encode()], [b"\xff\x00\x01"], [b""]], dtype=object)
    np.testing.assert_array_equal(_by_grpc(address, "text", "y", x=("BYTES", given)), given)


def test_two_inputs_give_two_outputs_by_http(address: Address) -> None:
    a, b = np.array([[1, 2]], np.int32), np.array([[10, 30]], np.int32)
    np.testing.assert_array_equal(_by_http(address, "sums", "sum", a=("INT32", a), b=("INT32", b)), a + b)
    np.testing.assert_array_equal(_by_http(address, "sums", "difference", a=("INT32", a), b=("INT32", b)), a - b)


def test_two_inputs_give_two_outputs_by_grpc_raw_from_mlserver_and_typed_from_kserve(
    mlserver_address: Address, kserve_address: Address
) -> None:
    a, b = np.array([[1, 2]], np.int32), np.array([[10, 30]], np.int32)
    request = _raw_request("sums", ("a", "INT32", a), ("b", "INT32", b))
    with _stub(mlserver_address) as mlserver, _stub(kserve_address) as kserve:
        raw, typed = mlserver.ModelInfer(request, timeout=20), kserve.ModelInfer(request, timeout=20)
    assert [output.name for output in raw.outputs] == ["sum", "difference"]
    assert list(raw.raw_output_contents) == [(a + b).tobytes(), (a - b).tobytes()]
    assert list(typed.raw_output_contents) == []
    assert [list(output.contents.int_contents) for output in typed.outputs] == [[11, 32], [-9, -28]]


def test_a_model_that_raises_is_500_and_internal(address: Address) -> None:
    status, _, _ = _post(address, "/v2/models/fails/infer", _json_request("fails"), _JSON)
    assert status == 500
    with _stub(address) as stub, pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(_raw_request("fails", ("x", "FP32", _X)), timeout=20)
    assert failed.value.code() is grpc.StatusCode.INTERNAL


def test_a_model_waits_as_long_as_it_is_told(address: Address) -> None:
    request = _raw_request("waits", ("x", "FP32", np.array([[600]], np.float32)))
    with _stub(address) as stub, pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(request, timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_unknown_model_is_404_and_not_found(address: Address) -> None:
    status, _, body = _post(address, "/v2/models/none/infer", _json_request("dbl"), _JSON)
    assert (status, list(json.loads(body))) == (404, ["error"])
    with _stub(address) as stub, pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(_raw_request("none", ("x", "FP32", _X)), timeout=20)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_metadata_show_the_batch_axis_that_the_model_declares(address: Address) -> None:
    with _stub(address) as stub:
        found = stub.ModelMetadata(pb.ModelMetadataRequest(name="sums"), timeout=20)
    assert [(i.name, i.datatype, list(i.shape)) for i in found.inputs] == [
        ("a", "INT32", [-1, -1]), ("b", "INT32", [-1, -1]),
    ]  # fmt: skip
    assert (list(found.versions), found.platform) == ([], "")


def test_what_metadata_do_not_allow_reaches_the_model(address: Address) -> None:
    with _stub(address) as stub:
        answer = stub.ModelInfer(_raw_request("dbl", ("x", "FP32", _X.reshape(1, 32))), timeout=20)
    assert list(answer.outputs[0].shape) == [1, 32]


@pytest.mark.parametrize(("version", "mlserver_status", "kserve_status"), [("1", 200, 501), ("7", 404, 501)])
def test_only_mlserver_knows_versions(
    mlserver_address: Address, kserve_address: Address, version: str, mlserver_status: int, kserve_status: int
) -> None:
    path = f"/v2/models/dbl/versions/{version}/infer"
    assert _post(mlserver_address, path, _json_request("dbl"), _JSON)[0] == mlserver_status
    assert _post(kserve_address, path, _json_request("dbl"), _JSON)[0] == kserve_status


def test_kserve_ignores_the_version_by_grpc(kserve_address: Address) -> None:
    with _stub(kserve_address) as stub:
        answer = stub.ModelInfer(_raw_request("dbl", ("x", "FP32", _X), version="7"), timeout=20)
    assert answer.model_version == ""


def test_kserve_takes_json_for_binary_without_its_content_type(kserve_address: Address) -> None:
    status, _, body = _post(kserve_address, "/v2/models/dbl/infer", _json_request("dbl"), {})
    assert status == 400
    assert "inference-header-content-length" in json.loads(body)["error"]


def test_kserve_answers_in_binary_where_the_model_does(kserve_address: Address) -> None:
    status, headers, body = _post(kserve_address, "/v2/models/dbl/infer", _json_request("dbl"), _JSON)
    assert (status, headers["Content-Type"]) == (200, None)
    assert body[int(headers["Inference-Header-Content-Length"]) :] == (np.arange(16, dtype=np.float32) * 2).tobytes()
    status, headers, body = _post(kserve_address, "/v2/models/sums/infer", _json_request("sums"), _JSON)
    assert (status, headers["Inference-Header-Content-Length"]) == (200, None)
    assert json.loads(body)["outputs"][0]["data"] == [2 * i for i in range(16)]


def test_mlserver_knows_no_binary_tensors(mlserver_address: Address) -> None:
    status, _, body = _post(mlserver_address, "/v2/models/dbl/infer", _json_request("dbl"), _JSON)
    assert (status, json.loads(body)["outputs"][0]["data"][:3]) == (200, [0, 2, 4])  # asked for binary
    head = {"id": "1", "inputs": [
        {"name": "x", "shape": [2, 16], "datatype": "FP32", "parameters": {"binary_data_size": 128}},
    ]}  # fmt: skip
    encoded = json.dumps(head).encode()
    given = {"Inference-Header-Content-Length": str(len(encoded)), "Content-Type": "application/octet-stream"}
    status, _, _ = _post(mlserver_address, "/v2/models/dbl/infer", encoded + _X.tobytes(), given)
    assert status >= 400


def test_requested_outputs_are_ignored_by_grpc(address: Address) -> None:
    a = np.array([[1, 2]], np.int32)
    request = _raw_request("sums", ("a", "INT32", a), ("b", "INT32", a))
    request.outputs.add(name="difference")
    with _stub(address) as stub:
        answer = stub.ModelInfer(request, timeout=20)
    assert [output.name for output in answer.outputs] == ["sum", "difference"]


def test_a_malformed_request_is_422_without_an_error_member(address: Address) -> None:
    status, _, body = _post(address, "/v2/models/dbl/infer", b"{not json", _JSON)
    assert (status, list(json.loads(body))) == (422, ["detail"])


@pytest.mark.parametrize(("server", "limit_mib"), [("mlserver_address", 4), ("kserve_address", 8)])
def test_messages_are_limited_by_grpc(server: str, limit_mib: int, request: pytest.FixtureRequest) -> None:
    large = _raw_request("dbl", ("x", "FP32", np.zeros((limit_mib << 14, 16), np.float32)))  # 64 bytes a row
    with _stub(request.getfixturevalue(server)) as stub, pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(large, timeout=20)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_infinities_come_back_as_null_in_json(address: Address) -> None:
    inputs = [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [3e38] * 16}]  # doubled beyond FP32
    body = json.dumps({"id": "1", "inputs": inputs}).encode()
    status, _, answer = _post(address, "/v2/models/dbl/infer", body, _JSON)
    assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [None] * 16)
