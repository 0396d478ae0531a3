"""A model on one server, as a backend: the same for every server that speaks the protocol.

A batch is one call. What is wrong with it is found here, by the signature that the server stated when it was opened, so
that a bad batch costs the server nothing. What comes back is held against the same signature, the batch's size, the
call's id and the version, before anybody sees it: another call's answer, or another version's, is worse than none.

**Versions.** The version that the server prefers when this is opened, or the one that the configuration names, is the
one that every call asks for. Calibrations and certificates are about a version; a server that moved on to the next one
must not answer in its name. When the server has the version no longer, this has failed, for good: opened anew, it
learns the new one.

**Batch axes.** The protocol does not say whether the first axis is the batch's. Here it is: open (-1) where a model
takes batches, and 1 where it takes one item a call. A model with any other first axis is refused when it is opened.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from backends.contract import (
    Batch,
    Deadline,
    Limits,
    ParameterValue,
    Signature,
    State,
    Tensors,
    TensorSpec,
    check_batch,
    check_outputs,
)
from backends.errors import DeadlineExceeded, InvalidInput, NotFound, ReplicaFailed, Unavailable
from backends.in_flight import InFlight
from backends.oip.remote import Blame, InferCall, InferReply, Remote, ServedModel
from backends.told import Loaded


class Transfer(Protocol):
    """How tensors get to the server and back; `Inline` is with the call and its answer."""

    async def infer(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """Have *call* answered for the inputs of *batch*; the answer's tensors are in host memory of their own."""
        ...

    async def aclose(self, remote: Remote) -> None:
        """Let go of what was set up for it."""
        ...


class Stay(Protocol):
    """A model's time in its server's memory, where opening has it loaded and closing has it unloaded."""

    @property
    def loaded(self) -> Loaded:
        """What it takes there."""
        ...

    async def is_over(self, remote: Remote, deadline: Deadline) -> bool:
        """Whether it is loaded no longer, and nobody is about to load it."""
        ...

    async def end(self, remote: Remote) -> None:
        """Have it unloaded, where nobody else needs it; must not raise."""
        ...


class Inline:
    """Tensors travel with the call and its answer."""

    async def infer(self, remote: Remote, call: InferCall, batch: Batch, deadline: Deadline) -> InferReply:
        """Send the call as it is."""
        return await remote.infer(call, deadline)

    async def aclose(self, remote: Remote) -> None:
        """There is nothing to let go of."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a model is asked for.

    Attributes:
        model: its name on the server.
        version: which is asked for; "" where the server has no versions.
        signature: without batch axes.
        parameters: of a call that has so many seconds left.
    """

    model: str
    version: str
    signature: Signature
    limits: Limits
    parameters: Callable[[float], Mapping[str, ParameterValue]] = lambda left_s: {}


