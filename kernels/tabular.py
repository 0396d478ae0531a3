"""Operations on rows of a table: numbers with gaps, and categories as UTF-8 `bytes`.

What a row needs (the value for a gap, the categories, the number of buckets) was found when the model was trained and
stands in the configuration: a gateway learns nothing from what passes through. Standardising is `images.normalize`,
whose last axis may as well hold features.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Array, ItemError


def impute(rows: NDArray[np.floating[Any]], values: Sequence[float]) -> Array:
    """Put a number in the place of each NaN.

    Args:
        rows: (..., features), floating.
        values: one for all features, or one a feature.

    Returns:
        the same shape and dtype.

    Source:
        scikit-learn's `SimpleImputer`, whose `statistics_` are *values*.
    """
    return np.where(np.isnan(rows), np.asarray(values, dtype=rows.dtype), rows)


def one_hot(values: Array, categories: Array) -> NDArray[np.float32]:
    """A 1 in the place of each value's category; nothing where it has none.

    Args:
        values: (n, k), integers or object (UTF-8 `bytes`).
        categories: (c,), of the same kind, all different.

    Returns:
        (n, k x c), float32: the c places of the first value, then those of the second, and so on.

    Source:
        scikit-learn's `OneHotEncoder(handle_unknown="ignore")`, with the same categories for every column.
    """
    places = {category: place for place, category in enumerate(categories.tolist())}
    result = np.zeros((values.size, len(categories)), dtype=np.float32)
    for row, value in enumerate(values.ravel().tolist()):
        if (place := places.get(value)) is not None:
            result[row, place] = 1
    return result.reshape(len(values), -1)


def hash_buckets(texts: NDArray[np.object_], buckets: int, *, seed: int = 0) -> NDArray[np.int64]:
    """The bucket of each text: MurmurHash3 modulo *buckets*.

    Args:
        texts: (n, ...), object, `bytes`.
        buckets: how many there are.
        seed: of the hash, 0 to 2**32 - 1.

    Returns:
        the same shape, int64, 0 to *buckets* - 1.

    Raises:
        ItemError: an element is not `bytes`.

    Source:
        scikit-learn's `murmurhash3_32(text, seed, positive=True) % buckets`.
    """
    result = np.empty(texts.size, dtype=np.int64)
    per_item = max(1, texts.size // max(1, len(texts)))
    for place, text in enumerate(texts.ravel().tolist()):
        if not isinstance(text, bytes):
            raise ItemError(place // per_item, f"a text must be bytes; got {type(text).__name__}")
        result[place] = murmurhash3_32(text, seed) % buckets
    return result.reshape(texts.shape)


def murmurhash3_32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 of *data*, 0 to 2**32 - 1.

    Source:
        Austin Appleby's MurmurHash3.cpp (public domain).
    """
    mixed = seed
    whole = len(data) & ~3
    for (word,) in _WORDS(data[:whole]):
        mixed ^= _scrambled(word)
        mixed = (mixed << 13 | mixed >> 19) & _MASK
        mixed = (mixed * 5 + 0xE6546B64) & _MASK
    if tail := data[whole:]:
        mixed ^= _scrambled(int.from_bytes(tail, "little"))
    mixed ^= len(data)
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & _MASK
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & _MASK
    return mixed ^ mixed >> 16


_MASK = 0xFFFFFFFF
_WORDS = struct.Struct("<I").iter_unpack


def _scrambled(word: int) -> int:
    word = word * 0xCC9E2D51 & _MASK
    return (word << 15 | word >> 17) * 0x1B873593 & _MASK
