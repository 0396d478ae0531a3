"""One server, whatever it speaks: what is asked of it, what it answers, and in which errors it fails.

**Errors.** A server fails in ways that another might not: it refuses, hangs up, says nothing in time, is not ready, or
answers what cannot be an answer. That is `ReplicaFailed`, which is tried elsewhere and counted against it. What it says
of the batch (`InvalidInput`, `BackendFailed`) is true of the batch anywhere. A server that has enough to do is
`Overloaded`, which a second call elsewhere would only make worse. Messages name the model and never the server: they
reach callers. What the server said is in the cause, for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from backends.contract import Deadline, ParameterValue, SharedMemoryWindow, Tensors, TensorSpec, record
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    SequenceOver,
    Unavailable,
)

_E = TypeVar("_E", bound=PointsmanError)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself.

    Attributes:
        name: "triton", "mlserver", …
        version: as it writes it; "" where it does not.
        extensions: what it does beyond the protocol.
    """

    name: str
    version: str
    extensions: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of a model.

    Attributes:
        versions: those it serves, as far as it says so.
        inputs: of the shapes that it states, a batch axis included.
        outputs: likewise.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A version of a model in a server's repository (Triton's extension `model_repository`).

    Attributes:
        version: "" where none was ever loaded.
        state: READY, LOADING, UNLOADING, UNAVAILABLE; "" of a model that was never loaded.
        reason: why it is so, in the server's words.
    """

    name: str
    version: str
    state: str
    reason: str


@record(eq=False)
class InferCall:
    """An inference as it is put to a server.

    Attributes:
        id: which the server repeats, so that another call's answer is noticed.
        inputs: in host memory, or windows of regions that the server has.
        parameters: of the request.
        outputs: those that are wanted, each with where the server is to put it, or None where it comes with the
            answer; empty: all, with the answer.
    """

    model: str
    version: str
    id: str
    inputs: Tensors
    parameters: Mapping[str, ParameterValue]
    outputs: Mapping[str, SharedMemoryWindow | None]


@record(eq=False)
class InferReply:
    """A server's answer to an `InferCall`.

    Attributes:
        id: the call's, or "" from servers that do not repeat it.
        version: of the model that answered, or "" where the server does not say.
        outputs: in host memory, or the windows that the call named.
    """

    id: str
    version: str
    outputs: Tensors


class Remote(Protocol):
    """A connection, or several, to one server. Every call raises what `Backend.infer` may, and ends at its deadline."""

    async def models(self, deadline: Deadline) -> tuple[str, ...]:
        """The models that the server is ready to serve (the extension `model_repository`), sorted."""
        ...

    async def model(self, name: str, version: str, deadline: Deadline) -> ServedModel:
        """What the server says of a model; of the version that it prefers where *version* is "".

        Raises:
            NotFound: it does not serve it.
        """
        ...

    async def config(self, name: str, version: str, deadline: Deadline) -> Mapping[str, Any]:
        """Triton's configuration of a model, as JSON (hence Any)."""
        ...

    async def about(self, deadline: Deadline) -> Server:
        """What the server says of itself; what it cannot do is not asked of it from here on."""
        ...

    async def is_ready(self, name: str, version: str, deadline: Deadline) -> bool:
        """Whether the server would answer for this model now."""
        ...

    async def infer(self, call: InferCall, deadline: Deadline) -> InferReply:
        """Have *call* answered."""
        ...

    async def register(self, region: str, key: str, byte_size: int, deadline: Deadline, offset: int = 0) -> None:
        """Tell the server of a region of system shared memory (Triton's extension).

        Args:
            key: the name of its object for `shm_open`.
            offset: where in that it begins.
        """
        ...

    async def unregister(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        ...

    async def register_cuda(self, region: str, handle: bytes, device: int, byte_size: int, deadline: Deadline) -> None:
        """Tell the server of a region of a CUDA device's memory (Triton's extension).

        Args:
            handle: `cudaIpcMemHandle_t`, 64 bytes.
            device: as CUDA counts.

        Raises:
            InvalidInput, BackendFailed, NotFound: it cannot open it, or has no such extension.
        """
        ...

    async def unregister_cuda(self, region: str, deadline: Deadline) -> None:
        """Have the server let go of it."""
        ...

    async def index(self, deadline: Deadline) -> tuple[Indexed, ...]:
        """Everything in the server's repository, loaded or not, as the server says it."""
        ...

    async def load(self, name: str, deadline: Deadline) -> None:
        """Have the server load a model; returns when it has."""
        ...

    async def unload(self, name: str, deadline: Deadline) -> None:
        """Have the server unload a model, and none of those that it is composed of; it goes on after this."""
        ...

    async def memory_bytes(self, name: str, deadline: Deadline) -> int | None:
        """What the model takes by the server's own account; None where it keeps none, as most backends do not."""
        ...

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
        ...


class ServerSaid(Exception):
    """What a server answered instead of a result: the cause of the error that a caller sees."""


class Blame:
    """Which error a failure of *model*'s server is."""

    def __init__(self, model: str) -> None:
        self._model = f"model {model!r}"

    def unreachable(self, why: object) -> ReplicaFailed:
        """It could not be connected to."""
        return because(ReplicaFailed(f"{self._model}: its server cannot be reached; try again later"), why)

    def hung_up(self, why: object) -> ReplicaFailed:
        """It ended the connection before its answer was whole."""
        return because(ReplicaFailed(f"{self._model}: its server hung up before it had answered; try again"), why)

    def nonsense(self, why: object) -> ReplicaFailed:
        """Its answer is none."""
        return because(ReplicaFailed(f"{self._model}: its server gave an answer that makes no sense; try again"), why)

    def unwell(self, why: object) -> ReplicaFailed:
        """It says itself that it cannot answer now."""
        return because(ReplicaFailed(f"{self._model}: its server cannot answer now; try again later"), why)

    def late(self, why: object) -> DeadlineExceeded:
        """It said nothing in time, or said so itself."""
        told = DeadlineExceeded(f"the deadline passed before the server of {self._model} answered; allow more time")
        return because(told, why)

    def oversized(self, why: object) -> BackendFailed:
        """Its answer is larger than is allowed, as it would be from any other; that to half of the batch may not be."""
        told = BackendFailed(f"{self._model} gave a larger answer than `max_reply_bytes` allows; raise that")
        return because(told, why)

    def busy(self, why: object, retry_after_s: float | None = None) -> Overloaded:
        """It has enough to do."""
        told = Overloaded(f"{self._model}: too much waits at its server; try again later", retry_after_s=retry_after_s)
        return because(told, why)

    def refused(self, why: object) -> InvalidInput:
        """It does not take these values, though datatypes and shapes are what it asks for."""
        told = InvalidInput(
            f"{self._model} refuses these values, though datatypes and shapes fit; check their ranges, and lengths "
            "that belong together"
        )
        return because(told, why)

    def forgot(self, why: object) -> SequenceOver:
        """It has the state of a sequence no longer, or never had it."""
        told = SequenceOver(f"the server of {self._model} has the state of this sequence no longer; begin a new one")
        return because(told, why)

    def failed(self, why: object) -> BackendFailed:
        """Its model failed."""
        return because(BackendFailed(f"{self._model} failed on this batch; the log of its server has the cause"), why)

    def unauthorized(self, why: object) -> ReplicaFailed:
        """It does not take our credentials."""
        told = ReplicaFailed(f"{self._model}: its server does not let this gateway in; an operator must see to it")
        return because(told, why)

    def undecided(self, why: object) -> Unavailable:
        """It is another Pointsman, which could have the batch, and left it without an answer."""
        told = Unavailable(
            f"{self._model}: no model at its server is sure of this batch, and no answer comes from there"
        )
        return because(told, why)


def because(error: _E, why: object) -> _E:
    """*error*, whose cause is *why*: an exception, or what was said, cut where it is long."""
    error.__cause__ = why if isinstance(why, BaseException) else ServerSaid(str(why)[:500])
    return error
