"""A chain of image steps as one operation, which a fused kernel does in one pass: what `fused` and `cuda` work from.

    resize | resize_shortest | letterbox   with a centre crop behind it, or none
    bgr                                    before or after
    scale, normalize                       in any number
    cast                                   to float32, or at the end to float16 or bfloat16
    chw                                    or channels last

The chain takes uint8 pictures of any size and gives one array of one size. What does not fit this is left to the
steps one after the other: `Chain.then` says None, and the plan is right without a recipe.

Arithmetic is that of the reference, in its order and in float32, so that a kernel's result differs from it only where
the sum of the resampling, added up in another order, falls on the other side of a half: by one level of uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels import images
from kernels.arrays import PIXEL_LIMIT, Array
from kernels.images import Filter, Rounding, Size

Arithmetic: TypeAlias = Literal["multiply", "subtract", "divide"]
Element: TypeAlias = Literal["uint8", "float32", "float16", "bfloat16"]

CHANNEL_LIMIT = 4
"""Most channels of a recipe: with more, products over all pairs of them take longer than the steps."""


@dataclass(frozen=True, slots=True)
class Exact:
    """`images.resize`: a picture fills *size*, whatever its aspect ratio."""

    size: Size


@dataclass(frozen=True, slots=True)
class Shortest:
    """`images.resize_shortest`: a picture's shorter side becomes *side* pixels."""

    side: int


@dataclass(frozen=True, slots=True)
class Boxed:
    """`images.letterbox`: a picture lies within *size*, with borders of *fill*."""

    size: Size
    fill: int


Fit: TypeAlias = Exact | Shortest | Boxed


@dataclass(frozen=True, slots=True)
class Operation:
    """Float32 arithmetic with one number a channel of the source, or one for all."""

    kind: Arithmetic
    numbers: tuple[float, ...]

    def by_channel(self, order: Sequence[int]) -> NDArray[np.float32]:
        """The numbers of the channels *order*, (channels,)."""
        numbers = np.asarray(self.numbers, dtype=np.float32)
        return numbers[list(order)] if len(numbers) > 1 else np.repeat(numbers, len(order))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one picture's pixels come from and go.

    Attributes:
        resized: what the picture is resampled to, in pixels.
        crop: the top left corner in that of what is kept of it.
        kept: (height, width) of what is kept.
        corner: where the output has it.
    """

    resized: Size
    crop: tuple[int, int]
    kept: Size
    corner: tuple[int, int]


class Axis(NamedTuple):
    """An axis of *length* resampled to *target*, of which *kept* outputs from *crop* on stay."""

    length: int
    target: int
    filtering: Filter
    crop: int
    kept: int

    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`images.taps` of what is kept; of `nearest`, whose pixels are taken whole, with a weight of 1."""
        if self.filtering.method == "nearest":
            first, weights = images.nearest(self.length, self.target), np.ones((self.target, 1), dtype=np.float32)
        else:
            first, weights = images.taps(self.length, self.target, self.filtering)
        kept = slice(self.crop, self.crop + self.kept)
        return first[kept], np.ascontiguousarray(weights[kept])


