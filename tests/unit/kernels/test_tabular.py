"""Rows of a table: against hand-computed values, published hashes and scikit-learn where equality is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import murmurhash3_32

from kernels import tabular
from kernels.arrays import Array, ItemError


def texts(*rows: list[bytes]) -> Array:
    result = np.empty((len(rows), len(rows[0])), dtype=object)
    result[:] = rows
    return result


def test_gaps_are_filled_by_feature_or_by_one_number() -> None:
    rows = np.array([[1, math.nan, 3], [math.nan, 5, math.inf]], dtype=np.float32)

    assert tabular.impute(rows, [7, 8, 9]).tolist() == [[1, 8, 3], [7, 5, math.inf]]
    assert tabular.impute(rows, [0]).dtype == np.float32
    assert np.isnan(rows[0, 1])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9))
def test_one_hot_is_scikit_learns(rows: list[tuple[int, int]]) -> None:
    values = np.array(rows)
    encoder = OneHotEncoder(categories=[[1, 3, 5]] * 2, handle_unknown="ignore", sparse_output=False).fit([[1, 3]])

    assert np.array_equal(tabular.one_hot(values, np.array([1, 3, 5])), encoder.transform(values))


def test_one_hot_of_texts_leaves_unknown_ones_empty() -> None:
    categories = texts([b"red", b"blue"])[0]

    result = tabular.one_hot(texts([b"blue"], [b"green"]), categories)

    assert result.dtype == np.float32
    assert result.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"test", 0x9747B28C, 0x704B81DC),
        (b"Hello, world!", 0x9747B28C, 0x24884CBA),
        (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    ],
)
def test_murmurhash_gives_the_published_values(data: bytes, seed: int, expected: int) -> None:
    assert tabular.murmurhash3_32(data, seed) == expected


@given(st.binary(max_size=40), st.integers(0, 2**31 - 1))
def test_murmurhash_is_scikit_learns(data: bytes, seed: int) -> None:
    assert tabular.murmurhash3_32(data, seed) == murmurhash3_32(data, seed=seed, positive=True)


def test_buckets_keep_the_shape_and_name_the_item_that_is_no_text() -> None:
    values = texts([b"a", b"b"], [b"c", b"a"])

    result = tabular.hash_buckets(values, 10)

    assert result.dtype == np.int64
    assert result[0, 0] == result[1, 1] == murmurhash3_32(b"a", positive=True) % 10
    values[1, 0] = 3
    with pytest.raises(ItemError, match=r"^item 1: a text must be bytes; got int$"):
        tabular.hash_buckets(values, 10)
