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
from kernels.arrays import ArraySpec, ItemError, Values
from kernels.plan import Plan, PlanError, parse_spec
from kernels.steps import MeanPool

T = TypeVar("T")


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
        self._carried = tuple(post.inputs.keys() - {spec.name for spec in backend.signature.outputs})
        self._signature = Signature(inputs, _outer_outputs(post.outputs, backend.signature.outputs))
        ragged = {Memory.RAGGED} if any(spec.ragged for spec in pre.inputs.values()) else frozenset[Memory]()
        self._limits = replace(backend.limits, memory=frozenset({Memory.HOST}) | ragged)
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

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Plan, model, plan; see `Backend.infer`."""
        if self._closed:
            raise Unavailable("the model is closed; send the request elsewhere")
        check_batch(self._signature, batch, self._limits)
        with self._calls:
            prepared = await self._workers.run(lambda: self._prepare(batch), deadline)
            outputs = await self._backend.infer(self._model_batch(prepared, batch.size), deadline)
            return await self._workers.run(lambda: self._finish(outputs, prepared, batch.size), deadline)

    def _prepare(self, batch: Batch) -> Mapping[str, Values]:
        values = {name: self._values(name, tensor) for name, tensor in batch.inputs.items()}
        return _run("preprocessing", lambda: self._pre(values))

    def _values(self, name: str, tensor: Tensor) -> Values:
        if isinstance(tensor.data, Ragged) and self._pre.inputs[name].ragged:
            return tensor.data.rows
        return host_array(name, tensor)

    def _model_batch(self, prepared: Mapping[str, Values], size: int) -> Batch:
        specs = self._backend.signature.inputs
        return Batch({spec.name: _tensor(spec.datatype, prepared[self._sources[spec.name]]) for spec in specs}, size)

    def _finish(self, outputs: Tensors, prepared: Mapping[str, Values], size: int) -> Tensors:
        if fault := check_outputs(self._backend.signature, outputs, size):
            raise BackendFailed(f"the model broke its signature: {fault}")
        carried = {name: prepared[name] for name in self._carried}
        try:
            values = {spec.name: host_array(spec.name, outputs[spec.name]) for spec in self._backend.signature.outputs}
            finished = _run("postprocessing", lambda: self._post({**values, **carried}))
        except InvalidInput as error:  # the model's doing: it never saw an item that was refused
            raise BackendFailed(f"the model's outputs cannot be used: {error}") from error
        return {spec.name: _tensor(spec.datatype, finished[spec.name]) for spec in self._signature.outputs}

    async def aclose(self) -> None:
        """Wait for calls in flight, then close the model."""
        self._closed = True
        await self._calls.wait_idle()
        await self._workers.aclose()
        await self._backend.aclose()


async def preprocessed(
    backend: Backend,
    inputs: tuple[TensorSpec, ...],
    preprocess: Sequence[object],
    postprocess: Sequence[object],
    *,
    labels: Sequence[str] | None,
    base: Path,
) -> Backend:
    """*backend* with the plans that its configuration names around it, or as it is where they change nothing.

    Args:
        backend: the model; the result owns it, and where this raises it stays the caller's to close.
        inputs: what the result takes; an axis of -1 varies between items.
        preprocess: steps from *inputs* to the model's, as `kernels.plan` reads them.
        postprocess: steps from the model's outputs to the result's.
        labels: of the model's classes, by index; None where it has none.
        base: the folder that file names in the steps are relative to.

    Raises:
        InvalidInput: the steps cannot work, or the model does not take what they leave; says the remedy.
    """
    if not preprocess and not postprocess and labels is None and _takes(backend.signature, inputs):
        return backend
    pre, post = await asyncio.to_thread(_plans, backend, inputs, preprocess, postprocess, labels, base)
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
) -> tuple[Plan, Plan]:
    try:
        pre = _pre_plan(backend, inputs, preprocess, base)
    except PlanError as error:
        raise InvalidInput(f"preprocess: {error}") from error
    specs = {spec.name: _array_spec(spec, ragged=False) for spec in backend.signature.outputs}
    try:
        masks = {step.mask for step in parse_spec(postprocess) if isinstance(step, MeanPool)}
        carried = {name: spec for name, spec in pre.outputs.items() if name in masks and name not in specs}
        return pre, Plan.from_spec(postprocess, {**specs, **carried}, base=base, labels=labels)
    except PlanError as error:
        raise InvalidInput(f"postprocess: {error}") from error


def _pre_plan(backend: Backend, inputs: tuple[TensorSpec, ...], steps: Sequence[object], base: Path) -> Plan:
    """The first plan over ragged inputs where steps and model allow that, else over one array each."""
    if any(-1 in spec.shape for spec in inputs):
        try:
            plan = Plan.from_spec(steps, {spec.name: _array_spec(spec, ragged=True) for spec in inputs}, base=base)
            _sources(plan.outputs, backend.signature.inputs, backend.limits)
        except (PlanError, InvalidInput):
            pass  # what cannot work either way is reported below, in words that fit what was configured
        else:
            return plan
    return Plan.from_spec(steps, {spec.name: _array_spec(spec, ragged=False) for spec in inputs}, base=base)


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


def _tensor(datatype: Datatype, values: Values) -> Tensor:
    if isinstance(values, np.ndarray):
        return Tensor.of(values, datatype)
    return Tensor.ragged(datatype, values)


def _run(what: str, plan: Callable[[], T]) -> T:
    """Call *plan*, and say what went wrong in the words of the contract."""
    try:
        return plan()
    except (ItemError, ValueError) as error:
        raise InvalidInput(str(error)) from error
    except Exception as error:  # whatever else is not the caller's doing
        raise BackendFailed(f"{what} failed on this batch; its operator's log has the cause") from error
