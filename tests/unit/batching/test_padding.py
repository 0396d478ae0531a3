import asyncio
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import (
    NO_DEADLINE,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    Limits,
    Memory,
    Ragged,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from backends.errors import BackendFailed, TooLarge
from batching.batcher import Batcher
from batching.merge import compatibility, merge, split
from batching.options import BatchingOptions, PaddingValue
from batching.padding import Shaping, fill_of
from tests.unit.batching.conftest import Reports, idle, run

HOST = frozenset({Memory.HOST})
RAGGED = frozenset({Memory.HOST, Memory.RAGGED})

SIGNATURE = Signature(
    inputs=(TensorSpec("ids", Datatype.INT64, (-1,)), TensorSpec("mask", Datatype.INT64, (-1,))),
    outputs=(TensorSpec("hidden", Datatype.FP32, (-1, 2)), TensorSpec("pooled", Datatype.FP32, (1,))),
)
OPTIONS = BatchingOptions(length_buckets=(4, 8), padding={"ids": 0, "mask": 0}, trim={"hidden": "ids"})


class Encoder:
    """A model that masks what is padded, as encoders of text do, and works in a batch row by row."""

    def __init__(self, spoil: bool = False) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._spoils = spoil
        self.signature, self.version, self.limits, self.state = SIGNATURE, "1", Limits(max_batch=8), State.READY

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        await asyncio.sleep(0)
        ids, mask = batch.inputs["ids"].numpy(), batch.inputs["mask"].numpy()
        assert ids.shape == mask.shape
        self.shapes.append(ids.shape)
        hidden = np.stack([ids * 2, ids + 1], axis=-1).astype(np.float32)
        if self._spoils:
            hidden = hidden[:, :-1]
        return {"hidden": Tensor.of(hidden), "pooled": Tensor.of((ids * mask).sum(1, keepdims=True).astype(np.float32))}

    async def aclose(self) -> None:
        """There is nothing to free."""


def tokens(*rows: list[int]) -> Batch:
    """Rows of equal length, nothing masked."""
    ids = np.array(rows, np.int64)
    return Batch.of({"ids": Tensor.of(ids), "mask": Tensor.of(np.ones_like(ids))})


async def answers(backend: Encoder, batches: list[Batch], **keywords: Any) -> list[Tensors]:  # Any: Batcher's own
    async with Batcher("m", backend, OPTIONS, clock=asyncio.get_running_loop().time, **keywords) as b:
        callers = [asyncio.create_task(b.submit(batch, NO_DEADLINE)) for batch in batches]
        await idle()
        return list(await asyncio.gather(*callers))


rows_of_one_length = st.integers(1, 10).flatmap(
    lambda length: st.lists(st.lists(st.integers(1, 99), min_size=length, max_size=length), min_size=1, max_size=3)
)


@given(st.lists(rows_of_one_length, min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_everybody_gets_in_company_what_it_gets_alone(sent: list[list[list[int]]]) -> None:
    batches = [tokens(*rows) for rows in sent]
    together = run(lambda: answers(Encoder(), batches))

    for batch, reply in zip(batches, together, strict=True):
        (alone,) = run(lambda batch=batch: answers(Encoder(), [batch]))  # type: ignore[misc]
        for name in ("hidden", "pooled"):
            np.testing.assert_array_equal(reply[name].numpy(), alone[name].numpy())


def test_items_of_one_bucket_share_a_batch_padded_to_the_longest_and_others_do_not() -> None:
    backend, reports = Encoder(), Reports()
    run(lambda: answers(backend, [tokens([1]), tokens([1, 2, 3]), tokens([1] * 6), tokens([1] * 20)], observer=reports))

    assert sorted(backend.shapes) == [(1, 6), (1, 20), (2, 3)]
    assert sorted(report.padding or 0.0 for report in reports.seen) == pytest.approx([0.0, 0.0, 1 / 3])


@given(st.lists(rows_of_one_length, min_size=1, max_size=8), st.integers(1, 2_000))
def test_what_a_batch_will_take_is_known_before_it_is_merged(sent: list[list[list[int]]], limit_bytes: int) -> None:
    shaping = Shaping.of(OPTIONS, SIGNATURE, HOST)
    assert shaping is not None
    batches = [tokens(*rows) for rows in sent]

    count = shaping.affordable(batches, limit_bytes)

    assert count >= 1
    assert count == 1 or merge(batches[:count], HOST, shaping).nbytes <= limit_bytes
    assert count == len(batches) or merge(batches[: count + 1], HOST, shaping).nbytes > limit_bytes


def test_a_long_item_does_not_make_a_batch_larger_than_the_queue() -> None:
    options = BatchingOptions(max_batch=8, max_queue_bytes=16 * (100 + 2 * 7), padding={"ids": 0, "mask": 0})
    backend = Encoder()

    async def scenario() -> list[Tensors]:
        async with Batcher("m", backend, options, clock=asyncio.get_running_loop().time) as b:
            return await asyncio.gather(*(b.submit(tokens([1] * n), NO_DEADLINE) for n in (2, 100, 2, 2, 2, 2, 2, 2)))

    replies = run(scenario)

    assert [reply["pooled"].numpy().item() for reply in replies] == [2, 100, 2, 2, 2, 2, 2, 2]
    assert backend.shapes == [(1, 2), (1, 100), (6, 2)]


def test_ragged_rows_count_as_large_as_they_are_padded() -> None:
    options = BatchingOptions(max_queue_bytes=1_000, padding={"ids": 0, "mask": 0})
    rows = (np.ones(40, np.int64), np.ones(1, np.int64), np.ones(1, np.int64))
    ragged = Tensor.ragged(Datatype.INT64, rows)

    async def scenario() -> None:
        async with Batcher("m", Encoder(), options, clock=asyncio.get_running_loop().time) as b:
            with pytest.raises(TooLarge, match="1920 bytes exceeds the whole queue"):
                await b.submit(Batch.of({"ids": ragged, "mask": ragged}), NO_DEADLINE)

    run(scenario)


def test_an_output_that_does_not_follow_its_input_fails_the_batch() -> None:
    async def scenario() -> None:
        with pytest.raises(BackendFailed, match="an answer that cannot be split") as failed:
            await answers(Encoder(spoil=True), [tokens([1, 2]), tokens([1, 2, 3])])
        assert "output 'hidden' has lengths [2] where input 'ids'" in str(failed.value.__cause__.__cause__)  # type: ignore[union-attr]

    run(scenario)


def test_items_whose_inputs_contradict_each_other_stay_among_themselves() -> None:
    """Alone the model would refuse them; padded in company it would not notice."""
    shaping = Shaping.of(OPTIONS, SIGNATURE, HOST)
    good, odd = tokens([1, 2, 3]), tokens([1, 2, 3])
    odd = Batch({**odd.inputs, "mask": Tensor.of(np.ones((1, 2), np.int64))}, 1)

    assert compatibility(good, HOST, shaping) != compatibility(odd, HOST, shaping)
    assert compatibility(good, HOST, shaping) == compatibility(tokens([7, 8]), HOST, shaping)


ELEMENTS: list[tuple[Datatype, PaddingValue, list[Any]]] = [
    (Datatype.BYTES, "-", [b"a", b"bcd", b""]),
    (Datatype.FP32, -1.5, [1.0, 2.0, 3.0]),
    (Datatype.INT64, 7, [1, 2, 3]),
    (Datatype.BF16, 1.0, [5, 6, 7]),
    (Datatype.BOOL, True, [False, True, False]),
]


@pytest.mark.parametrize(("datatype", "value", "elements"), ELEMENTS, ids=lambda of: str(of)[:8])
def test_every_datatype_is_padded_with_its_value_at_the_end(
    datatype: Datatype, value: PaddingValue, elements: list[Any]
) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1,)),), (TensorSpec("y", datatype, (-1,)),))
    shaping = Shaping.of(BatchingOptions(padding={"x": value}, trim={"y": "x"}), signature, HOST)
    assert shaping is not None
    dtype = datatype.numpy
    short, long = (Tensor.of(np.array([elements[:n]], dtype), datatype) for n in (1, 3))
    batches = [Batch.of({"x": short}), Batch.of({"x": long})]

    padded = shaping.padded(batches)
    merged = merge(batches, HOST, shaping).inputs["x"].numpy()
    replies = split({"y": Tensor.of(merged, datatype)}, [1, 1], padded)

    fill = fill_of(value, datatype)
    assert merged.tolist() == [[elements[0], fill, fill], elements]
    assert [reply["y"].numpy().tolist() for reply in replies] == [[elements[:1]], [elements]]
    assert padded.wasted == pytest.approx(1 / 3)


