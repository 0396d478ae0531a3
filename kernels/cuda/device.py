"""Recipes and scores on a CUDA device: staging, streams, launches.

A batch goes over in pieces, by two lanes in turn. A lane is a stream with a buffer of page-locked memory and one of the
device's: while one lane's piece is on its way and computed, the other's is filled, so that copying on the host, the
bus and the device work at once. Descriptors travel with the pixels: a piece is one copy and one launch.

Tables of weights depend on sizes alone; they stay on the device. One call at a time: a second would only queue for the
same bus.

Results are whole when they are returned: every stream that had a part in one has been waited for, so that any stream
may read it at once. Memory goes back to CuPy's pool with the last reference, and the pool orders its next use behind
the current stream alone; so who reads a result on another stream holds it until that stream is through, as
`kernels.dlpack` does.

Rejected: a CUDA graph for each size of batch. A graph saves what launching many kernels costs the host, some two
microseconds each; here a piece of up to 32 MiB is one copy and one launch, so that there is one launch's cost to save
of a piece that takes hundreds of microseconds on the bus alone. In exchange its nodes would have to be set anew for
every piece (the number of bytes, the grid, the address of the result), which costs about what the launch does; and a
batch of pictures of unequal size has no bucket. Graphs pay where a model is many small kernels; there they are the
model's own (ONNX Runtime, Triton).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Array, DeviceArray
from kernels.cuda import layout
from kernels.cuda.compiler import compile_cubin, compiler_version
from kernels.cuda.layout import Table, Window
from kernels.cuda.sources import (
    SCORE_THREADS,
    SOFTMAX_TOP_K,
    TILE,
    Cache,
    Target,
    Variant,
    cache_folder,
    variant_of,
)
from kernels.images import Uint8
from kernels.recipe import Recipe

_PIECE_BYTES = 32 * 2**20
_PIECE_PICTURES = 65_535
"""What a grid's z can count."""

_TABLE_BYTES = 64 * 2**20
"""Of tables of weights that stay on the device: a thousand of pages; of the largest pictures, callers' to choose, a
hundred."""


