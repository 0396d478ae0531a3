"""What Serve's control loop makes of our policy, by its own delay logic, on a clock that goes as fast as it can.

    python scaled.py                 reads loads as JSON from stdin, writes the replicas at every second of each

In a process of its own: Ray looks at its environment when it is imported, and other tests say what is in it.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

from backends.ray_serve.options import ScalingOptions
from backends.ray_serve.scaling import BUSY, CALLS, DELAY, MISSES
from gateway.cluster.apart import _autoscaling

SCALING = ScalingOptions(most=8, queue_delay_s=0.02, up_after_s=5.0, down_after_s=60.0)
_CALLS_PER_S = 100.0


def replicas_of(load: dict[str, Any], seconds: int, replicas: int) -> list[int]:
    """The replicas at each second, from so many on.

    Args:
        load: `work`, in replicas that it keeps busy; `delay_s`, of batches, whatever replicas there are; `misses` a
            second, likewise.
    """
    config = AutoscalingConfig(**_autoscaling(SCALING, replicas))
    policy = autoscaling_policy._apply_autoscaling_config(autoscaling_policy_of(config))
    clock = SimpleNamespace(now=1e9)
    autoscaling_policy.time = SimpleNamespace(time=lambda: clock.now)
    state: dict[str, Any] = {}
    queue_s, found = 0.0, []
    for _ in range(seconds):
        clock.now += 1.0
        queue_s = max(0.0, queue_s + load["work"] / replicas - 1.0)
        told = {
            DELAY: load.get("delay_s", 0.0) + queue_s,
            BUSY: min(1.0, load["work"] / replicas),
            MISSES: load.get("misses", 0.0) / replicas,
            CALLS: _CALLS_PER_S / replicas,
        }
        context = SimpleNamespace(
            config=config, policy_state=state, current_num_replicas=replicas, target_num_replicas=replicas,
            total_num_requests=0.0,
            aggregated_metrics={name: dict.fromkeys(range(replicas), value) for name, value in told.items()},
        )  # fmt: skip
        wanted, state = policy(context)
        replicas = min(SCALING.most, max(SCALING.least, wanted))
        found.append(replicas)
    return found


def autoscaling_policy_of(config: AutoscalingConfig) -> Any:
    """Ours, as Serve makes it."""
    from ray.serve._private.autoscaling_state import _resolve_policy_callable

    return _resolve_policy_callable(config.policy)


if __name__ == "__main__":
    print(json.dumps([replicas_of(*words) for words in json.load(sys.stdin)]))
