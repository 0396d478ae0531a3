"""Where the gateway means to differ from Triton: the one table, with the reasons.

An entry holds for the cases that it names, and in each of them something must differ in the way it says: an entry that
is no longer true fails its cases, and so does a difference that no entry explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Difference:
    """An intended difference.

    Attributes:
        reason: why the gateway does not do as Triton does.
        cases: where it shows.
        facets: what differs (patterns); the default is everything, as it is where one refuses and the other does not.
        status: Triton's, and ours, where they differ.
    """

    reason: str
    cases: tuple[str, ...]
    facets: tuple[str, ...] = ("*",)
    status: tuple[object, object] | None = None

    def explains(self, facet: str, values: tuple[object, object]) -> bool:
        """Whether Triton's and our *values* of *facet* may differ so."""
        if facet == "status" and self.status is not None:
            return values == self.status
        return any(fnmatchcase(facet, pattern) for pattern in self.facets)

    def shows(self, found: Mapping[str, tuple[object, object]]) -> bool:
        """Whether the differences *found* in a case are (also) this one."""
        if self.status is not None:
            return found.get("status") == self.status
        return any(self.explains(facet, values) for facet, values in found.items())


OURS = ("parameters.pointsman_*", "[0-9].parameters.pointsman_*")
"""Facets that replies of the gateway have beside, those of a stream included: how a decision was come to."""


def faults(case: str, found: Mapping[str, tuple[object, object]]) -> list[str]:
    """What is wrong with the differences *found* in *case*: what no entry explains, and entries that are untrue."""
    entries = [entry for entry in DIFFERENCES if case in entry.cases]
    theirs = {name: pair for name, pair in found.items() if not any(fnmatchcase(name, ours) for ours in OURS)}
    unexplained = [
        f"{facet}: Triton says {pair[0]!r}, the gateway {pair[1]!r}"
        for facet, pair in theirs.items()
        if not any(entry.explains(facet, pair) for entry in entries)
    ]
    untrue = [f"no longer so, take it out of the table: {entry.reason}" for entry in entries if not entry.shows(theirs)]
    return unexplained + untrue


def _http(*names: str) -> tuple[str, ...]:
    return tuple(f"HTTP: {name}" for name in names)


def _grpc(*names: str) -> tuple[str, ...]:
    return tuple(f"gRPC: {name}" for name in names)


def _clients(name: str, *flavours: str) -> tuple[str, ...]:
    return tuple(f"tritonclient.{flavour}: {name}" for flavour in flavours)


def _shared(use: str, *flavours: str) -> tuple[str, ...]:
    return tuple(f"shared memory, {flavour}: {use}" for flavour in flavours or ("http", "http.aio", "grpc", "grpc.aio"))


_METADATA = tuple(f"metadata of {name}" for name in ("dbl", "sums", "same_bytes", "grid", "a version"))

_HOW_TRITON_RUNS_IT = (
    "*backend",
    "*platform",
    "*runtime",
    "*default_model_filename",
    "*instance_group*",
    "*optimization*",
    "*parameters*",
    "*model_transaction_policy*",
    "*is_non_linear_format_io",
    "*dynamic_batching.*priority*",
)

