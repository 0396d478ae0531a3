"""A model on any server that speaks the Open Inference Protocol v2: KServe, MLServer, TorchServe, another Pointsman.

    backend: oip
    url: [grpc://one:8081, grpc://two:8081]
    model: tickets
    max_batch: 32

What it takes and gives is what the server states when it is opened. The protocol says nothing about how many items a
call may have, how many calls a server overlaps, or whether a model keeps state over sequences, and for how long: the
configuration does. For Triton, which says all of this, there is `backend: triton`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from backends.contract import Backend, Datatype, Deadline, Limits
from backends.errors import InvalidInput
from backends.oip.http_remote import BINARY
from backends.oip.options import SERVERS_RUNNING_ONLY, ServerOptions, remote_of
from backends.oip.remote import Remote
from backends.oip.sequences import step_parameters
from backends.oip.served import Inline, Served, Terms, pinned_version, without_batch_axis
from backends.registry import BackendType
from backends.replicas import open_replicas


@dataclass(frozen=True, slots=True)
class OIPOptions(ServerOptions):
    """What a model with `backend: oip` can set.

    Attributes:
        max_batch: most items in one call.
        max_in_flight: calls that each server overlaps.
        sequence_idle_s: for how many seconds without a call the servers keep the state of a sequence, which they are
            told of by Triton's parameters; such a model gets one item a call. By default it keeps no state.
    """

    max_batch: int = 64
    max_in_flight: int = 2
    sequence_idle_s: float | None = None

    def __post_init__(self) -> None:
        ServerOptions.__post_init__(self)
        if self.sequence_idle_s is not None and self.sequence_idle_s <= 0:
            raise ValueError(f"sequence_idle_s is {self.sequence_idle_s}; it must be more than 0")


async def open_oip(model_name: str, options: OIPOptions) -> Backend:
    """Learn from the servers what the model takes and gives.

    Raises:
        PointsmanError: no server could be asked, or none serves the model as it is needed.
    """
    return await open_on_each(model_name, options, partial(_served, model_name, options))


async def open_on_each(
    model_name: str, options: ServerOptions, served: Callable[[str, Remote, Deadline], Awaitable[Served]]
) -> Backend:
    """The model over all servers of *options*.

    Args:
        served: the model on one server, given its URL, what speaks to it, and until when it may take to open; what
            speaks to it is closed here where this fails.
    """

    async def open_one(url: str) -> Backend:
        remote = remote_of(model_name, url, options)
        try:
            return await served(url, remote, Deadline(time.monotonic() + options.open_timeout_s))
        except BaseException:
            await asyncio.shield(remote.aclose())
            raise

    openers = {url: partial(open_one, url) for url in options.urls}
    return await open_replicas(model_name, openers, options.replicas)


async def _served(model_name: str, options: OIPOptions, url: str, remote: Remote, deadline: Deadline) -> Served:
    server = await remote.about(deadline)
    found = await remote.model(options.model or model_name, options.version, deadline)
    signature, is_batched = without_batch_axis(found)
    if url.startswith("http") and BINARY not in server.extensions:
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype is Datatype.BF16:
                raise InvalidInput(f"tensor {spec.name!r} is BF16, which this server's JSON cannot carry; use its gRPC")
    idle_s = options.sequence_idle_s
    most = options.max_batch if is_batched and idle_s is None else 1
    limits = Limits(most, options.max_in_flight, sequence_idle_s=idle_s)
    version = pinned_version(found, options.version)
    terms = Terms(options.model or model_name, version, signature, limits)
    if idle_s is not None:
        terms = replace(terms, parameters=lambda left_s: step_parameters())
    return Served(model_name, remote, terms, Inline())


OIP = BackendType("oip", OIPOptions, open_oip, SERVERS_RUNNING_ONLY | {"max_batch", "max_in_flight"})
