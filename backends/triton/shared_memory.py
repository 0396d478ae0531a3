"""Tensors to a Triton on this machine through shared memory, so that a call carries only where they are.

    lease a region -> write inputs -> call, with places for inputs and outputs -> copy outputs out -> give it back

**Regions are leased**, one of a kind a call (`backends.triton.leases`): an object of system shared memory for tensors
of the host, and memory of a CUDA device for inputs that preprocessing has left on one (`backends.triton.cuda_memory`).
A region that a server may still touch is retired; its object loses its name at once. While more than `RETIRED_BYTES`
wait for that, calls carry their tensors themselves.

**Inputs on a device** are copied on the device, to a region that Triton has mapped. Where a Triton cannot open such
memory (it was built without CUDA, sees no device, or has another process's), it says so when it is told of the first
region; the gateway logs that once, and such inputs go by the host from then on, as all others do.

**What goes which way.** Inputs, and outputs whose size the signature fixes. Other outputs (BYTES, open lengths) come
with the answer. Calls that would move less than `shared_memory_from` bytes carry everything: measured, a place costs
more than some kilobytes do.

**Regions of callers** that a batch names (`SharedMemoryWindow.of`) are passed on: see `backends.triton.lent`. What else
is in such a call goes its usual way, with the call or through a leased region.

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
import logging
import math
import mmap
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from backends.contract import (
    Batch,
    Deadline,
    DeviceArray,
    HostArray,
    Memory,
    SharedMemoryWindow,
    SharedRegion,
    Signature,
    Tensor,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, Overloaded, PointsmanError
from backends.oip import raw
from backends.oip.raw import Claim
from backends.oip.remote import Blame, InferCall, InferReply, Remote
from backends.triton import lent
from backends.triton.cuda_memory import GRANULE_BYTES, CudaRegion, NoRoom, Refused
from backends.triton.leases import Leasable, Leases
from backends.triton.lent import Known, LentRegions, NotOpened
from kernels.dlpack import to_host

T = TypeVar("T")

log = logging.getLogger("pointsman.triton")

FOLDER = Path("/dev/shm")  # noqa: S108  # the folder of shm_open
RETIRED_BYTES = 1 << 30

_PREFIX = "pointsman-tensors-"
_ALIGNMENT = 64
_LEAST_BYTES = 1 << 20
_QUICK_BYTES = 1 << 20  # what is copied on the event loop; more takes over a millisecond, and goes to a thread
_LAST_WORD_S = 5.0  # what calls that nobody waits for get to end, when this is closed
_ITS_WORD = (InvalidInput, BackendFailed, Overloaded, NotOpened, DeadlineExceeded, OSError)
"""After these the server does nothing more for a call of `_to_the_end`: it said so, it was never asked (OSError: there
is no room for a region of our own), or all its time is over (DeadlineExceeded)."""


class Region:
    """An object of system shared memory that this process made, and its mapping; a `leases.Leasable`."""

    def __init__(self, size: int) -> None:
        """Args:
        size: bytes.

        Raises:
            OSError: there is no room.
        """
        self.name = _PREFIX + secrets.token_hex(12)
        self.size = size
        self.is_registered = False
        # Under its own name only when it is locked: `_abandoned` takes what nobody has locked for left over.
        self._path = FOLDER / f".{self.name}"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(self._descriptor, 0, size)  # else a full /dev/shm is SIGBUS, later
            self._bytes: HostArray = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)
            self._path = self._path.rename(FOLDER / self.name)
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

    async def register(self, remote: Remote, deadline: Deadline) -> None:
        """Have the server open it."""
        await remote.register(self.name, f"/{self.name}", self.size, deadline)
        self.is_registered = True

    async def unregister(self, remote: Remote) -> None:
        """Have the server let go of it, if it can be told."""
        await lent.unregister(remote, self.name)

    def withdraw(self) -> None:
        """Take its name away."""
        self.unlink()

    def free(self) -> None:
        """Its memory goes when nothing refers to it any more."""

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
    """Where in a region the tensors of a call lie that do not lie in their caller's.

    Attributes:
        inputs: with the bytes to be written there.
        outputs: None for those that come with the answer.
        there: inputs that are on a device, and where in a region of its memory they go.
        size_there: bytes of that.
    """

    inputs: Mapping[str, tuple[_Place, raw.Buffer]]
    outputs: Mapping[str, _Place | None]
    size: int
    there: Mapping[str, tuple[_Place, DeviceArray]]
    size_there: int


@dataclass(frozen=True, slots=True)
class _Leased:
    """The regions of a call; None where it has none of that kind."""

    here: Region | None = None
    there: CudaRegion | None = None

    def both(self) -> Sequence[Leasable]:
        """Those that there are."""
        return [region for region in (self.here, self.there) if region is not None]


class SharedTransfer:
    """Tensors through shared memory where that pays; implements `backends.oip.served.Transfer`."""

    def __init__(
        self,
        model_name: str,
        signature: Signature,
        from_bytes: int,
        make_there: Callable[[int], CudaRegion] | None = None,
    ) -> None:
        """Args:
        model_name: what the model is called here.
        from_bytes: what a call must move at least.
        make_there: a region of so many bytes of a CUDA device's memory; None: inputs on a device are not taken.
        """
        self._model_name = model_name
        self._blame = Blame(model_name)
        self._outputs = signature.outputs
        self._from_bytes = from_bytes
        self._regions = Leases(Region, _LEAST_BYTES)
        self._there = None if make_there is None else Leases(make_there, GRANULE_BYTES)
        self._takes_there = False
        self._lent = LentRegions()
        self._going_on: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<SharedTransfer: {self._regions}, on a device {self._there}, {self._lent}>"

    @property
    def takes_there(self) -> bool:
        """Whether the server takes inputs on a device as they are; others are copied by way of the host."""
        return self._takes_there

    async def open(self, remote: Remote, deadline: Deadline) -> None:
        """Show that the server can see this machine's shared memory, and remove what killed gateways left; and find out
        whether it can open a device's, where that is wanted.

        Raises:
            InvalidInput: it cannot see the memory of the host, or this process cannot use the device.
        """
        await _sweep(remote, deadline)
        try:
            await self._regions.opened(remote, deadline)
        except (InvalidInput, BackendFailed) as error:
            raise InvalidInput(
                "`shared_memory: true`, and the server cannot open what this gateway makes in /dev/shm "
                f"({error.__cause__}); run both on one machine, in containers with one /dev/shm, or leave it out"
            ) from error
        try:
            await self._open_there(remote, deadline)
        except BaseException:
            await asyncio.shield(self._regions.aclose(remote))
            raise

    async def _open_there(self, remote: Remote, deadline: Deadline) -> None:
        if self._there is None:
            return
        try:
            await self._there.opened(remote, deadline)
        except Refused as error:
            self._give_up_there(error)
        except (ValueError, NoRoom) as error:
            raise InvalidInput(f"`cuda_shared_memory`: {error}") from error
        else:
            self._takes_there = True

    def _give_up_there(self, refusal: Refused) -> None:
        self._takes_there = False
        log.warning(
            "model %r: its server cannot open memory of a CUDA device (%s); what preprocessing leaves there goes "
            "through system shared memory instead; run both on one machine with that device visible to both, or leave "
            "cuda_shared_memory out",
            self._model_name,
            refusal,
        )

    async def infer(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """Have *call* answered; see `Transfer.infer`."""
        await self._let_go(remote)
        if _has_there(batch) and not self._keeps_there(batch):
            call, batch = await self._by_host(call, batch)
        if windows := lent.windows_of(batch):
            if await self._lent.opened(remote, windows, deadline):
                with suppress(NotOpened):
                    return await self._passed_on(remote, call, batch, deadline)
            batch = await asyncio.to_thread(lent.copied, batch)
            call = _with_inputs(call, batch)
        try:
            return await self._through_regions(remote, call, batch, deadline)
        except Refused as error:
            self._give_up_there(error)
        except NoRoom as error:
            log.warning("model %r: its inputs go by the host: %s", self._model_name, error)
        call, batch = await self._by_host(call, batch)
        return await self._through_regions(remote, call, batch, deadline)

    async def _through_regions(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """The answer to *call*, its tensors by way of leased regions where that pays.

        Raises:
            Refused: the server cannot open a region of a device's memory; it has not been asked anything else.
            NoRoom: the device has no room for one; likewise.
        """
        layout = _layout(batch, self._outputs)
        if not self._pays(layout) and not layout.there:
            return await remote.infer(call, deadline)
        leased = await self._leased(layout)
        is_over = False
        try:
            await self._fill(leased, layout)
            reply = await self._asked(remote, _placed(call, leased, layout), leased, deadline)
            is_over = True
        except (InvalidInput, BackendFailed, Overloaded, Refused):
            is_over = True  # by the server's own word
            raise
        finally:
            self._give_back(leased, is_over=is_over)
        return reply

    async def _leased(self, layout: _Layout) -> _Leased:
        """Regions for *layout*, of the host where that pays."""
        there = None
        if layout.there:
            assert self._there is not None, "inputs on a device were to be kept there. This is a bug."
            there = await self._there.leased(layout.size_there)
        try:
            return _Leased(await self._regions.leased(layout.size) if self._pays(layout) else None, there)
        except BaseException:
            self._give_back(_Leased(None, there), is_over=True)
            raise

    def _give_back(self, leased: _Leased, *, is_over: bool) -> None:
        if leased.here is not None:
            self._regions.give_back(leased.here, is_over=is_over)
        if leased.there is not None:
            assert self._there is not None, "a region of a device's memory is nobody's. This is a bug."
            self._there.give_back(leased.there, is_over=is_over)

    async def _fill(self, leased: _Leased, layout: _Layout) -> None:
        """Write the inputs of *layout* to their places.

        Raises:
            BackendFailed: the device fails.
        """
        if leased.here is not None:
            await _off_loop(layout.size, _write, leased.here, layout)
        if leased.there is not None:
            parts = [(place.offset, array) for place, array in layout.there.values()]
            try:
                await _to_its_end(partial(leased.there.fill, parts))
            except Exception as error:  # CuPy raises from its own classes, which are known only where it is
                raise self._blame.failed(error) from error

    def _keeps_there(self, batch: Batch) -> bool:
        """Whether the inputs of *batch* that are on a device go through a region there."""
        if self._there is None or not self._takes_there or lent.windows_of(batch):
            return False
        return self._there.retired_bytes <= RETIRED_BYTES

    async def _by_host(self, call: InferCall, batch: Batch) -> tuple[InferCall, Batch]:
        """Both with inputs that are on a device copied from there.

        Raises:
            BackendFailed: the device fails.
        """
        try:
            batch = await asyncio.to_thread(_from_there, batch)
        except Exception as error:  # CuPy raises from its own classes, which are known only where it is
            raise self._blame.failed(error) from error
        return _with_inputs(call, batch), batch

    async def _passed_on(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """The answer to *call*, which names callers' regions; the call goes on if it is not waited for."""
        answered: asyncio.Future[InferReply] = asyncio.get_running_loop().create_future()
        going_on = asyncio.create_task(self._to_the_end(remote, call, batch, deadline, answered))
        self._going_on.add(going_on)
        going_on.add_done_callback(self._going_on.discard)
        left_s = deadline - time.monotonic()
        try:
            await asyncio.wait((answered,), timeout=left_s if math.isfinite(left_s) else None)
            if not answered.done():
                raise self._blame.late("nothing was said in time, and the call goes on")
            return answered.result()
        except BaseException:
            if not going_on.done():
                lent.withhold_places(batch, going_on)
            raise

    async def _to_the_end(
        self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline, answered: asyncio.Future[InferReply]
    ) -> None:
        """Answer *answered*, and keep what *call* names until the server can do nothing to it any more."""
        layout = _layout(batch, self._outputs)
        leased = _Leased()
        is_over = False
        with self._lent.used(remote, batch) as known:
            try:
                leased = await self._leased(layout)
                await self._fill(leased, layout)
                placed = _passed(_placed(call, leased, layout), batch, known, self._outputs)
                late = Deadline(deadline + lent.LATEST_S)
                reply = await self._asked(remote, placed, leased, late, tuple(known.values()))
                outputs = {**reply.outputs, **lent.in_their_places(batch, reply.outputs)}
                answered.set_result(InferReply(reply.id, reply.version, outputs))
                is_over = True
            except asyncio.CancelledError:  # this is being closed
                answered.cancel()
                raise
            except Exception as error:
                _fail(answered, error)
                is_over = isinstance(error, _ITS_WORD)
                if not is_over:
                    await lent.until_it_cannot_write(remote, tuple(known.values()))
            finally:
                self._give_back(leased, is_over=is_over)

    def _pays(self, layout: _Layout) -> bool:
        """Whether what *layout* has room for should pass through a region of our own."""
        is_enough = layout.size > 0 and layout.size >= self._from_bytes
        return is_enough and self._regions.retired_bytes <= RETIRED_BYTES

    async def aclose(self, remote: Remote) -> None:
        """Take every region back from the server, as far as it answers."""
        await self._end_going_on()
        await self._lent.aclose(remote)
        await self._regions.aclose(remote)
        if self._there is not None:
            await self._there.aclose(remote)

    async def _end_going_on(self) -> None:
        """Wait for the calls that nobody waits for any more, and give up those that do not end."""
        if self._going_on:
            await asyncio.wait(self._going_on, timeout=_LAST_WORD_S)
        for task in tuple(self._going_on):
            task.cancel()
        if self._going_on:
            await asyncio.wait(self._going_on, timeout=_LAST_WORD_S)

    async def _asked(
        self, remote: Remote, call: InferCall, leased: _Leased, deadline: Deadline, known: Sequence[Known] = ()
    ) -> InferReply:
        """The answer to *call*, its outputs copied out of the region that they lie in.

        Args:
            leased: regions of our own that the call names.
            known: callers' regions that it names.

        Raises:
            Refused: the server cannot open a region of a device's memory.
        """
        for region in leased.both():
            if not region.is_registered:
                await region.register(remote, deadline)
        try:
            reply = await remote.infer(call, deadline)
        except PointsmanError as error:  # of its own kind by transport and version; the words are the same
            if not _is_unknown_region(error):
                raise
            await self._register_again(remote, leased, deadline, known)
            reply = await remote.infer(call, deadline)
        if leased.here is None:
            return reply
        return await _off_loop(_size_in(leased.here, reply), _copied, leased.here, reply)

    async def _register_again(
        self, remote: Remote, leased: _Leased, deadline: Deadline, known: Sequence[Known]
    ) -> None:
        """Register what a server that was started again knows no more.

        Raises:
            NotOpened: it cannot open a caller's any more.
            Refused: it cannot open a device's memory any more.
        """
        for region in leased.both():
            await region.register(remote, deadline)
        for one in known:
            await self._lent.reopened(remote, one, deadline)

    async def _let_go(self, remote: Remote) -> None:
        """Have the server let go of regions that were retired long ago."""
        await self._regions.let_go(remote)
        if self._there is not None:
            await self._there.let_go(remote)


