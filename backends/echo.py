"""The smallest backend: it answers its input. Read this beside `backends.contract` before writing an adapter."""

from __future__ import annotations

import time
from dataclasses import dataclass

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
from backends.errors import DeadlineExceeded, Unavailable
from backends.registry import BackendType


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """What a model with `backend: echo` can set.

    Attributes:
        datatype: element type of the input and of the output.
        shape: of one item; -1 where lengths vary.
        max_batch: most items in one call.
    """

    datatype: Datatype = Datatype.FP32
    shape: tuple[int, ...] = (-1,)
    max_batch: int = 64


class Echo:
    """Output `output` is a copy of input `input`."""

    def __init__(self, options: EchoOptions) -> None:
        self.signature = Signature(
            (TensorSpec("input", options.datatype, options.shape),),
            (TensorSpec("output", options.datatype, options.shape),),
        )
        self.version = "1"
        self.limits = Limits(max_batch=options.max_batch)
        self.state = State.READY

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Answer *batch* with itself. A copy is quick enough for the event loop; a real model belongs off it."""
        if self.state is not State.READY:
            raise Unavailable(f"the echo model is {self.state}; send the request elsewhere")
        check_batch(self.signature, batch, self.limits)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the echo model started; allow more time")
        given = batch.inputs["input"]
        # A copy: the input stays the caller's, who may write to it the moment this returns.
        return {"output": Tensor.of(given.numpy().copy(), given.datatype)}

    async def aclose(self) -> None:
        """Refuse further calls; none can be in flight, for `infer` never waits."""
        self.state = State.CLOSED


async def open_echo(model_name: str, options: EchoOptions) -> Backend:
    """Build the backend of *model_name*, ready to serve."""
    return Echo(options)


ECHO = BackendType("echo", EchoOptions, open_echo, running_only=frozenset({"max_batch"}))
