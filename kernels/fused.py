"""Recipes on the CPU in one pass: from uint8 pictures to one contiguous batch, with no array between that is whole.

A picture is worked off in blocks of output rows, each small enough to stay in a core's cache from the pixels to the
finished numbers. Two ways, by how many input pixels an output pixel is made of:
- **Bands**, where it is many (antialiased or area reduction): the rows that a few output rows need are widened to
  float32, a tile of columns at a time, and multiplied by their part of the resampling matrix; then the columns
  likewise, by weights that are spread over interleaved channels, so that no step works on three numbers at a time.
  The matrices are small on purpose: OpenBLAS then stays on the calling thread, and ours are the only threads.
- **Gathering**, where it is at most two an axis (nearest, bilinear without antialiasing, enlarging): the pixels are
  picked out of their rows, plane by plane, and mixed. Arithmetic is done in runs as long as can be (whole planes where
  the result is, several rows where they share their weights): what a loop of NumPy's costs to begin was a third of it.

Only the part of the picture that the crop keeps is read, and a picture's result does not depend on its batch. NumPy
lets go of the interpreter in each of its loops, so that an event loop on another thread stays responsive.

Threads: blocks of gathering are spread over a pool that all plans share, one thread less than there are cores, and
the calling thread. A block is a whole picture of the usual size, so that a single one stays where it is: handed over
in halves, it took more of the wall clock than alone, and more again while other threads were at work. Products stay
on the calling thread: they take some ten microseconds each, after which two threads wait for each other to get the
interpreter back. Measured on two cores, a page took 8.0 ms and 11.2 ms of CPU by two threads, and 6.3 ms by one;
other batches are what other cores are for.

Rejected: one matrix product an axis over the whole picture (the reference's way), which writes and reads back a
float32 picture four times the size of the original; rounding through a table of 256 results, no faster than the
arithmetic itself.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from kernels import images
from kernels.arrays import Array
from kernels.images import Band, Filter, Float32, Uint8
from kernels.recipe import Axis, Boxed, Placement, Recipe, store

_PRODUCT = 2**18
"""Multiplications of one matrix product: up to so many, OpenBLAS stays on the calling thread."""

_BLOCK = 2**17
"""Elements of the rows that a block keeps between its two passes: half a MiB of float32."""

_BLOCK_ROWS = 112
"""Most output rows of one block of products."""

_GATHERED = 2**18
"""Numbers that one block gathers: a picture of 224 x 224 whole, since the hand-over of half of it to another thread
takes longer than it saves. Most elements of scratch are four times as many."""

_SHARE_NUMBERS = 80_000
"""Numbers to gather that are worth a thread of their own: about half a millisecond."""


def run(recipe: Recipe, pictures: Sequence[Uint8] | Uint8) -> Array | None:
    """Do *recipe* on a batch.

    Args:
        recipe: what to do.
        pictures: (height, width, channels) each, uint8; of any strides, never written to.

    Returns:
        (n, *recipe.shape), C-contiguous, of its dtype; None where the steps refuse one of the pictures.
    """
    placements = [recipe.place(*picture.shape[:2]) for picture in pictures]
    result = np.empty((len(pictures), *recipe.shape), dtype=recipe.dtype)
    blocks: deque[Callable[[], None]] = deque()
    to_gather = 0
    border = recipe.border() if isinstance(recipe.fit, Boxed) else None
    for picture, placement, item in zip(pictures, placements, result, strict=True):
        if placement is None:
            return None
        planes = item if recipe.planar else np.moveaxis(item, -1, 0)
        if border is not None:
            _draw_border(planes, border, placement)
        gathered = _is_gathered(recipe.filtering, picture.shape[:2], placement)
        work = _Work(recipe, _rows(picture), planes, placement)
        method, height = (_gathering if gathered else _banding)(work, *recipe.axes(placement, *picture.shape[:2]))
        for top in range(0, placement.kept[0], height):
            blocks.append(partial(method, slice(top, min(top + height, placement.kept[0]))))
        to_gather += planes.size if gathered else 0
    _spread(blocks, 1 + to_gather // _SHARE_NUMBERS)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """One picture on its way.

    Attributes:
        rows: (height, width x channels), uint8; only the last axis is contiguous.
        planes: (channels, height, width) of the result, a view.
    """

    recipe: Recipe
    rows: Uint8
    planes: Array
    placement: Placement

    @property
    def is_levels(self) -> bool:
        """Whether levels are computed where the result is: planes of float32 are as good a place as any."""
        return self.recipe.element == "float32" and self.recipe.planar

    def target(self, rows: slice) -> Array:
        """Where the result has output rows *rows*, (channels, rows, columns)."""
        top, left = self.placement.corner
        return self.planes[:, top + rows.start : top + rows.stop, left : left + self.placement.kept[1]]

    def levels(self, rows: slice) -> Float32:
        """Where their levels are computed, likewise; of any content."""
        target = self.target(rows)
        return target if self.is_levels else _scratch("levels", target.shape)


Method = Callable[[slice], None]
"""Makes output rows."""


def _rows(picture: Uint8) -> Uint8:
    """*picture* with its channels in the rows; a view where pixels and channels lie side by side."""
    height, width, channels = picture.shape
    if picture.strides[1:] != (channels, 1):
        picture = np.ascontiguousarray(picture)
    return np.lib.stride_tricks.as_strided(
        picture, (height, width * channels), (picture.strides[0], 1), writeable=False
    )


def _is_gathered(filtering: Filter, size: Sequence[int], placement: Placement) -> bool:
    """Whether an output pixel is made of at most two input pixels an axis."""
    if filtering.method != "bilinear":
        return filtering.method == "nearest"
    enlarged = all(length <= target for length, target in zip(size, placement.resized, strict=True))
    return not filtering.antialias or enlarged


# Bands.


def _outputs(axis: Axis) -> int:
    """Of one product: fewer where each takes many inputs, most of which the others do not share."""
    return 8 if axis.length > 3 * axis.target else 16


@lru_cache(maxsize=32)
def _products(axis: Axis) -> tuple[Band, ...]:
    """The products that resample *axis*, `_outputs` each."""
    return images.bands(*axis.taps(), axis.length, _outputs(axis))


@lru_cache(maxsize=32)
def _interleaved(axis: Axis, order: tuple[int, ...]) -> tuple[Band, ...]:
    """`_products` for interleaved channels: (inputs x channels, channels of the result x `_outputs`), planes apart.

    `low` and `high` count numbers, not pixels; outputs beyond the last are 0.
    """
    channels, outputs = len(order), _outputs(axis)
    spread = []
    for product in _products(axis):
        weights = np.zeros((product.high - product.low, channels, channels, outputs), np.float32)
        for place, channel in enumerate(order):
            weights[:, channel, place, : product.stop - product.start] = product.weights.T
        flat = weights.reshape(-1, channels * outputs)
        spread.append(Band(product.start, product.stop, product.low * channels, product.high * channels, flat))
    return tuple(spread)


def _banding(work: _Work, down: Axis, across: Axis) -> tuple[Method, int]:
    """What makes output rows by matrix products, and how many at a time: what fits the cache, in whole bands."""
    columns = _interleaved(across, work.recipe.order)
    width = max(product.high for product in columns) - columns[0].low
    most = max(product.weights.size for product in columns)
    rows = min(_BLOCK_ROWS, _BLOCK // width, _PRODUCT // most)
    return partial(_band, work, _products(down), columns), max(1, rows // _outputs(down)) * _outputs(down)


def _band(work: _Work, down: tuple[Band, ...], across: tuple[Band, ...], rows: slice) -> None:
    """Output rows *rows* by matrix products."""
    low, high = across[0].low, max(product.high for product in across)
    count, channels = rows.stop - rows.start, len(work.recipe.order)
    lines = _scratch("lines", (count, high - low))
    for product in down:
        if rows.start <= product.start < rows.stop:
            target = lines[product.start - rows.start : product.stop - rows.start]
            _resample_lines(work.rows[product.low : product.high, low:high], product.weights, target)
    mixed = _scratch("mixed", (count, len(across), across[0].weights.shape[1]))
    for place, product in enumerate(across):
        np.matmul(lines[:, product.low - low : product.high - low], product.weights, out=mixed[:, place])
    padded = _scratch("padded", (channels, count, len(across), mixed.shape[2] // channels))
    np.copyto(padded, mixed.reshape(count, len(across), channels, -1).transpose(2, 0, 1, 3))
    sums = padded.reshape(channels, count, -1)[:, :, : work.placement.kept[1]]
    levels = work.levels(rows)
    _finish(work, rows, _rounded(np.add(sums, np.float32(0.5), out=levels)))


def _resample_lines(pixels: Uint8, weights: Float32, target: Float32) -> None:
    """*weights* times *pixels* into *target*, a tile of columns at a time: 128 KiB of float32 or less."""
    height, width = pixels.shape
    step = max(64, _PRODUCT // weights.size)
    whole = _scratch("tile", (height, step))
    for left in range(0, width, step):
        tile = whole if left + step <= width else whole.reshape(-1)[: height * (width - left)].reshape(height, -1)
        np.copyto(tile, pixels[:, left : left + step])
        np.matmul(weights, tile, out=target[:, left : left + step])


# Gathering.


@dataclass(frozen=True, slots=True, eq=False)
class _Picks:
    """For each output of what is kept of an axis: two input pixels, and how much of each; one for `nearest`."""

    places: tuple[NDArray[np.intp], ...]
    shares: tuple[Float32, ...]


_TOGETHER = 8
"""Rows that are weighed at a time, where so many divide them: a loop of NumPy's costs as much as a hundred products."""


