"""A deployment of Ray Serve on a cluster of this process's own.

python on_ray.py PORT
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np
import ray  # in an environment of its own
from ray import serve
from starlette.requests import Request


class Doubles:
    """Twice what comes in."""

    async def __call__(self, request: Request) -> Any:
        """As Ray Serve calls it."""
        x = np.array((await request.json())["x"], np.float32)
        return {"y": (x * np.float32(2)).tolist()}


DEPLOYMENT: Any = serve.deployment(max_ongoing_requests=256)(Doubles)


if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(DEPLOYMENT.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
