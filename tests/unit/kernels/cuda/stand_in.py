"""CuPy on the host, as far as `kernels.cuda.device` needs it, and as unkind as CUDA may be.

- A stream does its work when somebody waits for it, and no earlier: what is read before, or written over before, shows.
- Streams know nothing of each other.
- The pool gives out memory that was freed on a stream at once, the last first, though that stream may not be through.
- Memory is never clean.
- A kernel's arguments have the sizes that its source declares, and a grid its limits.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.arrays import Array
from kernels.cuda.sources import Target, Variant
from tests.unit.kernels.cuda.host import THREADS, TILE_H, TILE_W, Build

GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
_RUNNING = threading.Lock()
"""`host.cpp` does one launch at a time."""


class LazyStream:
    """Work that is done when somebody waits for it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._work: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def add(self, work: Callable[[], object]) -> None:
        """Have *work* done behind what is there."""
        with self._lock:
            self._work.append(work)

    def synchronize(self) -> None:
        """Do it all."""
        with self._lock:
            while self._work:
                self._work.pop(0)()
        self._cuda.after_waiting(self)

    def __enter__(self) -> LazyStream:
        self._cuda.within.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        self._cuda.within.pop()


class Moment:
    """A `cupy.cuda.Event`: a moment in what a stream does."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream: LazyStream | None = None
        self._at_s: float | None = None

    def record(self) -> None:
        """Take the time when the current stream is here."""
        self._stream = self._cuda.get_current_stream()
        self._stream.add(self._note)

    def synchronize(self) -> None:
        """Wait until it is."""
        assert self._stream is not None
        self._stream.synchronize()

    def ms_since(self, start: Moment) -> float:
        """What lies between, of two that are over."""
        assert self._at_s is not None
        assert start._at_s is not None
        return 1e3 * (self._at_s - start._at_s)

    def _note(self) -> None:
        self._at_s = time.perf_counter()


class Memory:
    """A block of the pool's, or a place in it; the block is the pool's again when nobody holds it."""

    def __init__(self, block: _Block, offset: int = 0) -> None:
        self._block = block
        self._offset = offset

    @property
    def ptr(self) -> int:
        """Its address."""
        return self._block.bytes.ctypes.data + self._offset

    def at(self, offset: int) -> Memory:
        """The place *offset* bytes on."""
        return Memory(self._block, self._offset + offset)

    def copy_from_device_async(self, source: Memory, nbytes: int, stream: LazyStream) -> None:
        """From another place of the device's memory."""
        assert nbytes <= min(memory._block.bytes.size - memory._offset for memory in (self, source))
        target, start = self.ptr, source.ptr
        stream.add(lambda: _move(target, start, nbytes))

    def copy_from_host_async(self, source: int, nbytes: int, stream: LazyStream) -> None:
        """From page-locked memory, which is read when the copy is done, not when it is asked for."""
        assert nbytes <= self._block.bytes.size - self._offset
        target = self.ptr
        stream.add(lambda: _move(target, source, nbytes))


class _Block:
    def __init__(self, found: NDArray[np.uint8], free: list[NDArray[np.uint8]]) -> None:
        self.bytes = found
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.bytes)


class There:
    """A `cupy.ndarray`."""

    def __init__(self, cupy: CuPy, data: Memory, shape: tuple[int, ...], dtype: Any) -> None:
        self._cupy = cupy
        self.data = data
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice) -> There:
        start, stop, step = chosen.indices(len(self))
        assert step == 1
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return There(self._cupy, self.data.at(start * row), (stop - start, *self.shape[1:]), self.dtype)

    def get(self) -> Array:
        """Copied to the host, behind the work of the current stream alone."""
        result = np.empty(self.shape, self.dtype)
        source, target, stream = self.data.ptr, result.ctypes.data, self._cupy.cuda.get_current_stream()
        stream.add(lambda: _move(target, source, result.nbytes))
        stream.synchronize()
        return result


