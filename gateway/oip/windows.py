"""Tensors that lie in shared memory: how requests say so, and how they come in and go out.

    "parameters": {"shared_memory_region": "r", "shared_memory_offset": 0, "shared_memory_byte_size": 64}

An input with these has no data in the request; an output with these has none in the reply. Until `loaded`, such a
tensor's data is a `SharedMemoryWindow`, and after `stored` such an output's is again: what is on the way between them
is ordinary host memory, a copy of its moment (`gateway.shared_memory` says why), or the window of a region that can be
passed on (`gateway.passing`).

As Triton, the offset is 0 where it is left out, of region and size neither can stand without the other, and an output
in shared memory is neither told by its classes nor as binary data. As Triton's replies, ours name such outputs with
datatype and shape and repeat no parameters (its C++ client takes any parameter of an output in HTTP for
`binary_data_size`); over gRPC their entry in `raw_output_contents` is empty, since clients count entries. Where we
differ: an output that is longer than its place is an error, where Triton 2.51 answers 200 and writes nothing.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_shared_memory.md, and what
Triton 2.51 answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NoReturn, TypeVar

from backends.contract import Datatype, SharedMemoryWindow, Tensor, Tensors
from backends.errors import InvalidInput, NotFound, TooLarge, Unimplemented
from backends.oip import raw
from backends.oip.raw import Claim
from backends.quoting import shorten
from gateway.shared_memory import Region, SharedMemory

REGION = "shared_memory_region"
_OFFSET = "shared_memory_offset"
_SIZE = "shared_memory_byte_size"

_MOST = 2**63 - 1
_HEAP_BYTES = 64 * 1024
"""Inputs up to this size are read into the heap, which is quicker than borrowing memory beside it."""

_QUICK_BYTES = 2 * 1024 * 1024
"""What takes longer to copy than this much (a fifth of a millisecond) is copied in a thread."""

_QUICK_TEXT_BYTES = 64 * 1024

_T = TypeVar("_T")


def window(parameters: Mapping[str, object], name: str, what: str = "input") -> SharedMemoryWindow | None:
    """Where in shared memory the tensor *name* lies, by its *parameters*; None where it does not.

    Args:
        what: what error messages call it.

    Raises:
        InvalidInput: they say it by halves, or in other types.
    """
    if REGION not in parameters and _SIZE not in parameters:
        return None
    region = parameters.get(REGION)
    if not isinstance(region, str) or not region:
        raise InvalidInput(f"{what} {name!r} has {REGION} {shorten(region)}; beside {_SIZE} it is the name of a region")
    owner = f"{what} {name!r}"
    return SharedMemoryWindow(region, _number(parameters, _OFFSET, 0, owner), _number(parameters, _SIZE, None, owner))


def output_window(parameters: Mapping[str, object], output: str, classes: int) -> SharedMemoryWindow | None:
    """Where in shared memory an output goes, by its *parameters*; None where it goes into the reply.

    Args:
        classes: how many of its greatest elements it is to be told as; 0: as it is.

    Raises:
        InvalidInput: they say it by halves, or in other types, or of an output that is told by its classes.
    """
    found = window(parameters, output, "output")
    if found is not None and classes:
        raise InvalidInput(f"output {output!r} cannot be told by its classes in shared memory; ask for one of the two")
    return found


def _number(parameters: Mapping[str, object], name: str, default: int | None, owner: str) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise InvalidInput(f"{owner} has {name} {shorten(value)}; beside {REGION} it is a number of bytes")
    return value


def any_window(tensors: Tensors) -> bool:
    """Whether one of *tensors* lies in shared memory."""
    for tensor in tensors.values():  # noqa: SIM110  # every request is asked, and `any` takes three times as long
        if isinstance(tensor.data, SharedMemoryWindow):
            return True
    return False


def is_window(tensor: Tensor) -> bool:
    """Whether *tensor* lies in shared memory."""
    return isinstance(tensor.data, SharedMemoryWindow)


async def loaded(memory: SharedMemory, tenant: str, tensors: Tensors) -> Tensors:
    """*tensors* with those that lie in *tenant*'s regions copied into host memory, as they are now.

    Raises:
        Unimplemented: shared memory is off.
        NotFound: there is no such region.
        InvalidInput: a window is beyond its region, or not as long as its tensor needs.
        TooLarge: a tensor is larger than may be copied.
        Unavailable: other requests' copies take all the memory that these may take.
    """
    texts = [size for tensor in tensors.values() if (size := _text_bytes(tensor))]
    if len(texts) > 1 and sum(texts) > memory.heap_bytes:
        raise TooLarge(
            f"the inputs have {sum(texts)} bytes of BYTES in shared memory; at most {memory.heap_bytes} are read: send "
            "several requests"
        )
    reads = {
        name: _read_of(memory, tenant, name, tensor)
        for name, tensor in tensors.items()
        if isinstance(tensor.data, SharedMemoryWindow)
    }
    read = partial(_read_all, list(reads.values()))
    found = await _done(read, all(r.is_quick for r in reads.values()), sum(r.size for r in reads.values()))
    return {**tensors, **dict(zip(reads, found, strict=True))}


def _text_bytes(tensor: Tensor) -> int:
    """What BYTES in shared memory take; 0 for any other tensor."""
    window = tensor.data
    return window.byte_size if tensor.datatype is Datatype.BYTES and isinstance(window, SharedMemoryWindow) else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One input that is to be read; it keeps its region's object open."""

    claim: Claim
    region: Region
    window: SharedMemoryWindow
    buffer: memoryview

    @property
    def size(self) -> int:
        return self.window.byte_size

    @property
    def is_quick(self) -> bool:
        return self.claim.datatype is not Datatype.BYTES or self.size <= _QUICK_TEXT_BYTES


