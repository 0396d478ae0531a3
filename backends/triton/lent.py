"""Callers' regions of shared memory as one server knows them: the server reads and writes there itself.

**Registration.** A region is registered at the server when a call first names it, under a name that nobody else has,
and again when the server, started anew, says that it does not know it. It is found there by its object and not by the
caller's name for it, which may mean another object by then (`SharedRegion.key`). When its caller has given it up and
the last call that uses it is over, the server is told to let go of it; never before, as that would take the memory away
from under a call.

**What the server cannot open** (an object of a user that it may not read, or one that has lost its name) is read here
and sent, as all tensors in shared memory are where nothing can be passed on.

**A call goes on to its end** at the server, even if nobody waits for it any more: what it writes goes to memory of a
caller, who must not be told that a later answer lies there before that one can no longer come. The server's own
`timeout` still ends what only waits. Where the server never has the last word (it hung up, or died), its places stay
taken until it turns out to be another process, which knows none of the regions, or for `LATEST_S`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from backends.contract import Batch, Deadline, HostArray, SharedMemoryWindow, SharedRegion, Tensor, Tensors
from backends.errors import BackendFailed, InvalidInput, PointsmanError
from backends.oip import raw
from backends.oip.raw import Claim
from backends.oip.remote import Remote

LATEST_S = 60.0
"""How long after its deadline a call may still write, as far as anybody can know."""

_PREFIX = "pointsman-caller-"
_ASK_AGAIN_S = 0.5
_UNREGISTER_S = 2.0


@dataclass(slots=True, eq=False)
class Known:
    """A caller's region at one server.

    Attributes:
        name: what the server calls it.
        uses: calls that name it, and are not over at the server.
        is_refused: the server cannot open it.
        is_given_up: its caller has unregistered it.
    """

    region: SharedRegion
    name: str
    uses: int = 0
    is_registered: bool = False
    is_refused: bool = False
    is_given_up: bool = False

    async def register(self, remote: Remote, deadline: Deadline) -> bool:
        """Have the server open it; False where it had it already.

        Raises:
            OSError: the object has no name any more.
            InvalidInput, BackendFailed: the server cannot open it.
            PointsmanError: it could not be asked.
        """
        try:
            with self.region.key() as key:
                await remote.register(self.name, key, self.region.byte_size, deadline, self.region.offset)
        except PointsmanError as error:  # of its own kind by transport and version; the words are the same
            if not _is_known_already(error):
                raise
            return False
        finally:
            self.is_registered = True  # or it may be: a call will tell
        return True


class LentRegions:
    """What one server has been told of callers' regions. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: dict[SharedRegion, Known] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<LentRegions: {len(self._known)}, {sum(known.uses for known in self._known.values())} uses>"

    async def opened(self, remote: Remote, windows: Sequence[SharedMemoryWindow], deadline: Deadline) -> bool:
        """Whether the server has the regions of *windows* open, which it is told to where it has not.

        Raises:
            InvalidInput: an object has become too short.
            PointsmanError: the server could not be asked.
        """
        for window in windows:
            assert window.of is not None, "a window of nobody's region was to be passed on. This is a bug."
            window.of.check_length(window)
            known = self._of(window.of, remote)
            if not known.is_registered and not known.is_refused:
                await self._open(known, remote, deadline)
            if known.is_refused:
                return False
        return True

    async def reopened(self, remote: Remote, known: Known, deadline: Deadline) -> None:
        """Have a server that was started again open the region.

        Raises:
            NotOpened: it cannot.
            PointsmanError: it could not be asked.
        """
        await self._open(known, remote, deadline)
        if known.is_refused:
            raise NotOpened(known.name)

    async def _open(self, known: Known, remote: Remote, deadline: Deadline) -> None:
        known.uses += 1
        try:
            await known.register(remote, deadline)
        except (InvalidInput, BackendFailed, OSError):
            known.is_refused = True
        finally:
            self._ended(known, remote)

    @contextmanager
    def used(self, remote: Remote, batch: Batch) -> Iterator[Mapping[SharedRegion, Known]]:
        """The regions that *batch* names, kept open at the server within the context."""
        known = {region: self._of(region, remote) for region in regions_of(batch)}
        for one in known.values():
            one.uses += 1
        try:
            yield known
        finally:
            for one in known.values():
                self._ended(one, remote)

    async def aclose(self, remote: Remote) -> None:
        """Have the server let go of all of them."""
        self._is_closed = True
        if self._leaving:
            await asyncio.wait(self._leaving)
        known, self._known = self._known, {}
        for one in known.values():
            if one.is_registered:
                await unregister(remote, one.name)

    def _of(self, region: SharedRegion, remote: Remote) -> Known:
        known = self._known.get(region)
        if known is None:
            known = self._known[region] = Known(region, _PREFIX + secrets.token_hex(12))
            region.when_given_up(self._giving_up(known, remote))
        return known

    def _giving_up(self, known: Known, remote: Remote) -> Callable[[], None]:
        def given_up() -> None:
            known.is_given_up = True
            self._leave_if_over(known, remote)

        return given_up

    def _ended(self, known: Known, remote: Remote) -> None:
        known.uses -= 1
        self._leave_if_over(known, remote)

    def _leave_if_over(self, known: Known, remote: Remote) -> None:
        if not known.is_given_up or known.uses or self._is_closed or self._known.get(known.region) is not known:
            return
        del self._known[known.region]
        if known.is_registered:
            task = asyncio.get_running_loop().create_task(unregister(remote, known.name))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)


