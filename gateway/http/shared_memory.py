"""Regions of shared memory over HTTP: `/v2/systemsharedmemory`, and what `/v2/cudasharedmemory` says of itself.

Replies of register and unregister are empty, as Triton's are. CUDA regions are not served: none can be registered, so
none are listed, and unregistering all of them, which clients do before they begin, is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from backends.errors import InvalidInput, TooLarge
from backends.quoting import shorten
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.http.strict_json import loads
from gateway.oip.windows import no_cuda_region, refuse_cuda
from gateway.request import Caller
from gateway.shared_memory import SharedMemory

_REGISTER_BYTES = 4096
_EMPTY = HttpResponse(200, [("content-type", "application/json")])


def shared_memory_endpoints(memory: SharedMemory) -> Sequence[PathEntry]:
    """The entries of both kinds of shared memory."""
    system, cuda = _System(memory), _Cuda()
    return (
        *_entries("/v2/systemsharedmemory", system),
        *_entries("/v2/cudasharedmemory", cuda),
    )


def _entries(path: str, kind: _System | _Cuda) -> Sequence[PathEntry]:
    region = f"{path}/region/{{region}}"
    return (
        PathEntry("GET", f"{path}/status", kind.status),
        PathEntry("GET", f"{region}/status", kind.status),
        PathEntry("POST", f"{region}/register", kind.register),
        PathEntry("POST", f"{path}/unregister", kind.unregister),
        PathEntry("POST", f"{region}/unregister", kind.unregister),
    )


@dataclass(frozen=True, slots=True)
class _System:
    memory: SharedMemory

    async def status(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """The caller's regions, or one of them."""
        return json_response([asdict(found) for found in self.memory.status(caller.tenant, path.get("region", ""))])

    async def register(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Register a region."""
        if len(request.body) > _REGISTER_BYTES:
            raise TooLarge(f"the body has {len(request.body)} bytes; a registration has a few")
        asked = loads(request.octets)
        if not isinstance(asked, dict):
            raise InvalidInput(f"the body must be a JSON object with 'key' and 'byte_size', not {shorten(asked)}")
        key, offset, byte_size = asked.get("key"), asked.get("offset", 0), asked.get("byte_size")
        if not isinstance(key, str):
            raise InvalidInput(f"'key' is {shorten(key)}; it is the name of a shared memory object, such as /input")
        if type(offset) is not int or type(byte_size) is not int:
            raise InvalidInput(
                f"'offset' is {shorten(offset)} and 'byte_size' {shorten(byte_size)}; they are numbers of bytes"
            )
        self.memory.register(caller.tenant, path["region"], key, offset, byte_size)
        return _EMPTY

    async def unregister(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Forget a region, or all of the caller's."""
        self.memory.unregister(caller.tenant, path.get("region", ""))
        return _EMPTY


class _Cuda:
    async def status(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """There are none."""
        if "region" in path:
            raise no_cuda_region(path["region"])
        return json_response([])

    async def register(self, caller: Caller, request: HttpRequest, path: PathParameters) -> NoReturn:
        """Refused."""
        refuse_cuda()

    async def unregister(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Nothing is left to be done."""
        return _EMPTY
