"""Items of unequal length: which of them share a batch, how they are padded to one shape, and what that costs.

**Buckets.** A batch takes as long as its longest item lets it, so items are sorted into buckets by length, and only
those of one bucket share a batch. The length of an item is the most bytes of an element where an input is BYTES (of a
text that goes with its tokens), and the largest extent over the open axes (-1) of any other input. A caller's batch
counts with its longest item. A bound belongs to the bucket below it; what is longer than the last bound has a bucket
of its own.

**Padding.** An input that is named is padded with one value at the end of its open axes, to the longest item of the
batch. Padding to the bucket's bound instead was rejected: ONNX Runtime on a CPU gains nothing from a shape that it has
seen (0.98 times the texts a second, `loadtests/results/padding.json`), and the last bucket has no bound. A backend that
plans by shape (graphs captured on a GPU) may see it otherwise; that was not measured.

**Trimming.** An output that is named has its open axes cut back, item by item, to what the input that it follows had
there, so that callers see what they would have seen alone. The first open axis of the one follows the first of the
other, and so on. An output whose axes are not as long as the padded input's does not follow it, and is never cut:
that fails the batch. A plain list of outputs was rejected: of several inputs that are padded each to a length of its
own, it does not say which one an output follows.

**Items that contradict themselves.** A model fails on five tokens with a mask of six; padded in company to eight and
eight it would not notice, and would answer. Hence padded inputs that are equally long, shorter, or longer than each
other are kept apart: then what disagreed in one item disagrees in every batch. Inputs whose lengths are independent of
each other pay for that with more lanes.

An answer that was padded is exactly the answer alone only where the model masks what is padded, and computes items
apart from each other. MiniLM with int8 weights does, to the bit. Dynamic quantisation of activations, which scales by
the largest value of the whole batch, does not.

Source: the bounds work as those of TensorFlow's `bucket_by_sequence_length`, which counts an item as long as a bound
into the bucket above it; ours is below.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from backends.contract import Batch, Datatype, HostArray, Memory, Ragged, Signature, Tensor, TensorSpec, record
from backends.errors import InvalidInput
from batching.options import BatchingOptions, PaddingValue

Extent: TypeAlias = tuple[int, ...]
"""How long one item is along each open axis of one input."""

Fill: TypeAlias = "np.generic | bytes"
"""What is put into an array: an element of its type."""

_FLOATS: Final = (Datatype.FP16, Datatype.FP32, Datatype.FP64, Datatype.BF16)
_BF16_LARGEST: Final = float(np.array(0x7F7F0000, np.uint32).view(np.float32))


@dataclass(frozen=True, slots=True)
class Pad:
    """How one input is padded.

    Attributes:
        axes: those whose length varies, of arrays with the batch axis, so from 1 on.
        fill: what is put behind the end.
    """

    axes: tuple[int, ...]
    fill: Fill

    def row_shape(self, row: tuple[int, ...]) -> tuple[int, ...]:
        """*row*, the shape of an item, with -1 for what varies: equal for items that can be padded to one shape."""
        return tuple([-1 if axis in self.axes else length for axis, length in enumerate(row, 1)])


@dataclass(frozen=True, slots=True)
class Trim:
    """How one output is cut back: along *axes*, from 1 on, to the extents of the input *follows*."""

    follows: str
    axes: tuple[int, ...]


@record(eq=False)
class Padded:
    """What a merged batch was made of; `Shaping.padded` makes it.

    Attributes:
        extents: of each item of each member, by the name of the input that was padded.
        longest: what each input was padded to.
        trims: by output.
        own: elements that callers sent, in the inputs that are padded. Where none is, bytes of text.
        total: those of the merged batch, padding included. Where none is padded: what the texts come to where a
            model pads them to the longest itself.
    """

    extents: Mapping[str, Sequence[Sequence[Extent]]]
    longest: Mapping[str, Extent]
    trims: Mapping[str, Trim]
    own: int
    total: int

    @property
    def wasted(self) -> float:
        """The share of padding in all that the model works on, 0.0 to less than 1.0."""
        return 1.0 - self.own / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Shaping:
    """What one model's options say of items of unequal length, in the terms of its signature.

    Attributes:
        bounds: of the buckets, ascending; empty: all lengths alike.
        pads: by input.
        trims: by output.
        texts: inputs of BYTES.
        open_axes: those of every other input that has any, by input, from 1 on.
    """

    bounds: tuple[int, ...]
    pads: Mapping[str, Pad]
    trims: Mapping[str, Trim]
    texts: tuple[str, ...]
    open_axes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, options: BatchingOptions, signature: Signature, memory: Collection[Memory]) -> Shaping | None:
        """What *options* say of a model with *signature* that takes *memory*; None where they leave lengths alone.

        Raises:
            ValueError: lists everything that does not fit the model.
        """
        if not (options.length_buckets or options.padding or options.trim):
            return None
        faults: list[str] = []
        texts = tuple(spec.name for spec in signature.inputs if spec.datatype is Datatype.BYTES)
        open_axes = {spec.name: _open_axes(spec) for spec in signature.inputs if spec.name not in texts}
        shaping = cls(
            options.length_buckets,
            _pads(options.padding, signature, faults),
            _trims(options.trim, signature, faults),
            texts,
            {name: axes for name, axes in open_axes.items() if axes},
        )
        if shaping.bounds and not (texts or shaping.open_axes):
            faults.append("length_buckets is set, and every item of this model is as long as any other; remove it")
        if options.padding and (Memory.RAGGED in memory or Memory.HOST not in memory):
            faults.append(
                "padding is set, and this model takes items of unequal shape as they are; remove it, and trim"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return shaping

    def lane(self, batch: Batch) -> Hashable:
        """What keeps *batch* apart from others for its lengths: its bucket, and which inputs are longer than others."""
        bucket = bisect_left(self.bounds, self.length(batch)) if self.bounds else 0
        return (bucket, *self._order(batch)) if len(self.pads) > 1 else bucket

    def length(self, batch: Batch) -> int:
        """Of the longest item of *batch*; 0 where it lies elsewhere than in the host's memory and does not tell."""
        extents = [_largest(batch.inputs[name], axes) for name, axes in self.open_axes.items()]
        longest = max([length for extent in extents for length in extent], default=0)
        return max([longest, *(_longest_element(batch.inputs[name]) for name in self.texts)])

    def _order(self, batch: Batch) -> list[tuple[int, ...]]:
        """Which padded inputs are as long as each other, axis by axis: their ranks by length."""
        extents = [_largest(batch.inputs[name], pad.axes) for name, pad in self.pads.items()]
        return [_ranks([extent[k] for extent in extents if len(extent) > k]) for k in range(max(map(len, extents)))]

    def padded(self, batches: Sequence[Batch]) -> Padded:
        """What becomes of *batches* when they are merged, for `split` and for whoever counts."""
        extents = {
            name: [_extents(batch.inputs[name], pad.axes) for batch in batches] for name, pad in self.pads.items()
        }
        longest = {name: _hull(extent for member in members for extent in member) for name, members in extents.items()}
        counted = self._count(batches) if self.pads else _count_texts(batches, self.texts)
        return Padded(extents, longest, self.trims, *counted)

    def nbytes(self, batch: Batch) -> int:
        """Bytes of host memory that the inputs of *batch* take where its own items are padded to one shape."""
        return _Hulls(self.pads).with_one_more(batch)

    def affordable(self, batches: Sequence[Batch], limit_bytes: int) -> int:
        """How many of *batches*, from the first on and at least one, take *limit_bytes* at most as one, padded."""
        hulls = _Hulls(self.pads)
        for count, batch in enumerate(batches):
            if hulls.with_one_more(batch) > limit_bytes and count:
                return count
        return len(batches)

    def _count(self, batches: Sequence[Batch]) -> tuple[int, int]:
        own = total = 0
        for name in self.pads:
            shapes = [shape for batch in batches for shape in _row_shapes(batch.inputs[name])]
            own += sum(map(math.prod, shapes))
            total += len(shapes) * math.prod(_hull(shapes))
        return own, total


