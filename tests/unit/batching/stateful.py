"""A backend that keeps state, for tests of sequences: every answer tells the whole history of its state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from backends.contract import (
    NO_DEADLINE,
    SEQUENCE,
    Batch,
    Deadline,
    Limits,
    SequenceCall,
    Signature,
    State,
    Tensor,
    Tensors,
)
from backends.errors import BackendFailed, InvalidInput, Overloaded, SequenceOver
from batching.options import BatchingOptions, SequenceOptions
from batching.sequences import SequenceRunner, Step
from tests.unit.batching.conftest import SIGNATURE, nonces, values

IDLE_S = 5.0


class Stateful:
    """Answers with all nonces that the sequence has had, by its state; *behave* may wait before a step, and raise.

    Attributes:
        asked: nonces that have come, whether or not a step was taken.
        faults: calls that should never have come.
    """

    signature: Signature = SIGNATURE
    version = "1"
    state = State.READY

    def __init__(self, behave: Callable[[int, SequenceCall], Awaitable[None]] | None = None) -> None:
        self.limits = Limits(max_batch=1, sequence_idle_s=IDLE_S)
        self.states: dict[int, list[int]] = {}
        self.calls: list[SequenceCall] = []
        self.asked: set[int] = set()
        self.faults: list[str] = []
        self.doubtful: set[int] = set()
        self._behave = behave
        self._busy: set[int] = set()

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        call = SEQUENCE.get()
        assert call is not None
        if call.id in self._busy:
            self.faults.append("two steps of one sequence at once")
        if call.id in self.doubtful:
            self.faults.append("a step on a state of which nobody knows what it is")
        (nonce,) = values(batch.inputs)
        self.calls.append(call)
        self.asked.add(nonce)
        self._busy.add(call.id)
        try:
            if self._behave is not None:
                await self._behave(len(self.calls) - 1, call)
            if call.starts:
                self.states[call.id] = []
            elif call.id not in self.states:
                raise SequenceOver("the state is gone")
            history = self.states[call.id]
            history.append(nonce)
            if call.ends:
                del self.states[call.id]
            return {"nonce": Tensor.of(np.array([history], np.int64))}
        except (BackendFailed, InvalidInput, Overloaded):
            raise  # an answer: no step was taken
        except BaseException:
            self.doubtful.add(call.id)
            raise
        finally:
            self._busy.discard(call.id)

    async def aclose(self) -> None:
        """There is nothing to free."""


def runner(
    backend: Stateful, limits: SequenceOptions | None = None, options: BatchingOptions | None = None, **more: Any
) -> SequenceRunner:
    """A runner in virtual time, started."""
    clock = asyncio.get_running_loop().time
    made = SequenceRunner("m", backend, options or BatchingOptions(), limits or SequenceOptions(), clock=clock, **more)
    made.start()
    return made


async def take(
    to: SequenceRunner,
    nonce: int,
    id_: int | str = 7,
    *,
    starts: bool = False,
    ends: bool = False,
    deadline: Deadline = NO_DEADLINE,
    tenant: str = "",
    name: str = "m",
) -> list[int]:
    """The history of the state after a step."""
    step = Step(tenant, name, id_, starts, ends)
    outputs = await to.submit(nonces(nonce), deadline, step)
    return [int(one) for one in outputs["nonce"].numpy().reshape(-1)]
