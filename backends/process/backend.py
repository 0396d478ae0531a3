"""A Python function in processes of its own, as a backend."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from backends.contract import Batch, Deadline, Limits, Signature, State, Tensor, Tensors, check_batch
from backends.errors import InvalidInput
from backends.in_process import Workers, host_array
from backends.process.child import Launch, NotAsked
from backends.process.memory import place
from backends.process.pool import Pool, PoolStatistics

_COPIERS = 2


@dataclass(frozen=True, slots=True)
class Wear:
    """When a worker is replaced; see `PythonOptions` for the fields."""

    recycle_after: int | None
    memory_limit: int | None
    hang_timeout_s: float

    def __post_init__(self) -> None:
        for name, value in (("recycle_after", self.recycle_after), ("memory_limit", self.memory_limit)):
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; it must be at least 1, or left out")
        if not (self.hang_timeout_s >= 0 and math.isfinite(self.hang_timeout_s)):
            raise InvalidInput(f"hang_timeout_s is {self.hang_timeout_s}; it must be a number of seconds, 0 or more")


class PythonProcesses:
    """A function in worker processes; `open_processes` starts them."""

    def __init__(self, model_name: str, target: str, signature: Signature, version: str, limits: Limits, wear: Wear):
        """Args:
        model_name: as errors and the log name it.
        target: "package.module:attribute".
        signature: what the function takes and returns.
        version: as clients see it.
        limits: `max_in_flight` is the number of processes.
        wear: when one is replaced.
        """
        self._name = model_name
        self._signature = signature
        self._version = version
        self._limits = limits
        copiers = Workers(f"{model_name}-copier", min(_COPIERS, limits.max_in_flight))
        launch = Launch(model_name, target, signature, wear.memory_limit, wear.hang_timeout_s, copiers)
        self.pool = Pool(launch, limits.max_in_flight, wear.recycle_after, random.Random())  # noqa: S311 (jitter)

    def __repr__(self) -> str:
        return f"<PythonProcesses {self._name!r} version {self._version}: {self.state}>"

    @property
    def signature(self) -> Signature:
        """As configured."""
        return self._signature

    @property
    def version(self) -> str:
        """As configured."""
        return self._version

    @property
    def limits(self) -> Limits:
        """As configured."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready while a process is there, loading or failed while none is."""
        return self.pool.state

    def statistics(self) -> PoolStatistics:
        """How its processes fared."""
        return self.pool.statistics()

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Call the function, in the first process that is free; see `Backend.infer`."""
        check_batch(self._signature, batch, self._limits)
        with self.pool.call():
            arrays = {name: host_array(name, tensor) for name, tensor in batch.inputs.items()}
            placed = place({name: Tensor(t.datatype, t.shape, arrays[name]) for name, t in batch.inputs.items()})
            while True:
                worker = await self.pool.claim(deadline)
                try:
                    return await worker.call(placed, arrays, batch.size, deadline)
                except NotAsked:
                    continue

    async def aclose(self) -> None:
        """Wait for calls in flight, and end every process."""
        await self.pool.aclose()


async def open_processes(
    model_name: str, target: str, signature: Signature, version: str, limits: Limits, wear: Wear
) -> PythonProcesses:
    """Start the processes, each of which imports the function; arguments as of `PythonProcesses`.

    Raises:
        NotFound, InvalidInput: as when it is imported here.
        BackendFailed: a process ended while it did, or took too long.
    """
    backend = PythonProcesses(model_name, target, signature, version, limits, wear)
    await backend.pool.open()
    return backend
