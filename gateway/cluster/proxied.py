"""gRPC calls that come through Ray Serve's own proxy, and are answered here as any other call is.

The proxy is told of the service by `add_inference_service` (`grpc_servicer_functions`), and passes messages on as the
bytes that they came as. tritonclient's own function of that kind would have it parse them into objects that it cannot
pickle, as their module has another name than they say.
"""

from __future__ import annotations

from typing import Any

import grpc

from backends.contract import NO_DEADLINE
from gateway.grpc_edge.calls import Trailers, Unary
from gateway.grpc_server import GrpcServer

SERVICE = "inference.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
"""Those that `replica.IngressReplica` has."""


class Message:
    """A message in bytes, in the respects in which Serve looks at it."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        """What was given."""
        return self._data


def add_inference_service(servicer: Any, server: Any) -> None:
    """Have *server* hand calls of the Open Inference Protocol to *servicer*. Any: Serve's stand-ins for both."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name), request_deserializer=Message)
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class CallRefused(Exception):
    """The call ends with the status that its context was given; Serve sends that where its method raises."""


class ProxiedCalls:
    """Answers methods of the Open Inference Protocol's service, but for its streams."""

    def __init__(self, server: GrpcServer) -> None:
        """As *server* answers them, which need not listen."""
        self._calls = server.calls
        self._methods = server.oip_methods

    async def answer(self, name: str, request: Message, context: Any) -> Message:
        """The reply to *request*. Any: Serve's context.

        Raises:
            CallRefused: *context* says how.
        """
        method = self._methods[name]
        assert isinstance(method, Unary)
        reply = await self._calls.answer(
            method, request.SerializeToString(), context.invocation_metadata(), NO_DEADLINE
        )
        if isinstance(reply, Trailers):
            context.set_code(reply.code)
            context.set_details(reply.message)
            context.set_trailing_metadata(list(reply.metadata))
            raise CallRefused(reply.message)
        return Message(reply)
