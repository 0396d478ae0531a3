"""What users of tritonclient do, in all four flavours of it, and what they see.

An action is written once, as if every client were asynchronous: `got` waits where there is something to wait for.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from google.protobuf.message import Message
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.conformance.observed import elements, of_message

FLAVOURS: Mapping[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}

# Any, throughout: tritonclient is untyped.


@dataclass(frozen=True, slots=True)
class Client:
    """One flavour's client of one server."""

    flavour: str
    client: Any

    @property
    def module(self) -> Any:
        """The flavour's module, with its own tensor classes."""
        return FLAVOURS[self.flavour]

    @property
    def is_grpc(self) -> bool:
        """Whether it speaks gRPC."""
        return self.flavour.startswith("grpc")

    def tensor(self, name: str, array: NDArray[Any], datatype: str, **how: Any) -> Any:
        """An input with *array*; *how* is `binary_data`, which HTTP alone knows."""
        found = self.module.InferInput(name, list(array.shape), datatype)
        found.set_data_from_numpy(array, **({} if self.is_grpc else how))
        return found

    def output(self, name: str, *, binary: bool = True, classes: int = 0) -> Any:
        """An output that is asked for."""
        how = {} if self.is_grpc else {"binary_data": binary}
        return self.module.InferRequestedOutput(name, class_count=classes, **how)


@asynccontextmanager
async def client_of(flavour: str, http_address: str, grpc_address: str) -> AsyncIterator[Client]:
    """A client of the server that listens there."""
    address = grpc_address if flavour.startswith("grpc") else http_address
    client = FLAVOURS[flavour].InferenceServerClient(address)
    try:
        yield Client(flavour, client)
    finally:
        await got(client.close())


async def got(value: Any) -> Any:
    """*value*, or what it stands for."""
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True, slots=True)
class Action:
    """Something that users do; *run* gives what they see."""

    name: str
    run: Callable[[Client], Awaitable[object]]


async def seen(action: Action, client: Client) -> dict[str, object]:
    """The facets of what *client* gives, or of what it raises."""
    try:
        found = await action.run(client)
    except InferenceServerException as error:
        return {"status": error.status(), "error": bool(error.message())}
    return {"status": "fine", **(found if isinstance(found, dict) else {"seen": found})}


def _result(result: Any, *outputs: str) -> dict[str, object]:
    """The facets of an InferResult."""
    response = result.get_response()
    head = response if isinstance(response, dict) else of_message(response)
    found: dict[str, object] = {name: head.get(name) or "" for name in ("model_name", "model_version", "id")}
    for name in outputs:
        array = result.as_numpy(name)
        found[name] = None if array is None else (array.dtype.kind, array.shape, elements(array))
    return found


def _plain(message: Any) -> Any:
    return of_message(message) if isinstance(message, Message) else message


_ROWS = np.linspace(-3, 3, 48, dtype=np.float32).reshape(3, 16)
_TEXTS = np.array([[b"", b"a", "ü – ⑦".encode(), b"a\0b"]], dtype=object)
_SCORES = np.array([[0.1, 0.7, 0.2, 0.0]], np.float32)


async def _double(client: Client, model: str = "dbl", **options: Any) -> dict[str, object]:
    binary = options.pop("binary", True)
    tensor = client.tensor("x", options.pop("array", _ROWS), options.pop("datatype", "FP32"), binary_data=binary)
    outputs = options.pop("outputs", [client.output("y", binary=binary)])
    return _result(await got(client.client.infer(model, [tensor], outputs=outputs, **options)), "y")


def _doubling(name: str, model: str = "dbl", **options: Any) -> Action:
    return Action(name, lambda client: _double(client, model, **options))


def _asking(name: str, method: str, *arguments: Any, pick: Callable[[Any], object] = lambda found: found) -> Action:
    async def run(client: Client) -> object:
        return pick(_plain(await got(getattr(client.client, method)(*arguments))))

    return Action(name, run)


async def _both_packed(client: Client) -> dict[str, object]:
    if client.is_grpc:
        return await _double(client, compression_algorithm="gzip")
    return await _double(client, request_compression_algorithm="gzip", response_compression_algorithm="deflate")


async def _sums(client: Client) -> dict[str, object]:
    a, b = np.array([[1, 2, 3]], np.int32), np.array([[40, 50, 60]], np.int32)
    inputs = [client.tensor("a", a, "INT32"), client.tensor("b", b, "INT32", binary_data=False)]
    if client.is_grpc:
        inputs = [client.tensor("a", a, "INT32"), client.tensor("b", b, "INT32")]
    return _result(await got(client.client.infer("sums", inputs, request_id="s")), "sum", "difference")


