"""A Ray of several nodes on this machine, with the gateway on all of them but the head.

    python nodes.py CONFIG FOLDER

Ray keeps its files in FOLDER/ray, which is there, and the tables of its head in FOLDER/gcs. It follows `orders`:

    add             another node; its id, and the process that is its raylet
    serve           the gateway of CONFIG; where it listens, and the process that is the head's GCS
    drain NODE      let Ray know that the node is about to go
    back            another GCS in the place of the head's, which has been killed
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.cluster.launch import LOOPBACK  # imports nothing of Ray

os.environ |= {
    **LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0", "RAY_TMPDIR": sys.argv[2],
    "RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(Path(sys.argv[2]) / "gcs"),
}  # fmt: skip

import ray
from ray import serve
from ray.cluster_utils import Cluster

from gateway.cluster.leave import leave
from gateway.ports import address_of, held, port_of
from gateway.ray_app import AppArguments, app
from tests.integration.ray.clusters import NODE_CPUS
from tests.integration.ray.orders import follow

HOST = "127.0.0.1"
NOTICE_S = 60.0
# A node that is gone is known to be after seconds, and not half a minute.
_HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class Nodes:
    """The cluster, and what is asked of it."""

    def __init__(self, config: Path, stack: ExitStack) -> None:
        self._config = config
        self._stack = stack
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(self._cluster.shutdown)

    def add(self) -> dict[str, Any]:
        """Another node, for one replica of each kind."""
        node = self._cluster.add_node(num_cpus=NODE_CPUS)
        return {"node": node.node_id, "raylet": _pid(node, "raylet")}

    def serve(self) -> dict[str, Any]:
        """The gateway, on ports that are free."""
        ray.init(address=self._cluster.address, namespace="serve", log_to_driver=False)
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})
        http, grpc, control = (self._stack.enter_context(held(HOST, 0)) for _ in range(3))
        arguments = AppArguments(
            config=self._config, http_port=port_of(http), grpc_port=port_of(grpc), control_port=port_of(control)
        )
        control.close()  # replicas have ports of their own from there on
        serve.run(app(arguments), route_prefix=None)
        return {"http": address_of(http), "grpc": address_of(grpc), "gcs": _pid(self._cluster.head_node, "gcs_server")}

    def drain(self, node: str) -> dict[str, Any]:
        """What a provider's notice of a preemption comes to."""
        return {"why_not": leave(self._cluster.address, node, NOTICE_S)}

    def back(self) -> dict[str, Any]:
        """The head begins again, with the tables that the last one has left."""
        head = self._cluster.head_node
        head.kill_gcs_server(check_alive=False)
        head.start_gcs_server()
        return {"gcs": _pid(head, "gcs_server")}


def _pid(node: Any, process: str) -> int:  # Any: Ray's node
    return int(node.all_processes[process][0].process.pid)


def main() -> None:
    """Follow orders."""
    with ExitStack() as stack:
        follow(Nodes(Path(sys.argv[1]), stack))


if __name__ == "__main__":
    main()
