"""A request as every edge hands it to the pipeline, whatever protocol it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from backends.contract import NO_DEADLINE, Deadline, ParameterValue, Tensors, record
from backends.trace_context import TraceContext
from gateway.people.scope import UNSKILLED, Scope
from router.contract import OnDefer

if TYPE_CHECKING:
    from gateway.passing import InPlace

MAX_ITEMS = 4096
"""Most items in one request."""


class Protocol(StrEnum):
    """How a request arrived; a label of the metrics."""

    OIP_HTTP = "oip_http"
    OIP_GRPC = "oip_grpc"
    V1_HTTP = "v1_http"
    V1_GRPC = "v1_grpc"


class Role(StrEnum):
    """What a caller may do."""

    CALLER = "caller"
    REVIEWER = "reviewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the API key's name, its tenant, what it may do, and as a reviewer with which reviews."""

    name: str = "anonymous"
    tenant: str = "default"
    roles: frozenset[Role] = frozenset(Role)
    scope: Scope = UNSKILLED


@record
class RawBody:
    """One item's one BYTES input, as a request's whole body (`/v1`, text or image)."""

    data: bytes
    content_type: str

    @property
    def size_bytes(self) -> int:
        """Size of the input."""
        return len(self.data)


@record
class JsonInputs:
    """`{"inputs": {...}}` of `/v1`, parsed but not yet typed: the route's signature does that.

    Any: JSON values.
    """

    values: Mapping[str, Any]
    size_bytes: int
    content_type: str = "application/json"


@record(eq=False)
class TensorInputs:
    """Named tensors with a batch axis, as the Open Inference Protocol sends them."""

    tensors: Tensors
    content_type: str = ""

    @property
    def size_bytes(self) -> int:
        """Size of the inputs that are in host memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


Payload: TypeAlias = RawBody | JsonInputs | TensorInputs


@record
class SequencePlace:
    """What a request is in a sequence, as its caller says.

    Attributes:
        id: the caller's; neither 0 nor "".
        starts: it is the first one.
        ends: it is the last one.
    """

    id: int | str
    starts: bool
    ends: bool


@record(eq=False)
class Request:
    """What an edge has understood of a call; nothing in it has been checked against a route yet.

    Attributes:
        route: a route's name, or `auto`.
        version: the model version asked for; "" for any.
        parameters: the caller's own, `pointsman_*` ones removed.
        deadline: the caller's; the route's is applied by the pipeline.
        idempotency_key: the caller's, or None.
        fingerprint: SHA-256 over the canonical request; empty where there is no key.
        on_defer: what the caller wants for a deferred item; None: what the route says. `/v1` ignores it.
        priority: where models have levels of it: 1 the highest, 0 the model's default.
        shared: what of the payload lies in shared memory still, and may be passed on from there; None: nothing.
        trace: the caller's span; in the pipeline the request's own, within it. None: nobody traces it.
        sequence: where models keep state; None: the request stands alone.
        subject: whom it is about, as the caller names them, so that it can be erased by that name; "": nobody says.
    """

    route: str
    payload: Payload
    protocol: Protocol
    caller: Caller = field(default_factory=Caller)
    version: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    deadline: Deadline = NO_DEADLINE
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    on_defer: OnDefer | None = None
    priority: int = 0
    shared: InPlace | None = None
    trace: TraceContext | None = None
    sequence: SequencePlace | None = None
    subject: str = field(default="", repr=False)
