"""The Open Inference Protocol v2 over HTTP: `/v2`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.contract import TensorSpec
from backends.errors import InvalidInput, TooLarge, UnsupportedMedia
from backends.quoting import shorten
from backends.trace_context import trace_in
from gateway.http import headers
from gateway.http.handler import HttpLimits
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.oip_body import (
    HEADER_LENGTH,
    coding_wanted,
    header_length,
    is_packed_quickly,
    is_quick,
    packed,
    parse,
    parse_raw,
    pays,
    write,
)
from gateway.http.paths import PathEntry
from gateway.http.shared_memory import shared_memory_endpoints
from gateway.http.strict_json import loads, members
from gateway.http.strict_json import parameters as json_parameters
from gateway.keys import SUBJECT_HEADER, parse_idempotency_key, parse_subject
from gateway.oip.inference import Inference, infer
from gateway.oip.metadata import SERVER_NAME, SERVER_VERSION, extensions, model_config
from gateway.oip.parameters import deadline_of
from gateway.oip.render import is_written_quickly
from gateway.oip.repository import index, refuse_change, refuse_overrides, wants_ready, with_dependents
from gateway.oip.shapes import route_name
from gateway.oip.statistics import model_stats
from gateway.request import Caller, Protocol, Role
from gateway.service import ROUTE_VERSION, DataPlane, ModelControl
from gateway.shared_memory import SharedMemory

_REPOSITORY_BYTES = 4096
_EMPTY = HttpResponse(200)
_JSON: Sequence[tuple[str, str]] = (("content-type", "application/json"),)
_BODY_TYPES = ("", "application/json", "application/octet-stream")


def oip_endpoints(
    service: DataPlane,
    limits: HttpLimits,
    clock: Callable[[], float] = time.monotonic,
    memory: SharedMemory | None = None,
    control: ModelControl | None = None,
) -> Sequence[PathEntry]:
    """The entries of `/v2`; health needs no key.

    Without *memory*, none is shared; without *control*, no models are loaded.
    """
    memory = memory or SharedMemory()
    oip = _Oip(service, limits, clock, memory, control)
    changing = Role.CALLER if control is None else Role.OPERATOR
    models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return (
        PathEntry("GET", "/v2", oip.server),
        PathEntry("GET", "/v2/health/live", oip.live, role=None),
        PathEntry("GET", "/v2/health/ready", oip.ready, role=None),
        *(PathEntry("GET", model, oip.model) for model in models),
        *(PathEntry("GET", f"{model}/ready", oip.model_ready) for model in models),
        *(PathEntry("GET", f"{model}/config", oip.config) for model in models),
        *(PathEntry("GET", f"{model}/stats", oip.statistics) for model in ("/v2/models", *models)),
        PathEntry("POST", "/v2/repository/index", oip.index),
        PathEntry("POST", "/v2/repository/models/{model}/load", oip.load, changing),
        PathEntry("POST", "/v2/repository/models/{model}/unload", oip.unload, changing),
        *(PathEntry("POST", f"{model}/infer", oip.infer) for model in models),
        *shared_memory_endpoints(memory),
    )


@dataclass(frozen=True, slots=True)
class _Oip:
    """The endpoints over one service."""

    service: DataPlane
    limits: HttpLimits
    clock: Callable[[], float]
    memory: SharedMemory
    control: ModelControl | None

    async def server(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """What this server is."""
        listed = extensions(self.memory, model_control=self.control is not None)
        return json_response({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": listed})

    async def live(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """The process answers."""
        return json_response({"live": True})

    async def ready(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """New requests are welcome: 200, else 503."""
        if self.service.is_ready():
            return json_response({"ready": True})
        return json_response({"ready": False, "error": "starting, draining, or a route has no model ready"}, 503)

    async def model(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """A route's inputs and outputs, batch axis included."""
        found = self.service.metadata(route_name(path["model"]), path.get("version", ""))
        return json_response(
            {
                "name": found.name,
                "versions": found.versions,
                "platform": found.platform,
                "inputs": [_described(spec) for spec in found.inputs],
                "outputs": [_described(spec) for spec in found.outputs],
            }
        )

    async def model_ready(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """A route would be answered: 200, else 503."""
        name = route_name(path["model"])
        if self.service.is_model_ready(name, path.get("version", "")):
            return json_response({"name": name, "ready": True})
        return json_response({"name": name, "ready": False, "error": f"{name!r} has no model ready"}, 503)

    async def config(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """A route as Triton configures models."""
        return json_response(model_config(self.service.metadata(route_name(path["model"]), path.get("version", ""))))

    async def statistics(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """What was answered so far, for a route or for all."""
        name = route_name(path["model"]) if "model" in path else ""
        return json_response(model_stats(self.service.statistics(name, path.get("version", ""))))

    async def index(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Every route, and whether it is ready."""
        asked = json_parameters(_asked_of_repository(request))
        return json_response(index(self.service, ready_only=wants_ready(asked.get("ready"))))

    async def load(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Load a model anew."""
        if self.control is None:
            refuse_change("load")
        given = _parameters(request)
        if not isinstance(given, dict):
            raise InvalidInput(f"parameters are {shorten(given)}; they are a JSON object")
        refuse_overrides(given)
        await self.control.load(route_name(path["model"]))
        return _EMPTY

    async def unload(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Unload a model."""
        if self.control is None:
            refuse_change("unload")
        dependents = with_dependents(json_parameters(_parameters(request)))
        await self.control.unload(route_name(path["model"]), dependents=dependents)
        return _EMPTY

    async def infer(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Answer an inference request."""
        started = self.clock()
        route, version = route_name(path["model"]), path.get("version", "")
        media = headers.content_type(request.headers)
        if media.name not in _BODY_TYPES:
            raise UnsupportedMedia("inference requests are application/json, or application/octet-stream behind JSON")
        timeout_s = headers.timeout_s(request.headers)
        key = parse_idempotency_key(request.headers.get("idempotency-key"))
        json_bytes = header_length(request.headers.get(HEADER_LENGTH), len(request.body))
        if json_bytes == 0:
            body = parse_raw(request.body, self.service.metadata(route, version).inputs)
        elif is_quick(request.body, json_bytes):
            body = parse(request.body, json_bytes, self.limits.json_bytes)
        else:
            body = await asyncio.to_thread(parse, request.body, json_bytes, self.limits.json_bytes)
        answer, rendered = await infer(
            self.service,
            Inference(
                route=route,
                version=version,
                tensors=body.tensors,
                wanted=tuple([want.name for want in body.wanted]),
                parameters=body.parameters,
                protocol=Protocol.OIP_HTTP,
                deadline=deadline_of(started, timeout_s, body.parameters.timeout_s),
                key=key,
                id=body.id,
                caller=caller,
                classes={want.name: want.classes for want in body.wanted if want.classes},
                windows={want.name: want.window for want in body.wanted if want.window is not None},
                trace=trace_in(request.headers),
                subject=parse_subject(request.headers.get(SUBJECT_HEADER)),
            ),
            self.memory,
        )
        said = (answer.route, answer.version or ROUTE_VERSION, body, rendered.outputs, rendered.parameters)
        is_quick_to_write = is_written_quickly(answer, rendered, copied=all(map(body.is_binary, rendered.outputs)))
        text, json_bytes = write(*said) if is_quick_to_write else await asyncio.to_thread(write, *said)
        fields = _JSON
        if json_bytes is not None:
            fields = (("content-type", "application/octet-stream"), (HEADER_LENGTH, str(json_bytes)))
        if not pays(text) or not (coding := coding_wanted(request.headers.get("accept-encoding"))):
            return HttpResponse(200, fields, text)
        shorter = packed(text, coding) if is_packed_quickly(text) else await asyncio.to_thread(packed, text, coding)
        if shorter is None:
            return HttpResponse(200, fields, text)
        return HttpResponse(200, (*fields, ("content-encoding", coding)), shorter)


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}


def _asked_of_repository(request: HttpRequest) -> Any:  # Any: JSON
    if len(request.body) > _REPOSITORY_BYTES:
        raise TooLarge(
            f"the body has {len(request.body)} bytes; a request about the repository has a few, as no model comes by it"
        )
    return loads(request.octets) if request.body else {}


def _parameters(request: HttpRequest) -> Any:  # Any: JSON
    """The parameters of a load or an unload."""
    return members(_asked_of_repository(request), "the body", frozenset({"parameters"})).get("parameters", {})