async def _off_loop(size: int, work: Callable[..., T], *arguments: object) -> T:
    return work(*arguments) if size <= _QUICK_BYTES else await asyncio.to_thread(work, *arguments)


async def _to_its_end(work: Callable[[], T]) -> T:
    """Do *work*, which uses what is the caller's, in a thread; being cancelled takes effect when it has ended."""
    job = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({job})
        job.exception()
        raise


def _with_inputs(call: InferCall, batch: Batch) -> InferCall:
    """*call* with the inputs of *batch*, all of which go along with it, as do its outputs."""
    return InferCall(call.model, call.version, call.id, batch.inputs, call.parameters, {})


def _has_there(batch: Batch) -> bool:
    """Whether *batch* has an input on a device."""
    return any(tensor.memory is Memory.DEVICE for tensor in batch.inputs.values())


def _from_there(batch: Batch) -> Batch:
    """*batch* with inputs that are on a device copied from there. Takes time: for a thread."""
    inputs = {
        name: tensor
        if tensor.memory is not Memory.DEVICE
        else Tensor(tensor.datatype, tensor.shape, to_host(tensor.data))
        for name, tensor in batch.inputs.items()
    }
    return Batch(inputs, batch.size, batch.places)


def _layout(batch: Batch, outputs: Sequence[TensorSpec]) -> _Layout:
    at = at_there = 0
    inputs: dict[str, tuple[_Place, raw.Buffer]] = {}
    there: dict[str, tuple[_Place, DeviceArray]] = {}
    for name, tensor in batch.inputs.items():
        if tensor.memory is Memory.SHARED:
            continue
        if tensor.memory is Memory.DEVICE:
            size = (tensor.datatype.itemsize or 0) * math.prod(tensor.shape)
            there[name] = (_Place(at_there, size), tensor.on_device())
            at_there += _aligned(size)
            continue
        data = raw.encode(tensor)
        inputs[name] = (_Place(at, len(data)), data)
        at += _aligned(len(data))
    places: dict[str, _Place | None] = {}
    for spec in outputs:
        if batch.places and spec.name in batch.places:
            continue
        fixed = spec.fixed_bytes(batch.size)
        places[spec.name] = None if fixed is None else _Place(at, fixed)
        at += _aligned(fixed or 0)
    return _Layout(inputs, places, at, there, at_there)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _write(region: Region, layout: _Layout) -> None:
    for place, data in layout.inputs.values():
        region.bytes_of(place)[:] = np.frombuffer(data, np.uint8)