@lru_cache(maxsize=64)
def _picks(axis: Axis) -> _Picks:
    first, weights = axis.taps()
    if axis.filtering.method == "nearest":
        return _Picks((first,), ())
    shares = tuple(np.ascontiguousarray(weights[:, tap]) for tap in (0, 1))
    return _Picks((first, np.minimum(first + 1, axis.length - 1)), shares)


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """`_Picks` of the numbers of a row, from *low* to *high*.

    Attributes:
        places: of the first number of each output, (channels x width,), plane by plane, and behind them of the second.
        shares: of the first and of the second, each for `_TOGETHER` rows; none for `nearest`.
    """

    low: int
    high: int
    places: NDArray[np.intp]
    shares: tuple[Float32, ...]


@lru_cache(maxsize=64)
def _columns(axis: Axis, order: tuple[int, ...]) -> _Columns:
    picks = _picks(axis)
    low, high = int(picks.places[0][0]), int(picks.places[-1][-1]) + 1
    channels = np.asarray(order)[:, np.newaxis]
    places = np.concatenate([np.ravel((place - low) * len(order) + channels) for place in picks.places])
    shares = tuple(np.tile(share, _TOGETHER * len(order)) for share in picks.shares)
    return _Columns(low * len(order), high * len(order), places, shares)


