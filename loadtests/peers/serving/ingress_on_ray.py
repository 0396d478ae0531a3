"""The gateway behind Ray Serve's own proxies, on a cluster of this process's own.

python ingress_on_ray.py CONFIG PORT GRPC_PORT
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray  # in an environment of its own
from ray import serve

from gateway.ray_app import AppArguments, ingress
from loadtests.peers.serving.on_ray import ADD_SERVICE

if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, namespace="serve", num_cpus=4)
    config, port, grpc_port = sys.argv[1:]
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(port)},
        grpc_options={"port": int(grpc_port), "grpc_servicer_functions": [ADD_SERVICE]},
    )
    serve.run(ingress(AppArguments(config=Path(config), control_port=0)), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
