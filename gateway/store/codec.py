"""Tensors and stage records as the store keeps them: bytes that come back equal, on any machine.

**Tensors.** A set of named tensors is, little-endian throughout:

    version u8 | count u16 | count x tensor
    tensor   = name (u16 length, UTF-8) | datatype (u8 length, ASCII) | kind u8 | rank u8 | rank x i64 | blocks
    array    = kind 0, one block
    ragged   = kind 1, the shape as `Tensor.shape` has it; then u32 rows, and per row rank-1 x i64 and one block
    block    = u64 length, elements in C order; BYTES elements are each a u32 length and the bytes

Rejected: pickle (runs code on reading), `.npy` (needs pickle for BYTES, forgets BF16), JSON (floats and bytes are not
exact), the protocol's own `raw_output_contents` (no ragged rows). Tensors that are not in host memory are refused:
whoever holds them moves them first.

**Records** (what each stage said, what is proposed) are JSON objects, so that an auditor can read them in place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from backends.contract import Datatype, HostArray, Ragged, Tensor, Tensors
from backends.errors import InvalidInput
from gateway.answer import StageRecord, StageRun
from gateway.store.contract import Proposal
from router.contract import Decision, Reason

_VERSION = 1
_ARRAY, _RAGGED = 0, 1
_COPIED_BYTES = 4096
_LITTLE = {datatype: datatype.numpy.newbyteorder("<") for datatype in Datatype}
_U8, _U16, _U32, _U64 = (struct.Struct(f) for f in ("<B", "<H", "<I", "<Q"))


def encode_tensors(tensors: Tensors) -> bytes:
    """*tensors* as bytes.

    Raises:
        InvalidInput: elements are not in host memory, or a BYTES element is neither bytes nor text.
    """
    return b"".join(encoded_parts(tensors))


def encoded_parts(tensors: Tensors) -> Sequence[bytes | memoryview]:
    """What `encode_tensors` joins; of large tensors, views of their elements."""
    parts: list[bytes | memoryview] = [_U8.pack(_VERSION), _U16.pack(len(tensors))]
    for name, tensor in tensors.items():
        if isinstance(tensor.data, Ragged):
            parts += (_head(name, tensor.datatype, _RAGGED, tensor.shape), _U32.pack(len(tensor.data.rows)))
            for row in tensor.data.rows:
                parts += (struct.pack(f"<{row.ndim}q", *row.shape), *_block(name, tensor.datatype, row))
        else:
            array = tensor.numpy()
            parts += (_head(name, tensor.datatype, _ARRAY, array.shape), *_block(name, tensor.datatype, array))
    return parts


def decode_tensors(data: bytes) -> dict[str, Tensor]:
    """What `encode_tensors` was given; fixed-size elements are read-only views of *data*.

    Raises:
        ValueError: *data* is not such bytes.
    """
    reader = _Reader(data)
    if (version := reader.unpack(_U8)) != _VERSION:
        raise ValueError(f"tensor encoding {version} is unknown; this is version {_VERSION}")
    tensors = {}
    for _ in range(reader.unpack(_U16)):
        name = reader.take(reader.unpack(_U16)).decode()
        datatype = Datatype(reader.take(reader.unpack(_U8)).decode())
        kind = reader.unpack(_U8)
        shape = reader.shape(reader.unpack(_U8))
        if kind == _RAGGED:
            rows = tuple(_elements(datatype, reader.shape(len(shape) - 1), reader) for _ in range(reader.unpack(_U32)))
            tensors[name] = Tensor(datatype, shape, Ragged(rows))
        else:
            tensors[name] = Tensor(datatype, shape, _elements(datatype, shape, reader))
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes are left over after the last tensor")
    return tensors


def encode_trail(trail: Sequence[StageRecord]) -> str:
    """What every stage said, as JSON; a confidence that is no number becomes null, an empty detail is left out."""
    return orjson.dumps([_stage(record) for record in trail]).decode()


def decode_trail(text: str) -> tuple[StageRecord, ...]:
    """What `encode_trail` was given."""
    return tuple(
        StageRecord(
            record["stage"],
            record["version"],
            record["label"],
            record["confidence"],
            Decision(record["decision"]),
            None if record["reason"] is None else Reason(record["reason"]),
            record.get("detail", ""),
            _run_in(record["run"]) if "run" in record else None,
            record.get("traits"),
        )
        for record in orjson.loads(text)
    )


def encode_proposals(proposals: Sequence[Proposal]) -> str:
    """Proposals as JSON; a confidence that is no number becomes null."""
    return orjson.dumps(proposals).decode()


def decode_proposals(text: str) -> tuple[Proposal, ...]:
    """What `encode_proposals` was given."""
    return tuple(Proposal(p["stage"], p["label"], p["confidence"]) for p in orjson.loads(text))


def encode_labels(labels: Sequence[str]) -> str:
    """Labels as JSON."""
    return orjson.dumps(labels).decode()


def decode_labels(text: str) -> tuple[str, ...]:
    """What `encode_labels` was given."""
    return tuple(orjson.loads(text))


def encode_work(human_s: float | None) -> str:
    """What a decision's row of the log says: the seconds that its review was held; as JSON."""
    return "[]" if human_s is None else orjson.dumps([{"human_s": round(human_s, 3)}]).decode()