def _gathering(work: _Work, down: Axis, across: Axis) -> tuple[Method, int]:
    """What makes output rows by picking, and how many at a time."""
    rows = max(1, _GATHERED // (across.kept * len(work.recipe.order)))
    return partial(_gather, work, _picks(down), _columns(across, work.recipe.order)), rows


def _gather(work: _Work, lines: _Picks, columns: _Columns, rows: slice) -> None:
    """Output rows *rows* from at most two input rows and columns each."""
    pixels = work.rows[np.concatenate([place[rows] for place in lines.places]), columns.low : columns.high]
    taken = _scratch("taken", (len(pixels), len(columns.places)), np.uint8)
    np.take(pixels, columns.places, axis=1, mode="clip", out=taken)  # both of an output at once: a row stays at hand
    channels, levels = len(work.recipe.order), work.levels(rows)
    if not columns.shares:
        np.copyto(levels, _planes(taken, channels))
        _finish(work, rows, levels)
        return
    height, width = len(taken) // 2, len(columns.places) // 2
    together = math.gcd(len(taken), _TOGETHER) * width
    numbers = _scratch("numbers", (2, 2 * height, width))
    for part, half, share in zip(numbers, (taken[:, :width], taken[:, width:]), columns.shares, strict=True):
        np.copyto(part, half)
        weighed = part.reshape(-1, together)
        weighed *= share[:together]
    mixed = np.add(numbers[0], numbers[1], out=numbers[0])
    for part, share in zip((mixed[:height], mixed[height:]), lines.shares, strict=True):
        part *= share[rows, np.newaxis]
    np.add(_planes(mixed[:height], channels), _planes(mixed[height:], channels), out=levels)
    levels += np.float32(0.5)
    _finish(work, rows, _rounded(levels))


def _planes(numbers: Array, channels: int) -> Array:
    """Rows of all planes, (rows, channels x columns), as (channels, rows, columns)."""
    return numbers.reshape(len(numbers), channels, -1).swapaxes(0, 1)


# Both.


def _rounded(sums: Float32) -> Float32:
    """Whole levels, of sums and a half, in their place."""
    return np.floor(sums, out=sums)


def _finish(work: _Work, rows: slice, levels: Float32) -> None:
    """From whole levels, (channels, rows, columns), to numbers in their place, if they are not there already."""
    work.recipe.apply(levels)
    if not work.is_levels:
        store(levels, work.target(rows), work.recipe.element)


def _draw_border(planes: Array, border: Array, placement: Placement) -> None:
    top, left = placement.corner
    bottom, right = top + placement.kept[0], left + placement.kept[1]
    colour = border[:, np.newaxis, np.newaxis]
    planes[:, :top] = colour
    planes[:, bottom:] = colour
    planes[:, top:bottom, :left] = colour
    planes[:, top:bottom, right:] = colour


_LOCAL = threading.local()


def _scratch(name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> Array:
    """This thread's array *name*, of any content: fresh memory would cost more to touch than to compute on."""
    size = math.prod(shape)
    held: Array | None = getattr(_LOCAL, name, None)
    if held is None or len(held) < size:
        held = np.empty(size, dtype=dtype)
        if size <= _KEPT:
            setattr(_LOCAL, name, held)
    return held[:size].reshape(shape)


_KEPT = 1_048_576
"""Elements of a scratch array that is kept: 4 MiB."""


# Threads.


def _spread(blocks: deque[Callable[[], None]], shares: int) -> None:
    """Work *blocks* off, on up to *shares* threads of which this is one."""
    helpers = min(shares, len(blocks), _cores()) - 1
    futures = [_pool().submit(_work_off, blocks) for _ in range(helpers)]
    try:
        _work_off(blocks)
    finally:
        blocks.clear()
        for future in futures:
            if not future.cancel():
                future.result()


def _work_off(blocks: deque[Callable[[], None]]) -> None:
    while True:
        try:
            block = blocks.popleft()
        except IndexError:
            return
        block()


@lru_cache(maxsize=1)
def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _cores() - 1), thread_name_prefix="kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
