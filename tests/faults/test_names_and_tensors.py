"""Names and tensors that cannot be, wherever either edge takes them; one gateway for all, as in `test_bad_input.py`.

In a path over HTTP a slash separates: a name with one is another path, and there is nothing at it (404), nor at one
with an escape, which nothing decodes. What comes as one segment, or in a message, and names no model, is 400.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb

from tests.faults.oracle import CANARY, assert_no_growth, assert_no_stall, series, silent_about_the_canary
from tests.faults.raw_http import exchange, post
from tests.integration.process import ROOT, GatewayProcess, running

SERVICE = "/inference.GRPCInferenceService/"
INFER = "/v2/models/double/infer"
NAMES = ["../etc", "a/../b", "double/", "a\tb", "", "a" * 256, "..", "%2e%2e", "a\0b", "-a", "\N{KELVIN SIGN}"]

# Any, throughout: grpcio's stubs know no untyped messages.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running(tmp_path_factory.mktemp("names")) as process:
        yield process
        silent_about_the_canary(process)


@pytest.fixture(scope="module")
def channel(server: GatewayProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(autouse=True)
def unharmed(server: GatewayProcess, channel: Any) -> Iterator[None]:
    """After every test a good request succeeds, over both."""
    yield
    assert exchange(server.http, post(INFER, body()), quiet_s=0.001).statuses == (200,)
    assert channel.unary_unary(f"{SERVICE}ModelInfer")(message().SerializeToString(), timeout=10)


def body(**changes: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}
    ).encode()


def message(**changes: Any) -> Any:
    an_input = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}, **changes}
    return pb.ModelInferRequest(model_name="double", inputs=[an_input])


def refusal(channel: Any, method: str, request: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(SERVICE + method)(request.SerializeToString(), timeout=10)
    return error.value.code(), str(error.value.details())


# --- names ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/{}/infer"),
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("GET", "/v2/models/{}/config"),
        ("GET", "/v2/models/{}/stats"),
        ("POST", "/v2/models/{}/versions/1/infer"),
        ("POST", "/v2/repository/models/{}/load"),
        ("POST", "/v2/repository/models/{}/unload"),
    ],
)
def test_a_path_with_a_name_that_no_model_can_have_is_refused(
    server: GatewayProcess, method: str, path: str, name: str
) -> None:
    sent = post(path, body()).replace(path.encode(), path.format(name).encode())
    if method == "GET":
        sent = f"GET {path.format(name)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    reply = exchange(server.http, sent, quiet_s=0.001)

    one_segment = name in ("a" * 256, "..", "-a")
    off = path.startswith("/v2/repository")  # refused whatever the name is
    unreadable = set(name) & set("\t\0\N{KELVIN SIGN}")
    # `GET /v2/models/` and a bad name with a slash in it are other paths, of which some exist for other methods.
    expected = {400} if unreadable else {501 if off else 400} if one_segment else {404, 405}
    assert len(reply.statuses) == 1
    assert reply.statuses[0] in expected, (reply.statuses, reply.message)
    assert reply.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("ModelInfer", lambda name: pb.ModelInferRequest(model_name=name, inputs=message().inputs)),
        ("ModelMetadata", lambda name: pb.ModelMetadataRequest(name=name)),
        ("ModelReady", lambda name: pb.ModelReadyRequest(name=name)),
        ("ModelConfig", lambda name: pb.ModelConfigRequest(name=name)),
        ("ModelStatistics", lambda name: pb.ModelStatisticsRequest(name=name)),
        ("RepositoryModelLoad", lambda name: pb.RepositoryModelLoadRequest(model_name=name)),
        ("RepositoryModelUnload", lambda name: pb.RepositoryModelUnloadRequest(model_name=name)),
    ],
)
def test_a_message_with_a_name_that_no_model_can_have_is_refused(
    channel: Any, method: str, make: Any, name: str
) -> None:
    if method == "ModelStatistics" and name == "":
        name = "-"  # none asks for the statistics of all

    code, told = refusal(channel, method, make(name))

    off = method.startswith("Repository")
    assert code is (StatusCode.UNIMPLEMENTED if off else StatusCode.INVALID_ARGUMENT)
    assert ("the configuration says which are served" if off else "names no model") in told


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": '{"backend":"python"}'},
        {"file:1/model.onnx": "AAAA"},
        {"file:../../x": "AAAA"},
        {"config": "http://a"},
    ],
)
def test_a_load_that_brings_something_along_opens_and_writes_nothing(
    server: GatewayProcess, channel: Any, parameters: dict[str, str]
) -> None:
    process = psutil.Process(server.process.pid)

    def held() -> tuple[set[str], int]:
        listening_or_out = [c for c in process.net_connections() if c.status in ("LISTEN", "SYN_SENT")]
        return {file.path for file in process.open_files()}, len(listening_or_out)

    before = held()
    sent = post("/v2/repository/models/double/load", json.dumps({"parameters": parameters}).encode())
    stated = {name: {"string_param": value} for name, value in parameters.items()}

    assert exchange(server.http, sent).statuses == (501,)
    request = pb.RepositoryModelLoadRequest(model_name="double", parameters=stated)
    code, _ = refusal(channel, "RepositoryModelLoad", request)
    assert code is StatusCode.UNIMPLEMENTED
    assert held() == before


# --- tensors ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shape": [1, 2**62, 2**62]}, "more elements than any request can hold"),
        ({"shape": [1, 0, 2**62]}, "more elements than any request can hold"),
        ({"shape": [0, 2**62, 2**62]}, "more elements than any request can hold"),
        ({"shape": [1, -1]}, "-1 in its shape"),
        ({"shape": [1] * 100_000}, "100000 dimensions; at most 32"),
        ({"shape": [1, 2**40]}, "has 2 elements where shape"),
        ({"shape": [1, 3]}, "has 2 elements where shape"),
        ({"datatype": "OBJECT"}, "known datatypes"),
        ({"name": "y"}, "input 'x' is missing"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_alike_by_both_edges(
    server: GatewayProcess, channel: Any, changes: dict[str, Any], told: str
) -> None:
    reply = exchange(server.http, post(INFER, body(**changes)))
    code, details = refusal(channel, "ModelInfer", message(**changes))

    assert (reply.statuses, code) == ((400,), StatusCode.INVALID_ARGUMENT)
    assert told in reply.message
    assert told in details


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "told"),
    [
        ("BYTES", [1, 1], b"\xff\xff\xff\xff", "claims 4294967295 bytes where 0 are left"),
        ("BYTES", [1, 2], b"\1\0\0\0abc", "7 bytes; 2 BYTES elements take at least 8"),
        ("BYTES", [1, 2**40], b"\0" * 8, "BYTES elements; at most"),
        ("BOOL", [1, 2], b"\1\2", "neither 0 nor 1"),
        ("FP32", [1, 2**40], b"\0" * 8, "has 8 bytes; shape"),
        ("FP16", [1, 0, 2**61], b"", "more elements than any request can hold"),
    ],
)
def test_raw_contents_that_do_not_add_up_are_refused(
    channel: Any, datatype: str, shape: list[int], raw: bytes, told: str
) -> None:
    an_input = {"name": "x", "datatype": datatype, "shape": shape}
    request = pb.ModelInferRequest(model_name="double", inputs=[an_input], raw_input_contents=[raw])

    code, details = refusal(channel, "ModelInfer", request)

    assert code is StatusCode.INVALID_ARGUMENT
    assert told in details


def test_a_shape_that_only_promises_takes_no_memory(server: GatewayProcess, channel: Any) -> None:
    huge = message(shape=[1, 2**47])

    def send(times: int) -> None:
        for _ in range(times):
            assert exchange(server.http, post(INFER, body(shape=[1, 2**47])), quiet_s=0.0001).statuses == (400,)
            assert refusal(channel, "ModelInfer", huge)[0] is StatusCode.INVALID_ARGUMENT

    assert_no_growth(server, send)


@pytest.mark.parametrize("member", ["name", "datatype", "shape", "id"])
def test_a_member_that_is_a_long_list_is_quoted_in_short_and_holds_up_nobody(
    server: GatewayProcess, member: str
) -> None:
    """Quoted with what is in it, it would take 150 ms in which nothing else runs."""
    nested = b"[[" + b"0.5," * 900_000 + b"0.5]]"
    sent = body(**{member: 7}).replace(b'"%b": 7' % member.encode(), b'"%b": ' % member.encode() + nested)
    if member == "id":
        sent = body()[:-1] + b', "id": ' + nested + b"}"

    def send() -> None:
        reply = exchange(server.http, post(INFER, sent))
        assert (reply.statuses, "[" in reply.message, len(reply.message) < 400) == ((400,), True, True)

    assert_no_stall(server, send)


def test_a_confidence_that_is_no_number_goes_to_a_person(server: GatewayProcess) -> None:
    sent = post("/v1/routes/words:decide", b"fast=nan strong=nan", "text/plain")

    reply = exchange(server.http, sent)

    assert reply.statuses == (202,)
    assert json.loads(reply.body)["status"] != "final"


UNPICKLERS = """
import pickle, sys
import numpy as np
import gateway.http.handler, gateway.http.listener, gateway.http.oip, gateway.http.v1
import gateway.grpc_edge.oip, gateway.grpc_edge.gateway_v1, gateway.grpc_edge.on_grpcio, gateway.pipeline
edges = [m for name, m in sys.modules.items() if name.startswith("gateway.") and m is not None]
reached = {pickle, pickle.loads, pickle.load, pickle.Unpickler, np.load, np.fromfile, np.loadtxt}
found = [(m.__name__, name) for m in edges for name, value in vars(m).items() if id(value) in map(id, reached)]
print(found)
"""


def test_no_module_of_the_edges_has_an_unpickler() -> None:
    """`gateway.workers`, which pickles between processes of one gateway, is none of them and not imported by them."""
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLERS],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout == "[]\n"


# --- metrics ---


def test_two_thousand_invented_names_over_grpc_make_no_new_series(server: GatewayProcess, channel: Any) -> None:
    def invent(number: int) -> None:
        request = pb.ModelInferRequest(model_name=f"{CANARY}-{number}", inputs=message().inputs)
        assert refusal(channel, "ModelInfer", request)[0] is StatusCode.NOT_FOUND

    invent(0)
    before = series(server)
    for number in range(1, 2000):
        invent(number)

    assert series(server) == before
