"""Many batches into one, and its outputs into theirs again: pure functions on tensors.

**Never a swapped reply.** Item i of the merged batch belongs to whoever owns row i, so every length is checked where
it is used: an input whose elements are not as many as it says would shift every row behind it.

**Copies.** Merging copies once, into the merged batch; splitting copies nothing, replies are views. A batch that
travels alone is passed on as it is.

**Compatibility.** `compatibility` gives equal keys to batches that may be merged: the same inputs, element types as
they are in memory, and row shapes. Where the backend takes `Ragged`, rows may differ in shape and only the rank
counts. Where a `Shaping` pads an input, the lengths that vary do not count, and its buckets do. What lives on a device
cannot be merged here, so its key equals no other. Nor can windows of shared memory; equal keys say of those that the
backend, given them at once, may do what merging would (`Limits.memory`), and `goes_apart` tells them from others.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TypeAlias

import numpy as np

from backends.contract import Batch, HostArray, Memory, Ragged, SharedMemoryWindow, Tensor, Tensors
from backends.errors import InvalidInput
from batching.padding import Pad, Padded, Shaping, check_follows, pad_rows, trim_rows

Key: TypeAlias = Hashable
"""Equal for batches that may be merged."""


def compatibility(batch: Batch, memory: Collection[Memory], shaping: Shaping | None = None) -> Key:
    """The key of *batch* for a backend that takes *memory*.

    Args:
        shaping: what is padded, and which lengths go together; None: neither.

    Raises:
        InvalidInput: an input has not as many items as *batch*, contradicts its own shape, or lives where the backend
            cannot take it.
    """
    if shaping is not None:
        return _shaped_key(batch, memory, shaping)
    if len(batch.inputs) == 1:
        ((name, tensor),) = batch.inputs.items()
        return name, *_row_key(name, tensor, batch.size, memory)
    return tuple(sorted((name, *_row_key(name, tensor, batch.size, memory)) for name, tensor in batch.inputs.items()))


def length_bucket(key: Key) -> int:
    """Which of its length buckets *key* belongs to, which `compatibility` has made with a `Shaping`; 0 the shortest."""
    assert isinstance(key, tuple), f"{key!r} says nothing of lengths. This is a bug."
    bucket = key[0][0] if isinstance(key[0], tuple) else key[0]  # as `Shaping.lane` has it
    assert isinstance(bucket, int), f"{key!r} says nothing of lengths. This is a bug."
    return bucket


def _shaped_key(batch: Batch, memory: Collection[Memory], shaping: Shaping) -> Key:
    keys = []
    for name, tensor in batch.inputs.items():
        pad = shaping.pads.get(name)
        if pad is not None and isinstance(tensor.data, Ragged):
            key: tuple[Hashable, ...] = tensor.datatype, *_ragged_key(name, tensor, tensor.data, memory, pad)
        else:
            key = _row_key(name, tensor, batch.size, memory)
            if pad is not None and isinstance(tensor.data, np.ndarray):
                key = *key[:-1], pad.row_shape(tensor.shape[1:])
        keys.append((name, *key))
    return shaping.lane(batch), *sorted(keys)


def _row_key(name: str, tensor: Tensor, size: int, memory: Collection[Memory]) -> tuple[Hashable, ...]:
    data = tensor.data
    if tensor.shape[:1] != (size,):
        raise InvalidInput(f"input {name!r} has shape {list(tensor.shape)} in a batch of {size}")
    if isinstance(data, np.ndarray):
        if data.shape != tensor.shape:
            raise InvalidInput(f"input {name!r} says shape {list(tensor.shape)}; its elements have {list(data.shape)}")
        if Memory.HOST not in memory:
            raise InvalidInput(_refusal(name, "a host array", memory))
        rows = data.ndim if Memory.RAGGED in memory else data.shape[1:]
        return tensor.datatype, data.dtype, rows
    if isinstance(data, Ragged):
        return tensor.datatype, *_ragged_key(name, tensor, data, memory)
    wanted = tensor.memory
    if wanted not in memory:
        raise InvalidInput(_refusal(name, f"in {wanted} memory", memory))
    return tensor.datatype, tensor.shape[1:] if wanted is Memory.SHARED else object(), wanted


def goes_apart(batch: Batch) -> bool:
    """Whether *batch* has an input in shared memory, so that it reaches the backend by itself."""
    return any(isinstance(tensor.data, SharedMemoryWindow) for tensor in batch.inputs.values())


def is_apart(key: Key) -> bool:
    """Whether batches of *key*, which `compatibility` has made without a `Shaping`, are never merged with others."""
    assert isinstance(key, tuple), f"{key!r} is no key of a batch. This is a bug."
    parts = (key,) if key and isinstance(key[0], str) else key  # one input, or several
    return any(part[-1] is Memory.SHARED or part[-1] is Memory.DEVICE for part in parts)


def _ragged_key(
    name: str, tensor: Tensor, data: Ragged, memory: Collection[Memory], pad: Pad | None = None
) -> tuple[Hashable, ...]:
    if len(data.rows) != tensor.shape[0]:
        raise InvalidInput(f"input {name!r} says {tensor.shape[0]} items; it has {len(data.rows)} rows")
    dtypes = {row.dtype for row in data.rows}
    if len(dtypes) != 1:
        raise InvalidInput(f"input {name!r} has rows of dtypes {sorted(map(str, dtypes))}; one dtype is needed")
    shapes = {row.shape if pad is None else pad.row_shape(row.shape) for row in data.rows}
    dtype, shape = next(iter(dtypes)), next(iter(shapes))
    if len({len(shape) for shape in shapes}) != 1:
        raise InvalidInput(f"input {name!r} has rows of shapes {sorted(shapes)}; one rank is needed")
    if Memory.RAGGED in memory:
        return dtype, len(shape) + 1
    if Memory.HOST not in memory or len(shapes) != 1:
        raise InvalidInput(_refusal(name, "ragged (rows of unequal shape)", memory))
    return dtype, shape


def _refusal(name: str, what: str, memory: Collection[Memory]) -> str:
    return f"input {name!r} is {what}; the backend takes {' and '.join(sorted(memory))}: move it first"


def merge(batches: Sequence[Batch], memory: Collection[Memory], shaping: Shaping | None = None) -> Batch:
    """One batch of all the items of *batches*, in order.

    Args:
        batches: at least one, all with the same `compatibility` for *memory* and *shaping*.
        memory: the storage that the backend takes.
        shaping: what is padded; None: nothing.

    Returns:
        a batch whose tensors are new host arrays (or `Ragged` views, where row shapes differ); *batches*' only
        member itself, where it needs no stacking.
    """
    if len(batches) == 1 and not _needs_stacking(batches[0], memory):
        return batches[0]
    pads = {} if shaping is None else shaping.pads
    inputs = {
        name: _concatenate([batch.inputs[name] for batch in batches], memory, pads.get(name))
        for name in batches[0].inputs
    }
    return Batch(inputs, sum(batch.size for batch in batches))


def _needs_stacking(batch: Batch, memory: Collection[Memory]) -> bool:
    return Memory.RAGGED not in memory and any(isinstance(tensor.data, Ragged) for tensor in batch.inputs.values())


def _concatenate(tensors: Sequence[Tensor], memory: Collection[Memory], pad: Pad | None = None) -> Tensor:
    """The rows of *tensors*, one after the other: an array where their shapes are equal or padded, else `Ragged`."""
    datatype = tensors[0].datatype
    shape = tensors[0].shape[1:]
    if -1 in shape or any(tensor.shape[1:] != shape for tensor in tensors) or Memory.HOST not in memory:
        if pad is not None:
            return pad_rows(tensors, pad)
        return Tensor.ragged(datatype, tuple(row for tensor in tensors for row in _rows(tensor)))
    arrays = [np.stack(tensor.data.rows) if isinstance(tensor.data, Ragged) else tensor.numpy() for tensor in tensors]
    return Tensor.of(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), datatype)


def _rows(tensor: Tensor) -> Sequence[HostArray]:
    return tensor.data.rows if isinstance(tensor.data, Ragged) else list(tensor.numpy())


def split(outputs: Tensors, sizes: Sequence[int], padded: Padded | None = None) -> list[Tensors]:
    """*outputs* of a merged batch as the outputs of its members, as views.

    Args:
        outputs: first axes of sum(*sizes*); passed through as they are where there is one member.
        sizes: items of each member, in the order in which they were merged.
        padded: what the merged batch was made of, so that outputs are trimmed; None: none is.

    Raises:
        InvalidInput: an output holds another number of rows, does not follow the input that it should, or lives
            outside the host's memory.
    """
    trims = {} if padded is None else padded.trims
    if padded is not None:
        for name in trims.keys() & outputs.keys():
            check_follows(name, outputs[name], padded)
    if len(sizes) == 1 and not trims:
        return [outputs]
    replies: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, tensor in outputs.items():
        _check_rows(name, tensor, sum(sizes))
        start = 0
        for member, (reply, size) in enumerate(zip(replies, sizes, strict=True)):
            rows = tensor.rows(start, start + size)
            reply[name] = rows if padded is None or name not in trims else trim_rows(name, rows, member, padded)
            start += size
    return list(replies)


def _check_rows(name: str, tensor: Tensor, total: int) -> None:
    rows = len(tensor.data.rows) if isinstance(tensor.data, Ragged) else len(tensor.numpy())
    if rows != total:
        raise InvalidInput(f"output {name!r} has {rows} rows for a batch of {total}")


def cut(batch: Batch, max_batch: int) -> list[Batch]:
    """*batch* as batches of at most *max_batch* items, in order, as views.

    Raises:
        InvalidInput: an input lives outside the host's memory.
    """
    bounds = [(start, min(start + max_batch, batch.size)) for start in range(0, batch.size, max_batch)]
    return [
        Batch({name: tensor.rows(start, stop) for name, tensor in batch.inputs.items()}, stop - start)
        for start, stop in bounds
    ]


def join(parts: Sequence[Tensors]) -> Tensors:
    """The outputs of a `cut` batch's parts as those of the whole; `Ragged` where the parts' row shapes differ."""
    everything = (Memory.HOST, Memory.RAGGED)
    return {name: _concatenate([part[name] for part in parts], everything) for name in parts[0]}
