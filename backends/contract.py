"""What every model, the batcher and the gateway agree on: tensors, signatures and the Backend protocol.

This file is all that the author of an adapter reads; `backends/echo.py` is the smallest example, and
`backends.conformance.exercise_backend` checks an adapter against the rules written here.

**Batches.** Axis 0 of every tensor is the batch: a batch of n items holds tensors of shape (n, ...). A
`TensorSpec` leaves the batch axis out; -1 marks an axis whose length varies between items.

**Datatypes** are those of the Open Inference Protocol. On the host a tensor is a NumPy array of the natural
dtype, except: BYTES is an object array of `bytes`; BF16, which NumPy lacks, is its bit pattern as uint16.

**Where the elements live.** `Tensor.data` is a host array, rows of unequal shape (`Ragged`), a window of a
shared-memory region, or an array on a device. A backend says what it takes in its `Limits.memory`; whoever
holds anything else moves it first.

**Arrays on a device** are exchanged by DLPack, and ordered by its handshake alone: whoever reads one asks for it with
`__dlpack__(stream=s)`, *s* being the stream that it will read on, and the array's producer makes that stream wait for
its own work. Nobody synchronises a whole device. The memory is there as long as somebody holds the array or a capsule
of it; whoever starts work that goes on behind its back holds one until that work is over, and has waited for it before
`infer` returns. `kernels.dlpack` does all of this.

**Sequences.** A backend whose `Limits` state `sequence_idle_s` keeps state from call to call: each of its calls is the
next of one sequence, which `SEQUENCE` names, and has one item. Whoever calls it sends the calls of a sequence one at a
time, in order. All others answer every call for itself.

**Ownership.** Arrays passed to `infer` belong to the caller: the backend neither writes to them nor keeps them
after it has returned or raised. Arrays it returns belong to the caller, and the backend never touches them again.

Sources: Open Inference Protocol v2 (kserve/open-inference-protocol, d49cc23); the shape of the contract follows
text-embeddings-inference's `backends/core`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import (
    Any,
    NewType,
    Protocol,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    overload,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from backends.errors import InvalidInput
from backends.trace_context import TraceContext

ParameterValue: TypeAlias = bool | int | float | str
"""A request parameter, as the Open Inference Protocol has them."""

# Any: element types vary at run time, and `Datatype` is what states them.
HostArray: TypeAlias = NDArray[Any]

Deadline = NewType("Deadline", float)
"""An instant on `time.monotonic()`'s clock, in seconds, after which an answer is worth nothing."""

NO_DEADLINE = Deadline(math.inf)

URGENCY: ContextVar[int] = ContextVar("urgency", default=0)
"""The highest priority (1 the highest; 0: none is said) of those whose items the call of `Backend.infer` at hand has.

For backends that pass it on to a queue of their own; most have none. It stands beside the call and not in `Batch`, as
it is about the callers and not about what is to be computed.
"""

WAITED_S: ContextVar[float] = ContextVar("waited_s", default=0.0)
"""For how many seconds the oldest item of the call of `Backend.infer` at hand has waited for it.

For backends whose replicas are scaled by it. It stands beside the call as `URGENCY` does.
"""

TRACE: ContextVar[TraceContext | None] = ContextVar("trace", default=None)
"""The span that the call of `Backend.infer` at hand is; None where none of those whose items it has is traced.

For backends that ask another server, which is told of it by `TraceContext.headers`. It stands beside the call as
`URGENCY` does.
"""

SERVER_CALLS: ContextVar[list[ServerCall] | None] = ContextVar("server_calls", default=None)
"""Where backends enter the calls of servers that the call of `Backend.infer` at hand has led to; None: nobody asks."""

_C = TypeVar("_C")


class Home:
    """Where the state of one sequence is: whoever spreads its calls over several servers enters what it chose."""

    __slots__ = ("place",)

    def __init__(self) -> None:
        self.place: object = None


