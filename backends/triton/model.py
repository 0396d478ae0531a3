"""A model on Triton, over gRPC or HTTP.

    backend: triton
    url: grpc://triton:8001
    model: tickets

What it takes and gives, how many items a call may have and how many calls are worth having under way are read from the
server: its metadata and its model configuration. Deadlines go along as Triton's `timeout`, so that a request that has
waited too long in Triton's own queue costs no accelerator time.

**Calls under way.** As many as the model has instances, and one more, which is on its way while they all work. A model
that Triton batches itself (`dynamic_batching`) gets batches from here all the same: Triton then merges the little that
comes at once. Its `max_queue_delay_microseconds` should be 0, since waiting is decided here, by deadlines.

**Sequences.** A model with `sequence_batching` keeps state from call to call. It gets the calls of each sequence one at
a time and one item a call, as its sequence batcher has it, under ids of our own, with START and END as callers say. The
idle time is the model's own.

**Shared memory.** With `shared_memory: true`, large tensors pass through system shared memory; see
`backends.triton.shared_memory`. Regions that callers have registered are passed on, where the model has
`dynamic_batching` or takes one item a call: calls that name them cannot be merged here, so Triton has to.

**On a device.** With `cuda_shared_memory: cuda:0` beside it, what preprocessing leaves on that device (`kernels:
{device: cuda:0}`) stays there, and Triton reads it from a region of the device's memory. A Triton that cannot says so,
and gets it by the host as before.

**Loading and unloading.** With `model_control: explicit` the model is in the server's memory only while it is open
here, which a warm pool (`warm: {keep: 0}`) decides; see `backends.triton.residence`, also for what sharing means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from backends.contract import URGENCY, Backend, Deadline, Limits, Memory, ParameterValue, Signature
from backends.errors import InvalidInput
from backends.oip.model import open_on_each
from backends.oip.options import SERVERS_RUNNING_ONLY, ServerOptions
from backends.oip.remote import Remote
from backends.oip.sequences import step_parameters
from backends.oip.served import Inline, Served, Stay, Terms, Transfer, pinned_version, without_batch_axis
from backends.registry import BackendType
from backends.triton.cuda_memory import CudaRegion
from backends.triton.residence import open_residence
from backends.triton.shared_memory import SharedTransfer
from kernels.devices import device_number

_MAX_TIMEOUT_S = 3600.0
_IDLE_US = 1_000_000  # Triton's own `max_sequence_idle_microseconds`, where a model says nothing


class ModelControl(StrEnum):
    """Who has the servers load and unload the model."""

    NONE = "none"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class TritonOptions(ServerOptions):
    """What a model with `backend: triton` can set.

    Attributes:
        max_batch: most items in one call; the model's `max_batch_size` where nothing is said, and never more.
        max_in_flight: calls under way at each server; one more than the model has instances where nothing is said.
        shared_memory: whether tensors pass through system shared memory; all servers are on this machine.
        shared_memory_from: bytes that a call must move for that.
        cuda_shared_memory: the CUDA device, `cuda:0` and so on, from whose memory the servers, on this machine, read
            what preprocessing has left there; empty: it comes by the host.
        priority: which the requests have in Triton's queue, 1 being the most urgent; 0: the most urgent of those that
            callers in the batch have said, where `batching: {priority_levels}` makes it count.
        model_control: explicit: opening the model has each server load it, and closing unload it, as a warm pool or a
            start and stop decides; the servers run with `--model-control-mode=explicit`. none: it is there.
        load_timeout_s: what that may take, in seconds, the server's own warm-up included.
    """

    max_batch: int | None = None
    max_in_flight: int | None = None
    shared_memory: bool = False
    shared_memory_from: int = 256 * 1024
    cuda_shared_memory: str = ""
    priority: int = 0
    model_control: ModelControl = ModelControl.NONE
    load_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        ServerOptions.__post_init__(self)
        for name in ("max_batch", "max_in_flight"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.load_timeout_s <= 0:
            raise ValueError(f"load_timeout_s is {self.load_timeout_s}; it must be more than 0")
        if self.priority < 0:
            raise ValueError(f"priority is {self.priority}; it must be at least 0")
        if self.shared_memory_from < 0:
            raise ValueError(f"shared_memory_from is {self.shared_memory_from}; it must be at least 0")
        if self.cuda_shared_memory:
            if device_number(self.cuda_shared_memory) is None:
                raise ValueError("cuda_shared_memory is 'cpu'; name a CUDA device, such as cuda:0")
            if not self.shared_memory:
                raise ValueError("cuda_shared_memory goes with shared_memory: true, for all that is not on the device")


async def open_triton(model_name: str, options: TritonOptions) -> Backend:
    """Learn from the servers what the model takes and gives, and how much of it.

    Raises:
        PointsmanError: no server could be asked, or none serves the model as it is needed.
    """
    if options.model_control is ModelControl.EXPLICIT:
        opening_s = max(options.replicas.open_timeout_s, options.load_timeout_s + options.open_timeout_s)
        patient = replace(options, replicas=replace(options.replicas, open_timeout_s=opening_s))
        return await open_on_each(model_name, patient, partial(_loaded, model_name, options))
    return await open_on_each(model_name, options, partial(_served, model_name, options))


async def _loaded(model_name: str, options: TritonOptions, url: str, remote: Remote, deadline: Deadline) -> Served:
    """The model, once the server has it loaded."""
    name = options.model or model_name
    stay = await open_residence(name, url, remote, Deadline(time.monotonic() + options.load_timeout_s))
    try:
        deadline = Deadline(time.monotonic() + options.open_timeout_s)
        return await _served(model_name, options, url, remote, deadline, stay)
    except BaseException:
        await asyncio.shield(stay.end(remote))
        raise


async def _served(
    model_name: str, options: TritonOptions, url: str, remote: Remote, deadline: Deadline, stay: Stay | None = None
) -> Served:
    name = options.model or model_name
    await remote.about(deadline)
    found = await remote.model(name, options.version, deadline)
    version = pinned_version(found, options.version)
    config = await remote.config(name, version, deadline)
    _check_coupled(name, config)
    signature, is_batched = without_batch_axis(found)
    idle_s = sequence_idle_s(config)
    most = int(config.get("max_batch_size", 0)) or (options.max_batch or 1 if is_batched else 1)
    most = min(most, options.max_batch or most)
    write_id = str if _has_text_ids(config) else int
    parameters = _parameters if idle_s is None else partial(_in_sequence, write_id)
    transfer = await _transfer(model_name, options, signature, remote, deadline)
    limits = Limits(
        most if idle_s is None else 1,
        options.max_in_flight or _instances(config) + 1,
        _memory(options, config, most, transfer) if idle_s is None else frozenset({Memory.HOST}),
        sequence_idle_s=idle_s,
    )
    terms = Terms(name, version, signature, limits, partial(parameters, options.priority))
    return Served(model_name, remote, terms, transfer, stay)


def _memory(options: TritonOptions, config: Mapping[str, Any], max_batch: int, transfer: Transfer) -> frozenset[Memory]:
    """What tensors may come in: callers' regions only where Triton merges calls, or there is nothing to merge."""
    memory = {Memory.HOST}
    if options.shared_memory and ("dynamic_batching" in config or max_batch == 1):
        memory.add(Memory.SHARED)
    if isinstance(transfer, SharedTransfer) and transfer.takes_there:
        memory.add(Memory.DEVICE)
    return frozenset(memory)


