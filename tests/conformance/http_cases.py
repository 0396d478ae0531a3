"""Calls over HTTP, as bytes: what a client of the protocol may send, and what it should not.

Left out is what ends this Triton: classes of BYTES.
"""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.conformance.observed import exactly, kinds, names, of_error, of_http_inference
from tests.conformance.repository import LABELS

HEADER_LENGTH = "Inference-Header-Content-Length"

View = Callable[[object], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class HttpCase:
    """A request, and how the body of a good reply is compared.

    Attributes:
        view: of the JSON in a good reply; None: it is an inference response.
    """

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    view: View | None = None


def observe(case: HttpCase, address: str) -> dict[str, object]:
    """The facets of the reply to *case* of the server at *address*."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(case.method, case.path, case.body, dict(case.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    found: dict[str, object] = {"status": response.status}
    if response.status >= 400:
        return {**found, **of_error(_error(body))}
    coding = response.headers.get("Content-Encoding")
    if coding is not None:
        body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body)
    found["coding"] = coding
    if case.view is not None:
        return {**found, **case.view(json.loads(body) if body else {})}
    found["content_type"] = response.headers.get("Content-Type")
    try:
        return {**found, **of_http_inference(body, response.headers.get(HEADER_LENGTH))}
    except UnicodeDecodeError:
        return {**found, "text": False}


def _error(body: bytes) -> object:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found.get("error") if isinstance(found, dict) else None


def nothing(body: object) -> Mapping[str, object]:
    """The view of a body that says no more than the status."""
    return {}


def _packed(message: Mapping[str, Any], *tensors: bytes, **headers: str) -> dict[str, Any]:
    """The body and headers of a request with binary tensor data."""
    text = json.dumps(message).encode()
    return {"body": b"".join([text, *tensors]), "headers": {HEADER_LENGTH: str(len(text)), **headers}}


def _text(message: object) -> dict[str, Any]:
    return {"body": json.dumps(message).encode(), "headers": {"Content-Type": "application/json"}}


def _bytes(*rows: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in rows)


_ROW = np.arange(16, dtype=np.float32)
_RAW = _ROW.tobytes()


def x(**other: Any) -> dict[str, Any]:
    """The input of `dbl`; *other* members replace its own, and None takes one out."""
    found = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": _ROW.tolist(), **other}
    return {name: value for name, value in found.items() if value is not None}


def _number(name: str, *values: int) -> dict[str, Any]:
    return {"name": name, "shape": [1, len(values)], "datatype": "INT32", "data": list(values)}


def _same(datatype: str, *values: Any, **other: Any) -> dict[str, Any]:
    return _text({"inputs": [{"name": "x", "shape": [1, len(values)], "datatype": datatype, "data": values, **other}]})


def _asking(*outputs: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    return _text({"inputs": [x()], "outputs": outputs, **members})


def _classes(model_input: list[float], k: object, output: str = "scores", **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [len(model_input) // 4, 4], "datatype": "FP32", "data": model_input}
    return _text({"inputs": [tensor], "outputs": [{"name": output, "parameters": {"classification": k, **more}}]})


_DBL = "/v2/models/dbl/infer"
_PAIR = "/v2/models/sums/infer"
_BINARY_X = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
_GOOD = _text({"inputs": [x()]})


def _get(name: str, path: str, view: View = nothing) -> HttpCase:
    return HttpCase(name, "GET", path, view=view)


def _post(name: str, path: str, view: View | None = None, **request: Any) -> HttpCase:
    return HttpCase(name, "POST", path, view=view, **request)


HEALTH = (
    _get("live", "/v2/health/live"),
    _get("ready", "/v2/health/ready"),
    _get("model ready", "/v2/models/dbl/ready"),
    _get("version ready", "/v2/models/dbl/versions/1/ready"),
    _get("unknown model ready", "/v2/models/nowhere/ready"),
    _get("unknown version ready", "/v2/models/dbl/versions/7/ready"),
    HttpCase("live, by POST", "POST", "/v2/health/live", view=nothing),
)

METADATA = (
    _get("server", "/v2", exactly),
    _get("server, with a slash", "/v2/", exactly),
    *(
        _get(f"metadata of {name}", f"/v2/models/{name}", exactly)
        for name in ("dbl", "sums", "animals", "same_bytes", "grid")
    ),
    _get("metadata of a version", "/v2/models/dbl/versions/1", exactly),
    _get("metadata of no model", "/v2/models/nowhere", exactly),
    _get("metadata of no version", "/v2/models/dbl/versions/7", exactly),
    _get("metadata of a version that is no number", "/v2/models/dbl/versions/x", exactly),
    HttpCase("metadata, by POST", "POST", "/v2/models/dbl", view=exactly),
    HttpCase("metadata, by DELETE", "DELETE", "/v2/models/dbl", view=exactly),
    _get("nothing there", "/v2/nothing"),
    _get("nothing there at all", "/nothing"),
    _get("config", "/v2/models/dbl/config", exactly),
    _get("config of a version", "/v2/models/dbl/versions/1/config", exactly),
    _get("config of no model", "/v2/models/nowhere/config"),
    _get("config of no version", "/v2/models/dbl/versions/7/config"),
    HttpCase("config, by POST", "POST", "/v2/models/dbl/config", view=nothing),
    _get("stats", "/v2/models/dbl/stats", kinds),
    _get("stats of a version", "/v2/models/dbl/versions/1/stats", kinds),
    _get("stats of all", "/v2/models/stats", names),
    _get("stats of no model", "/v2/models/nowhere/stats"),
    _get("stats of no version", "/v2/models/dbl/versions/7/stats"),
    HttpCase("stats, by POST", "POST", "/v2/models/dbl/stats", view=nothing),
    _post("index", "/v2/repository/index", exactly),
    _post("index, an empty object", "/v2/repository/index", exactly, body=b"{}"),
    _post("index of what is ready", "/v2/repository/index", exactly, body=b'{"ready": true}'),
    _post("index, ready is a text", "/v2/repository/index", exactly, body=b'{"ready": "yes"}'),
    _post("index, no JSON", "/v2/repository/index", exactly, body=b"{"),
    _get("index, by GET", "/v2/repository/index"),
    _post("load", "/v2/repository/models/dbl/load", nothing, body=b"{}"),
    _post("load of no model", "/v2/repository/models/nowhere/load", nothing, body=b"{}"),
    _post("unload", "/v2/repository/models/waits/unload", nothing, body=b"{}"),
    _get("load, by GET", "/v2/repository/models/dbl/load"),
)

EXTENSIONS = (
    _get("trace setting", "/v2/trace/setting"),
    _get("trace setting of a model", "/v2/models/dbl/trace/setting"),
    _get("logging", "/v2/logging"),
    _get("cuda memory status", "/v2/cudasharedmemory/status"),
    _post("cuda memory register", "/v2/cudasharedmemory/region/r/register", nothing, body=b"{}"),
    _post("cuda memory unregister", "/v2/cudasharedmemory/unregister", nothing),
    _post(
        "sequence",
        _DBL,
        **_text({"inputs": [x()], "parameters": {"sequence_id": 7, "sequence_start": True, "sequence_end": True}}),
    ),
    _post("sequence 0", _DBL, **_text({"inputs": [x()], "parameters": {"sequence_id": 0, "sequence_start": False}})),
    _post(
        "an input in no region",
        _DBL,
        **_text({"inputs": [x(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 64})]}),
    ),
    _post("generate", "/v2/models/dbl/generate", nothing, **_text({"x": 1})),
)

INFER = (
    _post("json", _DBL, **_GOOD),
    _post("json, nested", _DBL, **_text({"inputs": [x(data=[_ROW.tolist()])]})),
    _post("json, without a content type", _DBL, body=_GOOD["body"]),
    _post("json, text/plain", _DBL, body=_GOOD["body"], headers={"Content-Type": "text/plain"}),
    _post("json, three items", _DBL, **_text({"inputs": [x(shape=[3, 16], data=_ROW.tolist() * 3)]})),
    _post("json, sixty-four items", _DBL, **_text({"inputs": [x(shape=[64, 16], data=_ROW.tolist() * 64)]})),
    _post(
        "json, more items than a batch holds", _DBL, **_text({"inputs": [x(shape=[65, 16], data=_ROW.tolist() * 65)]})
    ),
    _post("json, no items", _DBL, **_text({"inputs": [x(shape=[0, 16], data=[])]})),
    _post("json, integers as floats", _DBL, **_text({"inputs": [x(data=list(range(16)))]})),
    _post("version", "/v2/models/dbl/versions/1/infer", **_GOOD),
    _post("no such version", "/v2/models/dbl/versions/7/infer", **_GOOD),
    _post("a version that is no number", "/v2/models/dbl/versions/x/infer", **_GOOD),
    _post("no such model", "/v2/models/nowhere/infer", **_GOOD),
    _post("no such model, nothing in it", "/v2/models/nowhere/infer"),
    HttpCase("by GET", "GET", _DBL),
    HttpCase("by PUT", "PUT", _DBL, **_GOOD),
    _post("id", _DBL, **_text({"id": "seven", "inputs": [x()]})),
    _post("id, empty", _DBL, **_text({"id": "", "inputs": [x()]})),
    _post("id, unicode", _DBL, **_text({"id": "sieben: ⑦", "inputs": [x()]})),
    _post("id, a number", _DBL, **_text({"id": 7, "inputs": [x()]})),
    _post("unknown members", _DBL, **_text({"inputs": [x(more=1)], "more": {"a": [1]}})),
    _post("two inputs", _PAIR, **_text({"inputs": [_number("a", 1, 2), _number("b", 10, 20)]})),
    _post("two inputs, the other way round", _PAIR, **_text({"inputs": [_number("b", 1, 2), _number("a", 10, 20)]})),
    _post("an input is missing", _PAIR, **_text({"inputs": [_number("a", 1, 2)]})),
    _post("an input is there twice", _PAIR, **_text({"inputs": [_number("a", 1), _number("a", 1), _number("b", 2)]})),
    _post("one twice, another missing", _PAIR, **_text({"inputs": [_number("a", 1), _number("a", 1)]})),
    _post("an input too many", _DBL, **_text({"inputs": [x(), x(name="z")]})),
    _post(
        "inputs of several batches",
        _PAIR,
        **_text({"inputs": [_number("a", 1, 2), {**_number("b", 1, 2), "shape": [2, 1]}]}),
    ),
    _post("no inputs", _DBL, **_text({"inputs": []})),
    _post("inputs are missing", _DBL, **_text({})),
    _post("inputs are an object", _DBL, **_text({"inputs": {"x": 1}})),
    _post("an input is a number", _DBL, **_text({"inputs": [1]})),
    _post("the body is a list", _DBL, **_text([])),
    _post("no body", _DBL),
    _post("malformed JSON", _DBL, body=b'{"inputs": [', headers={"Content-Type": "application/json"}),
    _post("JSON and more", _DBL, body=_GOOD["body"] + b"x"),
    _post("not UTF-8", _DBL, body=b'{"id": "\xff", "inputs": []}'),
    _post("wrong name", _DBL, **_text({"inputs": [x(name="z")]})),
    _post("no name", _DBL, **_text({"inputs": [x(name=None)]})),
    _post("wrong datatype", _DBL, **_text({"inputs": [x(datatype="FP64")]})),
    _post("unknown datatype", _DBL, **_text({"inputs": [x(datatype="FP8")]})),
    _post("no datatype", _DBL, **_text({"inputs": [x(datatype=None)]})),
    _post("wrong shape", _DBL, **_text({"inputs": [x(shape=[1, 15], data=_ROW.tolist()[:15])]})),
    _post("wrong rank", _DBL, **_text({"inputs": [x(shape=[16])]})),
    _post("negative shape", _DBL, **_text({"inputs": [x(shape=[-1, 16])]})),
    _post("no shape", _DBL, **_text({"inputs": [x(shape=None)]})),
    _post("shape of texts", _DBL, **_text({"inputs": [x(shape=["1", "16"])]})),
    _post("no data", _DBL, **_text({"inputs": [x(data=None)]})),
    _post("too few elements", _DBL, **_text({"inputs": [x(data=_ROW.tolist()[:15])]})),
    _post("too many elements", _DBL, **_text({"inputs": [x(data=[*_ROW.tolist(), 1.0])]})),
    _post("elements are texts", _DBL, **_text({"inputs": [x(data=["a"] * 16)]})),
    _post("elements are null", _DBL, **_text({"inputs": [x(data=[None] * 16)]})),
    _post("data is a number", _DBL, **_text({"inputs": [x(data=1)]})),
    _post("ragged data", _DBL, **_text({"inputs": [x(shape=[2, 16], data=[_ROW.tolist(), _ROW.tolist()[:3]])]})),
    _post("output", _DBL, **_asking({"name": "y"})),
    _post("outputs, none asked", _PAIR, **_text({"inputs": [_number("a", 1), _number("b", 2)], "outputs": []})),
    _post(
        "one output of two",
        _PAIR,
        **_text({"inputs": [_number("a", 1), _number("b", 2)], "outputs": [{"name": "difference"}]}),
    ),
    _post(
        "outputs in another order",
        _PAIR,
        **_text({"inputs": [_number("a", 1), _number("b", 2)], "outputs": [{"name": "difference"}, {"name": "sum"}]}),
    ),
    _post("unknown output", _DBL, **_asking({"name": "z"})),
    _post("output without a name", _DBL, **_asking({})),
    _post("an output twice", _DBL, **_asking({"name": "y"}, {"name": "y"})),
    _post("output, binary", _DBL, **_asking({"name": "y", "parameters": {"binary_data": True}})),
    _post(
        "outputs, one binary",
        _PAIR,
        **_text(
            {
                "inputs": [_number("a", 1), _number("b", 2)],
                "outputs": [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "difference"}],
            }
        ),
    ),
    _post("all outputs binary", _DBL, **_text({"inputs": [x()], "parameters": {"binary_data_output": True}})),
    _post(
        "all outputs binary, one asked for in JSON",
        _DBL,
        **_asking({"name": "y", "parameters": {"binary_data": False}}, parameters={"binary_data_output": True}),
    ),
    _post("all outputs binary, one asked for", _DBL, **_asking({"name": "y"}, parameters={"binary_data_output": True})),
    _post("binary_data is a text", _DBL, **_asking({"name": "y", "parameters": {"binary_data": "yes"}})),
    _post("fails", "/v2/models/fails/infer", **_same("FP32", -1.0)),
    _post("does not fail", "/v2/models/fails/infer", **_same("FP32", 1.0)),
)


def _bf16_case(name: str, *, binary_output: bool) -> HttpCase:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
    packed = _packed({"inputs": [tensor], "parameters": {"binary_data_output": binary_output}}, b"\xc0\x3f\x80\x7f")
    return _post(name, "/v2/models/same_bf16/infer", **packed)


BINARY = (
    _post("binary", _DBL, **_packed({"inputs": [_BINARY_X]}, _RAW)),
    _post("binary, at an odd address", _DBL, **_packed({"inputs": [_BINARY_X], "id": "1"}, _RAW)),
    _post(
        "binary, octet-stream",
        _DBL,
        **_packed({"inputs": [_BINARY_X]}, _RAW, **{"Content-Type": "application/octet-stream"}),
    ),
    _post(
        "binary both ways", _DBL, **_packed({"inputs": [_BINARY_X], "parameters": {"binary_data_output": True}}, _RAW)
    ),
    _post(
        "binary, three items",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "shape": [3, 16], "parameters": {"binary_data_size": 192}}]}, _RAW * 3),
    ),
    _post(
        "binary, no items",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "shape": [0, 16], "parameters": {"binary_data_size": 0}}]}),
    ),
    _post(
        "binary and JSON",
        _PAIR,
        **_packed(
            {
                "inputs": [
                    _number("a", 1),
                    {"name": "b", "shape": [1, 1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
                ]
            },
            struct.pack("<i", 5),
        ),
    ),
    _post(
        "binary, size does not fit the shape",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "parameters": {"binary_data_size": 60}}]}, _RAW[:60]),
    ),
    _post(
        "binary, size beyond the body",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "parameters": {"binary_data_size": 64}}]}, _RAW[:60]),
    ),
    _post("binary, more than is claimed", _DBL, **_packed({"inputs": [_BINARY_X]}, _RAW, b"more")),
    _post(
        "binary, negative size",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "parameters": {"binary_data_size": -1}}]}, _RAW),
    ),
    _post(
        "binary, size is a text",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "parameters": {"binary_data_size": "64"}}]}, _RAW),
    ),
    _post("binary, beside data", _DBL, **_packed({"inputs": [{**x(), "parameters": {"binary_data_size": 64}}]}, _RAW)),
    _post("binary, no header length", _DBL, body=_packed({"inputs": [_BINARY_X]}, _RAW)["body"]),
    _post("header length beyond the body", _DBL, body=_GOOD["body"], headers={HEADER_LENGTH: "99999"}),
    _post("header length is no number", _DBL, body=_GOOD["body"], headers={HEADER_LENGTH: "x"}),
    _post("header length, negative", _DBL, body=_GOOD["body"], headers={HEADER_LENGTH: "-1"}),
    _post("header length, all of it JSON", _DBL, body=_GOOD["body"], headers={HEADER_LENGTH: str(len(_GOOD["body"]))}),
    _post("raw body", _DBL, body=_RAW, headers={HEADER_LENGTH: "0"}),
    _post("raw body of the wrong size", _DBL, body=_RAW[:60], headers={HEADER_LENGTH: "0"}),
    _post("raw body, empty", _DBL, headers={HEADER_LENGTH: "0"}),
    _post(
        "raw body of varying length", "/v2/models/same_int16/infer", body=b"\1\0\2\0\3\0", headers={HEADER_LENGTH: "0"}
    ),
    _post("raw body of half an element", "/v2/models/same_int16/infer", body=b"\1\0\2", headers={HEADER_LENGTH: "0"}),
    _post("raw body of BYTES", "/v2/models/same_bytes/infer", body=b"as it is\0", headers={HEADER_LENGTH: "0"}),
    _post("raw body of one BYTES", "/v2/models/text/infer", body=b"as it is\0", headers={HEADER_LENGTH: "0"}),
    _post("raw body, two inputs", _PAIR, body=_RAW, headers={HEADER_LENGTH: "0"}),
    _post("raw body, no model", "/v2/models/nowhere/infer", body=_RAW, headers={HEADER_LENGTH: "0"}),
    _post("FP16 in JSON", "/v2/models/same_fp16/infer", **_same("FP16", 1.5)),
    _post(
        "FP16 raw, replied in JSON",
        "/v2/models/same_fp16/infer",
        **_packed(
            {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}]},
            b"\0\x3e",
        ),
    ),
    _post(
        "BF16 to a model of FP32",
        _DBL,
        **_packed({"inputs": [{**_BINARY_X, "datatype": "BF16", "parameters": {"binary_data_size": 32}}]}, _RAW[:32]),
    ),
    _bf16_case("BF16 raw, replied raw", binary_output=True),
    _bf16_case("BF16 raw, replied in JSON", binary_output=False),
    _post("BF16 in JSON", "/v2/models/same_bf16/infer", **_same("BF16", 1.5)),
    _post(
        "BOOL byte that is neither",
        "/v2/models/same_bool/infer",
        **_packed(
            {
                "inputs": [{"name": "x", "shape": [1, 1], "datatype": "BOOL", "parameters": {"binary_data_size": 1}}],
                "parameters": {"binary_data_output": True},
            },
            b"\2",
        ),
    ),
)


def _bytes_case(name: str, data: bytes, count: int = 1, *, binary_output: bool = True) -> HttpCase:
    tensor = {"name": "x", "shape": [1, count], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    packed = _packed({"inputs": [tensor], "parameters": {"binary_data_output": binary_output}}, data)
    return _post(name, "/v2/models/same_bytes/infer", **packed)


ELEMENTS = (
    *(
        _post(f"{datatype}, {name}", f"/v2/models/same_{datatype.lower()}/infer", **_same(datatype, *values))
        for datatype, name, values in (
            ("BOOL", "both", (True, False)),
            ("BOOL", "a number", (1, 0)),
            ("UINT8", "extremes", (0, 255)),
            ("UINT8", "too great", (256,)),
            ("UINT8", "negative", (-1,)),
            ("UINT8", "a fraction", (1.5,)),
            ("INT8", "extremes", (-128, 127)),
            ("INT8", "too great", (128,)),
            ("INT16", "extremes", (-(2**15), 2**15 - 1)),
            ("UINT16", "extremes", (0, 2**16 - 1)),
            ("INT32", "extremes", (-(2**31), 2**31 - 1)),
            ("INT32", "too great", (2**31,)),
            ("INT32", "true", (True,)),
            ("INT32", "a whole float", (1.0,)),
            ("UINT32", "extremes", (0, 2**32 - 1)),
            ("INT64", "extremes", (-(2**63), 2**63 - 1)),
            ("INT64", "too great", (2**63,)),
            ("UINT64", "extremes", (0, 2**64 - 1)),
            ("UINT64", "too great", (2**64,)),
            ("FP32", "extremes", (3.4028234663852886e38, -1.1754943508222875e-38, -0.0)),
            ("FP32", "too great", (1e39,)),
            ("FP32", "infinite in Python's JSON", (float("inf"),)),
            ("FP32", "not a number in Python's JSON", (float("nan"),)),
            ("FP64", "extremes", (1.7976931348623157e308, 5e-324)),
            ("FP64", "to the last bit", (2.0**-24,)),
            ("BYTES", "texts", ("", "a", "ü – ⑦", "\0", "line\nline", '"quoted"')),
            ("BYTES", "no elements", ()),
            ("BYTES", "a number", (1,)),
            ("INT32", "no elements", ()),
        )
    ),
    _post(
        "FP32 raw, not finite, replied in JSON",
        "/v2/models/same_fp32/infer",
        **_packed(
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]},
            np.array([np.nan, np.inf], np.float32).tobytes(),
        ),
    ),
    _post(
        "FP32 raw, not finite, replied raw",
        "/v2/models/same_fp32/infer",
        **_packed(
            {
                "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
                "parameters": {"binary_data_output": True},
            },
            np.array([np.nan, np.inf], np.float32).tobytes(),
        ),
    ),
    _bytes_case("BYTES raw, empty elements", _bytes(b"", b""), 2),
    _bytes_case("BYTES raw, NUL within", _bytes(b"\0a\0"), 1),
    _bytes_case("BYTES raw, not UTF-8", _bytes(b"\xff\xfe"), 1),
    _bytes_case("BYTES raw, not UTF-8, replied in JSON", _bytes(b"\xff\xfe"), 1, binary_output=False),
    _bytes_case("BYTES raw, NUL within, replied in JSON", _bytes(b"\0a"), 1, binary_output=False),
    _bytes_case("BYTES raw, an element too few", _bytes(b"a"), 2),
    _bytes_case("BYTES raw, an element too many", _bytes(b"a", b"b"), 1),
    _bytes_case("BYTES raw, length beyond the end", struct.pack("<I", 9) + b"a", 1),
    _bytes_case("BYTES raw, half a length", b"\0\0", 1),
    _bytes_case("BYTES raw, no elements", b"", 0),
    _post(
        "grid",
        "/v2/models/grid/infer",
        **_text({"inputs": [{"name": "x", "shape": [2, 2, 3], "datatype": "INT32", "data": list(range(12))}]}),
    ),
    _post(
        "grid, nested",
        "/v2/models/grid/infer",
        **_text(
            {"inputs": [{"name": "x", "shape": [2, 1, 3], "datatype": "INT32", "data": [[[1, 2, 3]], [[4, 5, 6]]]}]}
        ),
    ),
    _post(
        "grid, nested otherwise than its shape",
        "/v2/models/grid/infer",
        **_text({"inputs": [{"name": "x", "shape": [2, 1, 3], "datatype": "INT32", "data": [[1, 2, 3], [4, 5, 6]]}]}),
    ),
    _post(
        "grid, an axis of no length",
        "/v2/models/grid/infer",
        **_text({"inputs": [{"name": "x", "shape": [1, 0, 3], "datatype": "INT32", "data": []}]}),
    ),
)

CLASSES = (
    _post("one class", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], 1)),
    _post("two classes of two items", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0, 4, 3, 2, 1], 2)),
    _post("more classes than there are", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], 9)),
    _post("no classes", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], 0)),
    _post("classes, negative", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], -1)),
    _post("classes, a text", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], "2")),
    _post("classes, raw", "/v2/models/scores/infer", **_classes([0.1, 0.7, 0.2, 0.0], 2, binary_data=True)),
    _post(
        f"classes with labels ({', '.join(LABELS)})",
        "/v2/models/animals/infer",
        **_classes([0.1, 0.7, 0.2, 0.0], 2, "probabilities"),
    ),
    _post(
        "classes of integers",
        "/v2/models/same_int32/infer",
        **_text(
            {
                "inputs": [{"name": "x", "shape": [1, 3], "datatype": "INT32", "data": [5, 9, -7]}],
                "outputs": [{"name": "y", "parameters": {"classification": 3}}],
            }
        ),
    ),
    _post(
        "classes of BOOL",
        "/v2/models/same_bool/infer",
        **_text(
            {
                "inputs": [{"name": "x", "shape": [1, 2], "datatype": "BOOL", "data": [True, False]}],
                "outputs": [{"name": "y", "parameters": {"classification": 1}}],
            }
        ),
    ),
)


def _parameters(**parameters: Any) -> dict[str, Any]:
    return _text({"inputs": [x()], "parameters": parameters})


PARAMETERS = (
    _post("own parameters", _DBL, **_parameters(text="a", number=7, flag=True)),
    _post("a parameter of a fraction", _DBL, **_parameters(number=0.5)),
    _post("a parameter of null", _DBL, **_parameters(nothing=None)),
    _post("a parameter of a list", _DBL, **_parameters(some=[1, 2])),
    _post("a parameter of an object", _DBL, **_parameters(some={"a": 1})),
    _post("parameters are a list", _DBL, **_text({"inputs": [x()], "parameters": []})),
    _post("priority", _DBL, **_parameters(priority=1)),
    _post("priority, a text", _DBL, **_parameters(priority="high")),
    _post("priority, negative", _DBL, **_parameters(priority=-1)),
    _post("timeout", _DBL, **_parameters(timeout=10_000_000)),
    _post("timeout 0", _DBL, **_parameters(timeout=0)),
    _post("timeout, a text", _DBL, **_parameters(timeout="soon")),
    _post("timeout, negative", _DBL, **_parameters(timeout=-1)),
    _post(
        "timeout that passes while the model works",
        "/v2/models/waits/infer",
        **_text(
            {
                "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.3]}],
                "parameters": {"timeout": 100_000},
            }
        ),
    ),
    _post("headers", _DBL, **_parameters(headers="a")),
    _post("a parameter of Triton's own", _DBL, **_parameters(triton_enable_empty_final_response=True)),
    _post("another parameter of Triton's own", _DBL, **_parameters(triton_something=True)),
    _post("binary_data_output is a text", _DBL, **_parameters(binary_data_output="yes")),
    _post("own parameters of an input", _DBL, **_text({"inputs": [x(parameters={"note": "a"})]})),
)


def _coded(coding: str, body: bytes, **headers: str) -> dict[str, Any]:
    return {"body": body, "headers": {"Content-Encoding": coding, "Content-Type": "application/json", **headers}}


_LONG = _text({"inputs": [x(shape=[64, 16], data=[0.0] * 1024)]})

CODINGS = (
    _post("gzip", _DBL, **_coded("gzip", gzip.compress(_GOOD["body"]))),
    _post("deflate", _DBL, **_coded("deflate", zlib.compress(_GOOD["body"]))),
    _post("identity", _DBL, **_coded("identity", _GOOD["body"])),
    _post(
        "gzip, binary",
        _DBL,
        body=gzip.compress(_packed({"inputs": [_BINARY_X]}, _RAW)["body"]),
        headers={**_packed({"inputs": [_BINARY_X]}, _RAW)["headers"], "Content-Encoding": "gzip"},
    ),
    _post("gzip that is none", _DBL, **_coded("gzip", _GOOD["body"])),
    _post("gzip that ends early", _DBL, **_coded("gzip", gzip.compress(_GOOD["body"])[:-12])),
    _post("unknown coding", _DBL, **_coded("br", _GOOD["body"])),
    *(
        _post(f"long reply, {accept}", _DBL, body=_LONG["body"], headers={"Accept-Encoding": accept})
        for accept in ("gzip", "deflate", "gzip, deflate", "identity", "br", "*", "gzip;q=0", "deflate;q=1, gzip;q=0.5")
    ),
    _post("short reply, gzip", _DBL, body=_GOOD["body"], headers={"Accept-Encoding": "gzip"}),
    _post(
        "long binary reply, gzip",
        _DBL,
        body=_text({"inputs": [x(shape=[64, 16], data=[0.0] * 1024)], "parameters": {"binary_data_output": True}})[
            "body"
        ],
        headers={"Accept-Encoding": "gzip"},
    ),
)

CASES = (*HEALTH, *METADATA, *EXTENSIONS, *INFER, *BINARY, *ELEMENTS, *CLASSES, *PARAMETERS, *CODINGS)