@dataclass(frozen=True, slots=True, eq=False)
class SequenceCall:
    """A call of `Backend.infer` as one of a sequence.

    Attributes:
        id: the sequence's, from 1 to 2**63 - 1: no other sequence of the model has it, here or elsewhere.
        starts: it begins the sequence: whatever state there was is forgotten.
        ends: it is the last one.
        home: the same for all calls of a sequence.
    """

    id: int
    starts: bool
    ends: bool
    home: Home


SEQUENCE: ContextVar[SequenceCall | None] = ContextVar("sequence", default=None)
"""What the call of `Backend.infer` at hand is in a sequence; None: it stands alone. Like `URGENCY`, beside the call."""


@overload
def record(cls: type[_C], /) -> type[_C]: ...
@overload
def record(*, eq: bool) -> Callable[[type[_C]], type[_C]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[_C] | None = None, /, *, eq: bool = True) -> type[_C] | Callable[[type[_C]], type[_C]]:
    """A frozen, slotted dataclass of which one is made for every request, or more.

    Frozen in the eyes of the type checker alone: a dataclass that refuses assignments itself takes four to five times
    as long to make (0.8 us for six fields instead of 0.18), which over the twenty that a request takes was a tenth of
    all its time.
    """
    make = dataclass(slots=True, eq=eq, unsafe_hash=eq)
    return make if cls is None else make(cls)


@record
class ServerCall:
    """One call of a server, answered or not, that a backend has made.

    Attributes:
        span: what its headers named.
        address: of the server, as configured.
        attempt: which it was for its batch, from 1.
        started_s: on `time.monotonic()`'s clock, in seconds.
        ended_s: likewise.
        failure: the code of its error, or "cancelled"; "" where it was answered.
    """

    span: TraceContext
    address: str
    attempt: int
    started_s: float
    ended_s: float
    failure: str = ""


class Datatype(StrEnum):
    """Element types of the Open Inference Protocol, BF16 included."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of a host array that holds this type."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int | None:
        """Bytes an element takes on the wire; None for BYTES, whose elements vary."""
        return None if self is Datatype.BYTES else _NUMPY[self].itemsize

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Datatype:
        """The type that a host array of *dtype* holds (uint16 is UINT16, never BF16).

        Raises:
            InvalidInput: no type of the protocol holds *dtype*.
        """
        if dtype.kind in "OSU":
            return cls.BYTES
        found = _DATATYPES.get(dtype.newbyteorder("="))
        if found is None:
            raise InvalidInput(f"dtype {dtype} has no Open Inference Protocol datatype; convert it first")
        return found


_NUMPY: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype(np.uint16),
    Datatype.UINT32: np.dtype(np.uint32),
    Datatype.UINT64: np.dtype(np.uint64),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype(np.int16),
    Datatype.INT32: np.dtype(np.int32),
    Datatype.INT64: np.dtype(np.int64),
    Datatype.FP16: np.dtype(np.float16),
    Datatype.FP32: np.dtype(np.float32),
    Datatype.FP64: np.dtype(np.float64),
    Datatype.BF16: np.dtype(np.uint16),
    Datatype.BYTES: np.dtype(np.object_),
}
_DATATYPES = {dtype: datatype for datatype, dtype in _NUMPY.items() if datatype is not Datatype.BF16}


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of one dtype and rank whose shapes differ, such as images of several sizes: one array an item."""

    rows: tuple[HostArray, ...]


class SharedRegion(Protocol):
    """A region of system shared memory that a caller has registered, and that servers on this machine may be told of.

    It is the caller's: whoever made the object can shorten it, write to it and take its name away at any time. So it
    is never mapped here. Belongs to one event loop, but for `read` and `write`, which are safe in a thread.
    """

    @property
    def byte_size(self) -> int:
        """How long it is."""
        ...

    @property
    def offset(self) -> int:
        """Where in its object it begins, in bytes."""
        ...

    def key(self) -> AbstractContextManager[str]:
        """A name under which `shm_open` finds its object, and nobody else's, as long as the context lasts.

        Raises:
            OSError: there is none: the object has lost every name that it had.
        """
        ...

    def check_length(self, window: SharedMemoryWindow) -> None:
        """Refuse *window* if its object has become too short for it.

        Raises:
            InvalidInput: it has.
        """
        ...

    def read(self, window: SharedMemoryWindow, buffer: memoryview) -> None:
        """Copy *window* into *buffer*, which is as long.

        Raises:
            InvalidInput: the object has become too short.
        """
        ...

    def when_given_up(self, told: Callable[[], None]) -> None:
        """Have *told* called once the caller has unregistered it, or at once if it has."""
        ...

    def withhold(self, window: SharedMemoryWindow) -> Callable[[], None]:
        """Take note that a call that nobody waits for may still write to *window*, until what this returns is called.

        The region lets no other call have an output there meanwhile.
        """
        ...