@dataclass(frozen=True, slots=True)
class Recipe:
    """A chain that is whole.

    Attributes:
        fit: how a picture is resized.
        filtering: how it is resampled.
        size: (height, width) of the result.
        order: for each channel of the result, the channel of the picture that it is.
        operations: what is done to the resampled and rounded pixels, in order.
        element: of the result; bfloat16 as its bit patterns in uint16.
        planar: channels first.
        rounding: of the place of a crop.
    """

    fit: Fit
    filtering: Filter
    size: Size
    order: tuple[int, ...]
    operations: tuple[Operation, ...]
    element: Element
    planar: bool
    rounding: Rounding = "down"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one item of the result."""
        channels = len(self.order)
        return (channels, *self.size) if self.planar else (*self.size, channels)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the result."""
        return np.dtype(np.uint16) if self.element == "bfloat16" else np.dtype(self.element)

    def place(self, height: int, width: int) -> Placement | None:
        """Where the pixels of a picture go; None where the steps refuse it."""
        if not height or not width:
            return None
        fit = self.fit
        if isinstance(fit, Boxed):
            resized = images.letterbox_size(height, width, fit.size)
            corner = ((fit.size[0] - resized[0]) // 2, (fit.size[1] - resized[1]) // 2)
            return Placement(resized, (0, 0), resized, corner)
        resized = fit.size if isinstance(fit, Exact) else images.shortest_size(height, width, fit.side)
        if resized[0] * resized[1] > PIXEL_LIMIT or resized[0] < self.size[0] or resized[1] < self.size[1]:
            return None
        top, left = (
            images.center_offset(length - kept, self.rounding) for length, kept in zip(resized, self.size, strict=True)
        )
        return Placement(resized, (top, left), self.size, (0, 0))

    def numbers_before_crop(self, height: int, width: int) -> int:
        """Of what the steps one after the other resample a picture to; 0 where they refuse it."""
        placed = self.place(height, width)
        return 0 if placed is None else placed.resized[0] * placed.resized[1] * len(self.order)

    def axes(self, placed: Placement, height: int, width: int) -> tuple[Axis, Axis]:
        """How a picture of *height* x *width* pixels is resampled, down and across."""
        down, across = (
            Axis(length, placed.resized[i], self.filtering, placed.crop[i], placed.kept[i])
            for i, length in enumerate((height, width))
        )
        return down, across

    def border(self) -> Array:
        """What a pixel of *fill* becomes, (channels,), in the dtype of the result."""
        assert isinstance(self.fit, Boxed)
        levels = np.full((len(self.order), 1, 1), self.fit.fill, dtype=np.float32)
        result = np.empty(levels.shape, dtype=self.dtype)
        store(self.apply(levels), result, self.element)
        return result[:, 0, 0]

    def apply(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Do `operations` in place on whole *levels*, (channels of the result, rows, columns)."""
        for operation in self.operations:
            for plane, number in zip(levels, operation.by_channel(self.order), strict=True):  # one loop where it can be
                ARITHMETIC[operation.kind](plane, number, out=plane)
        return levels

    def levels_apart(self, first: Array, second: Array) -> float:
        """The largest difference of two results of one picture, in levels of uint8 before `operations`.

        What a narrow element rounds off does not count; a number on one side alone is infinitely far from what is
        none on the other.
        """
        sides = np.stack([_widened(one, self.element) for one in (first, second)])
        if not self.planar:
            sides = np.moveaxis(sides, -1, 1)
        ends = np.stack([np.zeros((len(self.order), 1, 1)), np.ones((len(self.order), 1, 1))]).astype(np.float32)
        level = np.abs(np.subtract(*(self.apply(end).astype(np.float64) for end in ends)))
        equal = (sides[0] == sides[1]) | np.isnan(sides).all(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            rounding = _ROUNDING[self.element] * (np.abs(sides).max(axis=0) + level)
            apart = (np.abs(sides[0] - sides[1]) - rounding) / np.maximum(level, 1e-30)
        apart = np.where(equal, 0.0, np.where(np.isnan(apart), np.inf, apart))
        return max(0.0, float(apart.max(initial=0.0)))


_ROUNDING = {"uint8": 0.0, "float32": 2.0**-18, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""How far two roundings of nearly equal numbers may lie apart, in shares of them; in float32, of sums before them."""


def _widened(values: Array, element: Element) -> NDArray[np.float64]:
    if element == "bfloat16":
        return images.from_bfloat16(values).astype(np.float64)
    return values.astype(np.float64)


ARITHMETIC = {"multiply": np.multiply, "subtract": np.subtract, "divide": np.divide}


def store(values: NDArray[np.float32], target: Array, element: Element) -> None:
    """Put *values* into *target* as *element*."""
    if element == "bfloat16":
        target[...] = images.bfloat16(values)
        return
    with np.errstate(over="ignore"):
        np.copyto(target, values, casting="unsafe")  # whole numbers from 0 to 255 where it is uint8


_FILTER = Filter()
_CASTS: Mapping[str, Element] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A recipe in the making: what the steps so far do.

    Attributes:
        order: as in `Recipe`, at this point.
        fit: None before the picture is resized.
        crop: of the centre; None where all is kept.
        rounding: as in `Recipe`.
    """

    order: tuple[int, ...]
    fit: Fit | None = None
    filtering: Filter = _FILTER
    crop: Size | None = None
    operations: tuple[Operation, ...] = ()
    element: Element = "uint8"
    planar: bool = False
    rounding: Rounding = "down"

    def resized(self, fit: Fit, filtering: Filter) -> Chain | None:
        """One resize, before anything else but the order of channels."""
        if self.fit is not None:
            return None
        return replace(self, fit=fit, filtering=filtering)

    def cropped(self, size: Size, rounding: Rounding) -> Chain | None:
        """One crop behind the resize."""
        if self.fit is None or isinstance(self.fit, Boxed) or self.crop is not None or self.planar:
            return None
        return replace(self, crop=size, rounding=rounding)

    def reversed(self) -> Chain | None:
        """The channels in reverse order."""
        return None if self.planar else replace(self, order=self.order[::-1])

    def computed(self, kind: Arithmetic, numbers: tuple[float, ...]) -> Chain | None:
        """Arithmetic in float32, one number for all or one for each channel as they lie here."""
        if self.fit is None or self.element not in ("uint8", "float32") or (self.planar and len(numbers) > 1):
            return None
        if len(numbers) > 1:
            by_source = dict(zip(self.order, numbers, strict=True))
            numbers = tuple(by_source[channel] for channel in range(len(self.order)))
        return replace(self, operations=(*self.operations, Operation(kind, numbers)), element="float32")

    def cast(self, dtype: str) -> Chain | None:
        """To a float; to a narrow one at the end."""
        if self.fit is None or self.element not in ("uint8", "float32"):
            return None
        element = _CASTS.get(dtype)
        return element and replace(self, element=element)

    def channels_first(self) -> Chain | None:
        """Planes."""
        return None if self.fit is None or self.planar else replace(self, planar=True)

    def recipe(self) -> Recipe | None:
        """The whole; None where nothing is resized, or results would differ in size."""
        if isinstance(self.fit, Exact | Boxed):
            size = self.crop or self.fit.size
        elif self.fit is not None and self.crop is not None:
            size = self.crop
        else:
            return None
        made = (self.fit, self.filtering, size, self.order, self.operations, self.element, self.planar, self.rounding)
        return Recipe(*made)
