"""What `serve run`, `serve deploy` and a RayService import: applications of Ray Serve, from the gateway's own YAML.

    serve run gateway.ray_app:app config=my.yaml              listeners of our own; Serve without proxies
    serve run gateway.ray_app:ingress config=my.yaml          behind Serve's own proxy, or HAProxy

For the first, start Serve without its proxies, which would take port 8000 (`serve start --proxy-location Disabled`, or
`proxy_location: Disabled` in the file for `serve deploy`, as `pointsman cluster config my.yaml` writes it). On one
machine `pointsman cluster up my.yaml` does all of it. `gateway.cluster` tells how it works, and its `versions` how
what is served is kept by number.

`serve deploy` compares arguments, and not the files that they name: with the same ones it leaves everything as it is.
`revision` is there to be another one then; `pointsman cluster config` writes one that follows from the contents.
"""

# No `from __future__ import annotations`: Serve looks at the builders' annotations as they are.
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from ray.serve import Application

    from gateway.cluster.apart import Models


class AppArguments(BaseModel):
    """What can be said after the import path, as NAME=VALUE; ports and replicas go before what the file says."""

    model_config = ConfigDict(extra="forbid")

    config: Path = Field(description="The configuration, where each node has it and what it names.")
    host: str | None = None
    http_port: int | None = Field(default=None, ge=0, le=65535)
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    control_port: int | None = Field(default=None, ge=0, le=65535)
    replicas: int | None = Field(default=None, ge=1)
    insecure: bool = False
    log_level: str = "INFO"
    unready_s: float = Field(
        default=0.0, ge=0, description="For how long a replica that leaves only says so, for a balancer to hear."
    )
    revision: str | None = Field(default=None, description="Any text; with another one it is deployed anew.")

    def settings(self) -> Settings:
        """The configuration, with what was said.

        Raises:
            SettingsError: it cannot be used.
            ValueError: others could call, and need no key.
        """
        from gateway.security import check_binding

        settings = load_settings(self.config)
        listening = self.model_dump(include={"host", "http_port", "grpc_port", "control_port"}, exclude_none=True)
        settings = replace(settings, server=replace(settings.server, **listening))
        if self.replicas is not None:
            settings = replace(settings, cluster=replace(settings.cluster, replicas=self.replicas))
        check_binding(settings.server.host, settings.security, self.insecure)
        return settings


def app(arguments: AppArguments) -> "Application":
    """The gateway with listeners of its own; its models that are apart from it serve when this returns.

    Raises:
        SettingsError, ValueError, RayServeException: why not.
    """
    return _application(arguments, behind_serve=False)


def ingress(arguments: AppArguments) -> "Application":
    """As `app`, but the gateway is behind Serve's listeners; it has a control port of its own nevertheless.

    Raises:
        SettingsError, ValueError, RayServeException: why not.
    """
    return _application(arguments, behind_serve=True)


def _application(arguments: AppArguments, *, behind_serve: bool) -> "Application":
    from gateway.cluster.application import application

    settings = arguments.settings()
    return application(
        settings,
        _deployed_apart(settings),
        behind_serve=behind_serve,
        log_level=arguments.log_level,
        unready_s=arguments.unready_s,
    )


def _deployed_apart(settings: Settings) -> "Models":
    """See `deploy_apart`; on the cluster that this process is part of, or the one that is found from here.

    Raises:
        RayServeException: they cannot; Serve would try the same again after any other error.
    """
    import ray
    from ray.serve.exceptions import RayServeException

    from gateway.cluster.apart import Models, deploy_apart, deployed
    from gateway.cluster.deployments import ONE_LOOP
    from gateway.cluster.rollout import ClusterFailed, Patience

    if not ray.is_initialized():  # `serve run` asks for the application before it connects
        if not deployed(settings):
            return Models()
        ray.init(address="auto", namespace="serve")
    try:
        return deploy_apart(settings, ONE_LOOP, Patience())
    except ClusterFailed as error:
        raise RayServeException(str(error)) from error
