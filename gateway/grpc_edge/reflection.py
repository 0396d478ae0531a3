"""`grpc.reflection` for tools such as grpcurl: which services there are, and the files that describe them.

Two versions of it are asked for, v1 by new tools and v1alpha by older ones. Their messages have the same fields, so one
implementation makes both: `Reflection.offer` is given the module of the version's messages (v1alpha's come with
grpcio-reflection, which has no v1; v1's are generated from proto/).

Told is what is served here, and what it is described by: other files that this process happens to have loaded are none
of a caller's business. A file comes with all that it depends on, so that tools need not ask again. Callers need a key
where keys are configured, as for other metadata.

Rejected: the servicer of grpcio-reflection, which tells every file of the process, for v1alpha alone, and is made for
one of our two transports.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha

from backends.errors import InvalidInput, NotFound, PointsmanError
from backends.quoting import shorten
from gateway.grpc_edge.calls import OLDER, Call, Conversation, Offer
from gateway.status import Refusal, refusal_of
from pointsman_pb import reflection_pb2 as v1

VERSIONS = (v1, v1alpha)
"""The modules of the messages, each a version."""


class Reflection:
    """What *services* are described by, and they themselves; reflection's own services are among them."""

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        own = [_service(version) for version in VERSIONS]
        self._services = tuple(sorted({service.full_name: service for service in (*services, *own)}.items()))
        self._files: dict[str, FileDescriptor] = {}
        for _, service in self._services:
            for file in _with_dependencies(service.file):
                self._files[file.name] = file

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of all that it tells of."""
        return tuple(name for name, _ in self._services)

    def offers(self) -> tuple[Offer, ...]:
        """The service in every version."""
        return tuple(Offer(_service(version), self._methods(version), OLDER) for version in VERSIONS)

    def _methods(self, version: Any) -> Mapping[str, Conversation]:  # Any: a module
        async def answer(call: Call, request: Any) -> Message:
            return self._answer(version, request)

        def refused(request: Any, refusal: Refusal) -> Message:
            return _refused(version, request, refusal)

        return {"ServerReflectionInfo": Conversation(version.ServerReflectionRequest, answer, refused)}

    def _answer(self, version: Any, request: Any) -> Message:
        """The reply to one request; of what is not there it says so, as every reply of the stream is an answer."""
        reply = _reply(version, request)
        try:
            self._fill(reply, request)
        except PointsmanError as error:
            return _refused(version, request, refusal_of(error))
        message: Message = reply
        return message

    def _fill(self, reply: Any, request: Any) -> None:
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self.services:
                    reply.list_services_response.service.add(name=name)
            case "file_by_filename":
                self._tell(reply, self._files.get(request.file_by_filename), "file", request.file_by_filename)
            case "file_containing_symbol":
                symbol = request.file_containing_symbol
                self._tell(reply, self._file_of(symbol), "symbol", symbol)
            case "file_containing_extension":
                wanted = request.file_containing_extension
                raise NotFound(f"there is no extension {wanted.extension_number} of {shorten(wanted.containing_type)}")
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                if not self._has_message(name):
                    raise NotFound(f"there is no message type {shorten(name)} here")
                reply.all_extension_numbers_response.base_type_name = name  # proto3's messages have no extensions
            case _:
                raise InvalidInput("the request asks for nothing; set one member of message_request")

    def _tell(self, reply: Any, file: FileDescriptor | None, what: str, name: str) -> None:
        if file is None:
            raise NotFound(f"there is no {what} {shorten(name)} here; list_services says what there is")
        found = (one.serialized_pb for one in _with_dependencies(file))
        reply.file_descriptor_response.file_descriptor_proto.extend(found)

    def _file_of(self, symbol: str) -> FileDescriptor | None:
        """The file that defines *symbol*: a service, method, message, field or enumeration."""
        pool: Any = descriptor_pool.Default()  # Any: of its look-ups, types know only some
        with suppress(KeyError):
            return self._files.get(pool.FindFileContainingSymbol(symbol).name)
        with suppress(KeyError):  # protobuf's own look-up passes over the members of services and messages
            return self._files.get(pool.FindMethodByName(symbol).containing_service.file.name)
        with suppress(KeyError):
            return self._files.get(pool.FindFieldByName(symbol).file.name)
        return None

    def _has_message(self, name: str) -> bool:
        try:
            found = descriptor_pool.Default().FindMessageTypeByName(name)
        except KeyError:
            return False
        return found.file.name in self._files


def _service(version: Any) -> ServiceDescriptor:
    found: ServiceDescriptor = version.DESCRIPTOR.services_by_name["ServerReflection"]
    return found


def _with_dependencies(file: FileDescriptor) -> Iterable[FileDescriptor]:
    """*file*, and then each file that it depends on, once."""
    found = {file.name: file}
    todo = [file]
    while todo:
        for one in todo.pop().dependencies:
            if one.name not in found:
                found[one.name] = one
                todo.append(one)
    return found.values()


def _reply(version: Any, request: Any) -> Any:
    reply = version.ServerReflectionResponse()
    if request is not None:  # one that could not be read cannot be sent back
        reply.valid_host = request.host
        reply.original_request.CopyFrom(request)
    return reply


def _refused(version: Any, request: Any, refusal: Refusal) -> Message:
    reply = _reply(version, request)
    code: grpc.StatusCode = refusal.wire.grpc
    reply.error_response.error_code = code.value[0]
    reply.error_response.error_message = refusal.message
    message: Message = reply
    return message
