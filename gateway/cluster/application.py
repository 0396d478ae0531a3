"""From a configuration to an application of Ray Serve: the gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.errors import InvalidInput
from gateway.cluster.apart import Models
from gateway.cluster.deployments import GATEWAY, HEALTH, LOOK_S, ONE_LOOP, QUIET, STARTS, in_environment
from gateway.cluster.replica import LAST_S, GatewayReplica, IngressReplica
from gateway.compose import CLOSE_S
from gateway.grpc_edge.transport import Transport
from gateway.serve import LAST_REPLIES_S
from gateway.settings import ServerOptions, Settings

if TYPE_CHECKING:
    from ray.serve import Application

_INGRESS_CALLS = 1024


def application(
    settings: Settings,
    models: Models,
    *,
    behind_serve: bool = False,
    log_level: str = "INFO",
    unready_s: float = 0.0,
    environment: Mapping[str, str] = ONE_LOOP,
) -> Application:
    """The application that serves *settings*.

    Args:
        models: that are apart from it; `apart.deploy_apart` has put them there.
        behind_serve: Serve's own listeners take requests, and the gateway has none but its control port.
        log_level: from which on replicas log.
        unready_s: for how long a replica that leaves only says so, for a balancer to hear.
        environment: what replicas have in theirs beside what all of Ray's processes have. With nothing in it they
            start in processes that Ray has ready.

    Raises:
        InvalidInput: replicas cannot share what is configured.
    """
    from ray import serve

    server = replicated(settings.server)
    replica = replace(settings, server=server)
    kind = serve.ingress()(IngressReplica) if behind_serve else GatewayReplica
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=settings.cluster.replicas,
        max_ongoing_requests=_INGRESS_CALLS,
        max_surge_percent=100,
        max_constructor_retry_count=STARTS,
        graceful_shutdown_wait_loop_s=LOOK_S,
        graceful_shutdown_timeout_s=end_s(server, unready_s),
        logging_config=QUIET,
        ray_actor_options={"num_cpus": settings.cluster.num_cpus, **in_environment(environment)},
        **HEALTH,
    )(kind)
    if settings.cluster.rollout:  # or Serve starts all anew, where a rollout that failed is taken back
        deployment = deployment.options(version=settings.cluster.rollout, _internal=True)
    return deployment.bind(replica, models, log_level, unready_s)


def end_s(server: ServerOptions, unready_s: float = 0.0) -> float:
    """What a replica that leaves may take."""
    return LOOK_S + unready_s + LAST_S + server.drain_s + 2 * LAST_REPLIES_S + 2 * CLOSE_S


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
