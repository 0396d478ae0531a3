"""What the store keeps comes back equal, and damaged bytes are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backends.contract import Datatype, Ragged, SharedMemoryWindow, Tensor, Tensors
from backends.errors import InvalidInput
from gateway.answer import StageRecord, StageRun
from gateway.store import codec
from gateway.store.contract import Proposal
from router.contract import Decision, Reason
from tests.unit.gateway.store.samples import assert_same_tensors, every_datatype

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
labels = st.none() | texts
confidences = st.none() | st.floats(0.0, 1.0)


@st.composite
def arrays(draw: st.DrawFn, datatype: Datatype) -> np.ndarray[Any, np.dtype[Any]]:
    shape = draw(shapes)
    if datatype is Datatype.BYTES:
        array = np.empty(shape, object)
        array[...] = b""
        for index in np.ndindex(shape):
            array[index] = draw(st.binary(max_size=5))
        return array
    elements = st.binary(min_size=datatype.numpy.itemsize, max_size=datatype.numpy.itemsize)
    if datatype is Datatype.BOOL:
        return draw(hnp.arrays(np.bool_, shape))
    count = math.prod(shape)
    raw = b"".join(draw(st.lists(elements, min_size=count, max_size=count)))
    return np.frombuffer(raw, datatype.numpy).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    found: dict[str, Tensor] = {}
    for name in draw(st.lists(texts, unique=True, max_size=3)):
        datatype = draw(st.sampled_from(Datatype))
        array = draw(arrays(datatype))
        if array.ndim > 1 and draw(st.booleans()):
            rows = tuple(draw(st.permutations([array, array[:0], array[..., :1]])))
            found[name] = Tensor.ragged(datatype, rows)
        else:
            found[name] = Tensor.of(array, datatype)
    return found


@given(tensors())
def test_tensors_come_back_equal_to_the_bit(given_tensors: Tensors) -> None:
    assert_same_tensors(codec.decode_tensors(codec.encode_tensors(given_tensors)), given_tensors)


@given(tensors(), st.data())
def test_bytes_that_are_cut_short_are_refused(given_tensors: Tensors, data: st.DataObject) -> None:
    encoded = codec.encode_tensors(given_tensors)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ValueError, match="encoded tensors end at byte"):
        codec.decode_tensors(encoded[:cut])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=">i4").reshape(2, 3, 4),
        np.arange(24, dtype=np.int32).reshape(2, 3, 4)[:, ::-1, ::2],
        np.asfortranarray(np.arange(24, dtype=np.int32).reshape(2, 3, 4)),
    ],
    ids=["big-endian", "strided", "column-major"],
)
def test_the_layout_in_memory_does_not_matter(array: np.ndarray[Any, np.dtype[Any]]) -> None:
    back = codec.decode_tensors(codec.encode_tensors({"x": Tensor.of(array)}))["x"]
    assert back.numpy().tolist() == array.tolist()
    assert back.numpy().dtype == np.int32


def test_large_elements_are_not_copied_to_be_looked_at() -> None:
    array = np.arange(3000, dtype=np.float32).reshape(2, 1500)

    parts = codec.encoded_parts({"x": Tensor.of(array)})

    assert any(isinstance(part, memoryview) and np.shares_memory(np.asarray(part), array) for part in parts)
    assert b"".join(parts) == codec.encode_tensors({"x": Tensor.of(array)})
    turned = Tensor.of(array.T)
    assert np.array_equal(codec.decode_tensors(codec.encode_tensors({"x": turned}))["x"].numpy(), array.T)


def test_text_elements_become_bytes() -> None:
    back = codec.decode_tensors(codec.encode_tensors({"x": Tensor.of(np.array(["owl", "ü"]))}))["x"]
    assert back.numpy().tolist() == [b"owl", "ü".encode()]


def test_what_is_not_in_host_memory_is_refused() -> None:
    shared = Tensor(Datatype.FP32, (1,), SharedMemoryWindow("region", 0, 4))
    with pytest.raises(InvalidInput, match="tensor data is SharedMemoryWindow, not a host array; move it first"):
        codec.encode_tensors({"x": shared})


def test_an_element_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="output 'x' is BYTES and has an element of type int"):
        codec.encode_tensors({"x": Tensor(Datatype.BYTES, (1,), np.array([7], object))})


def test_another_version_and_left_over_bytes_are_refused() -> None:
    encoded = codec.encode_tensors(every_datatype())
    with pytest.raises(ValueError, match="tensor encoding 9 is unknown; this is version 1"):
        codec.decode_tensors(b"\x09" + encoded[1:])
    with pytest.raises(ValueError, match="3 bytes are left over after the last tensor"):
        codec.decode_tensors(encoded + b"xyz")


def test_ragged_rows_keep_their_own_shapes() -> None:
    rows = tuple(np.full((n, 2), n, np.uint8) for n in (1, 3))
    data = codec.decode_tensors(codec.encode_tensors({"x": Tensor.ragged(Datatype.UINT8, rows)}))["x"].data
    assert isinstance(data, Ragged)
    assert [row.tolist() for row in data.rows] == [row.tolist() for row in rows]


@given(
    st.lists(
        st.builds(
            StageRecord,
            texts,
            texts,
            labels,
            confidences,
            st.sampled_from(Decision),
            st.none() | st.sampled_from(Reason),
            texts,
        )
    )
)
def test_trails_come_back_equal(trail: list[StageRecord]) -> None:
    assert codec.decode_trail(codec.encode_trail(trail)) == tuple(trail)


@given(st.lists(st.builds(Proposal, texts, labels, confidences)), st.lists(texts))
def test_proposals_and_labels_come_back_equal(proposals: list[Proposal], choices: list[str]) -> None:
    assert codec.decode_proposals(codec.encode_proposals(proposals)) == tuple(proposals)
    assert codec.decode_labels(codec.encode_labels(choices)) == tuple(choices)


def test_a_confidence_that_is_no_number_becomes_none() -> None:
    record = StageRecord("fast", "1", None, math.nan, Decision.DEFER, Reason.NO_CONFIDENCE)
    assert codec.decode_trail(codec.encode_trail([record]))[0].confidence is None


def test_a_stage_without_details_is_written_as_ever() -> None:
    record = StageRecord("fast", "1", "cat", 0.5, Decision.ESCALATE, Reason.LOW_CONFIDENCE)
    text = (
        '[{"stage":"fast","version":"1","label":"cat","confidence":0.5,"decision":"escalate",'
        '"reason":"low_confidence"}]'
    )
    assert codec.encode_trail([record]) == text
    assert codec.decode_trail(text) == (record,)


def test_what_a_stage_took_comes_back() -> None:
    run = StageRun(0.5, 0.25, "a1b2-7", 12, 0.027, 0.93, "c" * 64)
    taken = StageRecord("fast", "1", "cat", 0.5, Decision.ACCEPT, run=run)
    stateful = StageRecord("total", "1", "cat", None, Decision.ACCEPT, run=StageRun(0.25))
    classified = StageRecord("classify", "", None, None, Decision.ESCALATE, traits={"content_type": "text/plain"})

    assert codec.decode_trail(codec.encode_trail((classified, taken, stateful))) == (classified, taken, stateful)
