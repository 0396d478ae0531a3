"""Calls over gRPC, as messages: what a client of the protocol may send, and what it should not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.conformance.observed import exactly, kinds, names, of_grpc_inference, of_message, of_rpc_error

View = Callable[[object], Mapping[str, object]]

# Any, throughout: tritonclient's messages are untyped.


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """A call, and how a good reply is compared.

    Attributes:
        method: of `inference.GRPCInferenceService`.
        request: the message, or bytes that stand for it.
        view: of a good reply in JSON; None: it is an inference response.
    """

    name: str
    method: str
    request: Any
    view: View | None = None


def observe(case: GrpcCase, channel: grpc.Channel) -> dict[str, object]:
    """The facets of the reply to *case*."""
    reply_type = getattr(service_pb2, f"{case.method}Response")
    call: Any = channel.unary_unary(
        f"/inference.GRPCInferenceService/{case.method}", response_deserializer=reply_type.FromString
    )
    data = case.request if isinstance(case.request, bytes) else case.request.SerializeToString()
    try:
        reply = call(data, timeout=30)
    except grpc.RpcError as error:
        return of_rpc_error(error)
    found = of_grpc_inference(reply) if case.view is None else case.view(of_message(reply))
    return {"status": "OK", **found}


def nothing(body: object) -> Mapping[str, object]:
    """The view of a reply that says no more than that it is one."""
    return {}


_ROW = np.arange(16, dtype=np.float32)
_RAW = _ROW.tobytes()
_PLAIN = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
_TYPED = {**_PLAIN, "contents": {"fp32_contents": _ROW.tolist()}}


def _call(case: str, method: str, view: View = nothing, /, **members: Any) -> GrpcCase:
    return GrpcCase(case, method, getattr(service_pb2, f"{method}Request")(**members), view)


def _infer(
    name: str, *inputs: Mapping[str, Any], model: str = "dbl", raw: tuple[bytes, ...] = (), **members: Any
) -> GrpcCase:
    request = service_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **members)
    return GrpcCase(name, "ModelInfer", request)


def _number(name: str, *values: int) -> dict[str, Any]:
    return {"name": name, "shape": [1, len(values)], "datatype": "INT32", "contents": {"int_contents": values}}


def _same(name: str, datatype: str, field: str, *values: Any) -> GrpcCase:
    tensor = {"name": "x", "shape": [1, len(values)], "datatype": datatype, "contents": {f"{field}_contents": values}}
    return _infer(name, tensor, model=f"same_{datatype.lower()}")


def _same_raw(name: str, datatype: str, data: bytes, count: int = 1) -> GrpcCase:
    tensor = {"name": "x", "shape": [1, count], "datatype": datatype}
    return _infer(name, tensor, model=f"same_{datatype.lower()}", raw=(data,))


def _parameter(name: str, **value: Any) -> GrpcCase:
    key = name.rpartition(": ")[2]
    return _infer(f"parameter: {name}", _PLAIN, raw=(_RAW,), parameters={key: value})


ABOUT = (
    _call("live", "ServerLive", exactly),
    _call("ready", "ServerReady", exactly),
    _call("model ready", "ModelReady", exactly, name="dbl"),
    _call("version ready", "ModelReady", exactly, name="dbl", version="1"),
    _call("unknown model ready", "ModelReady", exactly, name="nowhere"),
    _call("unknown version ready", "ModelReady", exactly, name="dbl", version="7"),
    _call("ready without a name", "ModelReady", exactly),
    _call("server", "ServerMetadata", exactly),
    *(
        _call(f"metadata of {name}", "ModelMetadata", exactly, name=name)
        for name in ("dbl", "sums", "same_bytes", "grid")
    ),
    _call("metadata of a version", "ModelMetadata", exactly, name="dbl", version="1"),
    _call("metadata of no model", "ModelMetadata", exactly, name="nowhere"),
    _call("metadata of no version", "ModelMetadata", exactly, name="dbl", version="7"),
    _call("metadata without a name", "ModelMetadata", exactly),
    _call("config", "ModelConfig", exactly, name="dbl"),
    _call("config of no model", "ModelConfig", exactly, name="nowhere"),
    _call("config of no version", "ModelConfig", exactly, name="dbl", version="7"),
    _call("stats", "ModelStatistics", kinds, name="dbl"),
    _call("stats of a version", "ModelStatistics", kinds, name="dbl", version="1"),
    _call("stats of all", "ModelStatistics", names),
    _call("stats of no model", "ModelStatistics", name="nowhere"),
    _call("stats of no version", "ModelStatistics", name="dbl", version="7"),
    _call("index", "RepositoryIndex", exactly),
    _call("index of what is ready", "RepositoryIndex", exactly, ready=True),
    _call("index of a repository", "RepositoryIndex", exactly, repository_name="r"),
    _call("load", "RepositoryModelLoad", model_name="dbl"),
    _call("load of no model", "RepositoryModelLoad", model_name="nowhere"),
    _call("unload", "RepositoryModelUnload", model_name="waits"),
)

EXTENSIONS = (
    _call("trace setting", "TraceSetting"),
    _call("log settings", "LogSettings"),
    _call("cuda memory status", "CudaSharedMemoryStatus"),
    _call("cuda memory register", "CudaSharedMemoryRegister", name="r", raw_handle=b"x", byte_size=4),
    _call("cuda memory unregister", "CudaSharedMemoryUnregister", name="r"),
    _infer(
        "sequence",
        _PLAIN,
        raw=(_RAW,),
        parameters={"sequence_id": {"int64_param": 7}, "sequence_start": {"bool_param": True}},
    ),
    _infer("sequence 0", _PLAIN, raw=(_RAW,), parameters={"sequence_id": {"int64_param": 0}}),
    _infer(
        "an input in no region",
        {
            **_PLAIN,
            "parameters": {
                "shared_memory_region": {"string_param": "r"},
                "shared_memory_byte_size": {"int64_param": 64},
            },
        },
    ),
)

INFER = (
    _infer("typed", _TYPED),
    _infer("raw", _PLAIN, raw=(_RAW,)),
    _infer("raw, three items", {**_PLAIN, "shape": [3, 16]}, raw=(_RAW * 3,)),
    _infer("raw, more items than a batch holds", {**_PLAIN, "shape": [65, 16]}, raw=(_RAW * 65,)),
    _infer("raw, no items", {**_PLAIN, "shape": [0, 16]}, raw=(b"",)),
    _infer("typed, no items", {**_PLAIN, "shape": [0, 16], "contents": {}}),
    _infer("id", _PLAIN, raw=(_RAW,), id="seven"),
    _infer("id, unicode", _PLAIN, raw=(_RAW,), id="sieben: ⑦"),
    _infer("version", _PLAIN, raw=(_RAW,), model_version="1"),
    _infer("no such version", _PLAIN, raw=(_RAW,), model_version="7"),
    _infer("a version that is no number", _PLAIN, raw=(_RAW,), model_version="x"),
    _infer("no such model", _PLAIN, model="nowhere", raw=(_RAW,)),
    _infer("no name", _PLAIN, model="", raw=(_RAW,)),
    _infer("two inputs", _number("a", 1, 2), _number("b", 10, 20), model="sums"),
    _infer(
        "two inputs, raw",
        {"name": "a", "shape": [1, 1], "datatype": "INT32"},
        {"name": "b", "shape": [1, 1], "datatype": "INT32"},
        model="sums",
        raw=(b"\1\0\0\0", b"\2\0\0\0"),
    ),
    _infer(
        "raw and typed, in one request",
        _number("a", 1),
        {"name": "b", "shape": [1, 1], "datatype": "INT32"},
        model="sums",
        raw=(b"\1\0\0\0",),
    ),
    _infer("raw beside typed, for one input", _TYPED, raw=(_RAW,)),
    _infer(
        "too few raw contents",
        {"name": "a", "shape": [1, 1], "datatype": "INT32"},
        {"name": "b", "shape": [1, 1], "datatype": "INT32"},
        model="sums",
        raw=(b"\1\0\0\0",),
    ),
    _infer("too many raw contents", _PLAIN, raw=(_RAW, _RAW)),
    _infer("neither raw nor typed", _PLAIN),
    _infer("an input is missing", _number("a", 1), model="sums"),
    _infer("an input is there twice", _number("a", 1), _number("a", 1), model="sums"),
    _infer("an input too many", _TYPED, {**_TYPED, "name": "z"}),
    _infer("no inputs"),
    _infer("inputs of several batches", _number("a", 1, 2), {**_number("b", 1, 2), "shape": [2, 1]}, model="sums"),
    _infer("wrong name", {**_PLAIN, "name": "z"}, raw=(_RAW,)),
    _infer("wrong datatype", {**_PLAIN, "datatype": "FP64"}, raw=(_RAW * 2,)),
    _infer("unknown datatype", {**_PLAIN, "datatype": "FP8"}, raw=(_RAW,)),
    _infer("no datatype", {"name": "x", "shape": [1, 16]}, raw=(_RAW,)),
    _infer("wrong shape", {**_PLAIN, "shape": [1, 15]}, raw=(_RAW[:60],)),
    _infer("wrong rank", {**_PLAIN, "shape": [16]}, raw=(_RAW,)),
    _infer("negative shape", {**_PLAIN, "shape": [-1, 16]}, raw=(_RAW,)),
    _infer("no shape", {"name": "x", "datatype": "FP32"}, raw=(_RAW,)),
    _infer("raw of the wrong size", _PLAIN, raw=(_RAW[:60],)),
    _infer("typed, too few elements", {**_PLAIN, "contents": {"fp32_contents": [1.0]}}),
    _infer("typed, in another field", {**_PLAIN, "contents": {"fp64_contents": _ROW.tolist()}}),
    _infer("output", _TYPED, outputs=[{"name": "y"}]),
    _infer("unknown output", _TYPED, outputs=[{"name": "z"}]),
    _infer("one output of two", _number("a", 1), _number("b", 2), model="sums", outputs=[{"name": "difference"}]),
    _infer("an output twice", _TYPED, outputs=[{"name": "y"}, {"name": "y"}]),
    _infer(
        "fails",
        {"name": "x", "shape": [1, 1], "datatype": "FP32", "contents": {"fp32_contents": [-1.0]}},
        model="fails",
    ),
    GrpcCase("a message that is none", "ModelInfer", b"\xff\xff\xff"),
    GrpcCase("an empty message", "ModelInfer", b""),
)

ELEMENTS = (
    _same("BOOL", "BOOL", "bool", True, False),
    _same("UINT8", "UINT8", "uint", 0, 255),
    _same("UINT8, too great", "UINT8", "uint", 256),
    _same("INT8", "INT8", "int", -128, 127),
    _same("INT8, too great", "INT8", "int", 128),
    _same("UINT16", "UINT16", "uint", 0, 2**16 - 1),
    _same("INT16", "INT16", "int", -(2**15), 2**15 - 1),
    _same("UINT32", "UINT32", "uint", 0, 2**32 - 1),
    _same("INT32", "INT32", "int", -(2**31), 2**31 - 1),
    _same("UINT64", "UINT64", "uint64", 0, 2**64 - 1),
    _same("INT64", "INT64", "int64", -(2**63), 2**63 - 1),
    _same("FP32", "FP32", "fp32", 1.5, float("inf"), float("nan")),
    _same("FP64", "FP64", "fp64", 1.5, float("-inf"), float("nan")),
    _same("BYTES", "BYTES", "bytes", b"", b"a\0b", "ü".encode(), b"\xff"),
    _same("BYTES, no elements", "BYTES", "bytes"),
    _same("FP16, typed as FP32", "FP16", "fp32", 1.5),
    _same_raw("FP16, raw", "FP16", b"\0\x3e"),
    _same_raw("BF16, raw", "BF16", b"\xc0\x3f\x80\x7f", 2),
    _same("BF16, typed as FP32", "BF16", "fp32", 1.5),
    _same_raw("BOOL, raw, a byte that is neither", "BOOL", b"\2"),
    _same_raw("BYTES, raw", "BYTES", b"\0\0\0\0\2\0\0\0a\0", 2),
    _same_raw("BYTES, raw, an element too few", "BYTES", b"\1\0\0\0a", 2),
    _same_raw("BYTES, raw, an element too many", "BYTES", b"\1\0\0\0a\1\0\0\0b", 1),
    _same_raw("BYTES, raw, length beyond the end", "BYTES", b"\7\0\0\0a", 1),
    _same_raw("BYTES, raw, half a length", "BYTES", b"\0\0", 1),
)

_SCORES = {"name": "x", "shape": [1, 4], "datatype": "FP32", "contents": {"fp32_contents": [0.1, 0.7, 0.2, 0.0]}}


def _classes(name: str, output: str = "scores", model: str = "scores", **k: Any) -> GrpcCase:
    return _infer(name, _SCORES, model=model, outputs=[{"name": output, "parameters": {"classification": k}}])


CLASSES = (
    _classes("one class", int64_param=1),
    _classes("more classes than there are", int64_param=9),
    _classes("no classes", int64_param=0),
    _classes("classes, negative", int64_param=-1),
    _classes("classes, a text", string_param="2"),
    _classes("classes with labels", "probabilities", "animals", int64_param=2),
)

PARAMETERS = (
    _parameter("text", string_param="a"),
    _parameter("number", int64_param=7),
    _parameter("flag", bool_param=True),
    _parameter("fraction", double_param=0.5),
    _parameter("unsigned", uint64_param=7),
    _parameter("nothing"),
    _parameter("priority", uint64_param=1),
    _parameter("a text: priority", string_param="high"),
    _parameter("timeout", int64_param=10_000_000),
    _parameter("a text: timeout", string_param="soon"),
    _parameter("negative: timeout", int64_param=-1),
    _parameter("headers", string_param="a"),
    _parameter("triton_enable_empty_final_response", bool_param=True),
    _parameter("triton_something", bool_param=True),
    _parameter("binary_data_output", bool_param=True),
)

CASES = (*ABOUT, *EXTENSIONS, *INFER, *ELEMENTS, *CLASSES, *PARAMETERS)
