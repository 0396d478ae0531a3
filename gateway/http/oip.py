"""The Open Inference Protocol v2 over HTTP: `/v2`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.contract import TensorSpec
from backends.errors import UnsupportedMedia
from gateway.http import headers
from gateway.http.handler import HttpLimits
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.oip_body import HEADER_LENGTH, InferBody, header_length, is_quick, parse, write
from gateway.http.paths import PathEntry
from gateway.keys import parse_idempotency_key
from gateway.oip.inference import Inference, infer
from gateway.oip.metadata import EXTENSIONS, SERVER_NAME, SERVER_VERSION
from gateway.oip.parameters import deadline_of
from gateway.oip.render import told
from gateway.oip.shapes import route_name
from gateway.request import Caller, Protocol
from gateway.service import Service

_BODY_TYPES = ("", "application/json", "application/octet-stream")


def oip_endpoints(
    service: Service, limits: HttpLimits, clock: Callable[[], float] = time.monotonic
) -> Sequence[PathEntry]:
    """The entries of `/v2`; health needs no key."""
    oip = _Oip(service, limits, clock)
    models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return (
        PathEntry("GET", "/v2", oip.server),
        PathEntry("GET", "/v2/health/live", oip.live, role=None),
        PathEntry("GET", "/v2/health/ready", oip.ready, role=None),
        *(PathEntry("GET", model, oip.model) for model in models),
        *(PathEntry("GET", f"{model}/ready", oip.model_ready) for model in models),
        *(PathEntry("POST", f"{model}/infer", oip.infer) for model in models),
    )


@dataclass(frozen=True, slots=True)
class _Oip:
    """The endpoints over one service."""

    service: Service
    limits: HttpLimits
    clock: Callable[[], float]

    async def server(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """What this server is."""
        return json_response({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS})

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

    async def infer(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Answer an inference request."""
        started = self.clock()
        route, version = route_name(path["model"]), path.get("version", "")
        media = headers.content_type(request.headers)
        if media.name not in _BODY_TYPES:
            raise UnsupportedMedia("inference requests are application/json, or application/octet-stream behind JSON")
        timeout_s = headers.timeout_s(request.headers)
        key = parse_idempotency_key(request.headers.get("idempotency-key"))
        body = await self._parsed(request)
        answer, rendered = await infer(
            self.service,
            Inference(
                route=route,
                version=version,
                tensors=body.tensors,
                wanted=tuple(want.name for want in body.wanted),
                parameters=body.parameters,
                protocol=Protocol.OIP_HTTP,
                deadline=deadline_of(started, timeout_s, body.parameters.timeout_s),
                key=key,
                caller=caller,
            ),
        )
        text, json_bytes = await told(answer, write, answer.route, version, body, rendered.outputs, rendered.parameters)
        if json_bytes is None:
            return HttpResponse(200, [("content-type", "application/json")], text)
        return HttpResponse(200, [("content-type", "application/octet-stream"), (HEADER_LENGTH, str(json_bytes))], text)

    async def _parsed(self, request: HttpRequest) -> InferBody:
        json_bytes = header_length(request.headers.get(HEADER_LENGTH), len(request.body))
        if is_quick(request.body, json_bytes):
            return parse(request.body, json_bytes, self.limits.json_bytes)
        return await asyncio.to_thread(parse, request.body, json_bytes, self.limits.json_bytes)


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}