def _stage(record: StageRecord) -> dict[str, Any]:  # Any: JSON
    said: dict[str, Any] = {
        "stage": record.stage,
        "version": record.version,
        "label": record.label,
        "confidence": record.confidence,
        "decision": record.decision,
        "reason": record.reason,
    }
    if record.detail:
        said["detail"] = record.detail
    if record.run is not None:
        said["run"] = _run(record.run)
    if record.traits is not None:
        said["traits"] = record.traits
    return said


def _run(run: StageRun) -> dict[str, Any]:
    """Times to the microsecond, in milliseconds."""
    return {
        "took_ms": round(1e3 * run.took_s, 3),
        "model_ms": None if run.model_s is None else round(1e3 * run.model_s, 3),
        "batch": run.batch,
        "batch_size": run.batch_size,
        "cost": None if run.cost_ms is None else round(run.cost_ms, 3),
        "threshold": run.threshold,
        "certificate": run.certificate,
    }


def _run_in(said: dict[str, Any]) -> StageRun:
    took, model = said["took_ms"] / 1e3, said["model_ms"]
    batch = (None if model is None else model / 1e3, said["batch"], said["batch_size"], said["cost"])
    return StageRun(took, *batch, said["threshold"], said["certificate"])


class _Reader:
    """A position in bytes; every read is checked against their end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.at = 0

    def take(self, length: int) -> bytes:
        return bytes(self.view(length))

    def view(self, length: int) -> memoryview:
        if not 0 <= length <= len(self._data) - self.at:
            raise ValueError(f"encoded tensors end at byte {len(self._data)}, in the middle of a field")
        self.at += length
        return self._data[self.at - length : self.at]

    def unpack(self, number: struct.Struct) -> int:
        value: int = number.unpack(self.view(number.size))[0]
        return value

    def shape(self, rank: int) -> tuple[int, ...]:
        return struct.unpack(f"<{rank}q", self.view(8 * rank))


@lru_cache(512)  # one answer's outputs are named and shaped as the last one's
def _head(name: str, datatype: Datatype, kind: int, shape: tuple[int, ...]) -> bytes:
    """What stands before a tensor's blocks."""
    encoded, wire = name.encode(), datatype.encode()
    rank = len(shape)
    layout = f"<H{len(encoded)}sB{len(wire)}sBB{rank}q"
    return struct.pack(layout, len(encoded), encoded, len(wire), wire, kind, rank, *shape)


def _block(name: str, datatype: Datatype, array: HostArray) -> tuple[bytes, bytes | memoryview]:
    if datatype is Datatype.BYTES:
        raw = b"".join(_prefixed(name, element) for element in array.ravel().tolist())
        return _U64.pack(len(raw)), raw
    little = array.astype(_LITTLE[datatype], copy=False)
    if little.nbytes <= _COPIED_BYTES:  # which takes less than a view
        return _U64.pack(little.nbytes), little.tobytes()
    return _U64.pack(little.nbytes), np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _prefixed(name: str, element: object) -> bytes:
    if isinstance(element, str):
        element = element.encode()
    if not isinstance(element, bytes):
        raise InvalidInput(f"output {name!r} is BYTES and has an element of type {type(element).__name__}")
    return _U32.pack(len(element)) + element


def _elements(datatype: Datatype, shape: tuple[int, ...], reader: _Reader) -> HostArray:
    block = reader.view(reader.unpack(_U64))
    if datatype is not Datatype.BYTES:
        array = np.frombuffer(block, datatype.numpy.newbyteorder("<")).reshape(shape)
        return array.astype(datatype.numpy, copy=False)
    inner = _Reader(bytes(block))
    elements = []
    while inner.at < len(block):
        elements.append(inner.take(inner.unpack(_U32)))
    flat = np.empty(len(elements), object)
    flat[:] = elements
    return flat.reshape(shape)