class Served:
    """A model on one server; `backends.oip.model` and `backends.triton.model` build it. Owns *remote*."""

    def __init__(
        self, model_name: str, remote: Remote, terms: Terms, transfer: Transfer, stay: Stay | None = None
    ) -> None:
        """Args:
        model_name: what the model is called here.
        stay: ends when this is closed; None: the model stays on its server, whoever asks it.
        """
        self._name = model_name
        self._remote = remote
        self._terms = terms
        self._transfer = transfer
        self._stay = stay
        self._blame = Blame(model_name)
        self._ids = map(f"{secrets.token_hex(6)}-{{:x}}".format, itertools.count(1))  # nobody else's, on any connection
        self._state = State.READY
        self._calls = InFlight()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Served {self._name!r} version {self._terms.version}: {self._state}, {self._calls.count} calls>"

    @property
    def signature(self) -> Signature:
        """As the server stated it."""
        return self._terms.signature

    @property
    def version(self) -> str:
        """The version that is asked for; "1" where the server has none."""
        return self._terms.version or "1"

    @property
    def limits(self) -> Limits:
        """As the server and the configuration say."""
        return self._terms.limits

    @property
    def state(self) -> State:
        """Ready; failed when the server was seen to have the version no longer; closed."""
        return self._state

    @property
    def loaded(self) -> Loaded | None:
        """What it takes on its server, where it was loaded there for this; else None."""
        return None if self._stay is None else self._stay.loaded

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Ask the server once; see `Backend.infer`."""
        check_batch(self._terms.signature, batch, self._terms.limits)
        self._admit()
        with self._calls:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"the deadline passed before model {self._name!r} started; allow more time")
            call = InferCall(
                self._terms.model,
                self._terms.version,
                next(self._ids),
                batch.inputs,
                self._terms.parameters(left_s),
                {},
            )
            reply = await self._transfer.infer(self._remote, call, batch, deadline)
        return self._checked(call, reply, batch.size)

    async def probe(self, deadline: Deadline) -> None:
        """Ask the server whether it would answer.

        Raises:
            ReplicaFailed: it says no.
            DeadlineExceeded: it says nothing.
        """
        self._admit()
        with self._calls:
            try:
                is_ready = await self._remote.is_ready(self._terms.model, self._terms.version, deadline)
            except (NotFound, InvalidInput) as error:
                await self._look_for_version(deadline)
                raise self._blame.unwell(error) from error
            if not is_ready:
                await self._look_for_version(deadline)
                raise self._blame.unwell(f"the server is not ready for version {self._terms.version!r}")

    async def aclose(self) -> None:
        """Take no more calls, wait for those in flight, and close the connections."""
        self._state = State.CLOSED
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"closing of {self._name!r}")
        await asyncio.shield(self._closing)  # whoever closes second waits for the same end

    async def _close(self) -> None:
        await self._calls.wait_idle()
        await self._transfer.aclose(self._remote)
        if self._stay is not None:
            await self._stay.end(self._remote)
        await self._remote.aclose()

    def _admit(self) -> None:
        if self._state is State.FAILED:
            raise self._blame.unwell(self._state)
        if self._state is not State.READY:
            raise Unavailable(f"model {self._name!r} is closed; send the request elsewhere")

    async def _look_for_version(self, deadline: Deadline) -> None:
        """Fail for good where the server serves the model, and not this version of it, or has unloaded what was to be
        loaded for this.
        """
        if self._stay is not None and await self._stay.is_over(self._remote, deadline):
            self._fail()
            return
        try:
            found = await self._remote.model(self._terms.model, "", deadline)
        except (NotFound, InvalidInput, ReplicaFailed):
            return  # it is loading, or leaving: nobody knows yet
        if found.versions and self._terms.version and self._terms.version not in found.versions:
            self._fail()

    def _fail(self) -> None:
        if self._state is State.READY:
            self._state = State.FAILED

    def _checked(self, call: InferCall, reply: InferReply, size: int) -> Tensors:
        """The outputs of *reply*, if it is the answer to *call* for *size* items.

        Raises:
            ReplicaFailed: it is not.
        """
        if reply.id and reply.id != call.id:
            raise self._blame.nonsense(f"the answer to call {call.id} is that to {reply.id[:40]!r}")
        if reply.version and call.version and reply.version != call.version:
            self._fail()
            raise self._blame.nonsense(f"version {reply.version[:40]!r} answered in place of {call.version!r}")
        if fault := check_outputs(self._terms.signature, reply.outputs, size):
            raise self._blame.nonsense(fault)
        return {spec.name: reply.outputs[spec.name] for spec in self._terms.signature.outputs}


def pinned_version(model: ServedModel, wanted: str) -> str:
    """The version to ask for: *wanted*, or else the one with the highest number, or else the last; "": there is none.

    Raises:
        NotFound: the server says which versions it serves, and *wanted* is not among them.
    """
    if wanted and model.versions and wanted not in model.versions:
        raise NotFound(
            f"the server has no version {wanted!r} of model {model.name!r}; it has {', '.join(model.versions)}"
        )
    numbers = [version for version in model.versions if version.isdecimal()]
    latest = max(numbers, key=int) if numbers else "".join(model.versions[-1:])
    return wanted or latest


def without_batch_axis(model: ServedModel) -> tuple[Signature, bool]:
    """What *model* takes and gives for an item, and whether it takes several a call.

    Raises:
        InvalidInput: a tensor has no batch axis, or one that is fixed at more than 1.
    """
    tensors = (*model.inputs, *model.outputs)
    if not model.inputs or not model.outputs:
        raise InvalidInput(f"model {model.name!r} states no inputs or no outputs; a batch needs both")
    for spec in tensors:
        if not spec.shape or spec.shape[0] not in (-1, 1):
            raise InvalidInput(
                f"tensor {spec.name!r} of model {model.name!r} has shape {list(spec.shape)}, whose first axis is no "
                "batch axis; serve the model with one (-1, or 1 where it takes one item a call)"
            )
    is_batched = all(spec.shape[0] == -1 for spec in tensors)
    return Signature(tuple(map(_item, model.inputs)), tuple(map(_item, model.outputs))), is_batched


def _item(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, spec.shape[1:])
