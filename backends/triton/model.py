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

**Shared memory.** With `shared_memory: true`, large tensors pass through system shared memory; see
`backends.triton.shared_memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from backends.contract import URGENCY, Backend, Deadline, Limits, ParameterValue, Signature
from backends.errors import InvalidInput
from backends.oip.model import open_on_each
from backends.oip.options import ServerOptions
from backends.oip.remote import Remote
from backends.oip.served import Inline, Served, Terms, Transfer, pinned_version, without_batch_axis
from backends.registry import BackendType
from backends.triton.shared_memory import SharedTransfer

_MAX_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class TritonOptions(ServerOptions):
    """What a model with `backend: triton` can set.

    Attributes:
        max_batch: most items in one call; the model's `max_batch_size` where nothing is said, and never more.
        max_in_flight: calls under way at each server; one more than the model has instances where nothing is said.
        shared_memory: whether tensors pass through system shared memory; all servers are on this machine.
        shared_memory_from: bytes that a call must move for that.
        priority: which the requests have in Triton's queue, 1 being the most urgent; 0: the most urgent of those that
            callers in the batch have said, where `batching: {priority_levels}` makes it count.
    """

    max_batch: int | None = None
    max_in_flight: int | None = None
    shared_memory: bool = False
    shared_memory_from: int = 256 * 1024
    priority: int = 0

    def __post_init__(self) -> None:
        ServerOptions.__post_init__(self)
        for name in ("max_batch", "max_in_flight"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.priority < 0:
            raise ValueError(f"priority is {self.priority}; it must be at least 0")
        if self.shared_memory_from < 0:
            raise ValueError(f"shared_memory_from is {self.shared_memory_from}; it must be at least 0")


async def open_triton(model_name: str, options: TritonOptions) -> Backend:
    """Learn from the servers what the model takes and gives, and how much of it.

    Raises:
        PointsmanError: no server could be asked, or none serves the model as it is needed.
    """
    return await open_on_each(model_name, options, partial(_served, model_name, options))


async def _served(model_name: str, options: TritonOptions, url: str, remote: Remote, deadline: Deadline) -> Served:
    name = options.model or model_name
    await remote.about(deadline)
    found = await remote.model(name, options.version, deadline)
    version = pinned_version(found, options.version)
    config = await remote.config(name, version, deadline)
    _check_stateless(name, config)
    signature, is_batched = without_batch_axis(found)
    most = int(config.get("max_batch_size", 0)) or (options.max_batch or 1 if is_batched else 1)
    limits = Limits(min(most, options.max_batch or most), options.max_in_flight or _instances(config) + 1)
    terms = Terms(name, version, signature, limits, partial(_parameters, options.priority))
    return Served(model_name, remote, terms, await _transfer(options, signature, remote, deadline))


async def _transfer(options: TritonOptions, signature: Signature, remote: Remote, deadline: Deadline) -> Transfer:
    if not options.shared_memory:
        return Inline()
    shared = SharedTransfer(signature, options.shared_memory_from)
    await shared.open(remote, deadline)
    return shared


def _check_stateless(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what a batch of independent items cannot be answered by.

    Raises:
        InvalidInput: the model keeps state between calls, or gives any number of answers to one.
    """
    if "sequence_batching" in config:
        raise InvalidInput(f"model {name!r} keeps state over a sequence of calls, which batches do not; serve another")
    if config.get("model_transaction_policy", {}).get("decoupled"):
        raise InvalidInput(f"model {name!r} is decoupled: it gives any number of answers to a call; serve another")


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


TRITON = BackendType("triton", TritonOptions, open_triton)
