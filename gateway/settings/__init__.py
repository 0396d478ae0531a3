"""The configuration: one YAML file in, frozen options or every fault at once out.

    file ──► document (data with places) ──► written (sections, by pydantic) ──► load (sections against each other)

`load_settings` reads and checks, `settings_schema` describes; `Settings` is all that the rest of the gateway sees.
"""

from gateway.settings.document import Fault
from gateway.settings.load import SettingsError, load_api_keys, load_settings, load_store, parse_settings
from gateway.settings.options import (
    MAX_WORKERS,
    CertifiedSettings,
    ClusterOptions,
    ControlMode,
    DetectorSettings,
    ModelSettings,
    RouteSettings,
    ServerOptions,
    Settings,
)
from gateway.settings.schema import settings_schema

__all__ = [
    "MAX_WORKERS",
    "CertifiedSettings",
    "ClusterOptions",
    "ControlMode",
    "DetectorSettings",
    "Fault",
    "ModelSettings",
    "RouteSettings",
    "ServerOptions",
    "Settings",
    "SettingsError",
    "load_api_keys",
    "load_settings",
    "load_store",
    "parse_settings",
    "settings_schema",
]
