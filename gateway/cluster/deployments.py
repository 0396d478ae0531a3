"""What deployments of the gateway's and of its models' have in common on Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

LOOK_S = 0.1
"""Between two looks of Serve's whether a replica that leaves has calls by handle left, before `__del__`."""

STARTS = 3
"""Failures to start, in all, after which Serve gives up; what is at fault is seldom another machine's."""

HEALTH: Mapping[str, Any] = {"health_check_period_s": 5.0, "health_check_timeout_s": 10.0}

QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""A line for each call would cost more than the call."""


def in_environment(environment: Mapping[str, str]) -> Mapping[str, Any]:
    """Options of an actor that has *environment*. Any: each option has its own."""
    return {"runtime_env": {"env_vars": dict(environment)}} if environment else {}
