"""Tensors on the wire: what goes in comes out, and nothing malformed gets in."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backends.contract import Datatype, HostArray, Tensor
from backends.errors import InvalidInput
from backends.oip import json_data, raw
from backends.oip.raw import Claim
from gateway.oip.shapes import MAX_BYTES_ELEMENTS, claim, route_name, unique

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
NUMBERS = [datatype for datatype in Datatype if datatype is not Datatype.BYTES]
JSON_NUMBERS = [datatype for datatype in NUMBERS if datatype is not Datatype.BF16]


def bytes_arrays(element: st.SearchStrategy[bytes]) -> st.SearchStrategy[HostArray]:
    """Object arrays of BYTES elements."""

    def filled(shape: tuple[int, ...]) -> st.SearchStrategy[HostArray]:
        count = math.prod(shape)
        return st.lists(element, min_size=count, max_size=count).map(lambda found: object_array(found, shape))

    return SHAPES.flatmap(filled)


def object_array(found: list[bytes], shape: tuple[int, ...]) -> HostArray:
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)


def tensors(datatypes: Sequence[Datatype]) -> st.SearchStrategy[Tensor]:
    """Host tensors of numbers, of every layout that NumPy has."""

    def of(datatype: Datatype) -> st.SearchStrategy[Tensor]:
        arrays = hnp.arrays(datatype.numpy, SHAPES)
        turned = arrays.map(lambda array: array.transpose())
        return st.one_of(arrays, turned).map(lambda array: Tensor.of(array, datatype))

    return st.sampled_from(datatypes).flatmap(of)


def claimed(tensor: Tensor) -> Claim:
    return claim("x", tensor.datatype, list(tensor.shape))


def same(a: HostArray, b: HostArray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tolist().__repr__() == b.tolist().__repr__()


@given(tensors(NUMBERS))
def test_numbers_survive_the_raw_form(tensor: Tensor) -> None:
    decoded = raw.decode(claimed(tensor), bytes(raw.encode(tensor)))

    assert decoded.datatype is tensor.datatype
    assert same(decoded.numpy(), tensor.numpy())


@given(bytes_arrays(st.binary(max_size=9)))
def test_bytes_survive_the_raw_form(array: HostArray) -> None:
    decoded = raw.decode(claim("x", "BYTES", array.shape), raw.encode(Tensor.of(array)))

    assert same(decoded.numpy(), array)


@given(tensors(JSON_NUMBERS), st.booleans())
def test_finite_numbers_survive_json(tensor: Tensor, nested: bool) -> None:
    array = tensor.numpy()
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=-1.0)
    data = array.tolist() if nested else array.reshape(-1).tolist()

    decoded = json_data.decode(claimed(tensor), orjson.loads(orjson.dumps(data)))

    assert same(decoded.numpy(), array)


@given(bytes_arrays(st.text(max_size=5).map(str.encode)))
def test_texts_survive_json(array: HostArray) -> None:
    written = json_data.encode("x", Tensor.of(array))

    decoded = json_data.decode(claim("x", "BYTES", array.shape), orjson.loads(orjson.dumps(written)))

    assert same(decoded.numpy(), array)


@given(st.binary(max_size=40), st.lists(st.integers(0, 4), max_size=3), st.sampled_from(list(Datatype)))
@example(b"\xff\xff\xff\xff", [1], Datatype.BYTES)
def test_arbitrary_bytes_decode_or_are_refused(data: bytes, shape: list[int], datatype: Datatype) -> None:
    stated = claim("x", datatype, shape)
    try:
        decoded = raw.decode(stated, data)
    except InvalidInput:
        return

    assert bytes(raw.encode(decoded)) == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)


@given(json_values, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(JSON_NUMBERS))
def test_arbitrary_json_decodes_to_its_shape_or_is_refused(data: Any, shape: list[int], datatype: Datatype) -> None:
    stated = claim("x", datatype, shape)
    try:
        decoded = json_data.decode(stated, data)
    except InvalidInput:
        return

    assert decoded.numpy().shape == tuple(shape)
    assert decoded.numpy().dtype == datatype.numpy


@pytest.mark.parametrize("shape", [[1, MAX_BYTES_ELEMENTS + 1], [2, 2**20]])
def test_more_bytes_elements_than_can_be_read_in_time_are_refused_unread(shape: list[int]) -> None:
    with pytest.raises(InvalidInput, match=rf"BYTES elements; at most {MAX_BYTES_ELEMENTS} fit in one request"):
        claim("x", "BYTES", shape)

    assert claim("x", "BYTES", [1, MAX_BYTES_ELEMENTS]).count == MAX_BYTES_ELEMENTS


@given(st.lists(st.binary(max_size=12), max_size=30), st.booleans())
def test_bytes_elements_are_read_from_any_buffer(found: list[bytes], is_view: bool) -> None:
    sent = b"".join(struct.pack("<I", len(element)) + element for element in found)

    decoded = raw.decode(claim("x", "BYTES", [len(found)]), memoryview(b"?" + sent)[1:] if is_view else sent)

    assert decoded.numpy().tolist() == found


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.INT16, Datatype.BOOL, Datatype.BYTES])
def test_many_elements_read_in_pieces_are_the_same_tensor(datatype: Datatype) -> None:
    others: dict[Datatype, list[Any]] = {Datatype.BOOL: [True, False, True], Datatype.BYTES: ["a", "bc", ""]}
    written = others.get(datatype, [1, 2, 3])
    count = 70_000

    decoded = json_data.decode(claim("x", datatype, [3, count]), written * count).numpy()

    assert decoded.dtype == datatype.numpy
    assert (decoded.reshape(count, 3) == json_data.decode(claim("x", datatype, [3]), written).numpy()).all()


def test_a_wrong_element_in_a_late_piece_is_found() -> None:
    with pytest.raises(InvalidInput, match="element None; FP32 takes numbers"):
        json_data.decode(claim("x", "FP32", [1, 200_001]), [*([1.0] * 200_000), None])


@pytest.mark.parametrize("shape", [(200_000,), (2, 3, 40_000), (70_000, 2), (1, 65_536), (65_537, 1)])
def test_many_numbers_written_in_pieces_are_the_same_json(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(7).standard_normal(shape).astype(np.float32)

    pieces = orjson.dumps(json_data.in_pieces(numbers), option=orjson.OPT_SERIALIZE_NUMPY)

    assert pieces == orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def test_raw_numbers_are_a_view_on_what_arrived() -> None:
    data = np.arange(6, dtype=np.float32).tobytes()

    decoded = raw.decode(claim("x", "FP32", [2, 3]), data).numpy()

    assert np.shares_memory(decoded, np.frombuffer(data, np.uint8))
    assert not decoded.flags.writeable


def test_raw_numbers_at_an_odd_address_are_aligned_by_a_copy() -> None:
    body = b"{" + np.arange(6, dtype=np.float32).tobytes()

    decoded = raw.decode(claim("x", "FP32", [6]), memoryview(body)[1:]).numpy()

    assert decoded.flags.aligned
    assert decoded.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [2, 3], b"\0" * 23, "input 'x' has 23 bytes; shape [2, 3] of FP32 takes 24"),
        ("UINT8", [1, 2**40], b"\0", "has 1 bytes; shape [1, 1099511627776] of UINT8 takes 1099511627776"),
        ("BOOL", [2], b"\x01\x02", "a BOOL byte that is neither 0 nor 1"),
        ("BYTES", [4, 2**16], b"\0" * 4, "262144 BYTES elements take at least 1048576"),
        ("BYTES", [1], struct.pack("<I", 5) + b"four", "element 0 claims 5 bytes where 4 are left"),
        ("BYTES", [1], struct.pack("<I", 2**32 - 1), "element 0 claims 4294967295 bytes where 0 are left"),
        ("BYTES", [2], struct.pack("<I", 4) + b"four", "ends before element 1 of 2"),
        ("BYTES", [1], struct.pack("<I", 1) + b"ab", "has 1 bytes after its last element"),
        ("BYTES", [0], b"x", "has 1 bytes after its last element"),
    ],
)
def test_raw_data_that_is_not_the_claim_is_refused(datatype: str, shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        raw.decode(claim("x", datatype, shape), data)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("UINT8", [1], [300], "element 300, which UINT8 cannot hold"),
        ("UINT8", [1], [-1], "element -1, which UINT8 cannot hold"),
        ("INT64", [1], [2**63], "element 9223372036854775808, which INT64 cannot hold"),
        ("UINT64", [1], [1.8446744073709552e19], "element 1.8446744073709552e+19; UINT64 takes integers"),
        ("INT32", [2], [1, True], "element True; INT32 takes integers"),
        ("INT32", [1], [1.0], "element 1.0; INT32 takes integers"),
        ("INT32", [1], ["3"], "element '3'; INT32 takes integers"),
        ("INT32", [1], [None], "element None; INT32 takes integers"),
        ("BOOL", [1], [1], "element 1; BOOL takes true and false"),
        ("FP32", [1], [True], "element True; FP32 takes numbers"),
        ("FP32", [1], [1e39], "element 1e+39, which FP32 cannot hold"),
        ("FP16", [1], [70000], "element 70000, which FP16 cannot hold"),
        ("FP64", [1], [float("nan")], "element nan, which FP64 cannot hold"),
        ("BYTES", [1], [7], "element 7; BYTES takes texts"),
        ("BF16", [1], [1.0], "BF16, which JSON cannot carry"),
        ("FP32", [2, 2], [[1, 2], [3]], "has 1 elements where shape [2, 2] needs 2"),
        ("FP32", [2, 2], [[1, 2], 3], "mixes lists and elements"),
        ("FP32", [2, 2], [1, 2, 3], "has 3 elements where shape [2, 2] needs 4"),
        ("FP32", [2], [[1], [2]], "element [1]; FP32 takes numbers"),
        ("FP32", [2**10, 2**20], [1], "has 1 elements where shape"),
        ("FP32", [1], 1.0, "has data 1.0; a list is needed"),
        ("FP32", [1], {"a": 1}, "has data an object; a list is needed"),
    ],
)
def test_json_data_that_is_not_the_claim_is_refused(datatype: str, shape: list[int], data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        json_data.decode(claim("x", datatype, shape), data)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**31, 2**31], "more elements than any request can hold"),
        ([4097], "input 'x' has 4097 items; at most 4096 fit in one request"),
        ([-1], "-1 in its shape"),
        ([1.5], "1.5 in its shape"),
        (["3"], "'3' in its shape"),
        ([True], "True in its shape"),
        ([None], "None in its shape"),
        ([1] * 1_000_000, "has 1000000 dimensions; at most 32"),
        ("3", "a list of integers is needed"),
        (None, "a list of integers is needed"),
        ({"0": 1}, "a list of integers is needed"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_anything_is_allocated(shape: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        claim("x", "FP32", shape)

    assert message in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("datatype", ["FP8", "fp32", "", None, 7, "OBJECT"])
def test_an_unknown_datatype_is_refused_with_those_that_are_known(datatype: Any) -> None:
    with pytest.raises(InvalidInput, match="known datatypes: BOOL, UINT8"):
        claim("x", datatype, [1])


@pytest.mark.parametrize("name", ["", None, 7, "n" * 256])
def test_a_tensor_needs_a_name(name: Any) -> None:
    with pytest.raises(InvalidInput):
        claim(name, "FP32", [1])


@pytest.mark.parametrize("name", ["../etc", "a/../b", "a/", "a\tb", "", "a" * 256, "..", ".a", "a b", "ä", "a\n"])
def test_a_name_that_no_route_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="names no model"):
        route_name(name)


def test_a_route_name_may_have_letters_digits_dots_dashes_and_underscores() -> None:
    assert route_name("resnet_50-v1.5") == "resnet_50-v1.5"


def test_two_inputs_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="input 'a' is there twice"):
        unique(["a", "b", "a"], "input")


def test_ten_thousand_outputs_are_refused() -> None:
    with pytest.raises(InvalidInput, match="10000 outputs; at most 256"):
        unique([str(i) for i in range(10_000)], "output")


def test_outputs_that_json_cannot_carry_are_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidInput, match="binary_data"):
        json_data.encode("y", Tensor.of(np.zeros(1, np.uint16), Datatype.BF16))
    with pytest.raises(InvalidInput, match="binary_data"):
        json_data.encode("y", Tensor.of(object_array([b"\xff"], (1,))))


def test_many_numbers_are_written_as_few_are() -> None:
    numbers = np.random.default_rng(7).standard_normal(200_001).astype(np.float32)
    numbers[5] = np.nan

    written = json_data.encode("y", Tensor.of(numbers))

    assert isinstance(written, orjson.Fragment)
    assert orjson.dumps(written) == orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def test_a_number_that_is_not_finite_becomes_null_in_json() -> None:
    written = json_data.encode("y", Tensor.of(np.array([1, np.nan, np.inf], np.float32)))

    assert orjson.dumps(written, option=orjson.OPT_SERIALIZE_NUMPY) == b"[1.0,null,null]"