@dataclass(frozen=True, slots=True)
class SharedMemoryWindow:
    """*byte_size* bytes at *offset* of a registered shared-memory region.

    Attributes:
        of: the region, where it is a caller's that a server may be told of.
    """

    region: str
    offset: int
    byte_size: int
    of: SharedRegion | None = field(default=None, compare=False, repr=False)

    def part(self, start: int, size: int) -> SharedMemoryWindow:
        """*size* bytes at *start* of it."""
        return SharedMemoryWindow(self.region, self.offset + start, size, self.of)


@runtime_checkable
class DeviceArray(Protocol):
    """An array on an accelerator, row-major and without gaps (CuPy, PyTorch and JAX arrays are such).

    `__dlpack__` makes *stream* wait until the array is whole: a CUDA stream's address; 1, the legacy default stream;
    None, the same; -1, none of them.
    """

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...  # Any: an opaque capsule
    def __dlpack_device__(self) -> tuple[int, int]: ...


Storage: TypeAlias = "HostArray | Ragged | SharedMemoryWindow | DeviceArray"


class Memory(StrEnum):
    """The kinds of `Storage`, for a backend to say which it takes."""

    HOST = "host"
    RAGGED = "ragged"
    SHARED = "shared"
    DEVICE = "device"


@record(eq=False)
class Tensor:
    """A named argument's value: a datatype, a shape with the batch axis first, and where the elements are.

    Attributes:
        datatype: the element type.
        shape: (n, ...); -1 on the axes in which `Ragged` rows differ.
        data: the elements.
    """

    datatype: Datatype
    shape: tuple[int, ...]
    data: Storage

    @classmethod
    def of(cls, array: HostArray, datatype: Datatype | None = None) -> Tensor:
        """Wrap a host array, without a copy; *datatype* tells BF16 bit patterns from UINT16."""
        return cls(datatype or Datatype.of(array.dtype), array.shape, array)

    @classmethod
    def ragged(cls, datatype: Datatype, rows: tuple[HostArray, ...]) -> Tensor:
        """Wrap one array an item, (…) each and of one rank; -1 marks the axes in which they differ.

        Raises:
            InvalidInput: there are no rows, or their ranks differ.
        """
        if len({row.ndim for row in rows}) != 1:
            raise InvalidInput(f"ragged rows have ranks {sorted({row.ndim for row in rows})}; one rank is needed")
        axes = zip(*(row.shape for row in rows), strict=True)
        return cls(datatype, (len(rows), *(a[0] if len(set(a)) == 1 else -1 for a in axes)), Ragged(rows))

    def numpy(self) -> HostArray:
        """The elements as a host array, without a copy.

        Raises:
            InvalidInput: they are not one array in host memory.
        """
        if not isinstance(self.data, np.ndarray):
            raise InvalidInput(f"tensor data is {type(self.data).__name__}, not a host array; move it first")
        return self.data

    def on_device(self) -> DeviceArray:
        """The elements as an array on a device.

        Raises:
            InvalidInput: they are not one.
        """
        if isinstance(self.data, np.ndarray | Ragged | SharedMemoryWindow):
            raise InvalidInput(f"tensor data is {type(self.data).__name__}, not an array on a device; move it first")
        return self.data

    @property
    def memory(self) -> Memory:
        """Where the elements are."""
        if isinstance(self.data, np.ndarray):
            return Memory.HOST
        if isinstance(self.data, Ragged):
            return Memory.RAGGED
        return Memory.SHARED if isinstance(self.data, SharedMemoryWindow) else Memory.DEVICE

    def rows(self, start: int, stop: int) -> Tensor:
        """Items *start* to *stop* as views.

        Raises:
            InvalidInput: the elements are neither in host memory nor numbers in shared memory.
        """
        if isinstance(self.data, Ragged):
            return Tensor.ragged(self.datatype, self.data.rows[start:stop])
        if isinstance(self.data, SharedMemoryWindow) and self.datatype is not Datatype.BYTES:
            row = self.data.byte_size // self.shape[0]
            shape = (stop - start, *self.shape[1:])
            return Tensor(self.datatype, shape, self.data.part(start * row, (stop - start) * row))
        part = self.numpy()[start:stop]
        return Tensor(self.datatype, part.shape, part)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the elements take (0 for those that live elsewhere)."""
        if isinstance(self.data, np.ndarray):
            texts = sum(map(len, self.data.flat)) if self.datatype is Datatype.BYTES else 0
            return self.data.nbytes + texts
        if isinstance(self.data, Ragged):
            return sum(row.nbytes for row in self.data.rows)
        return 0


def fit_in(limit_bytes: int, tensors: Iterable[Tensor]) -> bool:
    """Whether *tensors* take *limit_bytes* of host memory at most.

    For callers on an event loop: of so many texts that their references alone are more, none is looked at.
    """
    total = 0
    for tensor in tensors:
        if isinstance(tensor.data, np.ndarray) and total + tensor.data.nbytes > limit_bytes:
            return False
        total += tensor.nbytes
        if total > limit_bytes:
            return False
    return True


Tensors: TypeAlias = Mapping[str, Tensor]


@record(eq=False)
class Batch:
    """The inputs of *size* items, by name; axis 0 of every tensor has length *size*.

    Attributes:
        places: outputs, by name, that a backend which takes `Memory.SHARED` may leave in these windows, whose data in
            its answer the windows then are; whoever passes some takes such an answer. None: there are none.
        there: outputs that a backend which takes `Memory.DEVICE` may leave on its device; likewise.
    """

    inputs: Tensors
    size: int
    places: Mapping[str, SharedMemoryWindow] | None = None
    there: frozenset[str] = frozenset()

    @classmethod
    def of(cls, inputs: Tensors) -> Batch:
        """Batch *inputs*, whose first axes must agree.

        Raises:
            InvalidInput: no inputs, an input without a batch axis, or batch axes that differ.
        """
        if len(inputs) == 1:  # the usual case
            (tensor,) = inputs.values()
            if tensor.shape:
                return cls(inputs, tensor.shape[0])
        sizes = {name: tensor.shape[0] if tensor.shape else None for name, tensor in inputs.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise InvalidInput(f"every input needs the same first (batch) axis; got {sizes}")
        size = next(iter(sizes.values()))
        assert size is not None
        return cls(inputs, size)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the inputs take."""
        return sum([tensor.nbytes for tensor in self.inputs.values()])


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, element type and shape of an input or output; no batch axis, -1 where lengths vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def fixed_bytes(self, items: int) -> int | None:
        """Bytes that *items* of it take; None where that is open."""
        itemsize = self.datatype.itemsize
        return None if itemsize is None or -1 in self.shape else itemsize * items * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class State(StrEnum):
    """Where a backend is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend can take.

    Attributes:
        max_batch: most items in one call of `infer`.
        max_in_flight: calls of `infer` that it overlaps; more would only queue inside it.
        memory: the storage it takes; anything else is moved by the caller first. One that takes `Memory.SHARED` takes
            windows of callers' regions (`SharedMemoryWindow.of`), and several calls of it do as well as one of all
            their items: such batches are not merged, and as many as one could have been run together.
        sequence_idle_s: for how many seconds without a call it keeps the state of a sequence; None: it keeps none, and
            every call stands alone.

    Raises:
        InvalidInput: a number below 1.
    """

    max_batch: int
    max_in_flight: int = 1
    memory: frozenset[Memory] = frozenset({Memory.HOST})
    sequence_idle_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_batch", self.max_batch), ("max_in_flight", self.max_in_flight)):
            if value < 1:
                raise InvalidInput(f"{name} is {value}; it must be at least 1")


