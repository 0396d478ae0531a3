"""The gateway behind Ray Serve's own proxy, on a cluster of this process's own.

python ingress_on_ray.py PORT CONFIG
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray  # in an environment of its own
from ray import serve

from gateway.ray_app import AppArguments, ingress

if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, namespace="serve", num_cpus=4)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(ingress(AppArguments(config=Path(sys.argv[2]), control_port=0)), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
