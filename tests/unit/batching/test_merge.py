from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Batch, Datatype, HostArray, Memory, Ragged, SharedMemoryWindow, Tensor, Tensors
from backends.errors import InvalidInput
from batching.merge import compatibility, cut, goes_apart, is_apart, join, merge, split

HOST = frozenset({Memory.HOST})
RAGGED = frozenset({Memory.HOST, Memory.RAGGED})


def floats(size: int, *row: int, start: int = 0) -> Tensor:
    return Tensor.of((np.arange(size * int(np.prod(row)), dtype=np.float32) + start).reshape(size, *row))


def texts(*rows: bytes) -> Tensor:
    return Tensor.of(np.array(rows, dtype=object).reshape(len(rows), 1))


def ragged(*rows: HostArray) -> Tensor:
    return Tensor.ragged(Datatype.of(rows[0].dtype), rows)


def rows_of(tensor: Tensor) -> list[Any]:
    rows = tensor.data.rows if isinstance(tensor.data, Ragged) else tensor.numpy()
    return [row.tolist() for row in rows]


def everything(tensors: Tensors) -> dict[str, list[Any]]:
    return {name: rows_of(tensor) for name, tensor in tensors.items()}


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Some batches of equal row shape, numeric and BYTES inputs side by side."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    width = draw(st.integers(0, 3))
    made = []
    for i, size in enumerate(sizes):
        words = draw(st.lists(st.binary(max_size=4), min_size=size, max_size=size))
        made.append(Batch.of({"x": floats(size, width, 2, start=1000 * i), "text": texts(*words)}))
    return made


@st.composite
def ragged_batches(draw: st.DrawFn) -> list[Batch]:
    """Batches of pictures, each batch an array or ragged, of shapes that may differ within and between them."""
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    made = []
    for i in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            made.append(Batch.of({"x": floats(draw(st.integers(1, 3)), *draw(shapes), start=1000 * i)}))
        else:
            rows = [
                np.full(shape, 1000.0 * i + j, np.float32)
                for j, shape in enumerate(draw(st.lists(shapes, min_size=1, max_size=3)))
            ]
            made.append(Batch.of({"x": ragged(*rows)}))
    return made


@given(batches())
def test_split_undoes_merge(parts: list[Batch]) -> None:
    assert len({compatibility(part, HOST) for part in parts}) == 1

    merged = merge(parts, HOST)
    replies = split(merged.inputs, [part.size for part in parts])

    assert merged.size == sum(part.size for part in parts)
    assert [everything(reply) for reply in replies] == [everything(part.inputs) for part in parts]
    assert all(reply["x"].shape == part.inputs["x"].shape for reply, part in zip(replies, parts, strict=True))


@given(ragged_batches())
def test_split_undoes_a_ragged_merge(parts: list[Batch]) -> None:
    assert len({compatibility(part, RAGGED) for part in parts}) == 1

    merged = merge(parts, RAGGED)
    replies = split(merged.inputs, [part.size for part in parts])

    assert Batch.of(merged.inputs).size == sum(part.size for part in parts)
    assert [everything(reply) for reply in replies] == [everything(part.inputs) for part in parts]


@given(batches(), st.integers(1, 4))
def test_join_undoes_cut(parts: list[Batch], max_batch: int) -> None:
    whole = merge(parts, HOST)

    pieces = cut(whole, max_batch)

    assert all(1 <= piece.size <= max_batch for piece in pieces)
    assert sum(piece.size for piece in pieces) == whole.size
    assert everything(join([piece.inputs for piece in pieces])) == everything(whole.inputs)


@given(ragged_batches(), st.integers(1, 2))
def test_join_undoes_a_ragged_cut(parts: list[Batch], max_batch: int) -> None:
    whole = merge(parts, RAGGED)

    assert everything(join([piece.inputs for piece in cut(whole, max_batch)])) == everything(whole.inputs)


def test_a_batch_that_travels_alone_is_not_copied() -> None:
    batch = Batch.of({"x": floats(3, 2)})

    assert merge([batch], HOST) is batch
    assert split(batch.inputs, [3]) == [batch.inputs]


def test_replies_are_views() -> None:
    outputs = {"y": floats(4, 2)}

    replies = split(outputs, [1, 3])

    assert all(np.shares_memory(reply["y"].numpy(), outputs["y"].numpy()) for reply in replies)


def test_merging_copies_so_that_no_caller_sees_anothers_memory() -> None:
    parts = [Batch.of({"x": floats(1, 2)}), Batch.of({"x": floats(1, 2)})]

    merged = merge(parts, HOST).inputs["x"].numpy()

    assert not any(np.shares_memory(merged, part.inputs["x"].numpy()) for part in parts)


def test_bf16_stays_bf16() -> None:
    bits = Tensor.of(np.array([[1], [2]], np.uint16), Datatype.BF16)

    merged = merge([Batch.of({"x": bits}), Batch.of({"x": bits})], HOST)

    assert merged.inputs["x"].datatype is Datatype.BF16


def test_rows_of_unequal_shape_travel_as_ragged_where_the_backend_takes_it() -> None:
    parts = [Batch.of({"x": floats(1, 2, 3)}), Batch.of({"x": floats(1, 4, 3)})]

    merged = merge(parts, RAGGED).inputs["x"]

    assert isinstance(merged.data, Ragged)
    assert merged.shape == (2, -1, 3)


def test_ragged_rows_of_equal_shape_are_stacked_where_the_backend_takes_arrays_alone() -> None:
    batch = Batch.of({"x": ragged(np.ones((2, 3), np.uint8), np.zeros((2, 3), np.uint8))})

    merged = merge([batch, batch], HOST).inputs["x"]

    assert merged.shape == (4, 2, 3)
    assert merged.numpy().dtype == np.uint8
    assert merge([batch], HOST).inputs["x"].numpy().shape == (2, 2, 3)


