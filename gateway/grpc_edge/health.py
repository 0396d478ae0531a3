"""`grpc.health.v1.Health`, on the messages of grpcio-health-checking.

The servicer that comes with them is not used: it keeps watchers' streams open when the server drains, so that draining
would take all the time it may for as long as anybody watches, and one watcher that leaves silences the others.

Here there is one change in a life, from SERVING to NOT_SERVING, and a watcher's stream ends when it has been told.

`List` tells the state of all services at once. The grpcio-health-checking that goes with protobuf 6 (which tritonclient
needs) does not have its messages, nor names it in its descriptor: twins stand in for them, with the same bytes on the
wire, and reflection, which tells descriptors, does not tell of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from backends.errors import NotFound
from gateway.grpc_edge.calls import Call, Method, Streaming, Unary
from pointsman_pb import health_list_pb2

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]

_Response = health_pb2.HealthCheckResponse


class Health:
    """The health of *services*, and of the server as a whole under the name ""."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """NOT_SERVING from now on; ends every watch."""
        self._draining.set()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods of the service; they need no key."""
        return {
            "Check": Unary(health_pb2.HealthCheckRequest, self._check, role=None),
            "Watch": Streaming(health_pb2.HealthCheckRequest, self._watch, role=None),
            "List": Unary(health_list_pb2.HealthListRequest, self._list, role=None),
        }

    def _state(self, service: str) -> Message:
        status = self._status() if service in self._services else _Response.SERVICE_UNKNOWN
        reply: Message = _Response(status=status)
        return reply

    def _status(self) -> int:
        """Of every service that there is."""
        status: int = _Response.NOT_SERVING if self._draining.is_set() else _Response.SERVING
        return status

    async def _check(self, call: Call, request: health_pb2.HealthCheckRequest) -> Message:
        if request.service not in self._services:
            raise NotFound("there is no such service here")
        return self._state(request.service)

    async def _watch(self, call: Call, request: health_pb2.HealthCheckRequest) -> AsyncIterator[Message]:
        yield self._state(request.service)
        if not self._draining.is_set():
            await self._draining.wait()
            yield self._state(request.service)

    async def _list(self, call: Call, request: health_list_pb2.HealthListRequest) -> Message:
        reply = health_list_pb2.HealthListResponse()
        for service in sorted(self._services):
            reply.statuses[service].status = self._status()
        return reply
