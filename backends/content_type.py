"""What kind of content some bytes are: magika's classifier as a backend.

    backend: magika

    content BYTES [1]  →  label BYTES [1]  the media type, such as image/png or text/plain
                          group BYTES [1]  text, code, document, image, archive, audio, executable, ...
                          score FP32  [1]  how sure: 0 to 1, or NaN

**The score** is the model's probability of its own best guess. Where that is low, magika answers with the more general
`text/plain` under the same score, which then says too little, never too much. The score is NaN, "no confidence", where
a number would claim what nobody knows: for `application/octet-stream` of the group `unknown` (nothing was recognised,
however sure the model is of that), and where a rule of magika's answered `text/plain` without its model and the bytes
do not bear it out (see `_score`). Empty content is `inode/x-empty`, at 1.

**A hint, not a check.** magika judges the first and last 1,024 bytes, white space stripped, whatever the size. A file
made to look like another passes; so may a run of one repeated byte, which it calls an ISO image at 0.999. Whoever
opens content has to verify it as before.

**One by one.** On a CPU, a batch gains nothing in magika (32 at once take 308 ms, one takes 5 to 10), so items run in
turn, and a call that is cancelled or late ends after the item it is at. Content is not copied: magika reads its two
ends through a view.

**Threads.** `Magika` takes no session options, and ONNX Runtime's defaults are a thread for every core, which spins
while it waits, for some milliseconds after the answer too. Measured on 2 cores, beside a session of one thread: 5.4
instead of 9.3 ms an item, for 31 instead of 9 ms of CPU time where items come 20 ms apart; with other work on both
cores, 11 to 27 instead of 10 to 16 ms an item. So its session is opened here, with one thread, in the one private
method that magika has for it; a test notices where a later magika opens it elsewhere.

Source: magika 1.0.3, python/src/magika/magika.py; "Magika: AI-Powered Content-Type Detection", ICSE 2025.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
)
from backends.errors import BackendFailed, Cancelled, NotFound
from backends.in_process import Workers, host_array
from backends.registry import BackendType

if TYPE_CHECKING:  # imported when a model asks for it: a gateway without one does not pay for it
    from magika import Magika
    from magika.types import MagikaPrediction

_SIGNATURE = Signature(
    inputs=(TensorSpec("content", Datatype.BYTES, (1,)),),
    outputs=(
        TensorSpec("label", Datatype.BYTES, (1,)),
        TensorSpec("group", Datatype.BYTES, (1,)),
        TensorSpec("score", Datatype.FP32, (1,)),
    ),
)

_SEEN_BYTES = 4096  # magika's rules look no further (`block_size` of its models)
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ContentTypeOptions:
    """What a model with `backend: magika` can set.

    Attributes:
        version: as clients see it; by default the name of magika's model, such as standard_v3_3.
        max_batch: most items in one call.
        max_in_flight: calls that run at once, each on a thread of its own.
    """

    version: str | None = None
    max_batch: int = 32
    max_in_flight: int = 1


class ContentType:
    """magika as a backend; `open_content_type` builds it."""

    def __init__(self, model_name: str, options: ContentTypeOptions, magika: Magika) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        options: as configured.
        magika: its model loaded.
        """
        self._name = model_name
        self._version = options.version or magika.get_model_name()
        self._limits = Limits(options.max_batch, options.max_in_flight)
        self._workers = Workers(model_name, options.max_in_flight)
        self._magika = [magika]  # emptied by aclose

    def __repr__(self) -> str:
        return f"<ContentType {self._name!r} version {self._version}: {self.state}>"

    @property
    def signature(self) -> Signature:
        """Content in; label, group and score out."""
        return _SIGNATURE

    @property
    def version(self) -> str:
        """As configured, or magika's name for its model."""
        return self._version

    @property
    def limits(self) -> Limits:
        """As configured."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready until closed."""
        return self._workers.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Identify the items one by one on a worker thread; see `Backend.infer`."""
        check_batch(_SIGNATURE, batch, self._limits)
        stopped = threading.Event()
        return await self._workers.run(lambda: self._identify(batch, stopped), deadline, stopped.set)

    def _identify(self, batch: Batch, stopped: threading.Event) -> Tensors:
        contents = host_array("content", batch.inputs["content"])
        labels = np.empty((batch.size, 1), object)
        groups = np.empty((batch.size, 1), object)
        scores = np.empty((batch.size, 1), np.float32)
        for row, content in enumerate(contents[:, 0]):
            if stopped.is_set():
                raise Cancelled(f"model {self._name!r} was told to stop")  # no one is left to see it
            try:
                prediction = self._magika[0].identify_bytes(content).prediction
            except Exception as error:  # of magika or of ONNX Runtime, which share no base
                raise BackendFailed(
                    f"model {self._name!r} failed on this batch; its operator's log has the cause"
                ) from error
            labels[row] = prediction.output.mime_type.encode()
            groups[row] = prediction.output.group.encode()
            scores[row] = _score(prediction, content)
        return {"label": Tensor.of(labels), "group": Tensor.of(groups), "score": Tensor.of(scores)}

    async def aclose(self) -> None:
        """Wait for calls in flight and free the model."""
        await self._workers.aclose(self._magika.clear)


def _score(prediction: MagikaPrediction, content: bytes) -> float:
    """How sure *prediction* is, NaN where it is not to be called sure at all.

    1. `unknown`: nothing was recognised.
    2. The model was not asked, for there are fewer than 8 bytes, white space apart, at the start: empty content is
       that, and text is whatever is valid UTF-8. This is a fact, at 1, where there are no control characters (a NUL is
       valid UTF-8 too) and there is nothing beyond what the rule has looked at (as behind 4 KiB of spaces).
    3. The model was asked.
    """
    if prediction.output.label == "unknown":
        return math.nan
    if prediction.dl.label == "undefined" and (len(content) > _SEEN_BYTES or _CONTROL_CHARACTER.search(content)):
        return math.nan
    return prediction.score


async def open_content_type(model_name: str, options: ContentTypeOptions) -> Backend:
    """Load magika off the event loop.

    Raises:
        NotFound: the package is not installed, or incomplete.
        InvalidInput: a limit below 1.
    """
    return ContentType(model_name, options, await asyncio.to_thread(_load, model_name))


def _load(model_name: str) -> Magika:
    try:
        onnx_runtime = importlib.import_module("backends.ort")  # before magika imports ONNX Runtime in its own way
        from magika import Magika

        class OneThread(Magika):
            def _init_onnx_session(self) -> Any:  # Any: ONNX Runtime has no types
                options = onnx_runtime.ort.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                return onnx_runtime.open_session(self._model_path, options)

        return OneThread()
    except Exception as error:  # what an incomplete package raises, while imported or while it opens its files
        raise NotFound(
            f"model {model_name!r}: magika cannot be loaded: {error}; install the package magika, 1.0.3 or newer"
        ) from error


_RUNNING_ONLY = frozenset({"max_batch", "max_in_flight"})
MAGIKA = BackendType("magika", ContentTypeOptions, open_content_type, _RUNNING_ONLY)