SAME: list[tuple[Tensor, Tensor]] = [
    (floats(1, 2), floats(3, 2)),
    (texts(b"a"), texts(b"b", b"long")),
    (ragged(np.ones((2, 3), np.float32)), floats(1, 2, 3)),
]
DIFFERENT: list[tuple[Tensor, Tensor]] = [
    (floats(1, 2), floats(1, 3)),
    (floats(1, 2), floats(1, 2, 1)),
    (floats(1, 2), Tensor.of(np.ones((1, 2), np.float64))),
    (floats(1, 2), Tensor(Datatype.FP32, (1, 2), np.ones((1, 2), np.float64))),
    (Tensor.of(np.ones((1, 2), np.uint16)), Tensor.of(np.ones((1, 2), np.uint16), Datatype.BF16)),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_rows_of_one_type_and_shape_may_share_a_batch(one: Tensor, other: Tensor) -> None:
    assert compatibility(Batch.of({"x": one}), HOST) == compatibility(Batch.of({"x": other}), HOST)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_rows_of_other_types_or_shapes_may_not(one: Tensor, other: Tensor) -> None:
    assert compatibility(Batch.of({"x": one}), HOST) != compatibility(Batch.of({"x": other}), HOST)


def test_with_ragged_only_the_rank_of_rows_counts() -> None:
    narrow, wide, deep = (Batch.of({"x": t}) for t in (floats(1, 2), floats(1, 3), floats(1, 2, 2)))

    assert compatibility(narrow, RAGGED) == compatibility(wide, RAGGED)
    assert compatibility(narrow, RAGGED) != compatibility(deep, RAGGED)


def test_the_order_of_inputs_does_not_matter() -> None:
    a, b = floats(1, 2), floats(1, 3)

    assert compatibility(Batch.of({"a": a, "b": b}), HOST) == compatibility(Batch.of({"b": b, "a": a}), HOST)


def test_what_lies_in_shared_memory_shares_batches_with_nothing_else_and_goes_apart_in_them() -> None:
    window = Batch.of({"x": Tensor(Datatype.FP32, (1, 2), SharedMemoryWindow("r", 0, 8))})
    longer = Batch.of({"x": Tensor(Datatype.FP32, (1, 3), SharedMemoryWindow("r", 0, 12))})
    held = Batch.of({"x": floats(1, 2)})
    both = frozenset({Memory.HOST, Memory.SHARED})

    assert compatibility(window, both) == compatibility(window, both)
    assert compatibility(window, both) != compatibility(longer, both)
    assert compatibility(window, both) != compatibility(held, both)
    assert (goes_apart(window), goes_apart(held)) == (True, False)


def test_the_key_tells_what_is_never_merged() -> None:
    both = frozenset({Memory.HOST, Memory.SHARED})
    window = Tensor(Datatype.FP32, (1, 2), SharedMemoryWindow("r", 0, 8))
    batches = [{"x": window}, {"x": floats(1, 2)}, {"x": floats(1, 2), "y": window}, {"x": floats(1), "y": floats(1)}]

    assert [is_apart(compatibility(Batch.of(inputs), both)) for inputs in batches] == [True, False, True, False]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            Tensor(Datatype.FP32, (1, 2), np.ones((2, 2), np.float32)),
            "input 'x' says shape [1, 2]; its elements have [2, 2]",
        ),
        (
            Tensor(Datatype.FP32, (1, -1), Ragged((np.ones(1, np.float32), np.ones(2, np.float32)))),
            "input 'x' says 1 items; it has 2 rows",
        ),
        (
            Tensor(Datatype.FP32, (2, -1), Ragged((np.ones(1, np.float32), np.ones(2, np.int8)))),
            "input 'x' has rows of dtypes ['float32', 'int8']; one dtype is needed",
        ),
        (
            Tensor(Datatype.FP32, (2, -1), Ragged((np.ones(1, np.float32), np.ones((1, 1), np.float32)))),
            "input 'x' has rows of shapes [(1,), (1, 1)]; one rank is needed",
        ),
        (
            ragged(np.ones(1, np.float32), np.ones(2, np.float32)),
            "input 'x' is ragged (rows of unequal shape); the backend takes host: move it first",
        ),
        (
            Tensor(Datatype.FP32, (1, 2), SharedMemoryWindow("r", 0, 8)),
            "input 'x' is in shared memory; the backend takes host: move it first",
        ),
    ],
)
def test_an_input_that_cannot_be_merged_safely_is_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        compatibility(Batch({"x": tensor}, tensor.shape[0]), HOST)

    assert str(refused.value) == message


def test_an_input_without_as_many_items_as_its_batch_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"input 'x' has shape \[2, 2\] in a batch of 3"):
        compatibility(Batch({"x": floats(2, 2)}, 3), HOST)


def test_a_host_array_is_refused_where_the_backend_takes_none() -> None:
    with pytest.raises(InvalidInput, match=r"input 'x' is a host array; the backend takes device: move it first"):
        compatibility(Batch.of({"x": floats(1, 2)}), frozenset({Memory.DEVICE}))


@pytest.mark.parametrize("wrong", [lambda: floats(2, 2), lambda: ragged(*np.ones((4, 1, 1), np.float32))])
def test_outputs_with_another_number_of_rows_are_never_split(wrong: Callable[[], Tensor]) -> None:
    with pytest.raises(InvalidInput, match=r"output 'y' has \d rows for a batch of 3"):
        split({"y": wrong()}, [1, 2])