def _move(target: int, source: int, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


class CudaRuntimeError(RuntimeError):
    """`cupy.cuda.runtime.CUDARuntimeError`."""


class Cuda:
    """`cupy.cuda`.

    Attributes:
        page_locked_limit: most bytes of one piece of page-locked memory.
        after_waiting: is told of each stream that was waited for.
    """

    def __init__(self, load: Callable[[bytes], Variant], build: Build) -> None:
        self.page_locked_limit = 2**40
        self.after_waiting: Callable[[LazyStream], None] = lambda stream: None
        self._blocks: list[NDArray[np.uint8]] = []  # for ever: work that comes too late must find some memory
        self._free: list[NDArray[np.uint8]] = []
        self.main = LazyStream(self)
        self._local = threading.local()
        self.runtime = SimpleNamespace(
            getDeviceProperties=lambda number: {"name": b"Stand-in"},
            driverGetVersion=lambda: 13000,
            CUDARuntimeError=CudaRuntimeError,
        )
        self.function = SimpleNamespace(Module=lambda: _Module(self, load, build))

    def Device(self, number: int) -> Any:  # noqa: N802
        """A context, of any compute capability."""

        class Device:
            compute_capability = "90"

            def __enter__(self) -> None: ...

            def __exit__(self, *args: object) -> None: ...

        return Device()

    def Stream(self, non_blocking: bool) -> LazyStream:  # noqa: N802
        """A new one; only those that do not wait for the default stream are stood in for."""
        assert non_blocking
        return LazyStream(self)

    def Event(self) -> Moment:  # noqa: N802
        """A new one."""
        return Moment(self)

    def get_elapsed_time(self, start: Moment, end: Moment) -> float:
        """Milliseconds between the two."""
        return end.ms_since(start)

    def get_current_stream(self) -> LazyStream:
        """The innermost `with`'s, or the default stream."""
        return self.within[-1] if self.within else self.main

    @property
    def within(self) -> list[LazyStream]:
        """The streams whose `with` this thread is in."""
        found: list[LazyStream] = self._local.__dict__.setdefault("within", [])
        return found

    def alloc(self, nbytes: int) -> Memory:
        """What was freed last, if it is large enough."""
        for place in reversed(range(len(self._free))):
            if self._free[place].size >= nbytes:
                return Memory(_Block(self._free.pop(place), self._free))
        whole = np.full(nbytes + 512, 0xAB, np.uint8)
        self._blocks.append(whole)
        start = -whole.ctypes.data % 256
        return Memory(_Block(whole[start : start + nbytes + 16], self._free))

    def alloc_pinned_memory(self, nbytes: int) -> bytearray:
        """Page-locked memory."""
        if nbytes > self.page_locked_limit:
            raise CudaRuntimeError("cudaErrorMemoryAllocation: out of memory")
        return bytearray(b"\xab" * nbytes)


class _Module:
    def __init__(self, cuda: Cuda, load: Callable[[bytes], Variant], build: Build) -> None:
        self._cuda = cuda
        self._load = load
        self._build = build

    def load(self, cubin: bytes) -> None:
        self._variant = self._load(cubin)

    def get_function(self, name: str) -> Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]:
        assert name == self._variant.function
        kernel = getattr(self._build(self._variant.source, self._variant.macros), f"host_{name}")
        sizes, block = _DECLARED[name]

        def launch(grid: tuple[int, ...], threads: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            assert threads == block
            whole = (*grid, 1, 1)[:3]
            assert all(0 < count <= limit for count, limit in zip(whole, GRID_LIMITS, strict=True)), grid
            passed = [_passed(one, size) for one, size in zip(arguments, sizes, strict=True)]

            def work() -> None:
                with _RUNNING:
                    kernel((ctypes.c_int * 3)(*whole), *passed)

            self._cuda.get_current_stream().add(work)

        return launch


_DECLARED: dict[str, tuple[Sequence[Any], tuple[int, ...]]] = {
    "resample": (
        ("at", "at", np.int32, "at", np.float32, "at", np.int32, np.int32),
        (TILE_W, TILE_H),
    ),
    "softmax_top_k": (("at", np.int32, np.float64, np.int32, "at", "at", "at"), (THREADS,)),
}
"""What the parameters of each kernel are, and the threads of its blocks."""


def _passed(argument: Any, declared: Any) -> Any:
    if declared == "at":
        address = argument.data.ptr if isinstance(argument, There) else argument
        assert isinstance(address, int) or type(address) is np.uint64
        return ctypes.c_void_p(int(address))
    assert type(argument) is declared
    return {np.int32: ctypes.c_int, np.float32: ctypes.c_float, np.float64: ctypes.c_double}[declared](argument.item())


class CuPy:
    """`cupy`, whose modules are the sources' libraries of the host."""

    __version__ = "stand-in"

    def __init__(self, build: Build) -> None:
        self._variants: list[Variant] = []
        self.cuda = Cuda(lambda cubin: self._variants[int(cubin)], build)

    def load(self, variant: Variant, target: Target) -> bytes:
        """What `Cache.load` would give: a number that a module knows its variant by."""
        self._variants.append(variant)
        return str(len(self._variants) - 1).encode()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> There:
        """Memory of any content."""
        return There(self, self.cuda.alloc(int(np.prod(shape)) * np.dtype(dtype).itemsize), tuple(shape), dtype)

    def asarray(self, array: Array) -> There:
        """*array* on the device; from pageable memory, which may be written to as soon as this is over."""
        made, held = self.empty(array.shape, array.dtype), np.array(array, order="C")
        target = made.data.ptr
        self.cuda.get_current_stream().add(lambda: _move(target, held.ctypes.data, held.nbytes))
        return made

    def from_dlpack(self, array: There) -> There:
        """*array*, which is there."""
        return array

    def ascontiguousarray(self, array: There) -> There:
        """*array*, which is contiguous."""
        return array


def opened(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `kernels.cuda.device.Device` on *cupy*; skips the test where the real one, which that imports, is missing."""
    pytest.importorskip("cupy", reason="kernels.cuda.device imports CuPy")
    from kernels.cuda import device as module

    monkeypatch.setattr(module, "cupy", cupy)
    monkeypatch.setattr(module, "TILE", (TILE_H, TILE_W))
    monkeypatch.setattr(module, "SCORE_THREADS", THREADS)
    monkeypatch.setattr(module, "_PIECE_BYTES", 3000)
    return module.Device(cache=cupy)  # type: ignore[arg-type]
