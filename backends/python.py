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

Async functions are refused: one that computes would hold up the event loop for everybody, and one that waits for a
service belongs in a backend of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

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
from backends.errors import BackendFailed, InvalidInput, NotFound
from backends.in_process import Workers, host_array
from backends.registry import BackendType

Function: TypeAlias = Callable[[Mapping[str, HostArray]], Mapping[str, HostArray]]


@dataclass(frozen=True, slots=True)
class PythonOptions:
    """What a model with `backend: python` can set.

    Attributes:
        target: the function, as "package.module:attribute".
        inputs: what it takes.
        outputs: what it returns.
        version: as clients see it.
        max_batch: most items in one call.
        max_in_flight: calls that run at once, each on a thread of its own.
        inline: call it on the event loop, as it takes no more than microseconds.
    """

    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: str = "1"
    max_batch: int = 64
    max_in_flight: int = 1
    inline: bool = False


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
        try:
            returned = self._function(given)
        except BaseException as error:  # the function is somebody else's: anything can happen in it, panics too
            raise BackendFailed(
                f"model {self._name!r} failed on this batch; its operator's log has the cause"
            ) from error
        outputs = self._outputs(returned, given)
        if fault := check_outputs(self._signature, outputs, batch.size):
            raise BackendFailed(f"model {self._name!r} broke its signature: {fault}")
        return outputs

    def _outputs(self, returned: Mapping[str, HostArray], given: Mapping[str, HostArray]) -> Tensors:
        if not isinstance(returned, Mapping):
            raise BackendFailed(f"model {self._name!r} returned a {type(returned).__name__}, not a mapping of arrays")
        specs = {spec.name: spec for spec in self._signature.outputs}
        return {name: self._output(specs[name], array, given) for name, array in returned.items() if name in specs}

    def _output(self, spec: TensorSpec, array: HostArray, given: Mapping[str, HostArray]) -> Tensor:
        expected = spec.datatype.numpy
        if not isinstance(array, np.ndarray) or array.dtype != expected:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BackendFailed(
                f"model {self._name!r} returned output {spec.name!r} as {found}; "
                f"{spec.datatype} is a NumPy array of {expected}"
            )
        if array.dtype == object and not all(isinstance(element, bytes) for element in array.flat):
            raise BackendFailed(f"model {self._name!r} returned output {spec.name!r} with elements that are not bytes")
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
    """Import the function off the event loop.

    Raises:
        NotFound: there is no such module or attribute.
        InvalidInput: it is not a function that can be served here, or its signature is no signature.
    """
    if options.inline and options.max_in_flight > 1:
        raise InvalidInput(f"model {model_name!r}: inline calls run one at a time; leave out max_in_flight, or inline")
    if not (options.inputs and options.outputs):
        raise InvalidInput(f"model {model_name!r}: inputs and outputs need one entry each at least")
    function = await asyncio.to_thread(_import, model_name, options.target)
    return Python(model_name, function, options)


def _import(model_name: str, target: str) -> Function:
    where = f"model {model_name!r}: target {target!r}"
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidInput(f'{where} is not of the form "package.module:attribute"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(f"{where}: {error}; install it, or put its folder on PYTHONPATH") from error
    except Exception as error:  # a module of somebody else's: anything can happen while it is imported
        raise InvalidInput(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        function: Function = reduce(getattr, attribute.split("."), module)  # type: ignore[assignment]  # checked next
    except AttributeError as error:
        raise NotFound(f"{where}: {error}; correct the part after the colon") from error
    if not callable(function):
        raise InvalidInput(f"{where} is of type {type(function).__name__}; name a function")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise InvalidInput(f"{where} is async; name a plain function, which runs on a thread of its own")
    return function


PYTHON = BackendType("python", PythonOptions, open_python)
