"""Decoding, once per item, before the cascade: encoded images and texts become what the models' plans take.

Images are decoded in threads; a short text is decoded where it stands, since a trip to a thread and back costs more.
What waits for a thread is bounded in bytes, and given up at its deadline: a request that was never understood is
refused, not handed to a person, who might be given any number of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from backends.contract import Batch, Datatype, HostArray, Tensor, TensorSpec
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable
from kernels.decode import DECODERS, DecodeError

T = TypeVar("T")

INLINE_BYTES = 16 * 1024
"""Inputs up to this many bytes take about 50 µs to bind, and so do texts to decode."""

QUEUE_BYTES = 256 * 1024 * 1024
"""Most bytes of encoded inputs that are being decoded or wait for it."""


def decoded_spec(spec: TensorSpec, decoder: str) -> TensorSpec:
    """What *decoder* makes of the input *spec*."""
    decoded = DECODERS[decoder].output
    return TensorSpec(spec.name, Datatype.of(decoded.dtype), decoded.shape)


class Workshop:
    """The threads in which requests are bound and decoded, and the room before them. Belongs to one event loop."""

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._queue_bytes = queue_bytes
        self._taken_bytes = 0

    def close(self) -> None:
        """Start nothing more, and wait for what has started."""
        self._threads.shutdown(cancel_futures=True)

    async def run(self, work: Callable[[], T], size_bytes: int, remaining_s: float, *, inline: bool) -> T:
        """Do *work* on *size_bytes* of a request, here where it is small and *inline*, else in a thread.

        Raises:
            Unavailable: too much waits already.
            DeadlineExceeded: *remaining_s* passed first.
        """
        if inline and size_bytes <= INLINE_BYTES:
            return work()
        if self._taken_bytes and self._taken_bytes + size_bytes > self._queue_bytes:
            raise Unavailable(
                f"{self._taken_bytes} bytes of inputs are being decoded, {size_bytes} more do not fit; try again",
                retry_after_s=1.0,
            )
        self._taken_bytes += size_bytes
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        job.add_done_callback(lambda _: self._done(size_bytes))
        try:
            done, _ = await asyncio.wait({job}, timeout=max(0.0, remaining_s))
        finally:
            job.cancel()  # what has not started never will; a finished job does not mind
        if not done:
            raise DeadlineExceeded("the deadline passed before the input was decoded; allow more time, or send less")
        return job.result()

    def _done(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes


async def decode_batch(decoder: str | None, batch: Batch, workshop: Workshop, remaining_s: float) -> Batch:
    """The items of *batch*, decoded by *decoder*; *batch* itself where there is none.

    Raises:
        InvalidInput: names the item that could not be decoded, and why.
        DeadlineExceeded: *remaining_s* passed first.
        Unavailable: too much waits to be decoded.
    """
    if decoder is None:
        return batch
    return await workshop.run(lambda: _decode(decoder, batch), batch.nbytes, remaining_s, inline=decoder == "utf8")


def _decode(decoder: str, batch: Batch) -> Batch:
    ((name, tensor),) = batch.inputs.items()
    rows = _rows(DECODERS[decoder].decode_all(list(tensor.numpy().reshape(batch.size))))
    datatype = Datatype.of(rows[0].dtype)
    if len({row.shape for row in rows}) == 1:
        return Batch({name: Tensor.of(np.stack(rows), datatype)}, batch.size)
    return Batch({name: Tensor.ragged(datatype, rows)}, batch.size)


def _rows(decoded: Sequence[HostArray | DecodeError]) -> tuple[HostArray, ...]:
    """*decoded*, of which every one is an array.

    Raises:
        InvalidInput: one is none.
    """
    for index, found in enumerate(decoded):
        if isinstance(found, DecodeError):
            raise InvalidInput(f"item {index}: {found}") from found
    return tuple(found for found in decoded if not isinstance(found, DecodeError))