MANY = Signature(
    inputs=tuple(TensorSpec(datatype.lower(), datatype, (-1, 2, -1)) for datatype, _, _ in ELEMENTS),
    outputs=tuple(TensorSpec(f"{datatype.lower()}.out", datatype, (-1, 2, -1)) for datatype, _, _ in ELEMENTS),
)
MANY_OPTIONS = BatchingOptions(
    length_buckets=(2, 3),
    padding={datatype.lower(): value for datatype, value, _ in ELEMENTS},
    trim={f"{datatype.lower()}.out": datatype.lower() for datatype, _, _ in ELEMENTS},
)


def unlike_any_other(datatype: Datatype, shape: tuple[int, ...], rng: np.random.Generator) -> HostArray:
    """Elements that tell a swapped row, as far as *datatype* has so many."""
    numbers = rng.integers(0, 2**15, shape)
    if datatype is Datatype.BYTES:
        texts = np.empty(shape, object)
        texts.reshape(-1)[:] = [b"%d" % number for number in numbers.flat]
        return texts
    return (numbers % 2 if datatype is Datatype.BOOL else numbers).astype(datatype.numpy)


@st.composite
def items_of_all_datatypes(draw: st.DrawFn) -> Batch:
    """One to three items, whose inputs agree in length or not, each an array or ragged."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extent, size = st.tuples(st.integers(1, 5), st.integers(1, 3)), draw(st.integers(1, 3))
    agreed = [draw(extent)] * size if draw(st.booleans()) else [draw(extent) for _ in range(size)]
    inputs = {}
    for datatype, _, _ in ELEMENTS:
        extents = agreed if draw(st.integers(0, 3)) else [draw(extent)] * size
        rows = tuple(unlike_any_other(datatype, (long, 2, wide), rng) for long, wide in extents)
        is_array = len(set(extents)) == 1 and draw(st.booleans())
        inputs[datatype.lower()] = Tensor.of(np.stack(rows), datatype) if is_array else Tensor.ragged(datatype, rows)
    return Batch(inputs, size)


def identity(batch: Batch) -> Tensors:
    return {f"{name}.out": Tensor.of(tensor.numpy().copy(), tensor.datatype) for name, tensor in batch.inputs.items()}


def rows_of(tensor: Tensor) -> list[tuple[np.dtype[Any], Any]]:
    rows = tensor.data.rows if isinstance(tensor.data, Ragged) else tensor.numpy()
    return [(row.dtype, row.tolist()) for row in rows]


@given(st.lists(items_of_all_datatypes(), min_size=1, max_size=6))
@settings(deadline=None)
def test_every_caller_gets_its_own_rows_back_whatever_shares_its_batch(sent: list[Batch]) -> None:
    shaping = Shaping.of(MANY_OPTIONS, MANY, HOST)
    assert shaping is not None
    lanes: dict[object, list[Batch]] = defaultdict(list)
    for batch in sent:
        lanes[compatibility(batch, HOST, shaping)].append(batch)

    for batches in lanes.values():
        merged, padded = merge(batches, HOST, shaping), shaping.padded(batches)
        replies = split(identity(merged), [batch.size for batch in batches], padded)

        assert merged.size == sum(batch.size for batch in batches)
        assert padded.total == sum(tensor.numpy().size for tensor in merged.inputs.values())
        for batch, reply in zip(batches, replies, strict=True):
            for name, tensor in batch.inputs.items():
                assert rows_of(reply[f"{name}.out"]) == rows_of(tensor)


def test_bf16_is_filled_with_the_nearest_bit_pattern() -> None:
    """1.00390625 lies half-way between two values of BF16: the even one is taken."""
    patterns = [fill_of(value, Datatype.BF16) for value in (1.0, -2.5, 1.00390625, 1.01171875, 0)]

    assert patterns == [0x3F80, 0xC020, 0x3F80, 0x3F82, 0]


def test_a_callers_own_ragged_rows_are_padded_and_cut_back_each_to_its_length() -> None:
    signature = Signature((TensorSpec("x", Datatype.INT64, (-1,)),), (TensorSpec("y", Datatype.INT64, (-1,)),))
    shaping = Shaping.of(BatchingOptions(padding={"x": 0}, trim={"y": "x"}), signature, HOST)
    assert shaping is not None
    rows = (np.array([1], np.int64), np.array([2, 3], np.int64))
    batch = Batch({"x": Tensor.ragged(Datatype.INT64, rows)}, 2)

    merged = merge([batch], HOST, shaping).inputs["x"].numpy()
    (reply,) = split({"y": Tensor.of(merged)}, [2], shaping.padded([batch]))

    assert merged.tolist() == [[1, 0], [2, 3]]
    assert [row.tolist() for row in reply["y"].data.rows] == [[1], [2, 3]]  # type: ignore[union-attr]


def test_texts_are_sorted_by_their_bytes_and_their_padding_is_counted() -> None:
    signature = Signature((TensorSpec("text", Datatype.BYTES, (1,)),), (TensorSpec("y", Datatype.FP32, (1,)),))
    shaping = Shaping.of(BatchingOptions(length_buckets=(4,)), signature, HOST)
    assert shaping is not None
    batches = [Batch.of({"text": Tensor.of(np.array([[text]], object))}) for text in (b"ab", b"abcd", b"abcde")]

    keys = [compatibility(batch, HOST, shaping) for batch in batches]

    assert keys[0] == keys[1] != keys[2]
    assert shaping.padded(batches[:2]).wasted == pytest.approx(0.25)


def test_without_options_lengths_do_not_matter() -> None:
    assert Shaping.of(BatchingOptions(), SIGNATURE, HOST) is None


def test_everything_that_does_not_fit_the_model_is_told_at_once() -> None:
    fixed = Signature((TensorSpec("x", Datatype.UINT8, (4,)),), (TensorSpec("y", Datatype.UINT8, (4,)),))
    options = BatchingOptions(length_buckets=(4,), padding={"x": 0, "z": 1}, trim={"w": "x"})

    with pytest.raises(ValueError, match="length_buckets is set") as told:
        Shaping.of(options, fixed, RAGGED)

    for part in (
        "padding names input 'x', of which no axis varies [4]; remove it",
        "padding names input 'z', which this model does not have; known: x",
        "trim names output 'w', which this model does not have; known: y",
        "padding is set, and this model takes items of unequal shape as they are",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        (300, Datatype.UINT8, "write a whole number from 0 to 255"),
        (1.5, Datatype.INT64, "write a whole number"),
        (True, Datatype.INT32, "write a whole number"),
        (1, Datatype.BOOL, "write true or false"),
        (0, Datatype.BYTES, "write a text, '' for an empty one"),
        (1e39, Datatype.FP32, "write a number from"),
        ("0", Datatype.BF16, "write a number from"),
    ],
)
def test_a_value_that_the_datatype_cannot_hold_is_refused(
    value: PaddingValue, datatype: Datatype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fill_of(value, datatype)


def test_a_trim_that_follows_an_input_of_another_rank_is_refused() -> None:
    signature = Signature((TensorSpec("x", Datatype.INT64, (-1,)),), (TensorSpec("y", Datatype.INT64, (-1, -1)),))

    with pytest.raises(ValueError, match=r"lets output 'y', of which 2 axes vary, follow input 'x', of which 1 do"):
        Shaping.of(BatchingOptions(padding={"x": 0}, trim={"y": "x"}), signature, HOST)