async def _classes(client: Client) -> dict[str, object]:
    outputs = [client.output("probabilities", classes=2)]
    result = await got(client.client.infer("animals", [client.tensor("x", _SCORES, "FP32")], outputs=outputs))
    return _result(result, "probabilities")


async def _too_late(client: Client) -> dict[str, object]:
    """gRPC's own deadline; HTTP has none."""
    array = np.array([[1.0]], np.float32)
    if client.is_grpc:
        return await _double(client, "waits", array=array, client_timeout=0.2)
    return await _double(client, "waits", array=array * 0)


def _dtype(array: NDArray[Any], datatype: str, *, binary: bool) -> Action:
    how = "binary" if binary else "JSON over HTTP"
    return _doubling(f"{datatype}, {how}", f"same_{datatype.lower()}", array=array, datatype=datatype, binary=binary)


_EXTREMES = {
    "BOOL": np.array([[True, False]]),
    **{
        f"{kind}{bits}": np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)
        for kind, bits, dtype in (
            ("INT", 8, np.int8), ("INT", 16, np.int16), ("INT", 32, np.int32), ("INT", 64, np.int64),
            ("UINT", 8, np.uint8), ("UINT", 16, np.uint16), ("UINT", 32, np.uint32), ("UINT", 64, np.uint64),
        )
    },
    "FP16": np.array([[np.float16(1.5), np.finfo(np.float16).max, np.float16("inf")]]),
    "FP32": np.array([[np.finfo(np.float32).tiny, np.finfo(np.float32).max, np.float32("nan")]]),
    "FP64": np.array([[np.finfo(np.float64).tiny, np.finfo(np.float64).max, -np.inf]]),
    "BF16": np.array([[1.5, -0.0, np.inf, 1e38]], ml_dtypes.bfloat16),
    "BYTES": _TEXTS,
}  # fmt: skip
_IN_JSON = ("BOOL", "INT8", "INT64", "UINT8", "UINT64", "BYTES")

ACTIONS = (
    _asking("live", "is_server_live"),
    _asking("ready", "is_server_ready"),
    _asking("model ready", "is_model_ready", "dbl"),
    _asking("version ready", "is_model_ready", "dbl", "1"),
    _asking("unknown model ready", "is_model_ready", "nowhere"),
    _asking("unknown version ready", "is_model_ready", "dbl", "7"),
    _asking("server metadata", "get_server_metadata", pick=sorted),
    _asking(
        "model metadata",
        "get_model_metadata",
        "sums",
        pick=lambda found: {**found, "platform": type(found["platform"])},
    ),
    _asking("metadata of no model", "get_model_metadata", "nowhere"),
    _asking("config", "get_model_config", "sums", pick=lambda found: found.get("config", found)["max_batch_size"]),
    _asking("index", "get_model_repository_index"),
    _asking("stats", "get_inference_statistics", "dbl", pick=lambda found: sorted(found["model_stats"][0])),
    _asking("stats of all", "get_inference_statistics", pick=sorted),
    _doubling("infer"),
    _doubling("infer, JSON over HTTP", binary=False),
    _doubling("infer, all outputs", outputs=None),
    _doubling("id", request_id="seven"),
    _doubling("version", model_version="1"),
    _doubling("no such version", model_version="7"),
    _doubling("no such model", "nowhere"),
    _doubling("priority and timeout", priority=1, timeout=10_000_000),
    _doubling("own parameters", parameters={"text": "a", "number": 7, "flag": True}),
    _doubling("reserved parameters", parameters={"timeout": 7}),
    _doubling("wrong name", "scores"),
    _doubling("wrong shape", array=_ROWS[:, :15]),
    _doubling("wrong datatype", array=_ROWS.astype(np.float64), datatype="FP64"),
    _doubling("fails", "fails", array=np.array([[-1.0]], np.float32)),
    Action("packed both ways", _both_packed),
    Action("two inputs", _sums),
    Action("classes with labels", _classes),
    Action("too late for its caller", _too_late),
    *(_dtype(array, datatype, binary=True) for datatype, array in _EXTREMES.items()),
    *(_dtype(_EXTREMES[datatype], datatype, binary=False) for datatype in _IN_JSON),
)