async def _transfer(
    model_name: str, options: TritonOptions, signature: Signature, remote: Remote, deadline: Deadline
) -> Transfer:
    if not options.shared_memory:
        return Inline()
    number = device_number(options.cuda_shared_memory) if options.cuda_shared_memory else None
    make_there = None if number is None else partial(CudaRegion.made, number)
    shared = SharedTransfer(model_name, signature, options.shared_memory_from, make_there)
    await shared.open(remote, deadline)
    return shared


def _check_coupled(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that gives any number of answers to a call.

    Raises:
        InvalidInput: it does.
    """
    if config.get("model_transaction_policy", {}).get("decoupled"):
        raise InvalidInput(f"model {name!r} is decoupled: it gives any number of answers to a call; serve another")


def sequence_idle_s(config: Mapping[str, Any]) -> float | None:
    """How long the server keeps the state of a sequence without calls; None where the model keeps none."""
    if "sequence_batching" not in config:
        return None
    return (int(config["sequence_batching"].get("max_sequence_idle_microseconds", 0)) or _IDLE_US) / 1e6


def _has_text_ids(config: Mapping[str, Any]) -> bool:
    """Whether the model gets the ids of sequences as text."""
    inputs = config.get("sequence_batching", {}).get("control_input", ())
    controls = [control for one in inputs for control in one.get("control", ())]
    return any(
        control.get("kind") == "CONTROL_SEQUENCE_CORRID" and control.get("data_type") == "TYPE_STRING"
        for control in controls
    )


def _instances(config: Mapping[str, Any]) -> int:
    """On how many instances the server runs the model."""
    groups = config.get("instance_group", ())
    return max(1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) for group in groups))


def _parameters(priority: int, left_s: float) -> Mapping[str, ParameterValue]:
    found: dict[str, ParameterValue] = {}
    if left_s < _MAX_TIMEOUT_S:
        found["timeout"] = max(1, int(left_s * 1e6))
    if urgency := priority or URGENCY.get():
        found["priority"] = urgency
    return found


def _in_sequence(write_id: Callable[[int], int | str], priority: int, left_s: float) -> Mapping[str, ParameterValue]:
    return {**_parameters(priority, left_s), **step_parameters(write_id)}


_HOW_IT_IS_ASKED = (
    "max_batch",
    "max_in_flight",
    "shared_memory",
    "shared_memory_from",
    "cuda_shared_memory",
    "priority",
)
_HOW_IT_IS_LOADED = ("model_control", "load_timeout_s")
TRITON = BackendType(
    "triton", TritonOptions, open_triton, SERVERS_RUNNING_ONLY | {*_HOW_IT_IS_ASKED, *_HOW_IT_IS_LOADED}
)
