"""What is fuzzed: each target takes bytes, and raises AssertionError, or whatever was never meant to come out.

`SEEDS` are well-formed inputs, from which mutations reach further than noise does.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from backends.contract import Tensor
from backends.errors import Code, PointsmanError
from gateway.grpc_edge import contents, wire
from gateway.http.oip_body import header_length, parse
from gateway.http.protocol import RequestReader, WireLimits
from gateway.oip.parameters import sort
from tests.fuzz import reference

WIRE = WireLimits(head_bytes=4096, headers=20, chunks=100, placed_bytes=4)
BODY_BYTES = 1 << 16
JSON_BYTES = 1 << 16
_CUTS = 6
REFUSALS = {Code.INVALID_ARGUMENT, Code.UNSUPPORTED_MEDIA, Code.TOO_LARGE, Code.UNIMPLEMENTED}
"""What a body alone can be refused for."""
WIRE_REFUSALS = {*REFUSALS, Code.HEADERS_TOO_LARGE, Code.UNMET_EXPECTATION}
"""What a request can be refused for before it is read whole."""


def http_requests(data: bytes) -> None:
    """The first bytes say where the rest is cut; it is read as the reference reads it, or refused."""
    cuts, sent = data[:_CUTS], data[_CUTS:]
    at = sorted({cut * len(sent) // 256 for cut in cuts})
    read_like_the_reference([sent[a:b] for a, b in zip([0, *at], [*at, len(sent)], strict=True) if a < b])


def read_like_the_reference(parts: Sequence[bytes]) -> None:
    """Hold the reader of requests against the reference, on a stream that comes in *parts*."""
    expected = reference.read(b"".join(parts), WIRE, BODY_BYTES)
    found, refused, keeps = read_in(parts)
    if refused:
        assert found == expected.requests[: len(found)], "it read what is not there"
        return
    assert not expected.refused, "it refused nothing"
    assert found == expected.requests, "it read something else"
    assert keeps is bool(expected.rest), "it kept, or dropped, bytes of the next request"


def read_in(parts: Sequence[bytes]) -> tuple[list[reference.Read], bool, bool]:
    """The requests that are read of *parts*, whether what follows is refused, and whether something is left of them."""
    reader = RequestReader(WIRE, BODY_BYTES)
    found: list[reference.Read] = []
    try:
        for part in parts:
            request = reader.read(part)
            while request is not None:
                found.append((request.method, request.path, request.query, dict(request.headers), request.octets))
                request = reader.read(b"")
    except PointsmanError as error:
        _check(error, WIRE_REFUSALS)
        return found, True, False
    return found, False, not reader.is_between_requests


def infer_body(data: bytes) -> None:
    """The first three bytes say how much of the rest is JSON; the rest is a request, or it is refused."""
    stated, body = data[:3], data[3:]
    length = None if len(stated) < 3 or stated[0] % 2 == 0 else int.from_bytes(stated[1:], "big")
    try:
        json_bytes = header_length(None if length is None else str(length), len(body))
        found = parse(body, json_bytes or None, JSON_BYTES)
    except PointsmanError as error:
        _check(error)
        return
    _no_more_than_came(found.tensors.values(), len(body))
    json.loads(bytes(body[: json_bytes or None]), object_pairs_hook=_once)


def _check(error: PointsmanError, codes: Collection[Code] = REFUSALS) -> None:
    """A refusal has one of *codes*, and a message that does not quote at length."""
    assert error.code in codes, error
    assert len(str(error)) < 2000, "a message that quotes at length"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "two equal keys were read as one"
    return dict(pairs)


def grpc_message(data: bytes) -> None:
    """*data* as a ModelInferRequest is a request, or it is refused."""
    kind = pb.ModelInferRequest
    fields = wire._fields(kind.DESCRIPTOR, data)
    assert fields <= len(data)
    try:
        wire.check_structure(kind.DESCRIPTOR, data)
        request = kind.FromString(data)
    except (DecodeError, PointsmanError):
        return
    try:
        sort(contents.parameters(request.parameters))
        found = contents.tensors(request)
    except PointsmanError as error:
        _check(error)
        return
    _no_more_than_came(found.values(), len(data))


def _no_more_than_came(tensors: Any, size: int) -> None:
    """Tensors take no memory that was only promised."""
    held = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
    assert held <= 16 * size + 1024, f"{held} bytes for {size}"


def _an_input(**changes: Any) -> bytes:
    found = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5], **changes}
    return json.dumps({"id": "7", "inputs": [{k: v for k, v in found.items() if v is not None}]}).encode()


def _binary(tail: bytes, **changes: Any) -> bytes:
    head = _an_input(data=None, parameters={"binary_data_size": len(tail)}, **changes)
    return b"\1" + struct.pack(">H", len(head)) + head + tail


def _message(**changes: Any) -> bytes:
    an_input = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    found: bytes = pb.ModelInferRequest(**{"model_name": "m", "inputs": [an_input], **changes}).SerializeToString()
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "http_requests": http_requests,
    "infer_body": infer_body,
    "grpc_message": grpc_message,
}
SEEDS: dict[str, Sequence[bytes]] = {
    "http_requests": [
        b"\x20\x40\x60\x80\xa0\xc0" + sent
        for sent in (
            b"GET /v2?a=b HTTP/1.1\r\nHost: a\r\nX-A: b\r\nx-a:\t c \r\n\r\n" * 2,
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\nGET",
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nInference-Header-Content-Length: 2\r\n\r\nhello" * 2,
            b"INVENT /a HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n\r\n",
        )
    ],
    "infer_body": [
        b"\0\0\0" + _an_input(),
        b"\0\0\0" + _an_input(datatype="BYTES", data=["a:b", "\\u003a"]),
        b"\0\0\0"
        + _an_input(datatype="UINT8", data=[[0, 255]])[:-1]
        + b',"outputs":[{"name":"y"}],"parameters":{"a":1}}',
        _binary(struct.pack("<2f", 1, 2.5)),
        _binary(b"", shape=[0, 2**62]),
        _binary(b"\1\0\0\0a\0\0\0\0", datatype="BYTES"),
        _binary(b"\1\0", datatype="BOOL"),
    ],
    "grpc_message": [
        _message(raw_input_contents=[b"\0" * 8]),
        _message(inputs=[{"name": "x", "datatype": "INT64", "shape": [2, 0, 2**62], "contents": {}}]),
        _message(inputs=[{"name": "x", "datatype": "INT8", "shape": [2], "contents": {"int_contents": [-128, 127]}}]),
        _message(
            inputs=[{"name": "x", "datatype": "BYTES", "shape": [1, 1]}],
            raw_input_contents=[b"\2\0\0\0hi"],
            parameters={"timeout": {"int64_param": 9}, "b": {"string_param": "c"}},
            outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 3}}}],
        ),
    ],
}