class Backend(Protocol):
    """A model that answers batches: in-process, in another process, or on another machine.

    A factory registered under `pointsman.backends` (see `backends.registry`) builds it, ready to serve.
    """

    @property
    def signature(self) -> Signature:
        """What it takes and gives; fixed for the life of the backend."""
        ...

    @property
    def version(self) -> str:
        """The model's version, as clients see it; fixed for the life of the backend."""
        ...

    @property
    def limits(self) -> Limits:
        """What it can take; fixed for the life of the backend."""
        ...

    @property
    def state(self) -> State:
        """Where it is in its life; cheap, and true at the moment of asking."""
        ...

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Answer *batch*: every output of the signature, row i for item i.

        Never blocks the event loop. A cancelled call gives up its work where it can, and leaves the backend
        usable either way.

        Raises:
            InvalidInput: an item is not what the signature says; sending it again cannot help.
            DeadlineExceeded: *deadline* passed, or would pass, before an answer.
            Unavailable: the backend cannot take it now; another, or a later try, may.
            BackendFailed: the model failed on this batch.
            SequenceUnknown, SequenceOver: the state that it goes on from is not there, or no longer.
        """
        ...

    async def aclose(self) -> None:
        """Free everything; waits for calls in flight. Closing twice is harmless."""
        ...


def check_batch(signature: Signature, batch: Batch, limits: Limits) -> None:
    """Refuse a batch that *signature* does not describe or *limits* do not allow, before any work is done.

    Raises:
        InvalidInput: says which input is missing, unknown, or of the wrong datatype or shape.
    """
    if not 1 <= batch.size <= limits.max_batch:
        raise InvalidInput(f"batch of {batch.size} is outside 1 to {limits.max_batch}, the backend's limit")
    _check(signature.inputs, batch.inputs, "input", exact=True)


def check_outputs(signature: Signature, outputs: Tensors, size: int) -> str | None:
    """What is wrong with *outputs* as the answer to *size* items, or None: a wrong one must never be split."""
    try:
        _check(signature.outputs, outputs, "output", exact=False)
    except InvalidInput as error:
        return str(error)
    for name, tensor in outputs.items():
        if tensor.shape[:1] != (size,):
            return f"output {name!r} has shape {list(tensor.shape)} for a batch of {size}"
    return None


def _check(specs: tuple[TensorSpec, ...], tensors: Tensors, what: str, *, exact: bool) -> None:
    if len(tensors) == len(specs) or not exact:
        for spec in specs:
            tensor = tensors.get(spec.name)
            if tensor is None or tensor.datatype is not spec.datatype:
                break
            if tensor.shape[1:] != spec.shape and not shape_matches(spec.shape, tensor.shape[1:]):
                break
        else:
            return
    expected = {spec.name for spec in specs}
    if missing := sorted(expected - tensors.keys()):
        raise InvalidInput(f"{what} {missing[0]!r} is missing; expected {sorted(expected)}")
    if exact and (extra := sorted(tensors.keys() - expected)):
        raise InvalidInput(f"{what} {extra[0]!r} is unknown; expected {sorted(expected)}")
    for spec in specs:
        tensor = tensors[spec.name]
        if tensor.datatype is not spec.datatype:
            raise InvalidInput(f"{what} {spec.name!r} has datatype {tensor.datatype}; expected {spec.datatype}")
        if not shape_matches(spec.shape, tensor.shape[1:]):
            raise InvalidInput(
                f"{what} {spec.name!r} has shape {list(tensor.shape)}; expected {[-1, *spec.shape]}",
            )


def shape_matches(spec: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether *shape* fits *spec*, in which -1 stands for any length."""
    return len(spec) == len(shape) and all(s in (-1, n) for s, n in zip(spec, shape, strict=True))