def _placed(call: InferCall, leased: _Leased, layout: _Layout) -> InferCall:
    """*call* with what has a place in a region by that place."""
    inputs, outputs = dict(call.inputs), call.outputs
    if leased.here is not None:
        for name, (place, _) in layout.inputs.items():
            inputs[name] = Tensor(inputs[name].datatype, inputs[name].shape, leased.here.window(place))
        outputs = {name: None if place is None else leased.here.window(place) for name, place in layout.outputs.items()}
    if leased.there is not None:
        for name, (place, _) in layout.there.items():
            window = leased.there.window(place.offset, place.size)
            inputs[name] = Tensor(inputs[name].datatype, inputs[name].shape, window)
    return InferCall(call.model, call.version, call.id, inputs, call.parameters, outputs)


def _passed(
    call: InferCall, batch: Batch, known: Mapping[SharedRegion, Known], specs: Sequence[TensorSpec]
) -> InferCall:
    """*call* with what lies in callers' regions, and what goes there, as the server knows it."""
    inputs = {
        name: tensor
        if not isinstance(window := batch.inputs[name].data, SharedMemoryWindow)
        else Tensor(tensor.datatype, tensor.shape, lent.named(window, known))
        for name, tensor in call.inputs.items()
    }
    places = {name: lent.named(window, known) for name, window in (batch.places or {}).items()}
    outputs = {spec.name: places.get(spec.name, call.outputs.get(spec.name)) for spec in specs}
    return InferCall(call.model, call.version, call.id, inputs, call.parameters, outputs if places else call.outputs)


def _fail(answered: asyncio.Future[InferReply], error: Exception) -> None:
    """Have *answered* raise *error*."""
    answered.set_exception(error)
    answered.exception()  # nobody may be there to hear it


def _size_in(region: Region, reply: InferReply) -> int:
    windows = (tensor.data for tensor in reply.outputs.values() if isinstance(tensor.data, SharedMemoryWindow))
    return sum(window.byte_size for window in windows if window.region == region.name)


def _copied(region: Region, reply: InferReply) -> InferReply:
    """*reply* with every output that lies in *region* in host memory of its own."""
    outputs = {name: _copy(name, tensor, region) for name, tensor in reply.outputs.items()}
    return InferReply(reply.id, reply.version, outputs)


def _copy(name: str, tensor: Tensor, region: Region) -> Tensor:
    if not isinstance(tensor.data, SharedMemoryWindow) or tensor.data.region != region.name:
        return tensor
    found = region.bytes_of(_Place(tensor.data.offset, tensor.data.byte_size)).copy()
    return raw.decode(Claim.of(name, tensor, "output"), found.data)


def _is_unknown_region(error: PointsmanError) -> bool:
    said = str(error.__cause__)
    return "shared memory region" in said and ("Unable to find" in said or "not found" in said)


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
