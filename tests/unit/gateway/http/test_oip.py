"""Inference over HTTP: what is read, what is refused, and what comes back."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from dataclasses import replace
from typing import Any

import orjson
import pytest

from backends.contract import NO_DEADLINE, Datatype, TensorSpec
from backends.errors import InvalidInput
from gateway.http.messages import HttpResponse
from gateway.http.oip_body import coding_wanted, is_quick, parse_raw
from gateway.request import Protocol, SequencePlace, TensorInputs
from router.contract import OnDefer
from tests.unit.gateway.http.conftest import LIMITS, Plane
from tests.unit.gateway.scripted import ROUTES

INFER = "/v2/models/echo/infer"


def an_input(**changes: Any) -> dict[str, Any]:
    return {"name": "FP32", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **changes}


def told(response: HttpResponse) -> Any:
    return orjson.loads(response.body)


async def test_json_in_json_out(plane: Plane) -> None:
    response = await plane.send("POST", INFER, {"id": "r-1", "inputs": [an_input()]})

    answer = told(response)
    assert response.status == 200
    assert dict(response.headers) == {"content-type": "application/json"}
    assert (answer["model_name"], answer["id"]) == ("echo", "r-1")
    assert answer["outputs"] == [{"name": "FP32", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.5]}]
    assert answer["parameters"]["pointsman_status"] == "final"


async def test_binary_in_binary_out_in_the_order_of_the_json(plane: Plane) -> None:
    raw = struct.pack("<2f", 1, 2.5) + struct.pack("<I", 2) + b"hi"
    head = orjson.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
                {"name": "b", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
            ],
        }
    )

    response = await plane.send("POST", INFER, head + raw, {"inference-header-content-length": str(len(head))})

    length = int(dict(response.headers)["inference-header-content-length"])
    assert dict(response.headers)["content-type"] == "application/octet-stream"
    assert response.body[length:] == raw
    outputs = orjson.loads(response.body[:length])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [8, 6]


async def test_an_output_can_go_another_way_than_the_rest(plane: Plane) -> None:
    inputs = [an_input(), an_input(name="INT8", datatype="INT8", data=[1, 2])]
    outputs = [{"name": "INT8", "parameters": {"binary_data": True}}, {"name": "FP32"}]

    response = await plane.send("POST", INFER, {"inputs": inputs, "outputs": outputs})

    length = int(dict(response.headers)["inference-header-content-length"])
    binary, text = orjson.loads(response.body[:length])["outputs"]
    assert (binary["name"], binary["parameters"], "data" in binary) == ("INT8", {"binary_data_size": 2}, False)
    assert (text["name"], text["data"]) == ("FP32", [1.0, 2.5])
    assert response.body[length:] == b"\x01\x02"


async def test_a_request_says_all_that_its_headers_and_parameters_say(plane: Plane) -> None:
    now = plane.clock()
    body = {
        "inputs": [an_input()],
        "outputs": [{"name": "FP32"}],
        "parameters": {"lang": "de", "pointsman_on_defer": "error", "timeout": 9_000_000},
    }

    await plane.send(
        "POST",
        "/v2/models/echo/versions/1/infer",
        body,
        {"pointsman-timeout-ms": "5000", "idempotency-key": '"k-1"'},
    )

    (request,) = plane.service.requests
    assert (request.route, request.version, request.protocol) == ("echo", "1", Protocol.OIP_HTTP)
    assert isinstance(request.payload, TensorInputs)
    assert request.parameters == {"lang": "de"}
    assert request.on_defer is OnDefer.ERROR
    assert 4.9 < request.deadline - now < 6
    assert (request.idempotency_key, len(request.fingerprint)) == ("k-1", 32)


async def test_a_request_without_deadline_or_key_has_none(plane: Plane) -> None:
    await plane.send("POST", INFER, {"inputs": [an_input()]})

    (request,) = plane.service.requests
    assert request.deadline == NO_DEADLINE
    assert (request.idempotency_key, request.fingerprint) == (None, b"")


async def test_a_retry_has_the_same_fingerprint_and_another_request_another(plane: Plane) -> None:
    key = {"idempotency-key": "k"}
    nested = an_input(data=[[1, 2.5]])
    for body in (
        {"id": "1", "inputs": [an_input()]},
        {"id": "2", "inputs": [nested], "parameters": {"timeout": 5_000_000}, "outputs": [{"name": "FP32"}]},
        {"inputs": [an_input(data=[1, 2])]},
        {"inputs": [an_input(shape=[2, 1])]},
        {"inputs": [an_input()], "parameters": {"lang": "de"}},
        {"inputs": [an_input()], "parameters": {"content_type": "text/plain"}},
    ):
        assert (await plane.send("POST", INFER, body, key)).status == 200

    first, second, *others = [request.fingerprint for request in plane.service.requests]
    assert first == second
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("parameters", "content_type", "own"),
    [({}, "", {}), ({"content_type": "Image/PNG", "lang": "de"}, "image/png", {"lang": "de"})],
)
async def test_rules_see_the_content_type_that_the_caller_states_and_not_the_envelopes(
    plane: Plane, parameters: dict[str, Any], content_type: str, own: dict[str, str]
) -> None:
    await plane.send("POST", INFER, {"inputs": [an_input()], "parameters": parameters})

    (request,) = plane.service.requests
    assert (request.payload.content_type, request.parameters) == (content_type, own)


@pytest.mark.parametrize("content_type", [5, True, "image", "image/*", "a/b; c=d", "a/b\n", "é/a", "a" * 128 + "/b"])
async def test_a_content_type_that_is_none_is_refused(plane: Plane, content_type: Any) -> None:
    body = {"inputs": [an_input()], "parameters": {"content_type": content_type}}

    response = await plane.send("POST", INFER, body)

    assert response.status == 400
    assert "it is a media type without parameters" in orjson.loads(response.body)["error"]


async def test_a_large_request_is_read_and_answered_beside_the_event_loop(
    plane: Plane, done_in_threads: list[str]
) -> None:
    data = b"".join(struct.pack("<I", 20) + b"x" * 20 for _ in range(30_000))
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "BYTES",
                    "datatype": "BYTES",
                    "shape": [1, 30_000],
                    "parameters": {"binary_data_size": len(data)},
                }
            ]
        }
    )

    response = await plane.send("POST", INFER, head + data, {"inference-header-content-length": str(len(head))})
    await plane.send("POST", INFER, {"inputs": [an_input()]})

    assert orjson.loads(response.body)["outputs"][0]["data"] == ["x" * 20] * 30_000
    assert done_in_threads == ["parse", "render", "write"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "a JSON object with 'inputs'"),
        ({}, "'inputs' is missing or empty"),
        ({"inputs": []}, "'inputs' is missing or empty"),
        ({"inputs": {}}, "'inputs' must be a list of JSON objects"),
        ({"inputs": [1]}, "'inputs' must be a list of JSON objects"),
        ({"inputs": [an_input(), an_input()]}, "input 'FP32' is there twice"),
        ({"inputs": [an_input(name=f"{i}") for i in range(257)]}, "257 inputs; at most 256"),
        ({"inputs": [an_input(name="")]}, "a non-empty text is needed"),
        ({"inputs": [an_input(shape=[1, -1])]}, "-1 in its shape"),
        ({"inputs": [an_input(shape=[2**40, 2**40])]}, "more elements than any request can hold"),
        ({"inputs": [an_input(shape=[1, 2**40])]}, "has 2 elements where shape"),
        ({"inputs": [an_input(datatype="FLOAT")]}, "known datatypes"),
        ({"inputs": [an_input(datatype="UINT8", data=[300, 1])]}, "300, which UINT8 cannot hold"),
        (
            {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32"}]},
            "either data or the parameter binary_data_size",
        ),
        ({"inputs": [an_input(parameters={"binary_data_size": 8})]}, "either data or the parameter"),
        (
            {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]},
            "has no Inference-Header-Content-Length",
        ),
        ({"inputs": [an_input()], "id": 7}, "id is 7; it is a text"),
        ({"inputs": [an_input()], "parameters": []}, "parameters must be a JSON object"),
        ({"inputs": [an_input()], "parameters": {"a": [1]}}, "a text, a number or a boolean"),
        ({"inputs": [an_input()], "parameters": {"pointsman_x": 1}}, "parameter 'pointsman_x' is unknown"),
        ({"inputs": [an_input()], "outputs": [{"name": f"{i}"} for i in range(10_000)]}, "10000 outputs; at most 256"),
        ({"inputs": [an_input()], "outputs": [{"name": "FP32"}, {"name": "FP32"}]}, "output 'FP32' is there twice"),
        ({"inputs": [an_input()], "outputs": [{"name": "nothing"}]}, "output 'nothing' is unknown"),
        ({"inputs": [an_input()], "outputs": [{}]}, "a non-empty text is needed"),
        (
            {"inputs": [an_input()], "outputs": [{"name": "FP32", "parameters": {"classification": -2}}]},
            "output 'FP32' has classification -2; it is a number of classes",
        ),
        (
            {"inputs": [an_input()], "outputs": [{"name": "FP32", "parameters": {"binary_data": 1}}]},
            "it can be true or false",
        ),
    ],
)
async def test_a_request_that_cannot_be_is_400_and_reaches_no_model(plane: Plane, body: Any, message: str) -> None:
    response = await plane.send("POST", INFER, body)

    assert response.status == 400
    assert message in told(response)["error"]
    assert plane.service.requests == []


@pytest.mark.parametrize(
    ("length", "body", "status", "message"),
    [
        ("99999999999", b"{}", 400, "but the body has 2 bytes"),
        ("9" * 40, b"{}", 400, "it is a number of bytes"),
        ("-1", b"{}", 400, "it is a number of bytes"),
        ("1.5", b"{}", 400, "it is a number of bytes"),
        ("", b"{}", 400, "it is a number of bytes"),
        ("3", b"{}", 400, "but the body has 2 bytes"),
        ("1", b"{}", 400, "not JSON"),
        ("0", b"\0\0", 400, "a raw body is one input, but this model takes 14"),
    ],
)
async def test_a_header_length_that_cannot_be_is_refused(
    plane: Plane, length: str, body: bytes, status: int, message: str
) -> None:
    response = await plane.send("POST", INFER, body, {"inference-header-content-length": length})

    assert response.status == status
    assert message in told(response)["error"]


@pytest.mark.parametrize(
    ("size", "tail", "message"),
    [
        (8, b"\0" * 7, "binary_data_size 8, but 7 bytes are left"),
        (8, b"\0" * 9, "1 bytes that no input's binary_data_size claims"),
        (4, b"\0" * 4, "has 4 bytes; shape [1, 2] of FP32 takes 8"),
        (-1, b"", "it is a number of bytes"),
        (True, b"\0", "it is a number of bytes"),
        (2**62, b"", "but 0 bytes are left"),
    ],
)
async def test_binary_data_that_does_not_add_up_is_refused(plane: Plane, size: int, tail: bytes, message: str) -> None:
    tensor = {"name": "FP32", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = orjson.dumps({"inputs": [tensor]})

    response = await plane.send("POST", INFER, head + tail, {"inference-header-content-length": str(len(head))})

    assert response.status == 400
    assert message in told(response)["error"]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/python-pickle",
        "application/x-npy",
        "text/plain",
        "nonsense",
        "a b/c",
    ],
)
async def test_a_body_of_another_kind_is_415(plane: Plane, content_type: str) -> None:
    response = await plane.send("POST", INFER, b'{"inputs": []}', {"content-type": content_type})

    assert response.status == 415


async def test_a_request_says_which_sequence_it_is_of(plane: Plane) -> None:
    parameters = {"sequence_id": 2**64 - 1, "sequence_start": True}

    response = await plane.send("POST", INFER, {"inputs": [an_input()], "parameters": parameters})

    assert response.status == 200
    assert plane.service.requests[-1].sequence == SequencePlace(2**64 - 1, starts=True, ends=False)


async def test_shared_memory_that_is_off_is_501(plane: Plane) -> None:
    window = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    shared = {"name": "FP32", "shape": [1, 2], "datatype": "FP32", "parameters": window}

    response = await plane.send("POST", INFER, {"inputs": [shared]})

    assert response.status == 501
    assert "shared memory is off" in told(response)["error"]


async def test_json_beyond_its_limit_is_413_with_the_remedy(plane: Plane) -> None:
    response = await plane.send("POST", INFER, b" " * (LIMITS.json_bytes + 1))

    assert response.status == 413
    assert "send tensors as binary tensor data" in told(response)["error"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "", "1" * 20, "٣"])
async def test_a_timeout_is_a_positive_whole_number(plane: Plane, value: str) -> None:
    response = await plane.send("POST", INFER, {"inputs": [an_input()]}, {"pointsman-timeout-ms": value})

    assert response.status == 400
    assert "positive whole number of milliseconds" in told(response)["error"]


@pytest.mark.parametrize("key", ["", '""', '"a', "a\tb", "é", "k" * 256, '"a"b"', '"a\\"', '"a\\n"'])
async def test_an_idempotency_key_is_1_to_255_printable_characters(plane: Plane, key: str) -> None:
    response = await plane.send("POST", INFER, {"inputs": [an_input()]}, {"idempotency-key": key})

    assert response.status == 400
    assert "idempotency key" in told(response)["error"]


@pytest.mark.parametrize(
    ("sent", "key"), [('"a b"', "a b"), ("bare-key", "bare-key"), ('"a\\"b"', 'a"b'), ("k" * 255, "k" * 255)]
)
async def test_an_idempotency_key_may_be_quoted_or_bare(plane: Plane, sent: str, key: str) -> None:
    await plane.send("POST", INFER, {"inputs": [an_input()]}, {"idempotency-key": sent})

    assert plane.service.requests[0].idempotency_key == key


async def test_an_id_is_a_key_where_the_route_says_so(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"id": "ticket-1", "inputs": [an_input()]}
    await plane.send("POST", INFER, asked)
    monkeypatch.setitem(ROUTES, "echo", replace(ROUTES["echo"], id_as_key=True))
    await plane.send("POST", INFER, asked)
    await plane.send("POST", INFER, asked, {"idempotency-key": "k"})
    await plane.send("POST", INFER, asked | {"id": ""})
    refused = await plane.send("POST", INFER, asked | {"id": "tïcket"})

    assert [request.idempotency_key for request in plane.service.requests] == [None, "ticket-1", "k", None]
    assert plane.service.requests[1].fingerprint == plane.service.requests[2].fingerprint != b""
    assert refused.status == 400
    assert "idempotency key" in told(refused)["error"]


@pytest.mark.parametrize(
    ("body", "json_bytes", "quick"),
    [
        (b"{}", None, True),
        (b" " * 100_000, None, False),
        (b'{"datatype": "FP32"}' + b"\0" * 1_000_000, 20, True),
        (b'{"datatype": "BYTES"}' + b"\0" * 1_000_000, 21, False),
        (b'{"datatype": "B\\u0059TES"}' + b"\0" * 1_000_000, 26, False),
        (b'{"datatype": "FP32"}' + b"BYTES" * 200_000, 20, True),
    ],
)
def test_what_is_looked_at_element_by_element_is_not_quick(body: bytes, json_bytes: int | None, quick: bool) -> None:
    assert is_quick(body, json_bytes) is quick


async def test_a_raw_body_is_one_item_and_its_answer_is_raw(plane: Plane) -> None:
    text = random.randbytes(20)

    response = await plane.send("POST", "/v2/models/tickets/infer", text, {"inference-header-content-length": "0"})

    size = int(dict(response.headers)["inference-header-content-length"])
    head = orjson.loads(response.body[:size])
    assert head["outputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 24}}
    ]
    assert response.body[size + 4 :] == text


async def test_a_raw_body_for_a_model_that_is_not_there_is_404(plane: Plane) -> None:
    response = await plane.send("POST", "/v2/models/none/infer", b"a", {"inference-header-content-length": "0"})

    assert response.status == 404


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [((4,), 16, (1, 4)), ((-1,), 12, (1, 3)), ((2, -1), 24, (1, 2, 3)), ((-1,), 0, (1, 0)), ((), 4, (1,))],
)
def test_the_length_of_a_raw_body_tells_its_shape(shape: tuple[int, ...], size: int, found: tuple[int, ...]) -> None:
    body = parse_raw(random.randbytes(size), [TensorSpec("x", Datatype.INT32, shape)])

    assert body.tensors["x"].shape == found
    assert body.is_binary("y")


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "message"),
    [
        (Datatype.FP32, (-1, -1), 16, r"does not tell the shape of input 'x', \[-1, -1, -1\]"),
        (Datatype.FP32, (2, -1), 12, "takes a multiple of 8"),
        (Datatype.FP32, (0, -1), 12, "takes a multiple of 0"),
        (Datatype.FP32, (4,), 12, "takes 16"),
        (Datatype.BYTES, (2,), 12, "one BYTES element"),
    ],
)
def test_a_raw_body_that_tells_no_shape_is_refused(
    datatype: Datatype, shape: tuple[int, ...], size: int, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_raw(bytes(size), [TensorSpec("x", datatype, shape)])


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, ""),
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate; q=0.1", "deflate"),
        ("gzip;q=0", ""),
        ("identity", ""),
        ("*", ""),
        ("br, zstd", ""),
        ("gzip;q=nonsense", "gzip"),
        (",;,=", ""),
    ],
)
def test_a_coding_is_used_where_it_is_asked_for(accept: str | None, coding: str) -> None:
    assert coding_wanted(accept) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_a_long_response_is_compressed_and_a_short_one_is_not(
    plane: Plane, coding: str, size: int, done_in_threads: list[str]
) -> None:
    data = [random.choice([1.5, 2.5]) for _ in range(size // 4)]

    short = await plane.send("POST", INFER, {"inputs": [an_input()]}, {"accept-encoding": coding})
    response = await plane.send(
        "POST", INFER, {"inputs": [an_input(shape=[1, len(data)], data=data)]}, {"accept-encoding": coding}
    )

    assert "content-encoding" not in dict(short.headers)
    assert dict(response.headers)["content-encoding"] == coding
    unpacked = gzip.decompress(response.body) if coding == "gzip" else zlib.decompress(response.body)
    assert orjson.loads(unpacked)["outputs"][0]["data"] == data
    assert len(response.body) < len(unpacked) / 4
    assert ("packed" in done_in_threads) == (len(unpacked) > 32 * 1024)


async def test_what_hardly_shrinks_goes_as_it_is(plane: Plane) -> None:
    data = random.randbytes(100_000)
    tensor = {
        "name": "UINT8",
        "shape": [1, len(data)],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 100_000},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"inference-header-content-length": str(len(head)), "accept-encoding": "gzip, deflate"}

    response = await plane.send("POST", INFER, head + data, headers)

    assert "content-encoding" not in dict(response.headers)
    assert response.body.endswith(data)
