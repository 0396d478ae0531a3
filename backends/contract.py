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

**Ownership.** Arrays passed to `infer` belong to the caller: the backend neither writes to them nor keeps them
after it has returned or raised. Arrays it returns belong to the caller, and the backend never touches them again.

Sources: Open Inference Protocol v2 (kserve/open-inference-protocol, d49cc23); the shape of the contract follows
text-embeddings-inference's `backends/core`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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

_C = TypeVar("_C")


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


@dataclass(frozen=True, slots=True)
class SharedMemoryWindow:
    """*byte_size* bytes at *offset* of a registered shared-memory region."""

    region: str
    offset: int
    byte_size: int


@runtime_checkable
class DeviceArray(Protocol):
    """An array on an accelerator, exchanged by DLPack (CuPy, PyTorch and JAX arrays are such)."""

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

    def rows(self, start: int, stop: int) -> Tensor:
        """Items *start* to *stop* as views.

        Raises:
            InvalidInput: the elements are not in host memory.
        """
        if isinstance(self.data, Ragged):
            return Tensor.ragged(self.datatype, self.data.rows[start:stop])
        part = self.numpy()[start:stop]
        return Tensor(self.datatype, part.shape, part)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the elements take (0 for those that live elsewhere)."""
        if isinstance(self.data, Ragged):
            return sum(row.nbytes for row in self.data.rows)
        if not isinstance(self.data, np.ndarray):
            return 0
        if self.datatype is Datatype.BYTES:
            return self.data.nbytes + sum(len(element) for element in self.data.flat)
        return self.data.nbytes


Tensors: TypeAlias = Mapping[str, Tensor]


@record(eq=False)
class Batch:
    """The inputs of *size* items, by name; axis 0 of every tensor has length *size*."""

    inputs: Tensors
    size: int

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
        return sum(tensor.nbytes for tensor in self.inputs.values())


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, element type and shape of an input or output; no batch axis, -1 where lengths vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


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
        memory: the storage it takes; anything else is moved by the caller first.

    Raises:
        InvalidInput: a number below 1.
    """

    max_batch: int
    max_in_flight: int = 1
    memory: frozenset[Memory] = frozenset({Memory.HOST})

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
    found = [tensors.get(spec.name) for spec in specs]
    if (len(tensors) == len(specs) or not exact) and all(map(_fits, specs, found)):
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


def _fits(spec: TensorSpec, tensor: Tensor | None) -> bool:
    if tensor is None or tensor.datatype is not spec.datatype:
        return False
    shape = tensor.shape[1:]
    return shape == spec.shape or shape_matches(spec.shape, shape)


def shape_matches(spec: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether *shape* fits *spec*, in which -1 stands for any length."""
    return len(spec) == len(shape) and all(s in (-1, n) for s, n in zip(spec, shape, strict=True))
