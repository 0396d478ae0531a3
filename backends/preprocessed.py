"""A backend around a backend: a plan before the model, a plan after it, so that routes see neither.

Both plans run per batch, on worker threads of this wrapper, as many as the model overlaps calls: decoding and
resizing one batch goes on while the model works on another. What is wrong with an item's contents is `InvalidInput`;
the batcher finds out which item it was.

**Names.** Several model inputs are matched by name with what the first plan leaves; what the model does not take is
left out. A model with one input takes the one value there is, whatever it is called. The second plan works on the
model's outputs alone, and on the mask that a `mean_pool` step names where the first plan has left it: a sentence
encoder gives states for every token and does not say which tokens were padding.

**Items of unequal shape.** An outer input with an open length (-1) is taken ragged where the first plan can work on
that, and as one array otherwise. What reaches the model is one array in any case, unless the model takes ragged ones.

**On a device.** Where the kernels of the first plan run on a device and the model takes `Memory.DEVICE`, what they make
stays there, and is the model's input as it is; of a model that does not, or that needs a mask of it later, the kernels
copy it back. Outputs that the second plan begins with a softmax of are left there by a model that can, and only what
comes of it is copied back. A batch that the plain steps had to do comes from the host all the same.

Rejected: running plans in the batcher. It would have to know about steps, and a model's outer signature, which
routes are checked against, would lie somewhere else than the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Memory,
    Ragged,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
    check_outputs,
)
from backends.errors import BackendFailed, InvalidInput, Unavailable
from backends.in_flight import InFlight
from backends.in_process import Workers, host_array
from backends.told import Wrapping
from kernels.arrays import ArraySpec, DeviceArray, ItemError, Values
from kernels.cost import Cost
from kernels.devices import KernelOptions, kernels_for
from kernels.dlpack import spec_of
from kernels.guard import Kernels, KernelStatistics
from kernels.plan import Plan, PlanError, parse_spec
from kernels.steps import MeanPool

T = TypeVar("T")

_KERNELS = KernelOptions()


class Preprocessed:
    """*backend* with a plan on either side; `preprocessed` builds it.

    Owns *backend*: closing this closes that.
    """

    def __init__(self, backend: Backend, inputs: tuple[TensorSpec, ...], pre: Plan, post: Plan) -> None:
        """Args:
        backend: the model.
        inputs: what this takes; `pre.inputs` in the words of the contract.
        pre: from *inputs* to values for the model.
        post: from the model's outputs, and those values of *pre* that it names, to what this gives.

        Raises:
            InvalidInput: the model does not take what *pre* leaves.
        """
        self._backend = backend
        self._pre = pre
        self._post = post
        self._sources = _sources(pre.outputs, backend.signature.inputs, backend.limits)
        self._outputs = tuple(spec.name for spec in backend.signature.outputs)
        self._carried = tuple(post.inputs.keys() - {*self._outputs})
        self._there = post.takes_there
        self._signature = Signature(inputs, _outer_outputs(post.outputs, backend.signature.outputs))
        ragged = {Memory.RAGGED} if any(spec.ragged for spec in pre.inputs.values()) else frozenset[Memory]()
        self._limits = replace(backend.limits, memory=frozenset({Memory.HOST}) | ragged)
        self._costs: Mapping[str, Cost] = {}
        self._workers = Workers("plan", backend.limits.max_in_flight)
        self._calls = InFlight()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Preprocessed {self._backend!r}>"

    @property
    def inner(self) -> Backend:
        """The model."""
        return self._backend

    @property
    def signature(self) -> Signature:
        """What goes into the first plan, and what comes out of the second."""
        return self._signature

    @property
    def version(self) -> str:
        """The model's."""
        return self._backend.version

    @property
    def limits(self) -> Limits:
        """The model's, with the storage that the first plan takes."""
        return self._limits

    @property
    def state(self) -> State:
        """The model's; closed as soon as `aclose` is called."""
        return State.CLOSED if self._closed else self._backend.state

    @property
    def kernels(self) -> tuple[KernelStatistics, ...]:
        """How the fused kernels of both plans are, in their order; none where the steps cannot be fused."""
        return self._pre.statistics() + self._post.statistics()

    @property
    def costs(self) -> Mapping[str, Cost]:
        """What each plan takes, as far as it has been weighed and has steps."""
        return self._costs

    def weigh(self) -> None:
        """Find out what each plan takes. For a thread."""
        found = {"preprocess": self._pre.cost(), "postprocess": self._post.cost()}
        self._costs = {name: cost for name, cost in found.items() if cost is not None}

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Plan, model, plan; see `Backend.infer`."""
        if self._closed:
            raise Unavailable("the model is closed; send the request elsewhere")
        check_batch(self._signature, batch, self._limits)
        with self._calls:
            prepared, model_batch = await self._workers.run(lambda: self._prepare(batch), deadline)
            outputs = await self._backend.infer(model_batch, deadline)
            return await self._workers.run(lambda: self._finish(outputs, prepared, batch.size), deadline)

    def _prepare(self, batch: Batch) -> tuple[Mapping[str, Values], Batch]:
        """What the first plan makes of *batch*, and what of that the model gets."""
        values = {name: self._values(name, tensor) for name, tensor in batch.inputs.items()}
        prepared = _run("preprocessing", lambda: self._pre(values))
        return prepared, self._model_batch(prepared, batch.size)

    def _values(self, name: str, tensor: Tensor) -> Values:
        if isinstance(tensor.data, Ragged) and self._pre.inputs[name].ragged:
            return tensor.data.rows
        return host_array(name, tensor)

    def _model_batch(self, prepared: Mapping[str, Values], size: int) -> Batch:
        specs = self._backend.signature.inputs
        inputs = {spec.name: _tensor(spec.datatype, prepared[self._sources[spec.name]]) for spec in specs}
        return Batch(inputs, size, there=self._there)

    def _finish(self, outputs: Tensors, prepared: Mapping[str, Values], size: int) -> Tensors:
        if fault := check_outputs(self._backend.signature, outputs, size):
            raise BackendFailed(f"the model broke its signature: {fault}")
        carried = {name: prepared[name] for name in self._carried}
        try:
            values = {name: self._taken(name, outputs[name]) for name in self._outputs}
            finished = _run("postprocessing", lambda: self._post({**values, **carried}))
        except InvalidInput as error:  # the model's doing: it never saw an item that was refused
            raise BackendFailed(f"the model's outputs cannot be used: {error}") from error
        return {spec.name: _tensor(spec.datatype, finished[spec.name]) for spec in self._signature.outputs}

    def _taken(self, name: str, output: Tensor) -> Values | DeviceArray:
        """What the second plan takes of an output of the model."""
        if name in self._there and output.memory is Memory.DEVICE:
            return output.on_device()
        return host_array(name, output)

    async def aclose(self) -> None:
        """Wait for calls in flight, then close the model."""
        self._closed = True
        await self._calls.wait_idle()
        await self._workers.aclose()
        await self._backend.aclose()


def kernels_of(backend: Backend) -> tuple[KernelStatistics, ...]:
    """How the fused kernels of *backend* are, or of the one that it is around."""
    found = _preprocessed_in(backend)
    return () if found is None else found.kernels


async def weigh(backend: Backend) -> None:
    """Find out what the plans of *backend* take, or of the one that it is around; takes a few tenths of a second."""
    if (found := _preprocessed_in(backend)) is not None:
        await asyncio.to_thread(found.weigh)


def costs_of(backend: Backend) -> Mapping[str, Cost]:
    """What the plans of *backend* take, or of the one that it is around, by `preprocess` and `postprocess`; none before
    `weigh`.
    """
    found = _preprocessed_in(backend)
    return {} if found is None else found.costs


def _preprocessed_in(backend: Backend) -> Preprocessed | None:
    while not isinstance(backend, Preprocessed):
        if not isinstance(backend, Wrapping):
            return None
        backend = backend.inner
    return backend


async def preprocessed(
    backend: Backend,
    inputs: tuple[TensorSpec, ...],
    preprocess: Sequence[object],
    postprocess: Sequence[object],
    *,
    labels: Sequence[str] | None,
    base: Path,
    kernels: KernelOptions = _KERNELS,
) -> Backend:
    """*backend* with the plans that its configuration names around it, or as it is where they change nothing.

    Args:
        backend: the model; the result owns it, and where this raises it stays the caller's to close.
        inputs: what the result takes; an axis of -1 varies between items.
        preprocess: steps from *inputs* to the model's, as `kernels.plan` reads them.
        postprocess: steps from the model's outputs to the result's.
        labels: of the model's classes, by index; None where it has none.
        base: the folder that file names in the steps are relative to.
        kernels: how image steps are run.

    Raises:
        InvalidInput: the steps cannot work, the model does not take what they leave, or the device for the kernels
            cannot be used; says the remedy.
    """
    if not preprocess and not postprocess and labels is None and _takes(backend.signature, inputs):
        return backend
    pre, post = await asyncio.to_thread(_plans, backend, inputs, preprocess, postprocess, labels, base, kernels)
    return Preprocessed(backend, inputs, pre, post)


def _takes(signature: Signature, inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether *signature* says the same of its inputs as *inputs* does."""
    return sorted(signature.inputs, key=lambda spec: spec.name) == sorted(inputs, key=lambda spec: spec.name)


