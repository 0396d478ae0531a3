"""The regions of Triton's system shared memory extension: what clients have registered, and how it is read and written.

A region is a part of an object of `shm_open` (a file in /dev/shm), under a name of its client's choice. Off by default.

**Bytes are copied, never mapped.** Whoever made the object can shorten it at any time, and touching a mapping past its
end is SIGBUS, which ends the process. So inputs are read by `preadv` into memory of our own beside the heap
(`gateway.buffers`), and outputs are written by `pwrite`; where the object is too short, either says so. The copy also
makes a tensor stand still: every stage of a cascade, the idempotency fingerprint and the person who reviews see the
same bytes, whatever their sender does meanwhile, and the batcher may rely on arrays that do not change. It costs 30
microseconds for 0.5 MB and 0.9 ms for 10 MB (two cores of a virtual machine). Rejected:

- Views on a mapping: no copy, and the client's `ftruncate` kills the gateway. A handler of SIGBUS cannot be written in
  Python (the faulting instruction, in NumPy, would be run again for ever), and one in C would be this project's only
  native code.
- Only objects that carry F_SEAL_SHRINK: those of `shm_open` are born with F_SEAL_SEAL, adding seals to them is EPERM,
  and clients of Triton make no others.
- F_SETLEASE: refused while somebody has the object open for writing, which the client has.
- A process that maps for us and may die: it would have to copy too, and have its copy mapped in turn.
- `pread` into new memory: 8.4 ms for 10 MB where that is freshly mapped, page fault by page fault.
- Reading when a batch is formed, straight into it: saves the second copy where callers share a batch, and gives each
  stage, and the person, other bytes than the stage before.

**Passed on.** A backend on this machine that reads shared memory itself (`Memory.SHARED`: a Triton with
`shared_memory: true`) is told of the region instead, and the bytes never come here, where everything that the copy is
for can be done without: `gateway.passing` says when that is. Then the client's memory is the client's own risk, as it
is at Triton alone: what it writes while a call runs may be seen by that or not. A client that shortens its object
during a call ends Triton, and not the gateway; `pass_through: false` is for clients who are not trusted with that.

A server is told of the object by a name of our own: a hard link that is there for as long as it takes to tell. The
client's name for it may have come to mean another object, another tenant's even, since it was registered.

**Keys.** `/name` or `name` is the file /dev/shm/name and nothing else: no further slash, so neither a path nor the
`///name` that slips by a check of prefixes; no link; a plain file. Names of other programs' objects are refused by
prefix. A gateway that may open more than its client could (as root, say) is a deputy: it takes objects of its own user,
and those that everybody may read and write. Within one user the kernel keeps nobody apart, and neither can we.

**Tenants** see and use their own regions. An object that one tenant has registered is no other's, under whatever key.

**Whoever names a region must be on this machine.** Requests do not carry their sender's address, so the gateway does
not start with this on any address but loopback. A proxy on this machine that lets others in lets them in here.

**One process.** Regions are this process's: several behind one port would each need to be told.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from backends.contract import SharedMemoryWindow
from backends.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unimplemented,
)
from backends.quoting import shorten
from gateway.buffers import Buffers

FOLDER = Path("/dev/shm")  # noqa: S108  # the folder of shm_open
"""Where `shm_open` keeps its objects on Linux."""

MAX_REGION_NAME = 255
"""Longest name of a region, in characters."""

_LINK = "pointsman-region-"
_FOREIGN = (
    "triton_python_backend_shm_region_",  # Triton's own; it refuses them too
    _LINK,  # ours
    "pointsman-tensors-",
    "sem.",  # sem_open
    "psm_",  # Python's multiprocessing, where it makes up a name
    "pymp-",  # and its heaps
    "torch_",  # PyTorch's loaders
    "nccl-",  # NCCL
    "PostgreSQL.",
    "pulse-shm-",
    ".",
)
_KEY = re.compile(r"/?([A-Za-z0-9._~+=@%,:-]{1,255})")
_EVERYBODY = stat.S_IROTH | stat.S_IWOTH
_LINKED_S = 120.0  # since the link was made, or the object was last written to
_RETRY_AFTER_S = 1.0
_MOST_AT_ONCE = 1 << 30  # Linux moves 2 GiB at most in one call


@dataclass(frozen=True, slots=True)
class SharedMemoryOptions:
    """Whether clients may put tensors into shared memory, and how much.

    Attributes:
        max_regions: most that one tenant has registered at a time.
        limit_bytes: most that the gateway's copies of inputs take at a time.
        pass_through: whether regions are passed on to models' servers on this machine that read them themselves.
        pass_from_bytes: what a request must have there for that; less is copied, and merged with other requests'.
    """

    enabled: bool = False
    max_regions: int = 64
    limit_bytes: int = 512 * 1024 * 1024
    pass_through: bool = True
    pass_from_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """What a client said of a region, as status calls repeat it.

    Attributes:
        key: of the object that it is part of.
        offset: where in the object it begins.
        byte_size: its length.
    """

    name: str
    key: str
    offset: int
    byte_size: int


class Region:
    """A registered region. Whatever refers to it keeps its object open: an unregistered one serves who has it still.

    Implements `backends.contract.SharedRegion`.
    """

    def __init__(self, status: RegionStatus, descriptor: int, folder: Path = FOLDER) -> None:
        """Args:
        descriptor: of the object, open for reading and writing; it is closed with this.
        folder: where the objects are.

        Raises:
            InvalidInput: it is no shared memory object, or the region goes beyond it.
            PermissionDenied: it is another user's.
        """
        self.status = status
        self._descriptor = descriptor
        self._folder = folder
        self._withheld: dict[object, SharedMemoryWindow] = {}
        self._to_tell: list[Callable[[], None]] = []
        self._is_given_up = False
        weakref.finalize(self, os.close, descriptor)
        found = os.fstat(descriptor)
        self.object_id = (found.st_dev, found.st_ino)
        _check_object(found, status)

    def __repr__(self) -> str:
        return f"<Region {self.status.name!r}: {self.status.byte_size} bytes of {self.status.key!r}>"

    def check(self, window: SharedMemoryWindow) -> None:
        """Refuse a window that is not within this region.

        Raises:
            InvalidInput: names both sizes.
        """
        if window.offset > self.status.byte_size or window.byte_size > self.status.byte_size - window.offset:
            raise InvalidInput(
                f"{window.byte_size} bytes at offset {window.offset} are beyond region {shorten(window.region)}, "
                f"which has {self.status.byte_size}"
            )

    def check_place(self, window: SharedMemoryWindow) -> None:
        """Refuse *window* as the place of an output while a call that nobody waits for may still write there.

        Raises:
            Unavailable: one may.
        """
        for taken in self._withheld.values():
            if taken.offset < window.offset + window.byte_size and window.offset < taken.offset + taken.byte_size:
                raise Unavailable(
                    f"a call that was given up may still write to region {self.status.name!r} where an output of this "
                    "one is to go; wait, or use another place",
                    retry_after_s=_RETRY_AFTER_S,
                )

    @property
    def byte_size(self) -> int:
        """How long it is."""
        return self.status.byte_size

    @property
    def offset(self) -> int:
        """Where in its object it begins."""
        return self.status.offset

    @contextmanager
    def key(self) -> Iterator[str]:
        """A name of its object; see `SharedRegion.key`."""
        name = f"{_LINK}{secrets.token_hex(12)}"
        path = self._folder / name
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.link(str(self._descriptor), path, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        try:
            yield f"/{name}"
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    def check_length(self, window: SharedMemoryWindow) -> None:
        """Refuse *window* if the object has become too short for it; see `SharedRegion.check_length`."""
        needed = self.status.offset + window.offset + window.byte_size
        if os.fstat(self._descriptor).st_size < needed:
            raise self._shortened(needed)

    def when_given_up(self, told: Callable[[], None]) -> None:
        """Call *told* once it is unregistered; see `SharedRegion.when_given_up`."""
        if self._is_given_up:
            told()
        else:
            self._to_tell.append(told)

    def give_up(self) -> None:
        """Tell those who want to know that it is unregistered."""
        self._is_given_up = True
        waiting, self._to_tell = self._to_tell, []
        for told in waiting:
            told()

    def withhold(self, window: SharedMemoryWindow) -> Callable[[], None]:
        """Keep *window* from other calls; see `SharedRegion.withhold`."""
        ticket = object()
        self._withheld[ticket] = window

        def give_back() -> None:
            self._withheld.pop(ticket, None)

        return give_back

    def read(self, window: SharedMemoryWindow, buffer: memoryview) -> None:
        """Copy *window*, which `check` has passed, into *buffer*, which is as long. Safe in a thread.

        Raises:
            InvalidInput: the object is shorter than when it was registered.
        """
        start = self.status.offset + window.offset
        done = self._moved(
            len(buffer), lambda at: os.preadv(self._descriptor, [buffer[at : at + _MOST_AT_ONCE]], start + at)
        )
        if done < len(buffer):
            raise self._shortened(start + len(buffer))

    def write(self, window: SharedMemoryWindow, data: memoryview) -> None:
        """Copy *data*, which is not longer than *window*, to where that begins. Safe in a thread.

        A client that shortens the object in this moment gets it as long again as the data makes it.

        Raises:
            InvalidInput: the object is shorter than when it was registered.
            Unavailable: the machine has no memory left for it.
        """
        start = self.status.offset + window.offset
        if os.fstat(self._descriptor).st_size < start + len(data):
            raise self._shortened(start + len(data))
        self._moved(len(data), lambda at: os.pwrite(self._descriptor, data[at : at + _MOST_AT_ONCE], start + at))

    def _moved(self, size: int, move: Callable[[int], int]) -> int:
        """How many of *size* bytes *move*, given how many are done, has moved before it moved none."""
        done = 0
        try:
            while done < size and (moved := move(done)):
                done += moved
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise Unavailable("this machine has no shared memory left; free some, and try again") from error
            raise InvalidInput(
                f"region {self.status.name!r} cannot be used: {error.strerror}; register it again"
            ) from error
        return done

    def _shortened(self, needed: int) -> InvalidInput:
        return InvalidInput(
            f"the object {self.status.key!r} of region {self.status.name!r} has been shortened: {needed} bytes of it "
            f"are needed, and it has {os.fstat(self._descriptor).st_size}; keep its length while it is registered"
        )


class SharedMemory:
    """Every tenant's regions. Belongs to one event loop."""

    def __init__(
        self, options: SharedMemoryOptions | None = None, heap_bytes: int = 16 * 1024 * 1024, folder: Path = FOLDER
    ) -> None:
        """Args:
        heap_bytes: most bytes of one BYTES input, whose elements become objects on the heap.
        folder: where the objects are; links that gateways which were killed have left there are removed.
        """
        options = options or SharedMemoryOptions()
        self.enabled = options.enabled
        self.heap_bytes = heap_bytes
        self.buffers = Buffers(options.limit_bytes)
        self.pass_from_bytes = options.pass_from_bytes if options.pass_through else None
        self._max_regions = options.max_regions
        self._folder = folder
        self._regions: dict[str, dict[str, Region]] = {}
        if self.enabled:
            _sweep(folder)

    def __repr__(self) -> str:
        return f"SharedMemory({sum(map(len, self._regions.values()))} regions, {self.buffers})"

    def register(self, tenant: str, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make *byte_size* bytes at *offset* of the object *key* the region *name* of *tenant*.

        Raises:
            Unimplemented: shared memory is off.
            AlreadyExists: the tenant has such a region.
            QuotaExceeded: it has as many as it may have.
            InvalidInput: name, key, offset or size cannot be, or go beyond the object.
            NotFound: there is no such object.
            PermissionDenied: the object is another program's, user's or tenant's.
            Unavailable: no more files can be opened.
        """
        self._require_enabled()
        regions = self._regions.get(tenant, {})
        _check_name(name)
        if name in regions:
            raise AlreadyExists(f"shared memory region {name!r} already in manager; unregister it first")
        if len(regions) >= self._max_regions:
            raise QuotaExceeded(
                f"{len(regions)} regions are registered; at most {self._max_regions} may be: unregister some"
            )
        file_name = _file_name(key)
        if offset < 0 or byte_size < 1:
            raise InvalidInput(
                f"region {name!r} has offset {offset} and byte_size {byte_size}; these begin at 0 and at 1"
            )
        status = RegionStatus(name, key, offset, byte_size)
        region = Region(status, _open(self._folder / file_name, key), self._folder)
        self._require_nobody_else_s(tenant, region)
        self._regions.setdefault(tenant, {})[name] = region

    def unregister(self, tenant: str, name: str = "") -> None:
        """Forget the region *name* of *tenant*, or all of them; forgetting what is not there is no error.

        Requests in flight finish on it.
        """
        regions = self._regions.get(tenant, {})
        for leaving in (name,) if name else tuple(regions):
            if (region := regions.pop(leaving, None)) is not None:
                region.give_up()

    def status(self, tenant: str, name: str = "") -> Sequence[RegionStatus]:
        """The region *name* of *tenant*, or all of them.

        Raises:
            NotFound: it has no such region.
        """
        if name:
            return (self.region(tenant, name).status,)
        return tuple(region.status for region in self._regions.get(tenant, {}).values())

    def region(self, tenant: str, name: str) -> Region:
        """The region *name* of *tenant*.

        Raises:
            NotFound: it has no such region.
        """
        region = self._regions.get(tenant, {}).get(name)
        if region is None:
            raise NotFound(f"there is no shared memory region {shorten(name)}; register it first")
        return region

    def window(self, tenant: str, window: SharedMemoryWindow) -> Region:
        """The region that *window* is in, and within which it is.

        Raises:
            Unimplemented: shared memory is off.
            NotFound: *tenant* has no such region.
            InvalidInput: the window goes beyond it.
        """
        self._require_enabled()
        region = self.region(tenant, window.region)
        region.check(window)
        return region

    def _require_enabled(self) -> None:
        if not self.enabled:
            raise Unimplemented(
                "shared memory is off in this gateway; send tensors in the request, or set "
                "`server: {shared_memory: {enabled: true}}`"
            )

    def _require_nobody_else_s(self, tenant: str, region: Region) -> None:
        others = (regions for owner, regions in self._regions.items() if owner != tenant)
        if any(other.object_id == region.object_id for regions in others for other in regions.values()):
            raise PermissionDenied(f"the object {region.status.key!r} is somebody else's; make one of your own")


def _sweep(folder: Path) -> None:
    """Remove the links that `Region.key` has left behind where it was killed: nobody tells a server for that long."""
    for path in folder.glob(f"{_LINK}*"):
        with suppress(OSError):
            if time.time() - path.stat(follow_symlinks=False).st_ctime > _LINKED_S:
                path.unlink()


def _check_name(name: str) -> None:
    if not (0 < len(name) <= MAX_REGION_NAME and name.isprintable()):
        raise InvalidInput(f"a region is named {shorten(name)}; names have 1 to {MAX_REGION_NAME} printable characters")


def _file_name(key: str) -> str:
    """The name in the folder of objects of the one that *key* means."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise InvalidInput(
            f"key {shorten(key)} names no shared memory object; write /NAME, with letters, digits and ._~+=@%,:- alone"
        )
    for prefix in _FOREIGN:
        if match[1].startswith(prefix):
            raise PermissionDenied(
                f"key {shorten(key)} has the reserved prefix {prefix!r}: such objects are other programs'; "
                "give yours another name"
            )
    return match[1]


def _open(path: Path, key: str) -> int:
    """A descriptor of the object at *path*; never waits, and never follows a link."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"unable to open shared memory region: there is no object {key!r}; create it first") from error
    except PermissionError as error:
        raise PermissionDenied(
            f"the object {key!r} cannot be opened for reading and writing; give the gateway's user access to it"
        ) from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise Unavailable("the gateway has too many files open; unregister regions, or try again later") from error
        # a link, a folder, a socket
        raise InvalidInput(f"{key!r} is no shared memory object; create it with shm_open") from error


def _check_object(found: os.stat_result, status: RegionStatus) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"{status.key!r} is no shared memory object; create it with shm_open")
    if found.st_uid != os.geteuid() and found.st_mode & _EVERYBODY != _EVERYBODY:
        raise PermissionDenied(
            f"the object {status.key!r} is another user's; create it as the gateway's user, or let everybody read and "
            "write it"
        )
    if status.offset + status.byte_size > found.st_size:
        raise InvalidInput(
            f"region {status.name!r} is to have {status.byte_size} bytes at offset {status.offset}, but the object "
            f"{status.key!r} has {found.st_size} in all"
        )
