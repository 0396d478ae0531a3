"""A Python function as a model: rules, lookups, a scikit-learn estimator, a detector, a stand-in while testing.

    backend: python
    target: "my_package.my_module:classify"
    inputs:  [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: scores, datatype: FP32, shape: [3]}]

The function gets a mapping from input names to arrays, batch axis first and not writable, and returns a mapping from
output names to arrays of the declared types and shapes, one row an item, which it does not touch again. It may be
any callable attribute: a function, or an instance with `__call__` that loaded what it needs when its module was
imported.

It runs on a worker thread, one call at a time unless `max_in_flight` says more; then it must be safe to call from
several threads, and it gains only where it releases the GIL. Nothing can stop a running Python function: a call that
is cancelled or late ends when the function returns.

With `inline: true` it runs on the event loop instead, where everybody waits for it. That is for functions of some
microseconds, a rule or a lookup, to which the way to a thread and back would add many times what they take: measured,
40 us of CPU and, between two threads that sleep, 60 to 100 us of waiting. A function that takes a millisecond, or
that ever waits for anything, does not belong there.

**In a process.** With `process: true` the function has processes of its own, as many as `max_in_flight` says, each of
which imports it and runs one call at a time:

    process: true
    max_in_flight: 4           # processes
    recycle_after: 10000       # calls, against leaks
    memory_limit: 2000000000   # bytes of memory of its own, against larger ones
    hang_timeout_s: 2.0

That is for functions that hold the GIL for more than a millisecond, which on a thread take it from everything else in
the gateway, and for code that is not trusted to stay alive. Whatever the function does to its process, the gateway and
its answers stay as they are:

- It crashes, leaves or is killed for memory: its batch fails, the process is replaced, and the batcher finds the item
  that does it, as it does for an exception. While none is left, calls wait for the next process, or are refused with
  the time after which to try again when several in a row have died.
- It hangs: callers are let go at their deadlines, or when they leave. The process gets `hang_timeout_s` more to finish
  and is killed then, for nothing else stops a Python function.
- It leaks: after `recycle_after` calls a new process takes over, when it is ready; one that is over `memory_limit` is
  replaced after the call. That is looked at rather than enforced (`RLIMIT_AS` counts addresses: what CUDA, ONNX Runtime
  or a thread's stack reserves and never touches would fail at random), so within one call it may reach twice the limit
  before it is killed. Where the machine itself runs out, the kernel is told to take these processes first.

It costs a copy of the inputs and two of the outputs, through shared memory, and two wake-ups. Measured on two busy
cores (`loadtests.process_backend`): for 64 bytes 160 us and 100 us of the gateway's CPU, where a thread takes 40 and
45; for 10 MB about 6 ms, and 3 of CPU, where a thread takes 0.7. A function that computes in Python for 20 ms at a time
delays the event loop's 99th percentile by 11 ms on a thread, and by 1.2 in a process; the machine alone by 0.8.

The function must be importable by name, and state in its module is each process's own. What it writes to standard
output and error goes to the gateway's log, some lines a second at most. Linux only. `backends.process` says how it
works.

Async functions are refused: one that computes would hold up the event loop for everybody, and one that waits for a
service belongs in a backend of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from backends.contract import (
    Backend,
    Batch,
    Deadline,
    HostArray,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
    check_outputs,
)
from backends.errors import BackendFailed, InvalidInput
from backends.in_process import Workers, host_array
from backends.process.function import Function, answer, import_function
from backends.registry import BackendType


@dataclass(frozen=True, slots=True)
class PythonOptions:
    """What a model with `backend: python` can set.

    Attributes:
        target: the function, as "package.module:attribute".
        inputs: what it takes.
        outputs: what it returns.
        version: as clients see it.
        max_batch: most items in one call.
        max_in_flight: calls that run at once, each on a thread, or in a process, of its own.
        inline: call it on the event loop, as it takes no more than microseconds.
        process: run it in processes of its own.
        recycle_after: calls after which a process is replaced.
        memory_limit: bytes of memory of its own over which a process is replaced.
        hang_timeout_s: what a call may still take in a process when it was cancelled, or is late.
    """

    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: str = "1"
    max_batch: int = 64
    max_in_flight: int = 1
    inline: bool = False
    process: bool = False
    recycle_after: int | None = None
    memory_limit: int | None = None
    hang_timeout_s: float = 2.0


class Python:
    """A function as a backend; `open_python` imports it by name."""

    def __init__(self, model_name: str, function: Function, options: PythonOptions) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        function: what `options.target` names.
        options: as configured.
        """
        self._name = model_name
        self._function = function
        self._signature = Signature(options.inputs, options.outputs)
        self._specs = {spec.name: spec for spec in options.outputs}
        self._version = options.version
        self._limits = Limits(options.max_batch, options.max_in_flight)
        self._inline = options.inline
        self._workers = Workers(model_name, 0 if options.inline else options.max_in_flight)

    def __repr__(self) -> str:
        return f"<Python {self._name!r} version {self._version}: {self.state}>"

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
        """Ready until closed."""
        return self._workers.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Call the function, on a worker thread unless it is inline; see `Backend.infer`."""
        check_batch(self._signature, batch, self._limits)
        if self._inline:
            self._workers.admit(deadline)
            return self._call(batch)
        return await self._workers.run(lambda: self._call(batch), deadline)

    def _call(self, batch: Batch) -> Tensors:
        given = {name: _read_only(host_array(name, tensor)) for name, tensor in batch.inputs.items()}
        returned = answer(self._name, self._function, self._specs, given)
        outputs = {name: self._output(self._specs[name], array, given) for name, array in returned.items()}
        if fault := check_outputs(self._signature, outputs, batch.size):
            raise BackendFailed(f"model {self._name!r} broke its signature: {fault}")
        return outputs

    def _output(self, spec: TensorSpec, array: HostArray, given: Mapping[str, HostArray]) -> Tensor:
        if any(np.may_share_memory(array, other) for other in given.values()):
            array = array.copy()  # inputs are the caller's, and may be overwritten once this call is over
        return Tensor.of(array, spec.datatype)

    async def aclose(self) -> None:
        """Wait for calls in flight."""
        await self._workers.aclose()


def _read_only(array: HostArray) -> HostArray:
    view = array.view()
    view.flags.writeable = False
    return view


async def open_python(model_name: str, options: PythonOptions) -> Backend:
    """Import the function off the event loop, or have its processes do it.

    Raises:
        NotFound: there is no such module or attribute.
        InvalidInput: it is not a function that can be served here, or its signature is no signature.
        BackendFailed: its process ended while it was imported.
    """
    if options.inline and not options.process and options.max_in_flight > 1:
        raise InvalidInput(f"model {model_name!r}: inline calls run one at a time; leave out max_in_flight, or inline")
    if not (options.inputs and options.outputs):
        raise InvalidInput(f"model {model_name!r}: inputs and outputs need one entry each at least")
    if options.process:
        return await _open_process(model_name, options)
    for name, value in (("recycle_after", options.recycle_after), ("memory_limit", options.memory_limit)):
        if value is not None:
            raise InvalidInput(f"model {model_name!r}: {name} is about processes; add process, or leave it out")
    function = await asyncio.to_thread(import_function, model_name, options.target)
    return Python(model_name, function, options)


async def _open_process(model_name: str, options: PythonOptions) -> Backend:
    if options.inline:
        raise InvalidInput(f"model {model_name!r}: inline is in this process, on its event loop; choose it or process")
    if sys.platform != "linux":
        raise InvalidInput(f"model {model_name!r}: process needs Linux (memfd, pidfd); leave it out on {sys.platform}")
    from backends.process.backend import Wear, open_processes  # cannot be imported elsewhere

    return await open_processes(
        model_name,
        options.target,
        Signature(options.inputs, options.outputs),
        options.version,
        Limits(options.max_batch, options.max_in_flight),
        Wear(options.recycle_after, options.memory_limit, options.hang_timeout_s),
    )


_HOW_PROCESSES_RUN = ("process", "recycle_after", "memory_limit", "hang_timeout_s")
_RUNNING_ONLY = frozenset({*_HOW_PROCESSES_RUN, "max_batch", "max_in_flight"})
PYTHON = BackendType("python", PythonOptions, open_python, _RUNNING_ONLY)
