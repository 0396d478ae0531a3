"""Tensors, batches and the checks that every adapter relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.contract import (
    Batch,
    Datatype,
    DeviceArray,
    Limits,
    Ragged,
    SharedMemoryWindow,
    Signature,
    Tensor,
    TensorSpec,
    check_batch,
    check_outputs,
    fit_in,
    shape_matches,
)
from backends.errors import BackendFailed, Code, InvalidInput, PointsmanError, error_of

SIGNATURE = Signature((TensorSpec("x", Datatype.FP32, (2, -1)),), (TensorSpec("y", Datatype.BYTES, (1,)),))
X = Tensor.of(np.zeros((3, 2, 5), np.float32))
Y = Tensor.of(np.array([[b"a"], [b"b"], [b"c"]], object))


@pytest.mark.parametrize("datatype", list(Datatype))
def test_a_datatype_is_told_from_its_arrays_except_for_bf16(datatype: Datatype) -> None:
    expected = Datatype.UINT16 if datatype is Datatype.BF16 else datatype

    assert Datatype.of(datatype.numpy) is expected


@pytest.mark.parametrize("datatype", list(Datatype))
def test_only_elements_of_bytes_vary_in_size(datatype: Datatype) -> None:
    assert (datatype.itemsize is None) == (datatype is Datatype.BYTES)


def test_a_dtype_of_the_other_byte_order_has_the_same_datatype() -> None:
    assert Datatype.of(np.dtype(">i8")) is Datatype.INT64


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]"])
def test_a_dtype_without_a_datatype_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidInput, match="has no Open Inference Protocol datatype; convert it first"):
        Datatype.of(np.dtype(dtype))


def test_a_tensor_is_its_array_without_a_copy() -> None:
    array = np.zeros((2, 3))

    assert Tensor.of(array).numpy() is array


def test_rows_are_views() -> None:
    assert np.shares_memory(X.rows(1, 3).numpy(), X.numpy())
    assert X.rows(1, 3).shape == (2, 2, 5)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6))
def test_ragged_tensors_state_the_axes_in_which_their_rows_agree(shapes: list[tuple[int, int]]) -> None:
    rows = tuple(np.zeros(shape, np.uint8) for shape in shapes)

    tensor = Tensor.ragged(Datatype.UINT8, rows)

    assert tensor.shape[0] == len(rows)
    for axis, length in enumerate(tensor.shape[1:]):
        lengths = {shape[axis] for shape in shapes}
        assert lengths == {length} if length != -1 else len(lengths) > 1
    assert tensor.nbytes == sum(height * width for height, width in shapes)
    single = tensor.rows(0, 1)
    assert isinstance(single.data, Ragged)
    assert single.data.rows[0] is rows[0]


@pytest.mark.parametrize("rows", [(), (np.zeros(1), np.zeros((1, 1)))])
def test_ragged_rows_of_no_or_several_ranks_are_refused(rows: tuple[NDArray[np.float64], ...]) -> None:
    with pytest.raises(InvalidInput, match="one rank is needed"):
        Tensor.ragged(Datatype.FP64, rows)


def test_bytes_count_with_what_their_elements_hold() -> None:
    assert Tensor.of(np.array([b"abc", b""], object)).nbytes == 2 * 8 + 3
    assert Batch.of({"x": X, "y": Y}).nbytes == X.nbytes + Y.nbytes


def test_memory_that_lives_elsewhere_is_not_counted_and_not_read() -> None:
    tensor = Tensor(Datatype.FP32, (1, 2), SharedMemoryWindow("region", 0, 8))

    assert tensor.nbytes == 0
    with pytest.raises(InvalidInput, match="SharedMemoryWindow, not a host array; move it first"):
        tensor.numpy()


def test_rows_of_numbers_in_shared_memory_are_windows_and_those_of_texts_are_not_known() -> None:
    whole = Tensor(Datatype.FP32, (3, 4), SharedMemoryWindow("r", 100, 48))

    assert whole.rows(1, 3).shape == (2, 4)
    assert whole.rows(1, 3).data == SharedMemoryWindow("r", 116, 32)
    with pytest.raises(InvalidInput, match="move it first"):
        Tensor(Datatype.BYTES, (3, 1), SharedMemoryWindow("r", 0, 48)).rows(0, 1)


def test_arrays_that_speak_dlpack_are_device_arrays() -> None:
    assert isinstance(np.zeros(1), DeviceArray)
    assert not isinstance(SharedMemoryWindow("region", 0, 8), DeviceArray)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"x": Tensor.of(np.zeros(()))}, {"x": X, "other": Tensor.of(np.zeros((2, 1)))}],
    ids=["none", "scalar", "unequal"],
)
def test_a_batch_needs_one_batch_axis(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput, match=r"same first \(batch\) axis"):
        Batch.of(inputs)


@given(st.lists(st.integers(0, 9), max_size=4), st.data())
def test_a_shape_fits_itself_whatever_axes_are_open(shape: list[int], data: st.DataObject) -> None:
    spec = tuple(data.draw(st.sampled_from((length, -1))) for length in shape)

    assert shape_matches(spec, tuple(shape))
    assert not shape_matches((*spec, -1), tuple(shape))


def test_a_batch_that_fits_passes() -> None:
    check_batch(SIGNATURE, Batch.of({"x": X}), Limits(max_batch=3))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch({}, 1), r"input 'x' is missing; expected \['x'\]"),
        (Batch({"x": X, "z": X}, 3), r"input 'z' is unknown; expected \['x'\]"),
        (Batch({"x": X}, 4), "batch of 4 is outside 1 to 3, the backend's limit"),
        (Batch({"x": X}, 0), "batch of 0 is outside 1 to 3"),
        (Batch.of({"x": Tensor.of(np.zeros((1, 2, 5)))}), "input 'x' has datatype FP64; expected FP32"),
        (
            Batch.of({"x": Tensor.of(np.zeros((1, 3, 5), np.float32))}),
            r"input 'x' has shape \[1, 3, 5\]; expected \[-1, 2, -1\]",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_what_was_expected(batch: Batch, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_batch(SIGNATURE, batch, Limits(max_batch=3))


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ({"y": Y}, None),
        ({"y": Y, "unasked": X}, None),
        ({}, "output 'y' is missing; expected ['y']"),
        ({"y": X}, "output 'y' has datatype FP32; expected BYTES"),
        ({"y": Y.rows(0, 2)}, "output 'y' has shape [2, 1] for a batch of 3"),
    ],
)
def test_outputs_are_told_from_what_must_never_be_split(outputs: dict[str, Tensor], fault: str | None) -> None:
    assert check_outputs(SIGNATURE, outputs, 3) == fault


@pytest.mark.parametrize(("max_batch", "max_in_flight"), [(0, 1), (1, 0), (-1, 1)])
def test_limits_below_one_are_refused(max_batch: int, max_in_flight: int) -> None:
    with pytest.raises(InvalidInput, match="it must be at least 1"):
        Limits(max_batch, max_in_flight)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.INTERNAL])
def test_every_code_has_an_error(code: Code) -> None:
    error = error_of(code, "why")

    assert error.code is code
    assert str(error) == "why"
    assert type(error) is not PointsmanError


def test_an_error_says_when_to_come_back() -> None:
    assert BackendFailed("no", retry_after_s=2.0).retry_after_s == 2.0
    assert BackendFailed("no").retry_after_s is None


class Untouchable(bytes):
    """A text whose length nobody may ask for."""

    def __len__(self) -> int:
        raise AssertionError


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.integers(0, 300))
def test_what_fits_is_what_takes_no_more_bytes(texts: list[bytes], limit: int) -> None:
    tensors = [Tensor.of(np.array(texts, object)), X]

    assert fit_in(limit, tensors) == (sum(tensor.nbytes for tensor in tensors) <= limit)


def test_many_texts_are_too_many_without_a_look_at_any() -> None:
    assert not fit_in(1024, [X, Tensor.of(np.array([Untouchable()] * 200, object), Datatype.BYTES)])
