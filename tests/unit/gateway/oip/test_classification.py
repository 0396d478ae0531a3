"""Triton's classification extension, on tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from backends.contract import Datatype, Tensor
from backends.errors import InvalidInput
from gateway.oip.classification import class_count, classified
from gateway.oip.shapes import MAX_BYTES_ELEMENTS


def told(array: Any, k: int, labels: tuple[str, ...] = (), datatype: Datatype | None = None) -> list[list[bytes]]:
    found = classified("y", Tensor.of(array, datatype), k, labels)
    assert found.datatype is Datatype.BYTES
    assert found.shape == found.numpy().shape
    rows: list[list[bytes]] = found.numpy().tolist()
    return rows


def test_the_greatest_come_first_with_index_and_label() -> None:
    array = np.array([[0.25, 0.5, 0.125], [1, -1, 3]], np.float32)

    assert told(array, 2, ("cat", "dog", "fox")) == [
        [b"0.500000:1:dog", b"0.250000:0:cat"],
        [b"3.000000:2:fox", b"1.000000:0:cat"],
    ]


def test_labels_of_something_else_are_not_used() -> None:
    assert told(np.array([[1, 2]], np.int32), 1, ("cat", "dog", "fox")) == [[b"2:1"]]


def test_more_than_there_are_is_all_and_equal_ones_keep_their_order() -> None:
    assert told(np.array([[7, 9, 7, 9]], np.int64), 10) == [[b"9:1", b"9:3", b"7:0", b"7:2"]]


def test_nan_comes_last_and_infinities_where_they_belong() -> None:
    array = np.array([[np.nan, -np.inf, 1.0, np.inf]])

    assert told(array, 4) == [[b"inf:3", b"1.000000:2", b"-inf:1", b"nan:0"]]


def test_an_item_of_several_axes_is_counted_in_row_major_order() -> None:
    assert told(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), 1) == [[b"3:3"], [b"7:3"]]


def test_items_without_elements_have_no_classes() -> None:
    assert told(np.empty((2, 0), np.float32), 3) == [[], []]


@pytest.mark.parametrize("datatype", [d for d in Datatype if d not in (Datatype.BOOL, Datatype.BYTES)])
def test_every_numeric_type_is_ordered_to_its_limits(datatype: Datatype) -> None:
    if datatype is Datatype.BF16:
        array = np.array([[-2.5, 3.0, 0.0]], ml_dtypes.bfloat16).view(np.uint16)
        assert told(array, 3, datatype=datatype) == [[b"3.000000:1", b"0.000000:2", b"-2.500000:0"]]
        return
    limits: Any = np.finfo(datatype.numpy) if datatype.numpy.kind == "f" else np.iinfo(datatype.numpy)

    found = told(np.array([[limits.min, limits.max, 1]], datatype.numpy), 3)

    assert [text.split(b":")[1] for text in found[0]] == [b"1", b"2", b"0"]


def test_more_classes_than_a_reply_should_hold_are_refused() -> None:
    array = np.zeros((2, MAX_BYTES_ELEMENTS // 2 + 1), np.uint8)

    with pytest.raises(InvalidInput, match="ask for fewer"):
        told(array, array.shape[1])
    assert told(array, 1) == [[b"0:0"], [b"0:0"]]


@pytest.mark.parametrize("array", [np.array([[True]]), np.array([[b"a"]], object)])
def test_what_is_no_number_is_refused(array: Any) -> None:
    with pytest.raises(InvalidInput, match="numeric outputs only"):
        told(array, 1)


@pytest.mark.parametrize("value", [-1, 1.0, True, "3"])
def test_a_number_of_classes_is_a_whole_number(value: Any) -> None:
    with pytest.raises(InvalidInput, match="it is a number of classes"):
        class_count(value, "y")
