"""Files for a cluster that runs already: what `serve deploy` takes, and a RayService for KubeRay.

In both, the configuration is a file that every node has at the same path, with everything that it names: in the image,
or on a volume. Several nodes share a store on PostgreSQL; a SQLite file is one machine's, as its locks are.

**Kubernetes.** A pod of Ray is a node, with an address of its own, so a node has one replica of the gateway: the ports
are those of the configuration, and a Service spreads callers over the pods. The readiness of a pod is that of its
gateway: a pod without one gets no callers, and a gateway that leaves says so for long enough to get none any more
before it closes its ports. A pod that ends lets Ray know, and waits until its replicas have left (`leave`). An upgrade
replaces one after the other, as a next one has no room beside them. Models that are apart have pods of their own, each
large enough for the largest replica, and so many that all replicas fit, with one of each model's next version. Where a
Redis keeps Ray's tables, pods outlive their cluster's head, and go on with the next one.

**Changes.** Serve compares an application's arguments with those that it has, and does nothing where they are the same.
One of them is the `revision`, of what the configuration and the files say that it names: written and deployed again,
what has changed is served, and what has not is left alone. Secrets and their files are not part of it, as anybody may
read what is written here; they are read again by themselves, or when replicas start.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backends.errors import InvalidInput
from backends.ray_serve.options import DeploymentOptions
from gateway.cluster.apart import deployed
from gateway.cluster.application import end_s, replicated
from gateway.cluster.deployments import APP, GATEWAY, ONE_LOOP
from gateway.cluster.files import digests
from gateway.security import check_binding, is_loopback
from gateway.settings import Settings

_PROBE_S, _PROBES = 2, 2
_UNREADY_S = 4.0 * _PROBE_S * _PROBES
"""Until all who send callers know that a pod is not ready."""

_PLACE = "gateway"
"""A resource of Ray's, of which the nodes that are for gateways have one each."""

_CORES = 4
"""Of a pod for models without a GPU, at least."""

_IN_AN_UPGRADE = 1
"""Replicas of the next version of each model for which there is room beside all that there can be."""

_RAYS_BYTES = 2**30
"""Memory of a pod beside what replicas ask for: Ray's processes, and tensors on their way."""

_ELSEWHERE_S = 30
"""For replicas of a pod that ends to start elsewhere, before they end."""

_MODEL_END_S = 20.0
"""What a replica of a model gets to end, by Serve's defaults."""

_LAST_S = 30
"""For Ray itself to end."""

_OF_RAY = {
    "httpGet": {"path": "/api/local_raylet_healthz", "port": 52365},
    "periodSeconds": 5,
    "timeoutSeconds": 2,
    "failureThreshold": 10,
}
"""A pod for models is ready when its Ray is. KubeRay would ask for Serve's proxy too, which is not there
(ray-project/kuberay#4994).
"""

_DIGITS = 16
"""Of a revision."""

_LABELS = {"app.kubernetes.io/name": APP}
_OF_GATEWAYS = {**_LABELS, "app.kubernetes.io/component": "gateway"}


def serve_config(settings: Settings) -> str:
    """What `serve deploy` and `serve run` take, as YAML.

    Raises:
        InvalidInput: anybody could call, who needs no key.
        OSError: a file cannot be read.
    """
    _check_binding(settings)
    return yaml.safe_dump(_serve(_application(settings)), sort_keys=False)


