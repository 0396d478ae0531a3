"""Models that are apart from the gateway: each version of one is an application of Serve by itself.

    pointsman                           the gateway, which knows by name what it asks
    pointsman-model-NAME-DIGEST         a model, of what the digest is of: options, files, labels
    pointsman-model-NAME-ANOTHER        its next version, while gateways change
    pointsman-pool-NAME-DIGEST          the models of a pool (`pools`), of which any may have changed

**In an upgrade** the next versions come first, beside the ones that run (`deploy_apart`). Once they serve, gateways are
replaced one after the other; each asks the versions that its own configuration is about, from its start to its end.
When all gateways are new, those versions go that nobody asks any more (`left_over`), with the models that a
configuration does not name any more. An upgrade whose models cannot start leaves everything as it is.

What is deployed anew under the name that it has, as another number of replicas is, Serve changes in place.

Rejected: models as deployments of the gateway's application. Serve rolls these at the same time as gateways, and ends
those that are gone at once, while gateways that are about to leave still ask them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.ray_serve.kept import forget, short
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from backends.ray_serve.residence import TOLD_EVERY_S
from gateway.cluster.alone import LoneReplica
from gateway.cluster.deployments import APP, GATEWAY, HEALTH, LOOK_S, ONE_LOOP, QUIET, STARTS, in_environment
from gateway.cluster.made_of import digest_of
from gateway.cluster.pools import PoolReplica
from gateway.cluster.rollout import Patience, wait_serving
from gateway.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ApplicationStatusOverview

_MODEL, _POOL = f"{APP}-model-", f"{APP}-pool-"
_LOOK_BACK_S = 12.0  # Serve wants more than the 10 s between its own questions


@dataclass(frozen=True, slots=True)
class Apart:
    """Where a version of a model is.

    Attributes:
        app: of Serve's.
        deployment: in it.
        digest: of what the model is made of.
        options: how it is deployed.
        is_pooled: other models share its replicas.
    """

    app: str
    deployment: str
    digest: str
    options: DeploymentOptions
    is_pooled: bool = False


@dataclass(frozen=True, slots=True)
class Apartment:
    """What is an application of Serve's: a model by itself, or those of a pool.

    Attributes:
        app: its name.
        deployment: in it.
        options: how that is deployed.
        models: with their digests.
        is_pool: whether they come and go in its replicas.
    """

    app: str
    deployment: str
    options: DeploymentOptions
    models: tuple[tuple[ModelSettings, str], ...]
    is_pool: bool = False

    @classmethod
    def of_model(cls, model: ModelSettings, options: DeploymentOptions) -> Apartment:
        """That of *model*."""
        digest = digest_of(model)
        return cls(f"{_MODEL}{model.name}-{short(digest)}", f"model-{model.name}", options, ((model, digest),))

    @classmethod
    def of_pool(cls, name: str, models: Iterable[ModelSettings], options: DeploymentOptions) -> Apartment:
        """That of the pool *name*."""
        digests = tuple((model, digest_of(model)) for model in models)
        told = [(digest, repr((model.warm, model.batching))) for model, digest in digests]
        digest = hashlib.sha256(json.dumps([sorted(told), options.memory_bytes]).encode()).hexdigest()
        return cls(f"{_POOL}{name}-{short(digest)}", f"pool-{name}", options, digests, is_pool=True)

    @property
    def slots(self) -> int:
        """Calls that are at work at a time in a replica that is busy."""
        overlaps = max(getattr(model.options, "max_in_flight", 1) for model, _ in self.models)
        return max(overlaps, math.ceil(self.options.num_cpus)) if self.is_pool else overlaps

    @property
    def calls(self) -> int:
        """Calls that a replica takes: one more than it overlaps, as tensors travel meanwhile; and each model of a pool
        may be waited for.
        """
        return self.slots + 1 + (2 * len(self.models) if self.is_pool else 0)


@dataclass(frozen=True, slots=True)
class Models:
    """What a gateway knows of models that are apart.

    Attributes:
        places: where its own are, by their names.
        others: the applications of versions that were there before and are not its own, and since when they were.
    """

    places: Mapping[str, Apart] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)


def apart(settings: Settings) -> dict[str, Apart]:
    """Where the models are that are apart from the gateway, by their names.

    Raises:
        OSError: a file of a model cannot be read.
    """
    return _places(apartments(settings))


def apartments(settings: Settings) -> list[Apartment]:
    """What is to be an application of Serve's beside the gateway's.

    Raises:
        OSError: a file of a model cannot be read.
    """
    models = settings.models.values()
    own = [Apartment.of_model(model, model.serve) for model in models if model.serve is not None]
    pools = settings.cluster.pools.items()
    members = {name: [model for model in models if model.shares == name] for name, _ in pools}
    return own + [Apartment.of_pool(name, members[name], options) for name, options in pools if members[name]]


def deployed(settings: Settings) -> list[DeploymentOptions]:
    """How the models are deployed that are apart from the gateway."""
    shared = {model.shares for model in settings.models.values()}
    pools = [options for name, options in settings.cluster.pools.items() if name in shared]
    return [model.serve for model in settings.models.values() if model.serve is not None] + pools


def cores(deployments: Iterable[DeploymentOptions]) -> float:
    """What all their replicas ask for, when there are as many as may be."""
    return sum(one.most_replicas * one.num_cpus for one in deployments)


def deploy_apart(settings: Settings, environment: Mapping[str, str], patience: Patience) -> Models:
    """Deploy what `apart` says, beside what runs, and return when it serves; that which has room, where all has not.

    Raises:
        ClusterFailed: it cannot; what runs goes on.
        OSError: a file of a model cannot be read.
    """
    from ray import serve

    wanted = apartments(settings)
    known = serve.status().applications
    own = {one.app for one in wanted}
    others = {name: app.last_deployed_time_s for name, app in known.items() if _is_model(name) and name not in own}
    failed = {name for name in own & set(known) if known[name].status == "DEPLOY_FAILED"}
    delete(failed)  # or Serve would not try again
    targets = [
        serve.RunTarget(application_of(one, environment, _running(known, one)), name=one.app, route_prefix=None)
        for one in wanted
    ]
    try:
        if targets:
            serve.run_many(targets, wait_for_applications_running=False)
        wait_serving(sorted(own), patience, some_do=True)
    except BaseException:
        delete(own - set(known) | failed)
        raise
    return Models(_places(wanted), others)


def delete(apps: Collection[str]) -> None:
    """Have Serve end *apps*, and wait for that for a while."""
    from ray import serve

    for app in apps:
        serve.delete(app, _blocking=False)
        forget(app)
    for app in apps:
        with contextlib.suppress(TimeoutError):
            serve.delete(app)


def left_over(
    apps: Mapping[str, ApplicationStatusOverview], asked: Collection[str], others: Mapping[str, float]
) -> frozenset[str] | None:
    """Those of *apps* that no gateway asks any more; None: that cannot be said, as gateways change, or soon will.

    Args:
        asked: by gateways.
        others: see `Models`; what nobody asks and was not there before is a successor's, which is about to be.
    """
    if not all(is_whole(app) for app in apps.values() if GATEWAY in app.deployments):
        return None
    unasked = {name: app.last_deployed_time_s for name, app in apps.items() if _is_model(name) and name not in asked}
    return frozenset(unasked) if unasked.items() <= others.items() else None


def is_whole(app: ApplicationStatusOverview) -> bool:
    """Whether all gateways of *app* are of one version, and none is about to leave."""
    gateway = app.deployments[GATEWAY]
    return gateway.status == "HEALTHY" and {state for state, count in gateway.replica_states.items() if count} == {
        "RUNNING"
    }


def application_of(one: Apartment, environment: Mapping[str, str] = ONE_LOOP, running: int = 0) -> Application:
    """The replicas of *one*, as its options say.

    Args:
        running: replicas that it has, or the version before it; where it is scaled, it begins with as many.
    """
    from ray import serve

    options = one.options
    resources: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.memory_bytes is not None:
        resources["memory"] = options.memory_bytes
    many: dict[str, Any] = (
        {"num_replicas": options.replicas}
        if options.scaling is None
        else {"autoscaling_config": _autoscaling(options.scaling, running)}
    )
    deployment = serve.deployment(
        name=one.deployment,
        max_ongoing_requests=one.calls,
        max_surge_percent=100,
        max_constructor_retry_count=STARTS,
        graceful_shutdown_wait_loop_s=LOOK_S,
        logging_config=QUIET,
        ray_actor_options={**resources, **in_environment(environment)},
        **HEALTH,
        **many,
        **(_warm_first() if one.is_pool else {}),
    )(PoolReplica if one.is_pool else LoneReplica)
    # Serve would start all replicas anew each time; a version it takes from its own code alone. Replicas that were not
    # scaled when they started never tell of their load.
    version = one.app if options.scaling is None else f"{one.app}-scaled"
    deployment = deployment.options(version=version, _internal=True)
    if one.is_pool:
        return deployment.bind(one.models, options.memory_bytes, one.slots, one.app)
    ((model, digest),) = one.models
    return deployment.bind(model, digest, one.app)


def _warm_first() -> dict[str, Any]:
    """How Serve has calls routed by residence."""
    from ray.serve.config import RequestRouterConfig

    router = RequestRouterConfig(
        request_router_class="backends.ray_serve.routing.WarmFirst", request_routing_stats_period_s=TOLD_EVERY_S
    )
    return {"request_router_config": router}


def _is_model(app: str) -> bool:
    return app.startswith((_MODEL, _POOL))


def _places(apartments: Iterable[Apartment]) -> dict[str, Apart]:
    return {
        model.name: Apart(one.app, one.deployment, digest, one.options, one.is_pool)
        for one in apartments
        for model, digest in one.models
    }


def _running(apps: Mapping[str, ApplicationStatusOverview], one: Apartment) -> int:
    """The replicas that serve a version of *one*."""
    found = [app.deployments[one.deployment] for app in apps.values() if one.deployment in app.deployments]
    return max((int(deployment.replica_states.get("RUNNING", 0)) for deployment in found), default=0)


def _autoscaling(scaling: ScalingOptions, running: int) -> dict[str, Any]:
    """As Serve has it."""
    return {
        "min_replicas": scaling.least,
        "max_replicas": scaling.most,
        "initial_replicas": min(scaling.most, max(scaling.least, running)),
        "upscale_delay_s": scaling.up_after_s,
        "downscale_delay_s": scaling.down_after_s,
        "look_back_period_s": _LOOK_BACK_S,
        "policy": {
            "policy_function": "backends.ray_serve.scaling:QueueDelay",
            "policy_kwargs": {"target_s": scaling.queue_delay_s},
        },
    }
