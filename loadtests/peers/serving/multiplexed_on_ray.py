"""Models that share replicas by Ray Serve's own multiplexing, on a cluster of this process's own.

python multiplexed_on_ray.py PORT FOLDER REPLICAS MODELS_A_REPLICA
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import ray  # in an environment of its own
from ray import serve
from starlette.requests import Request

_AT_HAND_S = 0.002
"""Nothing that is loaded takes longer to be had."""


def shelf(most: int) -> Any:  # Any: Serve's deployment
    """A deployment whose replicas have *most* models in memory each, as Serve's documentation has it."""

    class Shelf:
        """Models by their names, from files."""

        def __init__(self, folder: str) -> None:
            self._folder = Path(folder)

        @serve.multiplexed(max_num_models_per_replica=most)  # type: ignore[untyped-decorator]
        async def model(self, name: str) -> Any:
            """Loaded, off the loop."""
            return await asyncio.to_thread(self._open, name)

        def _open(self, name: str) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(self._folder / f"{name}.onnx"), options)
            session.run(None, {"x": np.zeros((1, 16), np.float32)})
            return session

        async def __call__(self, request: Request) -> Any:
            """As Ray Serve calls it."""
            began = time.perf_counter()
            session = await self.model(serve.get_multiplexed_model_id())
            cold = time.perf_counter() - began > _AT_HAND_S
            x = np.array((await request.json())["x"], np.float32)
            return {"y": session.run(None, {"x": x})[0].tolist(), "cold": cold}

    return serve.deployment(max_ongoing_requests=16, ray_actor_options={"num_cpus": 0.1})(Shelf)


if __name__ == "__main__":
    port, folder, replicas, most_models = sys.argv[1:]
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    deployment = shelf(int(most_models)).options(num_replicas=int(replicas))
    serve.run(deployment.bind(folder), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