class _Hulls:
    """What batches come to, padded, as one after the other joins."""

    def __init__(self, pads: Mapping[str, Pad]) -> None:
        self._pads = pads
        self._items: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._contents = 0  # bytes of texts, and of what is not padded

    def with_one_more(self, batch: Batch) -> int:
        """Bytes of host memory that the inputs take once *batch* is among them."""
        merged = 0
        for name, tensor in batch.inputs.items():
            if name not in self._pads or not isinstance(tensor.data, np.ndarray | Ragged):
                self._contents += tensor.nbytes
                continue
            shapes = _row_shapes(tensor)
            self._items[name] = self._items.get(name, 0) + len(shapes)
            self._shapes[name] = _hull([*shapes, self._shapes.get(name, shapes[0])])
            itemsize = _dtype(tensor).itemsize
            self._contents += tensor.nbytes - itemsize * sum(map(math.prod, shapes))
            merged += itemsize * self._items[name] * math.prod(self._shapes[name])
        return self._contents + merged


def pad_rows(tensors: Sequence[Tensor], pad: Pad) -> Tensor:
    """The rows of *tensors*, one after the other in a new array, each padded to the longest.

    Args:
        tensors: in host memory, of one element type, and equal in `Pad.row_shape`.
    """
    datatype = tensors[0].datatype
    shapes = [shape for tensor in tensors for shape in _row_shapes(tensor)]
    # Object arrays also for BYTES of a fixed width, which *fill* need not fit.
    dtype = datatype.numpy if datatype is Datatype.BYTES else _dtype(tensors[0])
    merged: HostArray = np.full((len(shapes), *_hull(shapes)), pad.fill, dtype)
    start = 0
    for tensor in tensors:
        for block in _blocks(tensor):
            stop = start + len(block)
            merged[(slice(start, stop), *map(slice, block.shape[1:]))] = block
            start = stop
    return Tensor.of(merged, datatype)


