"""Image operations on arrays of any library: the reference that every faster version must match.

Types say NumPy, since that is what a gateway calls them with. Any other library will do that has the names of the
Python array API standard, as CuPy has: the result is then one of its arrays, on the device where the input is.

Conventions: images are (..., height, width, channels), channels last, RGB unless turned by `bgr`; every leading axis
is a batch. Sizes are (height, width). Geometry (`resize` and what builds on it) takes and gives uint8, so that its
result is the same whatever the device; convert with `scale` after it. Nothing writes to its input; a result may be
a view of it where no element changes.

Resampling is two matrix products, one an axis: row i of an axis' matrix holds the weights that input pixels have in
output pixel i. The matrix is banded, so it is applied in blocks of rows, each to the short span of input that it
touches; a dense product would cost hundreds of times more on a scanned page.

Rejected: Pillow's `Image.resize` on the way. It rounds to 8 bits between its two passes, which a version for another
device would have to copy, and it holds a second copy of each picture. We stay within one level of it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import PIXEL_LIMIT, Array, as_type, namespace_of

Method: TypeAlias = Literal["nearest", "bilinear", "area"]
Rounding: TypeAlias = Literal["down", "even"]
Size: TypeAlias = tuple[int, int]
Uint8: TypeAlias = NDArray[np.uint8]
Float32: TypeAlias = NDArray[np.float32]

_BLOCK_ROWS = 16
_CACHED_SIDE = 8192


def gray(images: Uint8) -> Uint8:
    """Luma of RGB, in integers, rounded to nearest with halves up: (19595 R + 38470 G + 7471 B + 32768) >> 16.

    Args:
        images: (..., height, width, 3), uint8, RGB.

    Returns:
        (..., height, width, 1), uint8.

    Raises:
        ValueError: not uint8 of 3 channels.

    Source:
        ITU-R BT.601-7, 2.5.1, in the 16-bit fixed point of Pillow's `convert("L")`, bit for bit.
    """
    _check_uint8(images, "gray")
    if images.shape[-1] != 3:
        raise ValueError(f"gray needs 3 channels (RGB); got {images.shape[-1]}")
    xp = namespace_of(images)
    red, green, blue = (as_type(images[..., channel], xp.uint32) for channel in range(3))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return as_type(luma, xp.uint8)[..., None]


def resize(
    images: Uint8, size: Size, *, method: Method = "bilinear", antialias: bool = True, align_corners: bool = False
) -> Uint8:
    """Resample to *size*; pixel centres lie at half coordinates unless corners are aligned. Rounded, halves up.

    Args:
        images: (..., height, width, channels), uint8.
        size: (height, width) of the result.
        method: `nearest` takes the pixel under the centre. `bilinear` weights by a triangle, edges clamped. `area`
            averages the exact area under the output pixel, fractions of pixels included.
        antialias: with `bilinear`, widen the triangle by the reduction factor, so that no input pixel is skipped.
        align_corners: the centres of the corner pixels of both images coincide, and the others lie evenly between
            them: output i is at i (length - 1) / (target - 1), a single output at 0. With `bilinear` without
            antialias alone.

    Returns:
        (..., *size, channels), uint8.

    Raises:
        ValueError: not uint8, an image without pixels, *size* is not within 1 to `PIXEL_LIMIT` pixels, or corners to
            be aligned by another method.

    Source:
        `bilinear` with antialias: Pillow's BILINEAR, within one level. `bilinear` without: PyTorch's `interpolate`
        and OpenCV's INTER_LINEAR (within one level: its weights have 11 bits); with *align_corners* PyTorch's.
        `area`: OpenCV's INTER_AREA when reducing (Pillow's BOX equals it, within one level, for whole factors only);
        when enlarging we keep the definition, where OpenCV turns to bilinear. `nearest`: Pillow's NEAREST, except
        that a centre between two pixels always takes the higher (Pillow's sums may drift).
    """
    _check_uint8(images, "resize")
    height, width = images.shape[-3:-1]
    if min(size) < 1 or size[0] * size[1] > PIXEL_LIMIT:
        raise ValueError(f"cannot make an image of {size[0]}x{size[1]} pixels; 1 to {PIXEL_LIMIT} pixels are allowed")
    if not images.size:
        raise ValueError(f"cannot resize an image of shape {list(images.shape)}, which has no pixels")
    if align_corners and (method != "bilinear" or antialias):
        raise ValueError("align_corners goes with method bilinear and antialias false; set both, or leave it out")
    if size == (height, width):
        return images
    xp = namespace_of(images)
    if method == "nearest":
        rows: Uint8 = xp.take(images, xp.asarray(nearest(height, size[0])), axis=images.ndim - 3)
        taken: Uint8 = xp.take(rows, xp.asarray(nearest(width, size[1])), axis=images.ndim - 2)
        return taken
    filtering = Filter(method, antialias, align_corners)
    down, across = _bands(height, size[0], filtering), _bands(width, size[1], filtering)
    # The cheaper order first: what it leaves for the other axis is smaller.
    if size[0] * width <= height * size[1]:
        resampled = _resample_columns(_resample_rows(images, down), across)
    else:
        resampled = _resample_rows(_resample_columns(images, across), down)
    resampled += 0.5
    return as_type(resampled, xp.uint8)  # weights are not negative and sum to 1: within 0 to 255


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Rows *start* to *stop* of an axis' matrix: *weights* over the input's *low* to *high*, zero elsewhere."""

    start: int
    stop: int
    low: int
    high: int
    weights: Float32


class Filter(NamedTuple):
    """How an axis is resampled; the arguments of `resize`."""

    method: Method = "bilinear"
    antialias: bool = True
    align_corners: bool = False


def _bands(length: int, target: int, filtering: Filter) -> tuple[Band, ...]:
    """The matrix that resamples an axis of *length* to *target*, in bands; kept where it is small."""
    if length > _CACHED_SIDE:
        return _make_bands(length, target, filtering)
    return _cached_bands(length, target, filtering)


def _make_bands(length: int, target: int, filtering: Filter) -> tuple[Band, ...]:
    return bands(*taps(length, target, filtering), length, _BLOCK_ROWS)


_cached_bands = lru_cache(maxsize=32)(_make_bands)


def taps(length: int, target: int, filtering: Filter) -> tuple[NDArray[np.int64], Float32]:
    """The weights that input pixels have in each output pixel, of an axis of *length* resampled to *target*.

    Returns:
        the first input pixel of each output, (target,), never falling, and the weights from there on, (target, taps),
        each row summing to 1. Weights beyond the last input pixel are 0.

    Raises:
        ValueError: *filtering* is `nearest`, which weighs nothing.
    """
    if filtering.method == "nearest":
        raise ValueError("nearest takes pixels and weighs none. This is a bug.")
    step = length / target
    outputs = np.arange(target)[:, np.newaxis]
    if filtering.method == "area":
        reach = step
        first = np.floor(outputs * step).astype(np.int64)
        inputs = first + np.arange(int(np.ceil(reach)) + 1)
        weights = np.minimum(inputs + 1, (outputs + 1) * step) - np.maximum(inputs, outputs * step)
    else:
        reach = max(step, 1.0) if filtering.antialias else 1.0
        if filtering.align_corners:
            centre = outputs * ((length - 1) / max(target - 1, 1)) + 0.5
        else:
            centre = (outputs + 0.5) * step
        first = np.maximum(np.floor(centre - reach + 0.5).astype(np.int64), 0)
        inputs = first + np.arange(int(np.ceil(2 * reach)) + 1)
        weights = 1.0 - np.abs(inputs + 0.5 - centre) / reach
    weights = np.where(inputs < length, np.maximum(weights, 0.0), 0.0)
    return first[:, 0], (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def bands(first: NDArray[np.int64], weights: Float32, length: int, rows: int) -> tuple[Band, ...]:
    """The matrix of an axis of *length* in bands of *rows*, from what `taps` gives, or a part of it."""
    return tuple(
        _band(first[start : start + rows], weights[start : start + rows], length, start)
        for start in range(0, len(first), rows)
    )


def _band(first: NDArray[np.int64], weights: Float32, length: int, start: int) -> Band:
    rows, taps = weights.shape
    low = int(first[0])
    span = int(first[-1]) - low + taps
    dense = np.zeros((rows, span), dtype=np.float32)
    dense[np.arange(rows)[:, np.newaxis], first[:, np.newaxis] - low + np.arange(taps)] = weights
    high = min(low + span, length)
    return Band(start, start + rows, low, high, np.ascontiguousarray(dense[:, : high - low]))


def _resample_rows(images: Array, bands: Sequence[Band]) -> Float32:
    """Resample the height: every row is one vector of width x channels."""
    xp = namespace_of(images)
    *batch, height, width, channels = images.shape
    rows = xp.reshape(images, (*batch, height, width * channels))
    result = xp.empty((*batch, bands[-1].stop, width * channels), dtype=xp.float32)
    for band in bands:
        part = as_type(rows[..., band.low : band.high, :], xp.float32)
        result[..., band.start : band.stop, :] = xp.matmul(xp.asarray(band.weights), part)
    resampled: Float32 = xp.reshape(result, (*batch, bands[-1].stop, width, channels))
    return resampled


def _resample_columns(images: Array, bands: Sequence[Band]) -> Float32:
    """Resample the width: every row is an image of its own, one pixel high."""
    xp = namespace_of(images)
    result: Float32 = xp.empty((*images.shape[:-2], bands[-1].stop, images.shape[-1]), dtype=xp.float32)
    for band in bands:
        part = as_type(images[..., band.low : band.high, :], xp.float32)
        result[..., band.start : band.stop, :] = xp.matmul(xp.asarray(band.weights), part)
    return result


def nearest(length: int, target: int) -> NDArray[np.int64]:
    """The input pixel under each output pixel's centre, floor((i + 1/2) length / target), in whole numbers."""
    return (2 * np.arange(target) + 1) * length // (2 * target)


def resize_shortest(images: Uint8, side: int, *, method: Method = "bilinear", antialias: bool = True) -> Uint8:
    """Resize so that the shorter side is *side* pixels, keeping the aspect ratio; the longer is rounded down.

    Args:
        images: (..., height, width, channels), uint8.
        side: in pixels.
        method: as in `resize`.
        antialias: as in `resize`.

    Returns:
        (..., height', width', channels), uint8, with min(height', width') = *side*.

    Raises:
        ValueError: as `resize`; a very long picture may exceed `PIXEL_LIMIT`.

    Source:
        torchvision's `Resize(int)`.
    """
    if not images.size:
        raise ValueError(f"cannot resize an image of shape {list(images.shape)}, which has no pixels")
    size = shortest_size(images.shape[-3], images.shape[-2], side)
    return resize(images, size, method=method, antialias=antialias)


def shortest_size(height: int, width: int, side: int) -> Size:
    """The (height, width) that `resize_shortest` makes of an image of *height* x *width* pixels."""
    return (side, side * width // height) if height <= width else (side * height // width, side)


def center_crop(images: Array, size: Size, *, rounding: Rounding = "down") -> Array:
    """Cut *size* out of the middle.

    Args:
        images: (..., height, width, channels), any dtype.
        size: (height, width) of the result.
        rounding: of the offset, half of what is too much: `down`, so that of an odd margin the larger part is cut at
            the bottom and the right, or to `even`, so that it is cut there of 1, 5, 9 ... pixels alone.

    Returns:
        (..., *size, channels), a view.

    Raises:
        ValueError: the image is smaller than *size*. (torchvision pads with black; a model never saw that.)

    Source:
        `down`: PaddleClas' `CropImage` and Keras' `CenterCrop`; `even`: torchvision's and timm's.
    """
    height, width = images.shape[-3:-1]
    if height < size[0] or width < size[1]:
        raise ValueError(f"image of {height}x{width} is smaller than the crop of {size[0]}x{size[1]}; resize it first")
    top, left = center_offset(height - size[0], rounding), center_offset(width - size[1], rounding)
    return images[..., top : top + size[0], left : left + size[1], :]


def center_offset(margin: int, rounding: Rounding) -> int:
    """How much of *margin*, which is too much, `center_crop` cuts at the top, or at the left."""
    return margin // 2 if rounding == "down" else round(margin / 2)


def letterbox(
    images: Uint8, size: Size, *, fill: int = 114, method: Method = "bilinear", antialias: bool = True
) -> Uint8:
    """Fit an image into *size*, keeping its aspect ratio, with borders of *fill*; larger ones are scaled down too.

    Args:
        images: (..., height, width, channels), uint8.
        size: (height, width) of the result.
        fill: border value of every channel, 0 to 255.
        method: as in `resize`.
        antialias: as in `resize`.

    Returns:
        (..., *size, channels), uint8; where the border is odd, the larger part is at the bottom and the right.

    Raises:
        ValueError: as `resize`.

    Source:
        `letterbox` of Ultralytics YOLO (scaleup, no stride), which resizes without antialiasing: pass False for that.
        A side is never scaled below one pixel.
    """
    height, width = images.shape[-3:-1]
    if not images.size:
        raise ValueError(f"cannot letterbox an image of shape {list(images.shape)}, which has no pixels")
    inner = letterbox_size(height, width, size)
    fitted = resize(images, inner, method=method, antialias=antialias)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    xp = namespace_of(images)
    result: Uint8 = xp.full((*images.shape[:-3], *size, images.shape[-1]), fill, dtype=xp.uint8)
    result[..., top : top + inner[0], left : left + inner[1], :] = fitted
    return result


def letterbox_size(height: int, width: int, size: Size) -> Size:
    """The (height, width) that a picture of *height* x *width* pixels has inside a letterbox of *size*."""
    ratio = min(size[0] / height, size[1] / width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def rotate(images: Array, degrees: int) -> Array:
    """Turn by a multiple of 90 *degrees*, counter-clockwise as `numpy.rot90` and Pillow do.

    Args:
        images: (..., height, width, channels), any dtype.
        degrees: a multiple of 90; negative is clockwise.

    Returns:
        (..., height, width, channels), with sides exchanged for odd multiples; a view.

    Raises:
        ValueError: *degrees* is no multiple of 90.
    """
    if degrees % 90:
        raise ValueError(f"cannot rotate by {degrees} degrees; only multiples of 90 lose nothing")
    quarters = degrees // 90 % 4
    if quarters % 2:
        images = namespace_of(images).moveaxis(images, -2, -3)
    if quarters in (1, 2):
        images = images[..., ::-1, :, :]
    return images[..., ::-1, :] if quarters in (2, 3) else images


def bgr(images: Array) -> Array:
    """Reverse the order of the channels: RGB to BGR and back; (..., height, width, 3), any dtype; a view."""
    return images[..., ::-1]


def scale(values: Array, factor: float) -> Float32:
    """*values* (uint8 or float32, any shape) times *factor*, in float32: 1/255 takes pixels to 0 to 1."""
    xp = namespace_of(values)
    scaled: Float32 = xp.multiply(as_type(values, xp.float32), factor)
    return scaled


def normalize(images: Float32, mean: Sequence[float], std: Sequence[float]) -> Float32:
    """(images - mean) / std, in float32.

    Args:
        images: (..., channels), float32.
        mean: one for all channels, or one a channel; in the units of *images*.
        std: likewise; not zero.

    Returns:
        (..., channels), float32.

    Source:
        torchvision's `Normalize`, on channels last.
    """
    xp = namespace_of(images)
    shifted: Float32 = as_type(images, xp.float32) - xp.asarray(list(mean), dtype=xp.float32)
    shifted /= xp.asarray(list(std), dtype=xp.float32)
    return shifted


def chw(images: Array) -> Array:
    """Channels first: (..., height, width, channels) to (..., channels, height, width), C-contiguous, any dtype."""
    return _contiguous(namespace_of(images).moveaxis(images, -1, -3))


def flatten(batch: Array) -> Array:
    """(n, ...) to (n, product), in C order, any dtype; a view where the memory allows."""
    flat: Array = namespace_of(batch).reshape(batch, (batch.shape[0], -1))
    return flat


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Convert numbers to *dtype*, of the same kind or a wider one; floats round, and overflow to infinity.

    Args:
        values: numbers, any shape.
        dtype: as `numpy.can_cast(..., casting="same_kind")` allows: never from floats to integers.

    Returns:
        the same shape, *dtype*.

    Raises:
        ValueError: an integer does not fit.
    """
    xp = namespace_of(values)
    with np.errstate(over="ignore"):
        if xp is np:
            converted = values.astype(dtype, casting="same_kind", copy=False)
        else:
            converted = as_type(values, getattr(xp, dtype.name))
    if dtype.kind in "iu" and not xp.can_cast(values.dtype, converted.dtype) and not xp.all(converted == values):
        raise ValueError(f"values from {xp.min(values)} to {xp.max(values)} do not fit {dtype}; cast to a wider one")
    return converted


def bfloat16(values: Array) -> NDArray[np.uint16]:
    """Convert numbers to bfloat16, which NumPy lacks: the bit patterns, rounded to nearest, halves to even.

    Args:
        values: integers of up to 16 bits, or floats, any shape; they are rounded to float32 first.

    Returns:
        the same shape, uint16. Overflow gives infinity; NaN stays NaN, quiet.

    Source:
        `float32_to_bfloat16_rtne` of Eigen and PyTorch. Beyond the array API standard, arrays need a `view` by dtype.
    """
    xp = namespace_of(values)
    with np.errstate(over="ignore"):
        wide = _contiguous(as_type(values, xp.float32))
    bits = wide.view(xp.uint32)
    rounded: NDArray[np.uint16] = as_type((bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16, xp.uint16)
    quiet = xp.where(xp.isnan(wide), xp.asarray(0x7FC0, dtype=xp.uint16), rounded)
    finished: NDArray[np.uint16] = xp.reshape(quiet, values.shape)
    return finished


def from_bfloat16(bits: Array) -> Float32:
    """The float32 numbers, exactly, of which *bits* (uint16) are the upper halves: bfloat16, which NumPy lacks."""
    xp = namespace_of(bits)
    return (as_type(bits, xp.uint32) << 16).view(xp.float32)


def _contiguous(array: Array) -> Array:
    """In C order, where its library has an order of memory; the standard knows none."""
    order = getattr(namespace_of(array), "ascontiguousarray", None)
    ordered: Array = array if order is None else order(array)
    return ordered


def _check_uint8(images: Array, operation: str) -> None:
    if images.dtype != namespace_of(images).uint8 or images.ndim < 3:
        raise ValueError(
            f"{operation} needs uint8 (..., height, width, channels); got {images.dtype}{list(images.shape)}"
        )
