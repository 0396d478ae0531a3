"""What the configuration comes to: frozen options, checked against each other, for `gateway.compose` to build from."""

from __future__ import annotations

import math
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends.contract import TensorSpec
from backends.ray_serve.options import DeploymentOptions
from backends.warm.entry import WarmOptions
from batching.options import BatchingOptions, SequenceOptions
from gateway.grpc_edge.transport import Transport
from gateway.masking import MaskOptions
from gateway.notices.options import NotifyOptions, SmtpOptions
from gateway.people.options import QueueOptions
from gateway.security import SecurityOptions
from gateway.shared_memory import SharedMemoryOptions
from gateway.store.options import StoreOptions
from gateway.tracing.options import TracesOptions
from gateway.webhooks.options import WebhookOptions
from kernels.devices import KernelOptions
from router.calibration import Calibration, Calibrator, Identity
from router.certificate import Certificate
from router.certification import Budget
from router.confidence import Measure
from router.contract import AcceptRule, HumanPolicy, OnDefer, route_id
from router.table import RouteTable
from router.versions import Traffic


class ControlMode(StrEnum):
    """Whether clients may load and unload models, as Triton's --model-control-mode."""

    NONE = "none"
    EXPLICIT = "explicit"


MAX_WORKERS = 64
"""Most processes that share the data plane's ports."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One entry of `models`.

    Attributes:
        backend: name of the kind of backend, as `backends.registry.backend_type` knows it.
        options: an instance of that kind's `options`, paths absolute. Any: each kind has its own.
        preprocess: steps that `kernels.plan.parse_spec` has accepted.
        postprocess: the same.
        base: the folder that file names in steps are relative to.
        labels: of the model's classes, by index; None where it has none.
        measure: what of its outputs says how sure it is; None: what is usual for such outputs.
        calibration: what turns that into P(the model is right), and for which version it was fitted.
        cost: of an item; only ratios matter.
        expose: reachable under its own name too.
        warm: whether it is always in memory, and what it takes there.
        required: False where the gateway starts without it, if it cannot be reached then.
        sequences: of a model that keeps state, how many are answered.
        kernels: how the image steps of `preprocess` are run.
        serve: how it is deployed on a Ray cluster, if it is to be apart from the gateway there; elsewhere it is not.
        shares: the pool whose replicas it shares there with other models, instead.
    """

    name: str
    backend: str
    options: Any
    preprocess: tuple[Any, ...]  # Any: names and one-key mappings, as written
    postprocess: tuple[Any, ...]
    base: Path
    labels: tuple[str, ...] | None
    measure: Measure | None
    calibration: Calibration | None
    batching: BatchingOptions
    cost: float
    expose: bool
    warm: WarmOptions = field(default_factory=lambda: WarmOptions(keep=1))
    required: bool = True
    sequences: SequenceOptions = field(default_factory=SequenceOptions)
    kernels: KernelOptions = field(default_factory=KernelOptions)
    serve: DeploymentOptions | None = None
    shares: str | None = None

    @property
    def calibrator(self) -> Calibrator:
        """The calibration's, or the one that takes scores as they are."""
        return self.calibration.calibrator if self.calibration else Identity()


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """One entry of `detectors`.

    Attributes:
        model: whose label is the trait.
        decode: name of the decoder of a request's bytes (see `kernels.decode`), or None.
        floor: confidence below which the trait is in doubt.
        timeout_s: what it may take.
    """

    trait: str
    model: str
    decode: str | None
    floor: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CertifiedSettings:
    """A route that accepts what a certificate proves.

    Attributes:
        certificate: from the file that the route names; None: the newest in the store that fits.
    """

    budget: Budget
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """One entry of `routes`, or one version of it: a `router.contract.Route`, but for the outputs, which models tell.

    Attributes:
        inputs: as callers send them, before decoding, without the batch axis.
        cascade: names of models, from cheap to strong; empty where people decide everything.
        labels: what all its stages answer with, by index; None where they have none.
        accept: the rule, or where it comes from.
        version: which of the route's versions this is; "" where it has only one.
        id_as_key: the `id` of a request of the Open Inference Protocol is its idempotency key, where it has no other.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    decode: str | None
    cascade: tuple[str, ...]
    labels: tuple[str, ...] | None
    accept: AcceptRule | CertifiedSettings
    human: HumanPolicy | None
    on_defer: OnDefer
    deadline_s: float
    max_error: float | None
    version: str = ""
    id_as_key: bool = False

    @property
    def id(self) -> str:
        """What tells it from every other one, as `router.contract.Route.id`."""
        return route_id(self.name, self.version)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What the HTTP data plane proves itself with: PEM files, the certificate with its chain, and its key."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a listener needs; TLS 1.2 or newer.

        Raises:
            OSError: the files cannot be read, or do not fit each other (`ssl.SSLError`).
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key, password="")  # or OpenSSL would ask the terminal for one
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the gateway listens, and how it stops.

    Attributes:
        http_port: of the HTTP data plane; 0 for any free port, as for the others.
        grpc_port: of the gRPC data plane.
        control_port: of metrics, inbox and status.
        max_body_bytes: the largest request that is read.
        drain_s: seconds that accepted requests get to finish when the gateway stops.
        tls: of the HTTP data plane; None: it speaks plainly, as the other ports do.
        trusted_hosts: host names under which browsers reach the control port, beside localhost and addresses.
        shared_memory: tensors that clients on this machine leave there.
        grpc_transport: what carries the gRPC data plane.
        workers: processes that share the data plane's ports; 1: everything is in one process.
        model_control: whether operators load and unload models by the Open Inference Protocol.
        is_replica: other gateways of a cluster have the same ports and the same store.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    control_port: int = 8002
    max_body_bytes: int = 16 * 1024 * 1024
    drain_s: float = 20.0
    tls: TlsOptions | None = None
    trusted_hosts: tuple[str, ...] = ()
    shared_memory: SharedMemoryOptions = field(default_factory=SharedMemoryOptions)
    grpc_transport: Transport = Transport.AUTO
    workers: int = 1
    model_control: ControlMode = ControlMode.NONE
    is_replica: bool = False

    @property
    def has_siblings(self) -> bool:
        """Whether other processes listen on the same ports, and write to the same store."""
        return self.workers > 1 or self.is_replica

    def why_not_workers(self) -> str | None:
        """What keeps `workers` processes from serving as these options say, and the remedy; None: nothing."""
        if self.workers == 1:
            return None
        if (why := self._why_not_shared()) is not None:
            return f"{why}, or workers: 1"
        if sys.platform != "linux":
            return "needs Linux, which spreads connections over processes that listen on one port; set workers: 1"
        return None

    def why_not_replicas(self) -> str | None:
        """As `why_not_workers`, for the replicas of a cluster."""
        if self.workers > 1:
            return "has workers, and a replica is one process; leave `workers` out and say how many replicas"
        return self._why_not_shared()

    def _why_not_shared(self) -> str | None:
        if self.shared_memory.enabled:
            return (
                "shares the ports among processes, but a client's shared memory is registered with one of them; "
                "set shared_memory: {enabled: false}"
            )
        if self.model_control is ControlMode.EXPLICIT:
            return (
                "shares the ports among processes, and a client that loads a model reaches one of them; "
                "set model_control: none"
            )
        return None


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What models in memory may take together.

    Attributes:
        memory_bytes: of models; infinity: no limit.
    """

    memory_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """The gateway on a Ray cluster.

    Attributes:
        replicas: of the gateway.
        num_cpus: cores that Ray sets aside for each.
        targets: a folder, on every node, in which each replica tells Prometheus of its control port; None: it does not.
        pools: replicas that several models share, by name; `memory_bytes` is what models in memory may take together.
        version: the number under which the store keeps this configuration; None: replicas keep it, and so find out.
        rollout: tells replicas of one rollout from those of every other; "": Serve tells them apart by itself.
    """

    replicas: int = 1
    num_cpus: float = 1.0
    targets: Path | None = None
    pools: Mapping[str, DeploymentOptions] = field(default_factory=dict)
    version: int | None = None
    rollout: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration without faults.

    Attributes:
        file: where it was read.
        models: by name, in the order of the file.
        routes: by id, in the order of the file: a route that has versions is here once for each.
        detectors: by trait, in the order of the file.
        pool: the memory of models.
        webhooks: in the order of the file.
        queues: of people, by name: those that are written, and those that routes name.
        traces: where spans go; None: none are recorded.
        table: the rules of `classify`; its names are those of `routes` and of the exposed models.
        traffic: what the versions of a route get, by its name; of those that have versions.
        masks: in the order of the file, as `notify`.
        smtp: takes mail; there where `notify` names mailboxes.
        cluster: what counts on a Ray cluster alone.
        text: of that file, as it was then.
    """

    file: Path
    models: Mapping[str, ModelSettings]
    routes: Mapping[str, RouteSettings]
    detectors: Mapping[str, DetectorSettings]
    table: RouteTable
    server: ServerOptions
    store: StoreOptions
    security: SecurityOptions
    pool: PoolOptions = field(default_factory=PoolOptions)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    webhooks: tuple[WebhookOptions, ...] = ()
    traces: TracesOptions | None = None
    queues: Mapping[str, QueueOptions] = field(default_factory=dict)
    masks: tuple[MaskOptions, ...] = ()
    notify: tuple[NotifyOptions, ...] = ()
    smtp: SmtpOptions | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    text: str = field(default="", repr=False, compare=False)

    def labels_of(self, name: str) -> frozenset[str]:
        """What can be chosen of the route, or the exposed model, *name*, in any version; nothing of a stranger."""
        found = [route.labels or () for route in self.versions_of(name)]
        if (model := self.models.get(name)) is not None and model.expose:
            found.append(model.labels or ())
        return frozenset(label for labels in found for label in labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the routes, in the order of the file."""
        return tuple(dict.fromkeys(route.name for route in self.routes.values()))

    def versions_of(self, name: str) -> tuple[RouteSettings, ...]:
        """The route *name*, once for each of its versions; none where there is no such route."""
        return tuple(route for route in self.routes.values() if route.name == name)