def check_follows(name: str, output: Tensor, padded: Padded) -> None:
    """Make sure that *output* is as long as the input that it is said to follow.

    Raises:
        InvalidInput: it is not, so that nobody can tell what of it belongs to padding.
    """
    trim = padded.trims[name]
    found = tuple([output.shape[axis] for axis in trim.axes])
    if found != padded.longest[trim.follows]:
        raise InvalidInput(
            f"output {name!r} has lengths {list(found)} where input {trim.follows!r}, which it should follow, had "
            f"{list(padded.longest[trim.follows])}; remove {name!r} from trim"
        )


def trim_rows(name: str, rows: Tensor, member: int, padded: Padded) -> Tensor:
    """*rows*, the output *name* of one member of a merged batch, without what belongs to padding: as views.

    Returns:
        `Ragged` rows where the member's items are of unequal length.
    """
    trim = padded.trims[name]
    extents = padded.extents[trim.follows][member]
    if set(extents) == {padded.longest[trim.follows]}:
        return rows
    if isinstance(rows.data, Ragged):
        each: Iterable[HostArray] = rows.data.rows
    else:
        array = rows.numpy()
        if len(set(extents)) == 1:
            return Tensor.of(array[_cut(array.ndim, trim.axes, extents[0])], rows.datatype)
        each = array
    cut = [row[_cut(row.ndim + 1, trim.axes, extent)[1:]] for row, extent in zip(each, extents, strict=True)]
    return Tensor.ragged(rows.datatype, tuple(cut))


def _cut(rank: int, axes: tuple[int, ...], extent: Extent) -> tuple[slice, ...]:
    stops = dict(zip(axes, extent, strict=True))
    return tuple([slice(stops.get(axis)) for axis in range(rank)])


# --- lengths ---


def _open_axes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple([axis for axis, length in enumerate(spec.shape, 1) if length == -1])


def _largest(tensor: Tensor, axes: tuple[int, ...]) -> Extent:
    """The largest extents of any item of *tensor*."""
    if isinstance(tensor.data, Ragged):
        return _hull(_extents(tensor, axes))
    return tuple([tensor.shape[axis] for axis in axes])


def _extents(tensor: Tensor, axes: tuple[int, ...]) -> list[Extent]:
    """Those of each item of *tensor*."""
    if isinstance(tensor.data, Ragged):
        return [tuple([row.shape[axis - 1] for axis in axes]) for row in tensor.data.rows]
    return [tuple([tensor.shape[axis] for axis in axes])] * tensor.shape[0]


def _row_shapes(tensor: Tensor) -> list[tuple[int, ...]]:
    if isinstance(tensor.data, Ragged):
        return [row.shape for row in tensor.data.rows]
    return [tensor.shape[1:]] * tensor.shape[0]


def _hull(extents: Iterable[Extent]) -> Extent:
    """The smallest extent that holds all *extents*."""
    return tuple([max(lengths) for lengths in zip(*extents, strict=True)])


def _ranks(lengths: Sequence[int]) -> tuple[int, ...]:
    ordered = sorted(set(lengths))
    return tuple([ordered.index(length) for length in lengths])


def _blocks(tensor: Tensor) -> Sequence[HostArray]:
    """Arrays that are the items of *tensor*, one after the other."""
    return [row[np.newaxis] for row in tensor.data.rows] if isinstance(tensor.data, Ragged) else [tensor.numpy()]


