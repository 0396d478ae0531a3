"""A payload meets a route: what becomes a batch, and what is refused with which words."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Batch, Datatype, Signature, Tensor, TensorSpec
from backends.errors import InvalidInput
from gateway.binding import bind, rename_only_input, rows_of
from gateway.request import MAX_ITEMS, JsonInputs, RawBody, TensorInputs

TEXT = Signature((TensorSpec("text", Datatype.BYTES, (1,)),), ())
NUMBERS = Signature((TensorSpec("x", Datatype.FP32, (3,)),), ())


def spec_of(datatype: Datatype, *shape: int) -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), ())


def from_json(signature: Signature, **values: Any) -> Batch:
    return bind(signature, JsonInputs(values, 0))


def test_a_plain_body_is_one_item_of_the_only_bytes_input() -> None:
    batch = bind(TEXT, RawBody(b"hello", "text/plain"))

    assert batch.size == 1
    assert batch.inputs["text"].numpy().tolist() == [[b"hello"]]


def test_a_plain_body_for_a_route_of_numbers_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidInput, match=r"takes \['x \(FP32\)'\], not a plain body; send JSON"):
        bind(NUMBERS, RawBody(b"hello", "text/plain"))


@pytest.mark.parametrize(
    ("value", "size"),
    [("hello", 1), (["hello"], 1), ([["a"], ["b"]], 2)],
)
def test_json_text_is_one_item_or_rows(value: Any, size: int) -> None:
    assert from_json(TEXT, text=value).size == size


def test_base64_carries_any_bytes() -> None:
    data = bytes(range(256))

    batch = from_json(TEXT, text={"b64": base64.b64encode(data).decode()})

    assert batch.inputs["text"].numpy()[0, 0] == data


@pytest.mark.parametrize(
    ("signature", "value", "message"),
    [
        (TEXT, ["a", "b"], r"shape \[1, 2\]; expected \[-1, 1\]"),
        (TEXT, 3, "holds 3; write text"),
        (TEXT, {"b64": "?"}, "invalid base64"),
        (TEXT, {"base64": ""}, "write text"),
        (TEXT, "\ud800", "lone surrogate"),
        (TEXT, [[["a"]]], "nested deeper than 2 levels"),
        (NUMBERS, [1, 2], r"shape \[1, 2\]; expected \[-1, 3\]"),
        (NUMBERS, [[1, 2, 3], [1, 2]], "ragged"),
        (NUMBERS, [1, 2, "3"], "element '3'; FP32 takes numbers"),
        (NUMBERS, [1, 2, True], "element True; FP32 takes numbers"),
        (NUMBERS, [1, 2, 1e39], r"element 1e\+39, which FP32 cannot hold"),
        (NUMBERS, [1, 2, None], "element None; FP32 takes numbers"),
        (NUMBERS, [], r"shape \[1, 0\]; expected \[-1, 3\]"),
        (NUMBERS, {}, "element an object; FP32 takes numbers"),
        (spec_of(Datatype.UINT8, 1), 300, "element 300, which UINT8 cannot hold"),
        (spec_of(Datatype.UINT8, 1), -1, "element -1, which UINT8 cannot hold"),
        (spec_of(Datatype.INT32, 1), 1.5, r"element 1\.5; INT32 takes integers"),
        (spec_of(Datatype.UINT64, 1), 2**64, "which UINT64 cannot hold"),
        (spec_of(Datatype.BOOL, 1), 1, "element 1; BOOL takes true and false"),
        (spec_of(Datatype.BF16, 1), 1.0, "binary tensor"),
    ],
)
def test_json_that_is_not_the_route_s_input_is_refused(signature: Signature, value: Any, message: str) -> None:
    name = signature.inputs[0].name
    with pytest.raises(InvalidInput, match=message):
        from_json(signature, **{name: value})


def test_missing_and_unknown_inputs_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"input 'text' is missing; expected \['text'\]"):
        from_json(TEXT)
    with pytest.raises(InvalidInput, match=r"input 'txt' is unknown; expected \['text'\]"):
        from_json(TEXT, text="a", txt="b")


def test_too_many_items_are_refused() -> None:
    rows = np.zeros((MAX_ITEMS + 1, 3), dtype=np.float32)

    with pytest.raises(InvalidInput, match=f"outside 1 to {MAX_ITEMS}"):
        bind(NUMBERS, TensorInputs({"x": Tensor.of(rows)}))


def test_auto_takes_a_single_tensor_whatever_its_name() -> None:
    tensor = Tensor.of(np.array([[b"hello"]], dtype=object))

    payload = rename_only_input(TEXT, TensorInputs({"input": tensor}))

    assert bind(TEXT, payload).inputs["text"] is tensor


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1)
)
def test_json_rows_arrive_as_sent(rows: list[list[float]]) -> None:
    batch = from_json(NUMBERS, x=rows)

    np.testing.assert_array_equal(batch.inputs["x"].numpy(), np.array(rows, dtype=np.float32))


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_rows_of_gives_just_the_rows_asked_for(case: tuple[int, set[int]]) -> None:
    size, wanted = case
    indices = sorted(wanted)
    regular = Tensor.of(np.arange(size, dtype=np.int64).reshape(size, 1))
    ragged = Tensor.ragged(Datatype.INT64, tuple(np.full(i + 1, i, dtype=np.int64) for i in range(size)))

    part = rows_of(Batch({"a": regular, "b": ragged}, size), indices)

    assert part.size == len(indices)
    assert part.inputs["a"].numpy().reshape(-1).tolist() == indices
    assert [int(part.inputs["b"].rows(i, i + 1).data.rows[0][0]) for i in range(part.size)] == indices  # type: ignore[union-attr]