def ray_service(settings: Settings, image: str, redis: str | None = None) -> str:
    """A RayService (ray.io/v1) and the Service in front of it, as YAML.

    Args:
        settings: what is served.
        image: has all that they name.
        redis: `host:port` of where Ray keeps its tables; None: in the memory of its head.

    Raises:
        InvalidInput: pods cannot be reached, or by anybody, or cannot share the store.
        OSError: a file cannot be read.
    """
    if is_loopback(settings.server.host):
        raise InvalidInput(
            f"a pod is reached by its address, and host {settings.server.host!r} lets nobody in; set `server: {{host: "
            "0.0.0.0}`, with API keys"
        )
    _check_binding(settings)
    if settings.cluster.replicas > 1 and isinstance(settings.store.place, Path):
        raise InvalidInput(
            f"pods cannot share the SQLite file {settings.store.place}; set `cluster: {{replicas: 1}}`, or have "
            "`store` name a PostgreSQL database"
        )
    application = _application(settings)
    application["args"]["unready_s"] = _UNREADY_S
    actor = {
        "num_cpus": settings.cluster.num_cpus,
        "resources": {_PLACE: 1},
        "runtime_env": {"env_vars": dict(ONE_LOOP)},
    }
    application["deployments"] = [{"name": GATEWAY, "max_surge_percent": 0, "ray_actor_options": actor}]
    ray = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": APP, "labels": _LABELS},
        "spec": {
            "serveConfigV2": yaml.safe_dump(_serve(application), sort_keys=False),
            "rayClusterConfig": {
                **({"gcsFaultToleranceOptions": {"redisAddress": redis}} if redis else {}),
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},  # Serve's controller, and no replica
                    "template": {"spec": {"containers": [{"name": "ray-head", "image": image}]}},
                },
                "workerGroupSpecs": [_gateways(settings, image), *_models(settings, image)],
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": APP, "labels": _LABELS},
        "spec": {
            "selector": _OF_GATEWAYS,
            "ports": [{"name": name, "port": port, "targetPort": name} for name, port in _ports(settings).items()],
        },
    }
    return "---\n".join(yaml.dump(one, Dumper=_Plain, sort_keys=False) for one in (ray, service))


def _check_binding(settings: Settings) -> None:
    """As `ray_app.AppArguments` does when it is deployed, which is later than need be.

    Raises:
        InvalidInput: see `check_binding`.
    """
    try:
        check_binding(settings.server.host, settings.security)
    except ValueError as error:
        raise InvalidInput(str(error)) from error


