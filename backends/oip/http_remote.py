"""A server over HTTP/1.1: JSON, with tensors behind it as they are where the server has the binary tensor extension.

A request says in `Inference-Header-Content-Length` where its JSON ends and its tensors begin, and asks for outputs in
the same form. Without the extension, tensors are JSON too: slower by far, and neither BF16 nor bytes that are no text
can be sent. JSON has no numbers that are not finite: servers write null for them, which is read as NaN.

**Another Pointsman** says in words and headers of its own what no status can. What waits for a person, or finds nobody
sure, is as the operator wants it: not a failure of its server, and not to be asked again, which would make one more
task for a person each time.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import orjson

from backends.contract import TRACE, Datatype, Deadline, SharedMemoryWindow, Tensor
from backends.credentials import retry_after_s
from backends.errors import InvalidInput, NotFound, PointsmanError
from backends.http_client import HttpClient, HttpReply, HungUp, Late, Nonsense, Oversized, Part, Unreachable
from backends.oip import json_data, raw
from backends.oip.answers import ANSWER_ID, claim_of, filled, is_expired, is_forgotten, is_full, is_unsure, spec_of
from backends.oip.raw import Claim
from backends.oip.remote import Blame, Indexed, InferCall, InferReply, ServedModel, Server
from backends.quoting import shorten

BINARY = "binary_tensor_data"
"""The extension, as servers list it."""

Json: TypeAlias = Any
"""JSON as it was read."""

_HEADER = "inference-header-content-length"
_SHARED = "shared_memory_region"
_IS_JSON = "Content-Type: application/json\r\n"


class HttpRemote:
    """One server over HTTP; see `Remote`."""

    def __init__(self, model: str, client: HttpClient, base: str = "") -> None:
        """Args:
        model: for messages: what the model is called here.
        base: what stands before /v2 in the server's paths.
        """
        self._client = client
        self._base = base
        self._blame = Blame(model)
        self._paths: dict[tuple[str, str], str] = {}
        self._is_binary = True

    def __repr__(self) -> str:
        return f"<HttpRemote {self._client!r}>"

    async def about(self, deadline: Deadline) -> Server:
        """What the server says of itself; from here on, tensors go as JSON where it does not take them binary."""
        said = await self._get(f"{self._base}/v2", deadline)
        found = said.get("extensions") or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise self._blame.nonsense(f"extensions are {shorten(found)}")
        self._is_binary = BINARY in found
        return Server(str(said.get("name", "")), str(said.get("version", "")), frozenset(found))

    async def models(self, deadline: Deadline) -> tuple[str, ...]:
        """The models that the server is ready to serve."""
        path = f"{self._base}/v2/repository/index"
        reply = await self._asked("POST", path, deadline, _IS_JSON, b'{"ready": true}')
        try:
            return tuple(sorted({str(model["name"]) for model in _json(reply.body)}))
        except (KeyError, TypeError) as error:
            raise self._blame.nonsense(f"the index is {shorten(bytes(reply.body))}") from error

    async def model(self, name: str, version: str, deadline: Deadline) -> ServedModel:
        """What the server says of a model; see `Remote.model`."""
        said = await self._get(self._path(name, version), deadline)
        try:
            return ServedModel(
                str(said.get("name", name)),
                tuple(map(str, said.get("versions") or ())),
                str(said.get("platform", "")),
                tuple(spec_of(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in said["inputs"]),
                tuple(spec_of(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in said["outputs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._blame.nonsense(f"metadata of {name!r}: {error!r}") from error

    async def config(self, name: str, version: str, deadline: Deadline) -> Mapping[str, Any]:
        """Triton's configuration of a model."""
        return await self._get(f"{self._path(name, version)}/config", deadline)

    async def is_ready(self, name: str, version: str, deadline: Deadline) -> bool:
        """Whether the server would answer for this model now."""
        reply = await self._exchange("GET", f"{self._path(name, version)}/ready", "", (), deadline)
        return reply.status == 200

    async def infer(self, call: InferCall, deadline: Deadline) -> InferReply:
        """Have *call* answered."""
        header, tensors = self._written(call)
        lines = _IS_JSON
        if self._is_binary:
            lines = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n"
        if (trace := TRACE.get()) is not None:
            lines += "".join(f"{name}: {value}\r\n" for name, value in trace.headers())
        path = f"{self._path(call.model, call.version)}/infer"
        is_step = "sequence_id" in call.parameters
        reply = await self._exchange("POST", path, lines, (header, *tensors), deadline, once=is_step)
        if reply.status != 200:
            raise self._refusal(reply)
        try:
            return _read(reply, call)
        except (InvalidInput, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._blame.nonsense(error) from error

    async def register(self, region: str, key: str, byte_size: int, deadline: Deadline, offset: int = 0) -> None:
        """Tell the server of a region of system shared memory."""
        body = orjson.dumps({"key": key, "offset": offset, "byte_size": byte_size})
        await self._asked("POST", f"{self._region(region)}/register", deadline, body=body)

    async def unregister(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        await self._asked("POST", f"{self._region(region)}/unregister", deadline)

    async def register_cuda(self, region: str, handle: bytes, device: int, byte_size: int, deadline: Deadline) -> None:
        """Tell the server of a region of a CUDA device's memory."""
        raw_handle = {"b64": base64.b64encode(handle).decode()}
        body = orjson.dumps({"raw_handle": raw_handle, "device_id": device, "byte_size": byte_size})
        await self._asked("POST", f"{self._region(region, 'cuda')}/register", deadline, body=body)

    async def unregister_cuda(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        await self._asked("POST", f"{self._region(region, 'cuda')}/unregister", deadline)

    async def index(self, deadline: Deadline) -> tuple[Indexed, ...]:
        """Everything in the server's repository."""
        reply = await self._asked("POST", f"{self._base}/v2/repository/index", deadline, _IS_JSON, b"{}")
        members = ("name", "version", "state", "reason")
        try:
            return tuple(Indexed(*(str(model.get(member, "")) for member in members)) for model in _json(reply.body))
        except (AttributeError, TypeError) as error:
            raise self._blame.nonsense(f"the index is {shorten(bytes(reply.body))}") from error

    async def load(self, name: str, deadline: Deadline) -> None:
        """Have the server load a model."""
        await self._control(name, "load", deadline)

    async def unload(self, name: str, deadline: Deadline) -> None:
        """Have the server unload it."""
        await self._control(name, "unload", deadline)

    async def _control(self, name: str, what: str, deadline: Deadline) -> None:
        path = f"{self._base}/v2/repository/models/{quote(name, '')}/{what}"
        reply = await self._exchange("POST", path, _IS_JSON, (b"{}",), deadline)
        if reply.status != 200:
            raise self._refusal(reply)

    async def memory_bytes(self, name: str, deadline: Deadline) -> int | None:
        """What the model takes, where the server says so."""
        said = await self._get(f"{self._path(name, '')}/stats", deadline)
        try:
            used = [one["byte_size"] for model in said["model_stats"] for one in model.get("memory_usage") or ()]
            return sum(map(int, used)) or None
        except (KeyError, TypeError, ValueError) as error:
            raise self._blame.nonsense(f"statistics of {name!r}: {error!r}") from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def _region(self, name: str, kind: str = "system") -> str:
        return f"{self._base}/v2/{kind}sharedmemory/region/{quote(name, '')}"

    def _path(self, name: str, version: str) -> str:
        found = self._paths.get((name, version))
        if found is None:
            found = f"{self._base}/v2/models/{quote(name, '')}" + (f"/versions/{quote(version, '')}" if version else "")
            self._paths[name, version] = found
        return found

    async def _get(self, path: str, deadline: Deadline) -> Mapping[str, Json]:
        reply = await self._asked("GET", path, deadline)
        said = _json(reply.body)
        if not isinstance(said, dict):
            raise self._blame.nonsense(f"{path} is {shorten(reply.body)}")
        return said

    async def _asked(
        self, method: str, path: str, deadline: Deadline, headers: str = "", body: bytes = b""
    ) -> HttpReply:
        reply = await self._exchange(method, path, headers, (body,) if body else (), deadline)
        if reply.status != 200:
            raise self._refusal(reply, asked_for=path)
        return reply

    async def _exchange(
        self, method: str, path: str, headers: str, body: Sequence[Part], deadline: Deadline, *, once: bool = False
    ) -> HttpReply:
        try:
            return await self._client.exchange(method, path, headers, body, deadline, once=once)
        except Unreachable as error:
            raise self._blame.unreachable(error) from error
        except HungUp as error:
            raise self._blame.hung_up(error) from error
        except Oversized as error:
            raise self._blame.oversized(error) from error
        except Nonsense as error:
            raise self._blame.nonsense(error) from error
        except Late as error:
            raise self._blame.late(error) from error

    def _written(self, call: InferCall) -> tuple[bytes, list[Part]]:
        """The JSON of a request, and the tensors that follow it."""
        inputs: list[Json] = []
        tensors: list[Part] = []
        for name, tensor in call.inputs.items():
            stated: dict[str, Json] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
            if isinstance(tensor.data, SharedMemoryWindow):
                stated["parameters"] = _place(tensor.data)
            elif self._is_binary:
                data = raw.encode(tensor)
                stated["parameters"] = {"binary_data_size": len(data)}
                tensors.append(data)
            else:
                stated["data"] = _as_json(name, tensor)
            inputs.append(stated)
        request: dict[str, Json] = {"id": call.id, "inputs": inputs, "parameters": dict(call.parameters)}
        if call.outputs:
            request["outputs"] = [
                {"name": name, "parameters": _place(window) if window else {"binary_data": self._is_binary}}
                for name, window in call.outputs.items()
            ]
        elif self._is_binary:
            request["parameters"]["binary_data_output"] = True
        return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY), tensors

    def _refusal(self, reply: HttpReply, asked_for: str = "") -> PointsmanError:
        """The error that an answer other than 200 is."""
        said = _error_in(reply.body)
        why = f"HTTP {reply.status}: {said or shorten(bytes(reply.body[:200]))}"
        match reply.status:
            case 404 | 501 if asked_for:
                return NotFound(f"the server has no {asked_for}: {said or 'it does not say why'}")
            case 400 | 409 if is_forgotten(said):
                return self._blame.forgot(why)
            case 400 | 422:
                return self._blame.refused(why)
            case 401 | 403:
                return self._blame.unauthorized(why)
            case 413:
                return self._blame.failed(why)  # half of the batch may fit
            case 429:
                return self._blame.busy(why, retry_after_s(reply.headers.get("retry-after", "")))
            case 500:  # of a model that raises, as a rule; whether it is the batch or the server, another server shows
                return self._blame.failed(why)
            case 502 if said:  # without its words in the form of the protocol, a proxy says it of its server
                return self._blame.failed(why)
            case 503 if ANSWER_ID in reply.headers or is_unsure(said):
                return self._blame.undecided(why)
            case 503 if is_full(said):
                return self._blame.busy(why, retry_after_s(reply.headers.get("retry-after", "")))
            case 503 if is_expired(said):
                return self._blame.late(why)
            case 504 if said:
                return self._blame.late(why)
        return self._blame.unwell(why)


def _place(window: SharedMemoryWindow) -> dict[str, Json]:
    return {
        _SHARED: window.region,
        "shared_memory_offset": window.offset,
        "shared_memory_byte_size": window.byte_size,
    }


def _as_json(name: str, tensor: Tensor) -> Json:
    found = json_data.encode(name, tensor)
    if tensor.numpy().dtype.kind == "f" and not np.isfinite(tensor.numpy()).all():
        raise InvalidInput(f"input {name!r} has an element that is not finite, which JSON cannot carry")
    return found


def _read(reply: HttpReply, call: InferCall) -> InferReply:
    """The answer to *call*.

    Raises:
        InvalidInput, ValueError, TypeError, KeyError, AttributeError: it is none.
    """
    body = memoryview(reply.body)
    end = int(reply.headers.get(_HEADER, len(body)))
    said = orjson.loads(body[:end])
    at = end
    outputs: dict[str, Tensor] = {}
    for stated in said["outputs"]:
        claim = claim_of(stated["name"], stated["datatype"], stated["shape"])
        parameters = stated.get("parameters") or {}
        if claim.name in outputs:
            raise ValueError(f"output {claim.name!r} is there twice")
        if place := call.outputs.get(claim.name):
            outputs[claim.name] = Tensor(claim.datatype, claim.shape, filled(claim, place))
        elif (size := parameters.get("binary_data_size")) is not None:
            if type(size) is not int or not 0 <= size <= len(body) - at:
                raise ValueError(f"output {claim.name!r} claims {shorten(size)} bytes")
            outputs[claim.name] = raw.decode(claim, body[at : at + size])
            at += size
        else:
            outputs[claim.name] = _of_json(claim, stated["data"])
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes follow the last output")
    return InferReply(str(said.get("id") or ""), str(said.get("model_version") or ""), outputs)


def _of_json(claim: Claim, data: Json) -> Tensor:
    """The tensor that *data* is; null is NaN where the datatype has that.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return json_data.decode(claim, data)
    except InvalidInput:
        if claim.datatype.numpy.kind != "f":
            raise
    # Seldom: only what has a null in it, or is wrong in another way and will be refused again.
    rank = len(claim.shape)
    found = json_data.decode(claim, _mapped(data, rank, lambda element: 0.0 if element is None else element))
    flags = json_data.decode(
        replace(claim, datatype=Datatype.BOOL), _mapped(data, rank, lambda element: element is None)
    )
    return Tensor(claim.datatype, claim.shape, np.where(flags.numpy(), claim.datatype.numpy.type("nan"), found.numpy()))


def _mapped(data: Json, rank: int, change: Callable[[Json], Json]) -> Json:
    """*data*, lists in up to *rank* levels, with its elements changed."""
    if not isinstance(data, list) or not rank:
        return change(data)
    return [_mapped(part, rank - 1, change) for part in data]


def _json(body: bytes | bytearray) -> Json:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _error_in(body: bytes | bytearray) -> str:
    """What the server says in the form of the protocol, or of FastAPI; "" where it says nothing in either."""
    said = _json(body)
    found = (said.get("error") or said.get("detail")) if isinstance(said, dict) else None
    return found if isinstance(found, str) else ""