def _read_of(memory: SharedMemory, tenant: str, name: str, tensor: Tensor) -> _Read:
    window = tensor.data
    assert isinstance(window, SharedMemoryWindow)
    region = memory.window(tenant, window)
    claim = Claim.of(name, tensor)
    raw.check_size(claim, window.byte_size)
    if claim.datatype is Datatype.BYTES and window.byte_size > memory.heap_bytes:
        raise TooLarge(
            f"input {name!r} has {window.byte_size} bytes of BYTES in shared memory; at most {memory.heap_bytes} are "
            "read: send several requests"
        )
    on_heap = claim.datatype is Datatype.BYTES or window.byte_size <= _HEAP_BYTES
    buffer = bytearray(window.byte_size) if on_heap else memory.buffers.lend(window.byte_size).data
    return _Read(claim, region, window, memoryview(buffer))


def _read_all(reads: Sequence[_Read]) -> list[Tensor]:
    return [_read(read) for read in reads]


def _read(read: _Read) -> Tensor:
    read.region.read(read.window, read.buffer)
    return raw.decode(read.claim, read.buffer.toreadonly())


@dataclass(frozen=True, slots=True)
class Place:
    """Where an output goes; it keeps its region's object open."""

    region: Region
    window: SharedMemoryWindow


def places(memory: SharedMemory, tenant: str, windows: Mapping[str, SharedMemoryWindow]) -> Mapping[str, Place]:
    """The places that *windows* are, of outputs by name, before anything is computed for them.

    Raises:
        Unimplemented: shared memory is off.
        NotFound: *tenant* has no such region.
        InvalidInput: a window is beyond its region, or two of them have bytes in common.
        Unavailable: a call that was given up may still write there.
    """
    ordered = sorted(windows.items(), key=lambda one: (one[1].region, one[1].offset))
    for (name, window), (other, following) in pairwise(ordered):
        if window.region == following.region and window.offset + window.byte_size > following.offset:
            raise InvalidInput(f"outputs {name!r} and {other!r} go to places in shared memory that overlap; move one")
    found = {name: Place(memory.window(tenant, window), window) for name, window in windows.items()}
    for place in found.values():
        place.region.check_place(place.window)
    return found


def located(memory: SharedMemory, tenant: str, tensors: Tensors) -> Tensors:
    """*tensors*, those that lie in *tenant*'s regions with their region, for whom it can be passed on to.

    Raises:
        Unimplemented, NotFound, InvalidInput: as `loaded`.
    """
    return {name: _located(memory, tenant, name, tensor) for name, tensor in tensors.items()}


def _located(memory: SharedMemory, tenant: str, name: str, tensor: Tensor) -> Tensor:
    window = tensor.data
    if not isinstance(window, SharedMemoryWindow):
        return tensor
    region = memory.window(tenant, window)
    raw.check_size(Claim.of(name, tensor), window.byte_size)
    return Tensor(tensor.datatype, tensor.shape, replace(window, of=region))


async def stored(found: Mapping[str, Place], outputs: Tensors) -> Tensors:
    """*outputs* with those that have a place written there, which then have windows of what was written as their data.

    Those that the model's server has written there itself have them already.

    Raises:
        InvalidInput: an output is longer than its place; then none is written.
        Unavailable: this machine has no shared memory left; what was written before stays.
    """
    wanted = {name: outputs[name] for name in found if name in outputs and not is_window(outputs[name])}
    if not wanted:
        return outputs
    size = sum(tensor.nbytes for tensor in wanted.values())
    is_quick = size <= _QUICK_TEXT_BYTES or all(t.datatype is not Datatype.BYTES for t in wanted.values())
    return {**outputs, **await _done(partial(_write_all, found, wanted), is_quick, size)}


def _write_all(found: Mapping[str, Place], wanted: Tensors) -> dict[str, Tensor]:
    encoded = {name: memoryview(raw.encode(tensor)) for name, tensor in wanted.items()}
    for name, data in encoded.items():
        if len(data) > found[name].window.byte_size:
            raise InvalidInput(
                f"output {name!r} takes {len(data)} bytes, and its place in shared memory has "
                f"{found[name].window.byte_size}; make it larger"
            )
    return {name: _written(found[name], wanted[name], data) for name, data in encoded.items()}


def _written(place: Place, tensor: Tensor, data: memoryview) -> Tensor:
    place.region.write(place.window, data)
    window = SharedMemoryWindow(place.window.region, place.window.offset, len(data))
    return Tensor(tensor.datatype, tensor.shape, window)


async def _done(work: Callable[[], _T], is_quick: bool, size: int) -> _T:
    return work() if is_quick and size <= _QUICK_BYTES else await asyncio.to_thread(work)


def refuse_cuda() -> NoReturn:
    """Refuse to register CUDA shared memory.

    Raises:
        Unimplemented: always.
    """
    raise Unimplemented("CUDA shared memory is not served here; use system shared memory, or send tensors in requests")


def no_cuda_region(name: str) -> NotFound:
    """The error of a call about a CUDA region, of which there are none."""
    return NotFound(f"there is no CUDA shared memory region {shorten(name)}; none can be registered here")
