"""Memory of a CUDA device that a Triton on the same machine opens, and what is copied there.

Triton is given a handle of CUDA's interprocess communication, and maps what it stands for. The memory is allocated for
this alone (`cudaMalloc`, in whole `GRANULE_BYTES`): a handle opens the whole block that an address lies in, so that of
memory from a pool the server would see what belongs to others. It is freed when the server has let go of it, and never
before: freeing what another process has mapped is undefined.

What is copied there has arrived when `fill` returns: the server reads on streams of its own, which know nothing of
those here.

Source: CUDA Runtime API, 5.9 and 6.11 (`cudaIpcGetMemHandle`); Triton's CUDA shared memory extension,
docs/protocol/extension_shared_memory.md.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, Self

from backends.contract import Deadline, DeviceArray, SharedMemoryWindow
from backends.errors import BackendFailed, InvalidInput, NotFound, PointsmanError
from backends.oip.remote import Remote
from kernels.dlpack import NEEDS_CUPY, borrowed

GRANULE_BYTES = 2 << 20

_PREFIX = "pointsman-device-"
_UNREGISTER_S = 2.0
_DEFAULT = 4  # cudaMemcpyDefault: the addresses say which way


class Refused(Exception):
    """The server says, in these words, that it cannot open memory of the device."""


class NoRoom(Exception):
    """The device has not enough memory."""


class Memory(Protocol):
    """Memory of a device that was allocated for one region."""

    @property
    def handle(self) -> bytes:
        """What another process opens it by."""
        ...

    def write(self, parts: Sequence[tuple[int, DeviceArray]]) -> None:
        """Copy arrays to offsets; they have arrived when this returns.

        Raises:
            Exception: the device's own.
        """
        ...

    def free(self) -> None:
        """Give it back."""
        ...


class CudaMemory:
    """So many bytes of CUDA device *number*."""

    def __init__(self, number: int, nbytes: int) -> None:
        """Args:
        number: as CUDA counts.
        nbytes: rounded up to whole granules.

        Raises:
            ValueError: CuPy is missing, or the device; says the remedy.
            NoRoom: the device has not enough.
        """
        if find_spec("cupy") is None:
            raise ValueError(NEEDS_CUPY)
        self._cupy: Any = import_module("cupy")  # Any: it has no types
        try:
            with self._cupy.cuda.Device(number):
                self._memory = self._cupy.cuda.memory.Memory(-(-nbytes // GRANULE_BYTES) * GRANULE_BYTES)
                self._stream = self._cupy.cuda.Stream(non_blocking=True)
                self._handle = bytes(self._cupy.cuda.runtime.ipcGetMemHandle(self._memory.ptr))
        except Exception as error:  # CuPy raises from its own classes, which are known only where it is
            if "cudaErrorMemoryAllocation" in str(error):
                raise NoRoom(f"{nbytes} bytes of CUDA device {number}: {error}") from error
            raise ValueError(f"CUDA device {number} cannot be used: {error}; check it with nvidia-smi") from error

    @property
    def handle(self) -> bytes:
        """`cudaIpcMemHandle_t`, 64 bytes."""
        return self._handle

    def write(self, parts: Sequence[tuple[int, DeviceArray]]) -> None:
        """Copy arrays, of this device or another, to offsets; they have arrived when this returns."""
        with ExitStack() as held:
            try:
                for offset, array in parts:
                    found = held.enter_context(borrowed(array))
                    self._cupy.cuda.runtime.memcpyAsync(
                        self._memory.ptr + offset, found.address, found.nbytes, _DEFAULT, self._stream.ptr
                    )
            finally:
                self._stream.synchronize()

    def free(self) -> None:
        """Give it back to the device."""
        self._memory = None


class CudaRegion:
    """A region on a CUDA device; a `leases.Leasable`."""

    def __init__(self, memory: Memory, number: int, size: int) -> None:
        """Args:
        memory: owned from here on.
        number: of its device.
        size: bytes that it has at least.
        """
        self.name = _PREFIX + secrets.token_hex(12)
        self.size = size
        self.is_registered = False
        self._memory = memory
        self._number = number

    @classmethod
    def made(cls, number: int, size: int) -> Self:
        """A region of *size* bytes on CUDA device *number*.

        Raises:
            ValueError, NoRoom: as `CudaMemory`.
        """
        return cls(CudaMemory(number, size), number, size)

    def __repr__(self) -> str:
        return f"<CudaRegion {self.name}: {self.size} bytes of device {self._number}>"

    def window(self, offset: int, size: int) -> SharedMemoryWindow:
        """Part of it as the server is told of it."""
        return SharedMemoryWindow(self.name, offset, size)

    def fill(self, parts: Sequence[tuple[int, DeviceArray]]) -> None:
        """Copy arrays to offsets; they have arrived when this returns. Takes time: for a thread."""
        self._memory.write(parts)

    async def register(self, remote: Remote, deadline: Deadline) -> None:
        """Have the server open it.

        Raises:
            Refused: it says that it cannot.
            PointsmanError: it could not be asked.
        """
        try:
            await remote.register_cuda(self.name, self._memory.handle, self._number, self.size, deadline)
        except (InvalidInput, BackendFailed, NotFound) as error:
            raise Refused(str(error.__cause__ or error)) from error
        self.is_registered = True

    async def unregister(self, remote: Remote) -> None:
        """Have the server let go of it, if it can be told; one that is gone has."""
        with suppress(PointsmanError):
            await remote.unregister_cuda(self.name, Deadline(time.monotonic() + _UNREGISTER_S))

    def withdraw(self) -> None:
        """Nobody but the server has ever been told the handle."""

    def free(self) -> None:
        """Give the memory back."""
        self._memory.free()