class _Plain(yaml.SafeDumper):
    """Writes what stands twice out twice, and a file within the file as it is."""

    def ignore_aliases(self, data: object) -> bool:
        """Always."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def _application(settings: Settings) -> dict[str, Any]:  # Any: YAML, here and below
    return {
        "name": APP,
        "route_prefix": None,
        "import_path": "gateway.ray_app:app",
        "args": {
            "config": str(settings.file.absolute()),
            "replicas": settings.cluster.replicas,
            "revision": revision(settings),
        },
    }


def revision(settings: Settings) -> str:
    """What tells *settings* from those that the same file said before: a digest of it, and of the files that it names.

    Raises:
        OSError: one cannot be read.
    """
    return hashlib.sha256(json.dumps([settings.text, digests(settings)]).encode()).hexdigest()[:_DIGITS]


def _serve(application: Mapping[str, Any]) -> dict[str, Any]:
    return {"proxy_location": "Disabled", "applications": [application]}


def _gateways(settings: Settings, image: str) -> dict[str, Any]:
    """The pods with a gateway each."""
    container = {
        **_container(image, {"cpu": str(max(1, math.ceil(settings.cluster.num_cpus)))}),
        "ports": [{"name": name, "containerPort": port} for name, port in _ports(settings).items()],
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
            "periodSeconds": _PROBE_S,
            "failureThreshold": _PROBES,
        },
    }
    template = {
        "metadata": {
            "labels": _OF_GATEWAYS,
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(settings.server.control_port),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": _leaving(container, end_s(replicated(settings.server), _UNREADY_S)),
    }
    return _group("gateways", settings.cluster.replicas, {"resources": f'"{{\\"{_PLACE}\\": 1}}"'}, template)


def _leaving(container: Mapping[str, Any], end_s: float) -> dict[str, Any]:
    """A pod of *container*, which waits until its replicas have left, of which each may take so long to end."""
    leave_s = math.ceil(end_s) + _ELSEWHERE_S
    hook = {"exec": {"command": ["python", "-m", "gateway.cluster.leave", str(leave_s)]}}
    return {
        "terminationGracePeriodSeconds": leave_s + _LAST_S,
        "containers": [{**container, "lifecycle": {"preStop": hook}}],
    }


def _models(settings: Settings, image: str) -> list[dict[str, Any]]:
    """The pods for replicas of models, those with GPUs and those without; none where no model is apart."""
    shares = [
        share for serve in deployed(settings) for share in [Share.of(serve)] * (serve.most_replicas + _IN_AN_UPGRADE)
    ]
    kinds = {
        "models": [share for share in shares if not share.gpus],
        "gpu-models": [share for share in shares if share.gpus],
    }
    return [_pods(name, asked, image) for name, asked in kinds.items() if asked]


@dataclass(frozen=True, slots=True)
class Share:
    """What a replica of a model has of a pod.

    Attributes:
        memory_bytes: None: nothing is said.
    """

    gpus: float
    cores: float
    memory_bytes: int | None

    @classmethod
    def of(cls, serve: DeploymentOptions) -> Share:
        """What a replica asks for."""
        return cls(serve.num_gpus, serve.num_cpus, serve.memory_bytes)


def packed(shares: Iterable[Share]) -> list[list[Share]]:
    """Pods, each with what it has room for: a share is never divided, and goes to the first pod that it fits into.

    A pod has as many GPUs as the largest share, rounded up; without any, as many cores, and `_CORES` at least.
    """
    largest_first = sorted(shares, key=lambda share: (share.gpus, share.cores), reverse=True)
    gpus = math.ceil(max(share.gpus for share in largest_first))
    cores = math.inf if gpus else max(_CORES, math.ceil(max(share.cores for share in largest_first)))
    pods: list[list[Share]] = []
    for share in largest_first:
        for pod in pods:
            beside = [*pod, share]
            if _sum(one.gpus for one in beside) <= gpus and _sum(one.cores for one in beside) <= cores:
                pod.append(share)
                break
        else:
            pods.append([share])
    return pods


def _sum(parts: Iterable[float]) -> float:
    """As Ray counts, by ten-thousandths."""
    return round(math.fsum(parts), 4)


def _pods(name: str, shares: Sequence[Share], image: str) -> dict[str, Any]:
    """The pods of group *name*, all alike."""
    pods = packed(shares)
    limits = {"cpu": str(max(1, math.ceil(max(_sum(share.cores for share in pod) for pod in pods))))}
    if gpus := math.ceil(max(share.gpus for share in shares)):
        limits["nvidia.com/gpu"] = str(gpus)
    container = _container(image, limits)
    if any(share.memory_bytes is not None for share in shares):
        most = max(sum(share.memory_bytes or 0 for share in pod) for pod in pods)
        memory = f"{math.ceil((most + _RAYS_BYTES) / 2**20)}Mi"
        container["resources"]["requests"]["memory"] = memory
        if all(share.memory_bytes is not None for share in shares):  # or others would have to do with what is left
            container["resources"]["limits"]["memory"] = memory
    container["readinessProbe"] = _OF_RAY
    return _group(name, len(pods), {}, {"spec": _leaving(container, _MODEL_END_S)})


def _group(name: str, pods: int, start: Mapping[str, str], template: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": pods,
        "minReplicas": pods,
        "maxReplicas": pods,
        "rayStartParams": dict(start),
        "template": template,
    }


def _container(image: str, limits: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "ray-worker",
        "image": image,
        "resources": {"requests": dict(limits), "limits": dict(limits)},
    }


def _ports(settings: Settings) -> dict[str, int]:
    server = settings.server
    return {"http": server.http_port, "grpc": server.grpc_port, "control": server.control_port}