def withhold_places(batch: Batch, going_on: asyncio.Task[None]) -> None:
    """Have the places of *batch* given to no other call until *going_on*, which nobody waits for, has ended."""
    for window in (batch.places or {}).values():
        if window.of is not None:
            give_back = window.of.withhold(window)
            going_on.add_done_callback(lambda _, give_back=give_back: give_back())  # type: ignore[misc]


class NotOpened(Exception):
    """The server was started again, and cannot open a caller's region any more."""


async def until_it_cannot_write(remote: Remote, known: Sequence[Known]) -> None:
    """Wait until a server that has not had the last word of a call can no longer write for it.

    That is when it knows one of the regions no more, since then it was started anew, or after `LATEST_S`.
    """
    until = time.monotonic() + LATEST_S
    while (now := time.monotonic()) < until:
        await asyncio.sleep(_ASK_AGAIN_S)
        with suppress(PointsmanError, OSError):
            if await known[0].register(remote, Deadline(now + 2 * _ASK_AGAIN_S)):
                return


def regions_of(batch: Batch) -> Sequence[SharedRegion]:
    """Those that *batch* names, each once."""
    return tuple(dict.fromkeys(window.of for window in windows_of(batch) if window.of is not None))


def windows_of(batch: Batch) -> Sequence[SharedMemoryWindow]:
    """Where inputs of *batch* lie, and outputs go, that are in callers' regions."""
    inputs = [tensor.data for tensor in batch.inputs.values() if isinstance(tensor.data, SharedMemoryWindow)]
    return [*inputs, *(batch.places or {}).values()]


def named(window: SharedMemoryWindow, known: Mapping[SharedRegion, Known]) -> SharedMemoryWindow:
    """*window* as the server knows it."""
    assert window.of is not None, "a window of nobody's region was to be passed on. This is a bug."
    return SharedMemoryWindow(known[window.of].name, window.offset, window.byte_size)


def copied(batch: Batch) -> Batch:
    """*batch* with its inputs in host memory, and no places. Takes time: for a thread.

    Raises:
        InvalidInput: an object has become too short, or what lies there is no tensor.
    """
    return Batch({name: _copied(name, tensor) for name, tensor in batch.inputs.items()}, batch.size)


def _copied(name: str, tensor: Tensor) -> Tensor:
    window = tensor.data
    if not isinstance(window, SharedMemoryWindow):
        return tensor
    assert window.of is not None, "a window of nobody's region was to be read. This is a bug."
    buffer: HostArray = np.empty(window.byte_size, np.uint8)
    window.of.read(window, buffer.data)
    return raw.decode(Claim.of(name, tensor), buffer.data.toreadonly())


def in_their_places(batch: Batch, outputs: Tensors) -> dict[str, Tensor]:
    """Those of *outputs* that lie in the places of *batch*, as its caller knows these."""
    return {
        name: Tensor(outputs[name].datatype, outputs[name].shape, place.part(0, _size(outputs[name])))
        for name, place in (batch.places or {}).items()
        if name in outputs
    }


def _size(output: Tensor) -> int:
    assert isinstance(output.data, SharedMemoryWindow), "an output with a place lies elsewhere. This is a bug."
    return output.data.byte_size


def _is_known_already(error: PointsmanError) -> bool:
    return "already in manager" in str(error.__cause__)


async def unregister(remote: Remote, name: str) -> None:
    """Have the server let go of the region *name*, if it can be told."""
    with suppress(PointsmanError):  # it may be gone, or have been started again since
        await remote.unregister(name, Deadline(time.monotonic() + _UNREGISTER_S))