DIFFERENCES = (
    # What this server is
    Difference(
        "its own name and version",
        (*_http("server"), *_grpc("server")),
        ("name", "version"),
    ),
    *(
        Difference(
            "lists the extensions that work here, and no others",
            (*_http("server"), *_grpc("server")),
            (f"extensions.{extension}",),
        )
        for extension in (
            "cuda_shared_memory",
            "logging",
            "model_repository",
            "model_repository(unload_dependents)",
            "trace",
        )
    ),
    Difference(
        "a route is no model of one framework",
        (*_http(*_METADATA, "metadata of animals"), *_grpc(*_METADATA)),
        ("platform",),
    ),
    Difference(
        "a classifier with labels has the output `label` too, which routes and people decide by",
        _http("metadata of animals"),
        ("outputs.label.*",),
    ),
    Difference(
        "tells what clients read of a configuration, and not how Triton would run the model",
        (*_http("config", "config of a version"), *_grpc("config")),
        _HOW_TRITON_RUNS_IT,
    ),
    # What is not served
    Difference(
        "which models are served is for the operator to say: part of what a certificate proves",
        _http("load", "load of no model", "unload"),
        status=(503, 501),
    ),
    Difference(
        "which models are served is for the operator to say: part of what a certificate proves",
        _grpc("load", "load of no model", "unload"),
        status=("UNAVAILABLE", "UNIMPLEMENTED"),
    ),
    Difference(
        "tracing and logging are the operator's to set, and not every caller's",
        _http("trace setting", "trace setting of a model", "logging"),
        status=(200, 404),
    ),
    Difference(
        "tracing and logging are the operator's to set, and not every caller's",
        _grpc("trace setting", "log settings"),
        status=("OK", "UNIMPLEMENTED"),
    ),
    Difference("CUDA shared memory is not served", _http("cuda memory register"), status=(400, 501)),
    Difference(
        "CUDA shared memory is not served",
        _grpc("cuda memory register"),
        status=("INVALID_ARGUMENT", "UNIMPLEMENTED"),
    ),
    Difference("the generate extension is for language models, and not served", _http("generate"), status=(400, 404)),
    # Codes that say what is wrong
    Difference(
        "what does not exist is 404 everywhere, as it is in Triton for metadata and inference",
        _http("unknown model ready", "unknown version ready", "stats of no model", "stats of no version"),
        status=(400, 404),
    ),
    Difference(
        "what does not exist is NOT_FOUND everywhere, as it is in Triton for metadata and inference",
        _grpc("stats of no model", "stats of no version", "a version that is no number"),
        status=("INVALID_ARGUMENT", "NOT_FOUND"),
    ),
    Difference(
        "an empty name is no name, rather than that of a model which does not exist",
        _grpc("metadata without a name", "no name", "an empty message"),
        status=("NOT_FOUND", "INVALID_ARGUMENT"),
    ),
    Difference(
        "an empty name is no name, rather than that of a model which is not ready",
        _grpc("ready without a name"),
        status=("OK", "INVALID_ARGUMENT"),
    ),
    Difference(
        "the body is read before the model is looked up",
        _http("no such model, nothing in it"),
        status=(404, 400),
    ),
    Difference(
        "what the caller did wrong is 400: a 5xx would be sent again, and would wake somebody",
        _http(
            "index, ready is a text",
            "index, no JSON",
            "id, a number",
            "inputs are missing",
            "inputs are an object",
            "the body is a list",
            "malformed JSON",
            "JSON and more",
            "no name",
            "no datatype",
            "negative shape",
            "no shape",
            "shape of texts",
            "too few elements",
            "too many elements",
            "elements are texts",
            "elements are null",
            "data is a number",
            "ragged data",
            "output without a name",
            "binary_data is a text",
            "binary, negative size",
            "binary, size is a text",
            "BOOL, a number",
            "UINT8, negative",
            "UINT8, a fraction",
            "INT32, true",
            "INT32, a whole float",
            "INT64, too great",
            "UINT64, too great",
            "BYTES, a number",
            "classes, negative",
            "classes, a text",
            "parameters are a list",
            "timeout, a text",
            "timeout, negative",
            "priority, a text",
            "priority, negative",
            "binary_data_output is a text",
            "gzip that ends early",
        ),
        status=(500, 400),
    ),
    Difference(
        "what the caller did wrong is INVALID_ARGUMENT",
        _grpc("a message that is none"),
        status=("INTERNAL", "INVALID_ARGUMENT"),
    ),
    Difference(
        "each request of a stream is refused for itself, one that is no message too; Triton ends the stream",
        ("stream: a message that is none",),
    ),
    Difference("Triton's error is not UTF-8, and so no JSON", _http("not UTF-8"), ("error",)),
    Difference("a model that fails is told from a fault of the gateway", _http("fails"), status=(500, 502)),
    Difference(
        "a model that fails is told from a fault of the gateway",
        _clients("fails", "http", "http.aio"),
        status=("500", "502"),
    ),
    Difference("415 is what HTTP has for it", _http("unknown coding"), status=(501, 415)),
    Difference(
        "a body of another type was meant for something else; pages of other origins can send it unasked",
        _http("json, text/plain"),
        status=(200, 415),
    ),
    # What Triton takes, and changes silently
    Difference(
        "a number that the datatype cannot hold is refused; Triton wraps it, or makes it infinite",
        _http("UINT8, too great", "INT8, too great", "INT32, too great", "FP32, too great"),
        status=(200, 400),
    ),
    Difference(
        "a number that the datatype cannot hold is refused; Triton wraps it",
        _grpc("UINT8, too great", "INT8, too great"),
        status=("OK", "INVALID_ARGUMENT"),
    ),
    Difference(
        "JSON has no such numbers (RFC 8259, 6)",
        _http("FP32, infinite in Python's JSON", "FP32, not a number in Python's JSON"),
        status=(200, 400),
    ),
    Difference(
        "a number in JSON is the double that is nearest to it; Triton's reader is off by the last bit at times",
        _http("FP64, to the last bit"),
        ("outputs.y.elements",),
    ),
    Difference(
        "JSON has no infinity: it is told as null, and travels raw",
        _http("FP32 raw, not finite, replied in JSON"),
        ("outputs.y.elements",),
    ),
    Difference(
        "JSON is UTF-8: other bytes travel raw; Triton's reply is no JSON",
        _http("BYTES raw, not UTF-8, replied in JSON"),
        status=(200, 400),
    ),
    Difference("a BOOL is 0 or 1", _http("BOOL byte that is neither"), status=(200, 400)),
    Difference("a BOOL is 0 or 1", _grpc("BOOL, raw, a byte that is neither"), status=("OK", "INVALID_ARGUMENT")),
    Difference(
        "nested data has the shape that is stated, or the request contradicts itself",
        _http("grid, nested otherwise than its shape"),
        status=(200, 400),
    ),
    Difference(
        "an output that is asked for twice can be asked for in two ways, of which only one could be answered",
        _http("an output twice"),
        status=(200, 400),
    ),
    Difference(
        "an output that is asked for twice can be asked for in two ways, of which only one could be answered",
        _grpc("an output twice"),
        status=("OK", "INVALID_ARGUMENT"),
    ),
    Difference(
        "contents that belong to no input are a mistake of their sender",
        _grpc("too many raw contents"),
        status=("OK", "INVALID_ARGUMENT"),
    ),
    Difference(
        "a timeout below 0 is a mistake; Triton waits for ever",
        _grpc("parameter: negative: timeout"),
        status=("OK", "INVALID_ARGUMENT"),
    ),
    # What Triton refuses, and is served here
    Difference(
        "a request may hold more items than a batch: it is cut into several",
        _http("json, more items than a batch holds"),
        status=(400, 200),
    ),
    Difference(
        "a request may hold more items than a batch: it is cut into several",
        _grpc("raw, more items than a batch holds"),
        status=("INVALID_ARGUMENT", "OK"),
    ),
    Difference(
        "FP16 has a form in JSON like other numbers",
        _http("FP16 in JSON", "FP16 raw, replied in JSON"),
        status=(400, 200),
    ),
    Difference(
        "one element is an item of a BYTES input of varying length too", _http("raw body of BYTES"), status=(400, 200)
    ),
    Difference("no classes are asked for, as over HTTP", _grpc("no classes"), status=("INVALID_ARGUMENT", "OK")),
    Difference(
        "the client's own parameters can be unsigned, as the protocol has them",
        _grpc("parameter: unsigned"),
        status=("INVALID_ARGUMENT", "OK"),
    ),
    Difference(
        "tritonclient sends it over gRPC, where Triton takes it: the same parameters mean the same over HTTP",
        _http("a parameter of Triton's own"),
        status=(400, 200),
    ),
    # Shared memory
    Difference(
        "a region may begin anywhere in its object, and not only at a page",
        _shared("a region that begins within a page"),
    ),
    Difference(
        "an object that does not exist is the caller's mistake, and no fault of the server",
        _shared("no such object", "http", "http.aio"),
        status=("500", "404"),
    ),
    Difference(
        "an object that does not exist is the caller's mistake, and no fault of the server",
        _shared("no such object", "grpc", "grpc.aio"),
        status=("StatusCode.INTERNAL", "StatusCode.NOT_FOUND"),
    ),
    Difference(
        "a place too small for the output is the caller's mistake, and no fault of the server",
        _shared("an output too small", "http", "http.aio"),
        status=("500", "400"),
    ),
    Difference(
        "a place too small for the output is the caller's mistake, and no fault of the server",
        _shared("an output too small", "grpc", "grpc.aio"),
        status=("StatusCode.INTERNAL", "StatusCode.INVALID_ARGUMENT"),
    ),
    Difference(
        "what is there already is a conflict, in HTTP as in gRPC (ALREADY_EXISTS)",
        _shared("registered twice", "http", "http.aio"),
        status=("400", "409"),
    ),
    # Deadlines
    Difference(
        "a timeout is a deadline; Triton looks at it only while the request waits for the model",
        _http("timeout that passes while the model works"),
        status=(200, 504),
    ),
    # Form
    Difference(
        "the request's binary_data_output holds for outputs that do not say otherwise, as the extension has it; Triton "
        "looks at it only where no outputs are named",
        _http("all outputs binary, one asked for"),
        ("binary", "content_type", "outputs.y.binary"),
    ),
    Difference(
        "the header says where the JSON ends even where no bytes follow",
        _http("BYTES raw, no elements"),
        ("binary", "content_type"),
    ),
    Difference("a short reply does not get shorter by packing it", _http("short reply, gzip"), ("coding",)),
)
