"""What a person is given to decide: each deferred item's input as it was sent, and what the models would have said."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from backends.contract import Batch, Datatype, Tensor
from gateway.answer import Answer, ItemAnswer
from gateway.store.contract import Proposal, ReviewTask
from router.contract import HumanPolicy, Reason, Route

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def tasks_of(route: Route, batch: Batch, answer: Answer) -> tuple[ReviewTask, ...]:
    """One task for every item of *answer* that waits for a person.

    Args:
        batch: the request's items before decoding.
    """
    human = route.human
    if human is None:
        return ()
    return tuple(_task(route, human, batch, index, answer.items[index]) for index in answer.open_items)


def _task(route: Route, human: HumanPolicy, batch: Batch, index: int, item: ItemAnswer) -> ReviewTask:
    payload, content_type = _payload(route, batch, index)
    proposals = (Proposal(r.stage, r.label, r.confidence) for r in item.trail if r.version)
    now_s = time.time()
    return ReviewTask(
        item=index,
        queue=human.queue,
        due_s=now_s + human.due_s,
        labels=human.labels,
        payload=payload,
        content_type=content_type,
        proposals=tuple(proposals),
        reason=item.reason or Reason.LOW_CONFIDENCE,
        expires_s=None if human.expires_s is None else now_s + human.expires_s,
        priority=human.priority,
        skills=human.skills,
        quality=human.quality,
    )


def _payload(route: Route, batch: Batch, index: int) -> tuple[bytes, str]:
    """The item's input and its media type, which is read from the bytes: callers are not believed."""
    tensors = {name: tensor.rows(index, index + 1) for name, tensor in batch.inputs.items()}
    if route.decode is None and not _is_one_content(list(tensors.values())):
        return orjson.dumps({name: _readable(tensor) for name, tensor in tensors.items()}), "application/json"
    (tensor,) = tensors.values()
    data = bytes(tensor.numpy().reshape(-1)[0])
    return data, media_type_of(route.decode, data)


def _is_one_content(tensors: Sequence[Tensor]) -> bool:
    """Whether the item is one run of bytes, and nothing beside it."""
    return len(tensors) == 1 and tensors[0].datatype is Datatype.BYTES and tensors[0].numpy().size == 1


def is_image(data: bytes) -> bool:
    """Whether *data* begins as a picture does."""
    return (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or any(data.startswith(magic) for magic, _ in _IMAGES)


def media_type_of(decoder: str | None, data: bytes) -> str:
    """What *data*, which *decoder* is to decode, are to be shown as."""
    if decoder == "utf8" or (decoder is None and _is_text(data)):
        return "text/plain; charset=utf-8"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES if data.startswith(magic)), "application/octet-stream")


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _readable(tensor: Tensor) -> Any:  # Any: JSON
    array = tensor.numpy()[0]
    if tensor.datatype is Datatype.BYTES:
        return np.vectorize(lambda element: bytes(element).decode(errors="replace"), otypes=[object])(array).tolist()
    return array.tolist()
