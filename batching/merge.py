"""Many batches into one, and its outputs into theirs again: pure functions on tensors.

**Never a swapped reply.** Item i of the merged batch belongs to whoever owns row i, so every length is checked where
it is used: an input whose elements are not as many as it says would shift every row behind it.

**Copies.** Merging copies once, into the merged batch; splitting copies nothing, replies are views. A batch that
travels alone is passed on as it is.

**Compatibility.** `compatibility` gives equal keys to batches that may be merged: the same inputs, element types as
they are in memory, and row shapes. Where the backend takes `Ragged`, rows may differ in shape and only the rank
counts. What lives outside the host's memory cannot be merged here, so its key equals no other.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TypeAlias

import numpy as np

from backends.contract import Batch, HostArray, Memory, Ragged, SharedMemoryWindow, Tensor, Tensors
from backends.errors import InvalidInput

Key: TypeAlias = Hashable
"""Equal for batches that may be merged."""


def compatibility(batch: Batch, memory: Collection[Memory]) -> Key:
    """The key of *batch* for a backend that takes *memory*.

    Raises:
        InvalidInput: an input has not as many items as *batch*, contradicts its own shape, or lives where the backend
            cannot take it.
    """
    if len(batch.inputs) == 1:
        ((name, tensor),) = batch.inputs.items()
        return name, *_row_key(name, tensor, batch.size, memory)
    return tuple(sorted((name, *_row_key(name, tensor, batch.size, memory)) for name, tensor in batch.inputs.items()))


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
    wanted = Memory.SHARED if isinstance(data, SharedMemoryWindow) else Memory.DEVICE
    if wanted not in memory:
        raise InvalidInput(_refusal(name, f"in {wanted} memory", memory))
    return tensor.datatype, object()


def _ragged_key(name: str, tensor: Tensor, data: Ragged, memory: Collection[Memory]) -> tuple[Hashable, ...]:
    if len(data.rows) != tensor.shape[0]:
        raise InvalidInput(f"input {name!r} says {tensor.shape[0]} items; it has {len(data.rows)} rows")
    dtypes = {row.dtype for row in data.rows}
    if len(dtypes) != 1:
        raise InvalidInput(f"input {name!r} has rows of dtypes {sorted(map(str, dtypes))}; one dtype is needed")
    shapes = {row.shape for row in data.rows}
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


def merge(batches: Sequence[Batch], memory: Collection[Memory]) -> Batch:
    """One batch of all the items of *batches*, in order.

    Args:
        batches: at least one, all with the same `compatibility` for *memory*.
        memory: the storage that the backend takes.

    Returns:
        a batch whose tensors are new host arrays (or `Ragged` views, where row shapes differ); *batches*' only
        member itself, where it needs no stacking.
    """
    if len(batches) == 1 and not _needs_stacking(batches[0], memory):
        return batches[0]
    inputs = {name: _concatenate([batch.inputs[name] for batch in batches], memory) for name in batches[0].inputs}
    return Batch(inputs, sum(batch.size for batch in batches))


def _needs_stacking(batch: Batch, memory: Collection[Memory]) -> bool:
    return Memory.RAGGED not in memory and any(isinstance(tensor.data, Ragged) for tensor in batch.inputs.values())


def _concatenate(tensors: Sequence[Tensor], memory: Collection[Memory]) -> Tensor:
    """The rows of *tensors*, one after the other: an array where their shapes are equal, else `Ragged`."""
    datatype = tensors[0].datatype
    shape = tensors[0].shape[1:]
    if -1 in shape or any(tensor.shape[1:] != shape for tensor in tensors) or Memory.HOST not in memory:
        return Tensor.ragged(datatype, tuple(row for tensor in tensors for row in _rows(tensor)))
    arrays = [np.stack(tensor.data.rows) if isinstance(tensor.data, Ragged) else tensor.numpy() for tensor in tensors]
    return Tensor.of(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), datatype)


def _rows(tensor: Tensor) -> Sequence[HostArray]:
    return tensor.data.rows if isinstance(tensor.data, Ragged) else list(tensor.numpy())


def split(outputs: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """*outputs* of a merged batch as the outputs of its members, as views.

    Args:
        outputs: first axes of sum(*sizes*); passed through as they are where there is one member.
        sizes: items of each member, in the order in which they were merged.

    Raises:
        InvalidInput: an output holds another number of rows, or lives outside the host's memory.
    """
    if len(sizes) == 1:
        return [outputs]
    replies: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, tensor in outputs.items():
        _check_rows(name, tensor, sum(sizes))
        start = 0
        for reply, size in zip(replies, sizes, strict=True):
            reply[name] = tensor.rows(start, start + size)
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