class Device:
    """One CUDA device; safe to share between threads. `kernels.devices.cuda` opens it."""

    def __init__(self, number: int = 0, cache: Cache | None = None) -> None:
        """Args:
        number: as CUDA counts.
        cache: of compiled kernels.

        Raises:
            cupy.cuda.runtime.CUDARuntimeError: there is no such device, or no driver for it.
        """
        self._number = number
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self._target = Target(
            f"sm_{self._device().compute_capability}",
            properties["name"].decode(),
            str(cupy.cuda.runtime.driverGetVersion()),
            compiler_version(),
        )
        self._cache = cache or Cache(cache_folder(), compile_cubin)
        self._functions: dict[Variant, Any] = {}
        self._tables: dict[Table, tuple[DeviceArray, DeviceArray]] = {}
        self._table_bytes = 0
        self._lock = threading.Lock()
        with self._device():
            self._lanes = (_Lane(), _Lane())

    def __repr__(self) -> str:
        return f"<Device {self._target.device} ({self._target.architecture})>"

    def _device(self) -> Any:
        """A context of its own: CuPy's remembers in itself which device was current before, whatever the thread."""
        return cupy.cuda.Device(self._number)

    def run(self, recipe: Recipe, pictures: Sequence[Uint8] | Uint8) -> Array | None:
        """As `fused.run`, by way of the device; a `kernels.guard.Kernel`.

        Raises:
            MemoryError: the device has not enough.
        """
        made = self.run_there(recipe, pictures)
        if made is None:
            return None
        with self._device():
            return np.asarray(made.get())

    def run_there(self, recipe: Recipe, pictures: Sequence[Uint8] | Uint8) -> DeviceArray | None:
        """As `run`, but the result, (n, *recipe.shape), stays on the device, finished.

        Raises:
            MemoryError: the device has not enough.
        """
        windows = layout.windows(recipe, pictures)
        if windows is None:
            return None
        with self._lock, self._device():
            if self._table_bytes > _TABLE_BYTES:
                self._tables.clear()
                self._table_bytes = 0
            function = self._function(variant_of(recipe))
            result = cupy.empty((len(windows), *recipe.shape), dtype=recipe.dtype)
            cupy.cuda.get_current_stream().synchronize()  # the lanes' streams do not wait for it
            try:
                for number, (start, piece) in enumerate(_pieces(windows)):
                    self._launch(self._lanes[number % 2], function, recipe, piece, result[start : start + len(piece)])
            finally:
                for lane in self._lanes:
                    lane.stream.synchronize()
            return result

    def scores(self, scores: DeviceArray, k: int | None, temperature: float) -> tuple[Array, ...]:
        """`outputs.softmax` of scores on the device, or the *k* highest of it and their indices; a `guard.ScoreKernel`.

        Raises:
            MemoryError: the device has not enough.
        """
        probabilities, best, places = self.softmax_top_k(scores, k or 0, temperature=temperature)
        with self._device():
            return (probabilities.get(),) if k is None else (best.get(), places.get())

    def softmax_top_k(
        self, scores: NDArray[np.float32] | DeviceArray, k: int, *, temperature: float = 1.0
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """`outputs.softmax` and `outputs.top_k` of it in one launch, on the current stream.

        Args:
            scores: (n, classes), float32, here or on the device.
            k: 0 to classes.
            temperature: as in `outputs.softmax`.

        Returns:
            on the device: the probabilities, (n, classes), float32, the *k* highest, (n, k), and their indices, int64.
        """
        with self._device():
            given = cupy.asarray(scores) if isinstance(scores, np.ndarray) else cupy.from_dlpack(scores)
            given = cupy.ascontiguousarray(given)
            rows, classes = given.shape
            probabilities = cupy.empty((rows, classes), dtype=np.float32)
            best, indices = cupy.empty((rows, k), dtype=np.float32), cupy.empty((rows, k), dtype=np.int64)
            with self._lock:
                function = self._function(SOFTMAX_TOP_K)
            arguments = (given, np.int32(classes), np.float64(temperature), np.int32(k), probabilities, best, indices)
            function((rows,), (SCORE_THREADS,), arguments)
            return probabilities, best, indices

    def _launch(self, lane: _Lane, function: Any, recipe: Recipe, piece: Sequence[Window], result: DeviceArray) -> None:
        """Copy *piece* over and work on it, on the stream of *lane*."""
        heads = layout.Heads.of(recipe, piece)
        host, base = lane.ready(heads.nbytes + sum(window.nbytes for window in piece))
        at = heads.nbytes
        for index, window in enumerate(piece):
            window.copy_to(host[at:])
            tables = (*self._addresses(window.down), *self._addresses(window.across))
            heads.pictures[index] = window.describe(base + at, tables)
            at += window.nbytes
        host[: heads.nbytes] = heads.packed()
        lane.send(at)
        height, width = recipe.size
        grid = (-(-width // TILE[1]) * -(-height // TILE[0]), 1, len(piece))
        pictures, operations, order = (np.uint64(base + offset) for offset in heads.offsets)
        arguments = (
            pictures,
            operations,
            np.int32(len(recipe.operations)),
            order,
            np.float32(layout.fill(recipe)),
            np.uint64(result.data.ptr),
            np.int32(height),
            np.int32(width),
        )
        with lane.stream:
            function(grid, (TILE[1], TILE[0]), arguments)

    def _addresses(self, table: Table) -> tuple[int, int]:
        """Where *table* is, on the device."""
        if table not in self._tables:
            self._tables[table] = (cupy.asarray(table.first), cupy.asarray(table.weights))
            self._table_bytes += table.first.nbytes + table.weights.nbytes
            cupy.cuda.get_current_stream().synchronize()
        first, weights = self._tables[table]
        return first.data.ptr, weights.data.ptr

    def _function(self, variant: Variant) -> Any:
        if variant not in self._functions:
            module = cupy.cuda.function.Module()
            module.load(self._cache.load(variant, self._target))
            self._functions[variant] = module.get_function(variant.function)
        return self._functions[variant]


class _Lane:
    """A stream, and the memory that its pieces go through."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._host: Uint8 = np.empty(0, dtype=np.uint8)
        self._there: Any = None

    def ready(self, nbytes: int) -> tuple[Uint8, int]:
        """Wait for the last piece; then page-locked memory to fill, and the address that `send` copies it to."""
        self.stream.synchronize()
        if len(self._host) < nbytes:
            self._there = cupy.cuda.alloc(nbytes)
            cupy.cuda.get_current_stream().synchronize()  # behind which the pool gives out what was freed
            self._host = np.frombuffer(_page_locked(nbytes), dtype=np.uint8, count=nbytes)
        return self._host, int(self._there.ptr)

    def send(self, nbytes: int) -> None:
        """Copy the first *nbytes* over, behind the caller's back."""
        self._there.copy_from_host_async(self._host.ctypes.data, nbytes, stream=self.stream)


def _page_locked(nbytes: int) -> Any:
    """Memory of the host that the device can read.

    Raises:
        MemoryError: there is not enough.
    """
    try:
        return cupy.cuda.alloc_pinned_memory(nbytes)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "cudaErrorMemoryAllocation" not in str(error):
            raise
        raise MemoryError(f"{nbytes} bytes of page-locked memory: {error}") from error


def _pieces(windows: Sequence[Window]) -> Iterator[tuple[int, Sequence[Window]]]:
    """Where each piece starts, and its windows: at least one, and up to `_PIECE_BYTES` and `_PIECE_PICTURES`."""
    start, nbytes = 0, 0
    for index, window in enumerate(windows):
        if index > start and (nbytes + window.nbytes > _PIECE_BYTES or index - start == _PIECE_PICTURES):
            yield start, windows[start:index]
            start, nbytes = index, 0
        nbytes += window.nbytes
    yield start, windows[start:]
