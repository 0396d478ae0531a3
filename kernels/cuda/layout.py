"""How a batch of pictures of any sizes lies in memory for `image.cu`: windows, tables of weights, descriptors.

Nothing here needs a device: addresses are put in by whoever knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kernels.images import Float32, Uint8
from kernels.recipe import Axis, Boxed, Placement, Recipe

PICTURE = np.dtype(
    [
        ("pixels", np.uint64),
        ("first_row", np.uint64),
        ("row_weights", np.uint64),
        ("first_column", np.uint64),
        ("column_weights", np.uint64),
        ("pitch", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("row_taps", np.int32),
        ("column_taps", np.int32),
        ("kept_height", np.int32),
        ("kept_width", np.int32),
        ("top", np.int32),
        ("left", np.int32),
    ]
)
"""`struct Picture`."""

OPERATION = np.dtype([("kind", np.int32), ("numbers", np.float32, 4)])
"""`struct Operation`."""

PITCH = 16
"""Rows and windows start at multiples of it."""

_KINDS = {"multiply": 0, "subtract": 1, "divide": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """How what is kept of an axis comes of inputs *low* to *high*.

    Attributes:
        first: (kept,), int32: each output's first input, counted from *low*.
        weights: (kept, taps), float32.
    """

    low: int
    high: int
    first: NDArray[np.int32]
    weights: Float32


@lru_cache(maxsize=256)
def table(axis: Axis) -> Table:
    """The table of *axis*."""
    first, weights = axis.taps()
    low, high = int(first[0]), min(int(first[-1]) + weights.shape[1], axis.length)
    return Table(low, high, (first - low).astype(np.int32), weights)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What is read of one picture.

    Attributes:
        pixels: (rows, columns, channels), a view.
        pitch: bytes from row to row where it is copied to.
        nbytes: that it takes there.
    """

    placement: Placement
    down: Table
    across: Table
    pixels: Uint8
    pitch: int
    nbytes: int

    @classmethod
    def of(cls, recipe: Recipe, picture: Uint8) -> Window | None:
        """None where the steps refuse the picture."""
        placement = recipe.place(*picture.shape[:2])
        if placement is None:
            return None
        down, across = map(table, recipe.axes(placement, *picture.shape[:2]))
        pixels = picture[down.low : down.high, across.low : across.high]
        pitch = -(-pixels.shape[1] * pixels.shape[2] // PITCH) * PITCH
        return cls(placement, down, across, pixels, pitch, pitch * len(pixels))

    def copy_to(self, memory: Uint8) -> None:
        """Copy the pixels into *memory*, (nbytes,)."""
        channels = self.pixels.shape[2]
        lines = np.lib.stride_tricks.as_strided(memory[: self.nbytes], self.pixels.shape, (self.pitch, channels, 1))
        np.copyto(lines, self.pixels)

    def describe(self, pixels: int, tables: tuple[int, int, int, int]) -> tuple[int, ...]:
        """The fields of its `PICTURE`.

        Args:
            pixels: the address that `copy_to` copied to, or that is copied to the device from there.
            tables: the addresses of `down.first`, `down.weights`, `across.first` and `across.weights`.
        """
        placed = self.placement
        sizes = (*self.pixels.shape[:2], self.down.weights.shape[1], self.across.weights.shape[1])
        return (pixels, *tables, self.pitch, *sizes, *placed.kept, *placed.corner)


def operations(recipe: Recipe) -> NDArray[np.void]:
    """`Recipe.operations` as the kernel reads them: (operations,), `OPERATION`."""
    result = np.zeros(max(1, len(recipe.operations)), dtype=OPERATION)
    for into, operation in zip(result, recipe.operations, strict=False):
        into["kind"] = _KINDS[operation.kind]
        into["numbers"][: len(recipe.order)] = operation.by_channel(recipe.order)
    return result


def order(recipe: Recipe) -> NDArray[np.int32]:
    """`Recipe.order` as the kernel reads it: (4,), int32."""
    result = np.zeros(4, dtype=np.int32)
    result[: len(recipe.order)] = recipe.order
    return result


def fill(recipe: Recipe) -> float:
    """The level around a letterboxed picture."""
    return float(recipe.fit.fill) if isinstance(recipe.fit, Boxed) else 0.0


def windows(recipe: Recipe, pictures: Sequence[Uint8] | Uint8) -> list[Window] | None:
    """What is read of each picture; None where the steps refuse one."""
    found = []
    for picture in pictures:
        window = Window.of(recipe, picture)
        if window is None:
            return None
        found.append(window)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """What travels before the pixels of a piece: descriptors, operations and the order of channels.

    Attributes:
        pictures: (n,), `PICTURE`, for `Window.describe` to fill.
        offsets: of pictures, operations and order from the start, in bytes.
        nbytes: of all, a multiple of `PITCH`.
    """

    pictures: NDArray[np.void]
    rest: tuple[Uint8, Uint8]
    offsets: tuple[int, int, int]
    nbytes: int

    @classmethod
    def of(cls, recipe: Recipe, windows: Sequence[Window]) -> Heads:
        """For a piece of *windows*."""
        pictures = np.zeros(len(windows), dtype=PICTURE)
        rest = (operations(recipe).view(np.uint8), order(recipe).view(np.uint8))
        ends = np.cumsum([-(-part.nbytes // PITCH) * PITCH for part in (pictures, *rest)])
        return cls(pictures, rest, (0, int(ends[0]), int(ends[1])), int(ends[2]))

    def packed(self) -> Uint8:
        """As it travels, (nbytes,)."""
        result = np.zeros(self.nbytes, dtype=np.uint8)
        for offset, part in zip(self.offsets, (self.pictures.view(np.uint8), *self.rest), strict=True):
            result[offset : offset + len(part)] = part
        return result
