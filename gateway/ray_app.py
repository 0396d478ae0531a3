"""What `serve run`, `serve deploy` and a RayService import: applications of Ray Serve, from the gateway's own YAML.

    serve run gateway.ray_app:app config=my.yaml              listeners of our own; Serve without proxies
    serve run gateway.ray_app:ingress config=my.yaml          behind Serve's own proxy, or HAProxy

For the first, start Serve without its proxies, which would take port 8000 (`serve start --proxy-location Disabled`, or
`proxy_location: Disabled` in the file for `serve deploy`, as `pointsman cluster config my.yaml` writes it). On one
machine `pointsman cluster up my.yaml` does all of it. `gateway.cluster` tells how it works.
"""

# No `from __future__ import annotations`: Serve looks at the builders' annotations as they are.
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from ray.serve import Application


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
    """The gateway with listeners of its own.

    Raises:
        SettingsError, ValueError, PointsmanError: why not.
    """
    from gateway.cluster.application import application

    return application(arguments.settings(), log_level=arguments.log_level, unready_s=arguments.unready_s)


def ingress(arguments: AppArguments) -> "Application":
    """The gateway behind Serve's listeners; it has a control port of its own nevertheless.

    Raises:
        SettingsError, ValueError, PointsmanError: why not.
    """
    from gateway.cluster.application import application

    return application(arguments.settings(), behind_serve=True, log_level=arguments.log_level)