def _rows(tensor: Tensor) -> Sequence[HostArray]:
    """The items of *tensor*; none where it lies elsewhere than in the host's memory."""
    if isinstance(tensor.data, Ragged):
        return tensor.data.rows
    return list(tensor.data) if isinstance(tensor.data, np.ndarray) else ()


def _dtype(tensor: Tensor) -> np.dtype[np.generic]:
    return _blocks(tensor)[0].dtype


def _longest_element(tensor: Tensor) -> int:
    """Bytes of the longest element of *tensor*, which is BYTES; 0 where that lies elsewhere."""
    if isinstance(tensor.data, np.ndarray):
        return max(map(len, tensor.data.flat), default=0)
    if isinstance(tensor.data, Ragged):
        return max([len(element) for row in tensor.data.rows for element in row.flat], default=0)
    return 0


def _count_texts(batches: Sequence[Batch], texts: Iterable[str]) -> tuple[int, int]:
    """Bytes of the longest element of every item, and what they come to if all are as long as the longest."""
    own = total = 0
    for name in texts:
        tensors = [batch.inputs[name] for batch in batches]
        lengths = [max(map(len, row.flat), default=0) for tensor in tensors for row in _rows(tensor)]
        own += sum(lengths)
        total += len(lengths) * max(lengths, default=0)
    return own, total


# --- options, read in the terms of a signature ---


def _pads(padding: Mapping[str, PaddingValue], signature: Signature, faults: list[str]) -> dict[str, Pad]:
    inputs = {spec.name: spec for spec in signature.inputs}
    pads = {}
    for name, value in padding.items():
        spec = inputs.get(name)
        if spec is None:
            faults.append(f"padding names input {name!r}, which this model does not have; known: {_names(inputs)}")
            continue
        if not (axes := _open_axes(spec)):
            faults.append(f"padding names input {name!r}, of which no axis varies {list(spec.shape)}; remove it")
            continue
        try:
            pads[name] = Pad(axes, fill_of(value, spec.datatype))
        except ValueError as error:
            faults.append(f"padding of input {name!r} {error}")
    return pads


def _trims(trim: Mapping[str, str], signature: Signature, faults: list[str]) -> dict[str, Trim]:
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    trims = {}
    for name, follows in trim.items():
        if name not in outputs:
            faults.append(f"trim names output {name!r}, which this model does not have; known: {_names(outputs)}")
        if follows not in inputs:
            continue  # not in padding either, or a fault of that
        if name in outputs:
            axes, followed = _open_axes(outputs[name]), _open_axes(inputs[follows])
            if len(axes) != len(followed):
                faults.append(
                    f"trim lets output {name!r}, of which {len(axes)} axes vary, follow input {follows!r}, of which "
                    f"{len(followed)} do; name an input with as many, or remove it"
                )
            trims[name] = Trim(follows, axes)
    return trims


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def fill_of(value: PaddingValue, datatype: Datatype) -> Fill:
    """*value* as an element of *datatype*; floating-point types round it to what they hold.

    Raises:
        ValueError: *datatype* cannot hold it; says what to write.
    """
    if datatype is Datatype.BYTES:
        return _text(value)
    if datatype is Datatype.BOOL:
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}, and its datatype is BOOL; write true or false")
        return np.bool_(value)
    if datatype in _FLOATS:
        return _float(value, datatype)
    bounds = np.iinfo(datatype.numpy)
    if not isinstance(value, int) or isinstance(value, bool) or not bounds.min <= value <= bounds.max:
        raise ValueError(
            f"is {value!r}, and its datatype is {datatype}; write a whole number from {bounds.min} to {bounds.max}"
        )
    return _element(value, datatype.numpy)


def _text(value: PaddingValue) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, and its datatype is BYTES; write a text, '' for an empty one")
    return value.encode()


def _float(value: PaddingValue, datatype: Datatype) -> np.generic:
    largest = _BF16_LARGEST if datatype is Datatype.BF16 else float(np.finfo(datatype.numpy).max)
    if isinstance(value, bool | str) or not abs(value) <= largest:
        raise ValueError(
            f"is {value!r}, and its datatype is {datatype}; write a number from {-largest:g} to {largest:g}"
        )
    if datatype is not Datatype.BF16:
        return _element(value, datatype.numpy)
    bits = int(np.array(value, np.float32).view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # the upper half: to the nearest, ties to even


def _element(value: float, dtype: np.dtype[Any]) -> np.generic:
    element: np.generic = dtype.type(value)
    return element