def _plans(
    backend: Backend,
    inputs: tuple[TensorSpec, ...],
    preprocess: Sequence[object],
    postprocess: Sequence[object],
    labels: Sequence[str] | None,
    base: Path,
    options: KernelOptions,
) -> tuple[Plan, Plan]:
    try:
        kernels = kernels_for(options)
    except ValueError as error:
        raise InvalidInput(f"kernels: {error}") from error
    specs = {spec.name: _array_spec(spec, ragged=False) for spec in backend.signature.outputs}
    try:
        masks = {step.mask for step in parse_spec(postprocess) if isinstance(step, MeanPool)} - specs.keys()
    except PlanError as error:
        raise InvalidInput(f"postprocess: {error}") from error
    takes_there = Memory.DEVICE in backend.limits.memory
    if not takes_there:
        kernels = replace(kernels, scores=None)  # nothing of the model's is ever on their device
    try:
        pre = _pre_plan(backend, inputs, preprocess, base, kernels, leave=takes_there and not masks)
    except PlanError as error:
        raise InvalidInput(f"preprocess: {error}") from error
    carried = {name: spec for name, spec in pre.outputs.items() if name in masks}
    try:
        return pre, Plan.from_spec(postprocess, {**specs, **carried}, base=base, labels=labels, kernels=kernels)
    except PlanError as error:
        raise InvalidInput(f"postprocess: {error}") from error


