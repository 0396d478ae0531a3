"""The words that decoders, steps and plans share: what an array looks like, and what a batch of them is.

Axis 0 of a batch is the batch; an `ArraySpec` leaves it out. A batch whose items differ in shape, such as pictures
of several sizes, is a tuple with one array an item. Text is UTF-8 `bytes` in object arrays: that is how BYTES
travels through the rest of the system, so nothing is converted at the borders.

Rejected: padding unequal pictures into one array. Every operation would need the true sizes beside it, and a batch
of one wide and one tall picture would take the memory of many.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Any: dtypes vary at run time, and `ArraySpec` is what states them.
Array: TypeAlias = NDArray[Any]

# Any: whatever speaks DLPack; CuPy, whose arrays it mostly is, has no types.
DeviceArray: TypeAlias = Any
"""An array in a device's memory, exchanged by DLPack; `kernels.dlpack` reads it."""

Values: TypeAlias = Array | tuple[Array, ...]
"""One value of a batch: an array with the batch axis first, or one array an item where shapes differ. Where a plan says
so, a `DeviceArray` with the batch axis first."""

PIXEL_LIMIT = 36_000_000
"""Most pixels of one picture, read or made: an A4 page at 600 dpi has 34.8 million. Decoding takes up to 12 bytes
of memory a pixel, so that one picture stays under half a gigabyte."""


def namespace_of(array: DeviceArray) -> Any:
    """The functions that go with *array*, by the names of the Python array API standard, 2024.12: NumPy's or its own
    library's. (Any: a module.)

    CuPy's arrays do not name theirs: it is the package that they come from.
    """
    if isinstance(array, np.ndarray):
        return np
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules[type(array).__module__.partition(".")[0]]


def as_type(array: DeviceArray, dtype: Any) -> Array:
    """*array* with elements of *dtype*, one of its namespace's; itself where it has them, so write to neither."""
    if isinstance(array, np.ndarray):
        same: Array = array.astype(dtype, copy=False)
        return same
    converted: Array = namespace_of(array).astype(array, dtype, copy=False)
    return converted


class ItemError(ValueError):
    """One item of a batch cannot be processed, and sending it again cannot help.

    Attributes:
        item: its index in the batch.
        reason: what is wrong with it.
    """

    def __init__(self, item: int, reason: str) -> None:
        super().__init__(f"item {item}: {reason}")
        self.item = item
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What one item of a named value looks like.

    Attributes:
        dtype: of the elements; `object` holds `bytes`.
        shape: without the batch axis; -1 on axes whose length varies.
        ragged: whether items of one batch may differ in shape, and so may come as a tuple. A -1 without it varies
            from batch to batch only, as the length of padded token sequences does.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    ragged: bool = False

    def reshaped(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> ArraySpec:
        """This spec with another shape and dtype; no longer ragged once every length is known."""
        return ArraySpec(dtype or self.dtype, shape, self.ragged and -1 in shape)

    def admits(self, item_shape: tuple[int, ...]) -> bool:
        """Whether an item of *item_shape* is what this describes."""
        return len(item_shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, item_shape, strict=True)
        )

    def __str__(self) -> str:
        name = "bytes" if self.dtype == object else self.dtype.name
        return f"{name}{list(self.shape)}"
