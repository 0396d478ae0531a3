"""From a configuration to an application of Ray Serve: the gateway, and those of its models that are apart from it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from backends.errors import InvalidInput
from backends.ray_serve.deployment import ModelReplica
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from gateway.certificates import stage_subject
from gateway.cluster.replica import LAST_S, GatewayReplica, IngressReplica
from gateway.compose import CLOSE_S
from gateway.grpc_edge.transport import Transport
from gateway.serve import LAST_REPLIES_S
from gateway.settings import ModelSettings, ServerOptions, Settings

if TYPE_CHECKING:
    from ray.serve import Application

APP = "pointsman"
"""The application's name."""

GATEWAY = "gateway"
"""The name of the gateway's deployment."""

ONE_LOOP: Mapping[str, str] = {
    # Serve would give our code a loop beside its own; gRPC has one poller a process, and knows one loop.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # How soon the policy hears of a queue.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
"""The environment of all replicas, of gateways and of models."""

_LOOK_S = 0.1
"""Between two looks of Serve's whether a replica that leaves has calls by handle left, before `__del__`."""

_STARTS = 3
"""Failures to start, in all, after which Serve gives up; what is at fault is seldom another machine's."""

_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 10.0
_LOOK_BACK_S = 12.0  # Serve wants more than the 10 s between its own questions
_INGRESS_CALLS = 1024


def application(
    settings: Settings,
    *,
    behind_serve: bool = False,
    log_level: str = "INFO",
    unready_s: float = 0.0,
    environment: Mapping[str, str] = ONE_LOOP,
) -> Application:
    """The application that serves *settings*.

    Args:
        behind_serve: Serve's own listeners take requests, and the gateway has none but its control port.
        log_level: from which on replicas log.
        unready_s: for how long a replica that leaves only says so, for a balancer to hear.
        environment: what replicas have in theirs beside what all of Ray's processes have. With nothing in it they
            start in processes that Ray has ready.

    Raises:
        InvalidInput: replicas cannot share what is configured.
        OSError: a file of a model cannot be read.
    """
    from ray import serve

    server = replicated(settings.server)
    replica = replace(settings, server=server)
    digests = {model.name: _digest(model) for model in _apart(settings)}
    handles = {model.name: model_application(model, digests[model.name], environment) for model in _apart(settings)}
    kind = serve.ingress()(IngressReplica) if behind_serve else GatewayReplica
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=settings.cluster.replicas,
        max_ongoing_requests=_INGRESS_CALLS,
        max_surge_percent=100,
        max_constructor_retry_count=_STARTS,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=_LOOK_S,
        graceful_shutdown_timeout_s=_LOOK_S + unready_s + LAST_S + server.drain_s + 2 * LAST_REPLIES_S + 2 * CLOSE_S,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": settings.cluster.num_cpus, **_in(environment)},
    )(kind)
    return deployment.bind(replica, handles, digests, log_level, unready_s)


_QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""A line for each call would cost more than the call."""


def replicated(server: ServerOptions) -> ServerOptions:
    """*server* as each replica has it.

    gRPC is carried by grpcio where nothing else is said: the native transport takes connections until its end, which
    are refused then, and could have gone to another replica.

    Raises:
        InvalidInput: replicas cannot serve so.
    """
    if (why := server.why_not_replicas()) is not None:
        raise InvalidInput(f"the cluster {why}")
    if sys.platform != "linux":
        raise InvalidInput("replicas of a node share its ports, which needs Linux")
    transport = Transport.GRPCIO if server.grpc_transport is Transport.AUTO else server.grpc_transport
    return replace(server, is_replica=True, grpc_transport=transport)


def _apart(settings: Settings) -> list[ModelSettings]:
    return [model for model in settings.models.values() if model.serve is not None]


def deployed(settings: Settings) -> list[DeploymentOptions]:
    """How the models are deployed that are apart from the gateway."""
    return [model.serve for model in settings.models.values() if model.serve is not None]


def cores(deployments: Iterable[DeploymentOptions]) -> float:
    """What all their replicas ask for, when there are as many as may be."""
    return sum(one.most_replicas * one.num_cpus for one in deployments)


def model_application(model: ModelSettings, digest: str, environment: Mapping[str, str] = ONE_LOOP) -> Application:
    """The replicas of *model*, by what `serve` of its entry says; *digest* tells it from its other versions."""
    from ray import serve

    options = model.serve
    assert options is not None
    resources: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.memory_bytes is not None:
        resources["memory"] = options.memory_bytes
    many: dict[str, Any] = (
        {"num_replicas": options.replicas}
        if options.scaling is None
        else {"autoscaling_config": _autoscaling(options.scaling)}
    )
    deployment = serve.deployment(
        name=f"model-{model.name}",
        # One more than the model overlaps: its tensors travel meanwhile.
        max_ongoing_requests=getattr(model.options, "max_in_flight", 1) + 1,
        max_surge_percent=100,
        max_constructor_retry_count=_STARTS,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=_LOOK_S,
        logging_config=_QUIET,
        ray_actor_options={**resources, **_in(environment)},
        **many,
    )(ModelReplica)
    return deployment.bind(model.name, model.backend, model.options, digest)


def _in(environment: Mapping[str, str]) -> Mapping[str, Any]:
    return {"runtime_env": {"env_vars": dict(environment)}} if environment else {}


def _autoscaling(scaling: ScalingOptions) -> dict[str, Any]:
    """As Serve has it."""
    return {
        "min_replicas": scaling.least,
        "max_replicas": scaling.most,
        "upscale_delay_s": scaling.up_after_s,
        "downscale_delay_s": scaling.down_after_s,
        "look_back_period_s": _LOOK_BACK_S,
        "policy": {
            "policy_function": "backends.ray_serve.scaling:QueueDelay",
            "policy_kwargs": {"target_s": scaling.queue_delay_s},
        },
    }


def _digest(model: ModelSettings) -> str:
    """What tells *model* from its other versions: whatever decides its answers, files by their contents."""
    subject = asdict(stage_subject(model, "", None))
    version = getattr(model.options, "version", "")
    return hashlib.sha256(json.dumps([subject, version], sort_keys=True, default=str).encode()).hexdigest()
