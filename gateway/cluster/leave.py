"""Leaving a node that is about to end, as a pod does on Kubernetes: its `preStop` hook.

    python -m gateway.cluster.leave SECONDS

Ray hears that the node goes, and when: Serve starts replicas of what runs here elsewhere, where there is room, and ends
these in order, in time. Returns once they have ended, which is when Kubernetes sends SIGTERM to Ray; that would kill
them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_S = 0.5
_REPLICA = b"ray::ServeReplica"
_WHY = "its pod ends"


def leave(address: str, node: str, within_s: float) -> str:
    """Let the Ray at *address* know that *node* is about to go; why it does not take that, or ''."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    until_ms = round((time.time() + within_s) * 1e3)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, why_not = GcsClient(address=address).drain_node(node, reason, _WHY, until_ms)
    return "" if is_accepted else str(why_not) or "Ray says nothing"


def replicas_here(processes: Path = Path("/proc")) -> int:
    """Serve's replicas on this machine, which is a node where it is a pod."""
    return sum(_title(process).startswith(_REPLICA) for process in processes.glob("[0-9]*/cmdline"))


def _title(process: Path) -> bytes:
    try:
        return process.read_bytes()
    except OSError:  # it has ended
        return b""


def wait_gone(replicas: Callable[[], int], within_s: float) -> bool:
    """Whether *replicas* come to be none."""
    until = time.monotonic() + within_s
    while replicas():
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def main(within_s: float) -> str | None:
    """Have this node left; why it cannot be in order, or None."""
    if not replicas_here():
        return None
    import ray

    ray.init(address="auto", namespace="serve", log_to_driver=False, configure_logging=False)
    context = ray.get_runtime_context()
    if why_not := leave(context.gcs_address, context.get_node_id(), within_s):
        return f"this node cannot be left in order: {why_not}"
    return None if wait_gone(replicas_here, within_s) else f"replicas are still here after {within_s:g} s"


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