def _pre_plan(
    backend: Backend,
    inputs: tuple[TensorSpec, ...],
    steps: Sequence[object],
    base: Path,
    kernels: Kernels,
    *,
    leave: bool,
) -> Plan:
    """The first plan over ragged inputs where steps and model allow that, else over one array each."""
    if any(-1 in spec.shape for spec in inputs):
        try:
            specs = {spec.name: _array_spec(spec, ragged=True) for spec in inputs}
            plan = Plan.from_spec(steps, specs, base=base, kernels=kernels, leave=leave)
            _sources(plan.outputs, backend.signature.inputs, backend.limits)
        except (PlanError, InvalidInput):
            pass  # what cannot work either way is reported below, in words that fit what was configured
        else:
            return plan
    specs = {spec.name: _array_spec(spec, ragged=False) for spec in inputs}
    return Plan.from_spec(steps, specs, base=base, kernels=kernels, leave=leave)


def _array_spec(spec: TensorSpec, *, ragged: bool) -> ArraySpec:
    return ArraySpec(spec.datatype.numpy, spec.shape, ragged and -1 in spec.shape)


def _sources(values: Mapping[str, ArraySpec], inputs: tuple[TensorSpec, ...], limits: Limits) -> dict[str, str]:
    """The name of the value that becomes each of the model's *inputs*.

    Raises:
        InvalidInput: a value is missing, or not what the model takes.
    """
    if len(inputs) == len(values) == 1:
        sources = {inputs[0].name: next(iter(values))}
    else:
        sources = {spec.name: spec.name for spec in inputs}
    for spec in inputs:
        value = values.get(sources[spec.name])
        if value is None:
            raise InvalidInput(
                f"preprocess leaves {sorted(values)}, and the model takes {spec.name!r}; rename the value that is meant"
            )
        if not _fits(value, spec, limits):
            unequal = " of items that may be unequal in shape" if value.ragged else ""
            raise InvalidInput(
                f"preprocess leaves {value}{unequal} for input {spec.name!r}, which takes "
                f"{spec.datatype}{list(spec.shape)}; add the steps that lead there"
            )
    return sources


def _fits(value: ArraySpec, spec: TensorSpec, limits: Limits) -> bool:
    """Whether *value* can be what *spec* asks for; an open length is checked with every batch."""
    lengths = zip(value.shape, spec.shape, strict=False)
    return (
        value.dtype == spec.datatype.numpy
        and len(value.shape) == len(spec.shape)
        and all(length == wanted or -1 in (length, wanted) for length, wanted in lengths)
        and (not value.ragged or Memory.RAGGED in limits.memory)
    )


def _outer_outputs(values: Mapping[str, ArraySpec], model: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    # An array of uint16 does not say that it is BF16; an output that no step has changed keeps its datatype.
    known = {spec.name: spec.datatype for spec in model}
    return tuple(
        TensorSpec(
            name,
            known[name] if name in known and known[name].numpy == spec.dtype else Datatype.of(spec.dtype),
            spec.shape,
        )
        for name, spec in values.items()
    )


def _tensor(datatype: Datatype, values: Values | DeviceArray) -> Tensor:
    if isinstance(values, np.ndarray):
        return Tensor.of(values, datatype)
    if isinstance(values, tuple):
        return Tensor.ragged(datatype, values)
    _, shape = spec_of(values)
    return Tensor(datatype, shape, values)


def _run(what: str, plan: Callable[[], T]) -> T:
    """Call *plan*, and say what went wrong in the words of the contract."""
    try:
        return plan()
    except (ItemError, ValueError) as error:
        raise InvalidInput(str(error)) from error
    except Exception as error:  # whatever else is not the caller's doing
        raise BackendFailed(f"{what} failed on this batch; its operator's log has the cause") from error
