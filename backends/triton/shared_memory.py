"""Tensors to a Triton on this machine through system shared memory, so that a call carries only where they are.

    lease a region -> write inputs -> call, with places for inputs and outputs -> copy outputs out -> give it back

**Regions are leased, one a call, and never used again while a server may still touch them.** A call that ended by the
server's own word (an answer, or a refusal of it) gives its region back. One that ended in any other way (late,
cancelled, hung up) leaves behind a server that may read its inputs and write its outputs at any time: that region is
retired. Its object loses its name at once, the server is told to let go of it only `RETIRED_S` later, as letting go
under a running call takes the memory away from under it, and no call is ever given it again. So a late write can reach
nobody's answer. While more than `RETIRED_BYTES` wait for that, calls carry their tensors themselves.

**What goes which way.** Inputs, and outputs whose size the signature fixes. Other outputs (BYTES, open lengths) come
with the answer. Calls that would move less than `shared_memory_from` bytes carry everything: measured, a place costs
more than some kilobytes do.

**A server that was started again** knows no regions any more. It says so of the first call, the region is registered
anew, and the call is made once more.

**The objects** belong to this process's user (0600) and are held by a lock (flock), which ends with the process. What a
gateway that was killed has left behind is found by that, when the next one opens a model here, and removed.

Outputs are copied once, out of the region: they belong to the caller, who may keep them for as long as it likes.
Rejected: views that give the region back when the last of them is gone. One caller that keeps its outputs would hold a
region for every batch that it was ever part of.

The mapping is of an object of our own. Whoever runs as the same user could shorten it under us, and end this process
(SIGBUS); within one user the kernel keeps nobody apart.

Source: Triton's system shared memory extension, docs/protocol/extension_shared_memory.md.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import mmap
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from backends.contract import (
    Batch,
    Deadline,
    HostArray,
    SharedMemoryWindow,
    Signature,
    Tensor,
    TensorSpec,
)
from backends.errors import BackendFailed, InvalidInput, Overloaded, PointsmanError
from backends.oip import raw
from backends.oip.raw import Claim
from backends.oip.remote import InferCall, InferReply, Remote

T = TypeVar("T")

FOLDER = Path("/dev/shm")  # noqa: S108  # the folder of shm_open
RETIRED_S = 60.0
RETIRED_BYTES = 1 << 30

_PREFIX = "pointsman-tensors-"
_ALIGNMENT = 64
_LEAST_BYTES = 1 << 20
_QUICK_BYTES = 1 << 20  # what is copied on the event loop; more takes over a millisecond, and goes to a thread
_UNREGISTER_S = 2.0


class Region:
    """An object of shared memory that this process made, and its mapping."""

    def __init__(self, size: int) -> None:
        """Args:
        size: bytes.

        Raises:
            OSError: there is no room.
        """
        self.name = _PREFIX + secrets.token_hex(12)
        self.size = size
        self.is_registered = False
        self._path = FOLDER / self.name
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(self._descriptor, 0, size)  # else a full /dev/shm is SIGBUS, later
            self._bytes: HostArray = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)
        except BaseException:
            self.unlink()
            raise

    def __repr__(self) -> str:
        return f"<Region {self.name}: {self.size} bytes>"

    def window(self, place: _Place) -> SharedMemoryWindow:
        """*place* as the server is told of it."""
        return SharedMemoryWindow(self.name, place.offset, place.size)

    def bytes_of(self, place: _Place) -> HostArray:
        """The bytes at *place*, to read and to write."""
        return self._bytes[place.offset : place.offset + place.size]

    def unlink(self) -> None:
        """Take its name away, and let it go when nothing refers to it any more."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a region the tensors of a call lie.

    Attributes:
        inputs: with the bytes to be written there.
        outputs: None for those that come with the answer.
    """

    inputs: Mapping[str, tuple[_Place, raw.Buffer]]
    outputs: Mapping[str, _Place | None]
    size: int


class SharedTransfer:
    """Tensors through shared memory where that pays; implements `backends.oip.served.Transfer`."""

    def __init__(self, signature: Signature, from_bytes: int) -> None:
        """Args:
        from_bytes: what a call must move at least.
        """
        self._outputs = signature.outputs
        self._from_bytes = from_bytes
        self._free: list[Region] = []
        self._retired: list[tuple[float, Region]] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<SharedTransfer: {len(self._free)} regions free, {len(self._retired)} retired>"

    async def open(self, remote: Remote, deadline: Deadline) -> None:
        """Show that the server can see this machine's shared memory, and remove what killed gateways left.

        Raises:
            InvalidInput: it cannot.
        """
        await _sweep(remote, deadline)
        region = await asyncio.to_thread(Region, _LEAST_BYTES)
        try:
            await self._register(remote, region, deadline)
        except (InvalidInput, BackendFailed) as error:
            region.unlink()
            raise InvalidInput(
                "`shared_memory: true`, and the server cannot open what this gateway makes in /dev/shm "
                f"({error.__cause__}); run both on one machine, in containers with one /dev/shm, or leave it out"
            ) from error
        except BaseException:
            region.unlink()
            raise
        self._free.append(region)

    async def infer(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """Have *call* answered; see `Transfer.infer`."""
        layout = _layout(batch, self._outputs)
        await self._let_go(remote)
        if layout.size < self._from_bytes or sum(region.size for _, region in self._retired) > RETIRED_BYTES:
            return await remote.infer(call, deadline)
        region = await self._leased(layout.size)
        is_over = False
        try:
            await _off_loop(layout.size, _fill, region, layout)
            reply = await self._asked(remote, _placed(call, region, layout), region, deadline)
            is_over = True
        except (InvalidInput, BackendFailed, Overloaded):
            is_over = True  # by the server's own word
            raise
        finally:
            if is_over:
                self._free.append(region)
            else:
                self._retire(region)
        return reply

    async def aclose(self, remote: Remote) -> None:
        """Take every region back from the server, as far as it answers."""
        self._is_closed = True
        regions = [*self._free, *(region for _, region in self._retired)]
        self._free, self._retired = [], []
        for region in regions:
            region.unlink()
        for region in regions:
            await _unregister(remote, region.name)

    async def _asked(self, remote: Remote, call: InferCall, region: Region, deadline: Deadline) -> InferReply:
        """The answer to *call*, its outputs copied out of *region*."""
        if not region.is_registered:
            await self._register(remote, region, deadline)
        try:
            reply = await remote.infer(call, deadline)
        except (InvalidInput, BackendFailed) as error:
            if not _is_unknown_region(error):
                raise
            region.is_registered = False
            await self._register(remote, region, deadline)
            reply = await remote.infer(call, deadline)
        size = sum(t.data.byte_size for t in reply.outputs.values() if isinstance(t.data, SharedMemoryWindow))
        return await _off_loop(size, _copied, region, reply)

    async def _leased(self, size: int) -> Region:
        """A region of *size* bytes at least, that nobody else has."""
        fitting = [region for region in self._free if region.size >= size]
        if fitting:
            region = min(fitting, key=lambda region: region.size)
            self._free.remove(region)
            return region
        if self._free:  # too small: what it was needed for comes larger now
            self._retire(self._free.pop())
        making = asyncio.ensure_future(asyncio.to_thread(Region, max(_LEAST_BYTES, 1 << (size - 1).bit_length())))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)  # the thread makes it all the same
            raise

    def _keep(self, making: asyncio.Future[Region]) -> None:
        if making.cancelled() or making.exception() is not None:
            return
        if self._is_closed:
            making.result().unlink()
        else:
            self._free.append(making.result())

    def _retire(self, region: Region) -> None:
        region.unlink()
        self._retired.append((time.monotonic() + RETIRED_S, region))

    async def _let_go(self, remote: Remote) -> None:
        """Have the server let go of regions that were retired long ago."""
        while self._retired and self._retired[0][0] <= time.monotonic():
            _, region = self._retired.pop(0)
            if region.is_registered:
                await _unregister(remote, region.name)

    async def _register(self, remote: Remote, region: Region, deadline: Deadline) -> None:
        await remote.register(region.name, f"/{region.name}", region.size, deadline)
        region.is_registered = True


async def _off_loop(size: int, work: Callable[..., T], *arguments: object) -> T:
    return work(*arguments) if size <= _QUICK_BYTES else await asyncio.to_thread(work, *arguments)


def _layout(batch: Batch, outputs: Sequence[TensorSpec]) -> _Layout:
    at = 0
    inputs: dict[str, tuple[_Place, raw.Buffer]] = {}
    for name, tensor in batch.inputs.items():
        data = raw.encode(tensor)
        inputs[name] = (_Place(at, len(data)), data)
        at += _aligned(len(data))
    places: dict[str, _Place | None] = {}
    for spec in outputs:
        size = _size(spec, batch.size)
        places[spec.name] = None if size is None else _Place(at, size)
        at += _aligned(size or 0)
    return _Layout(inputs, places, at)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _size(spec: TensorSpec, items: int) -> int | None:
    """Bytes that *items* of an output take; None where that is open."""
    itemsize = spec.datatype.itemsize
    if itemsize is None or -1 in spec.shape:
        return None
    return itemsize * items * math.prod(spec.shape)


def _fill(region: Region, layout: _Layout) -> None:
    for place, data in layout.inputs.values():
        region.bytes_of(place)[:] = np.frombuffer(data, np.uint8)


def _placed(call: InferCall, region: Region, layout: _Layout) -> InferCall:
    inputs = {
        name: Tensor(call.inputs[name].datatype, call.inputs[name].shape, region.window(place))
        for name, (place, _) in layout.inputs.items()
    }
    outputs = {name: None if place is None else region.window(place) for name, place in layout.outputs.items()}
    return InferCall(call.model, call.version, call.id, inputs, call.parameters, outputs)


def _copied(region: Region, reply: InferReply) -> InferReply:
    """*reply* with every output in host memory of its own."""
    outputs = {name: _copy(name, tensor, region) for name, tensor in reply.outputs.items()}
    return InferReply(reply.id, reply.version, outputs)


def _copy(name: str, tensor: Tensor, region: Region) -> Tensor:
    if not isinstance(tensor.data, SharedMemoryWindow):
        return tensor
    found = region.bytes_of(_Place(tensor.data.offset, tensor.data.byte_size)).copy()
    claim = Claim(name, tensor.datatype, tensor.shape, math.prod(tensor.shape), "output")
    return raw.decode(claim, found.data)


def _is_unknown_region(error: PointsmanError) -> bool:
    said = str(error.__cause__)
    return "shared memory region" in said and ("Unable to find" in said or "not found" in said)


async def _unregister(remote: Remote, name: str) -> None:
    with suppress(PointsmanError):  # it may be gone, or have been started again since
        await remote.unregister(name, Deadline(time.monotonic() + _UNREGISTER_S))


async def _sweep(remote: Remote, deadline: Deadline) -> None:
    """Remove the objects of gateways that are no more, and have the server let go of them."""
    for path in await asyncio.to_thread(_abandoned):
        with suppress(PointsmanError):
            await remote.unregister(path.name, deadline)


def _abandoned() -> list[Path]:
    """The objects of gateways that ended without removing them, which are removed here."""
    found = []
    for path in FOLDER.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or gone
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            found.append(path)
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)
    return found
