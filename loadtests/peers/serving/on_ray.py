"""A deployment of Ray Serve on a cluster of this process's own.

python on_ray.py PORT [GRPC_PORT]
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

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802  # the protocol's name
        """The same over gRPC. Any: a `Message`."""
        from tritonclient.grpc import service_pb2 as messages  # in the environment of whoever asks for gRPC

        asked = messages.ModelInferRequest.FromString(request.SerializeToString())
        x = np.frombuffer(asked.raw_input_contents[0], np.float32)
        reply = messages.ModelInferResponse(model_name=asked.model_name)
        reply.outputs.add(name="y", datatype="FP32", shape=asked.inputs[0].shape)
        reply.raw_output_contents.append((x * np.float32(2)).tobytes())
        return type(request)(reply.SerializeToString())


ADD_SERVICE = "gateway.cluster.proxied.add_inference_service"
"""What Serve's gRPC proxy is told of the service by: it passes messages on in bytes."""

DEPLOYMENT: Any = serve.deployment(max_ongoing_requests=256)(Doubles)


if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    port, *grpc_ports = map(int, sys.argv[1:])
    grpc_options = {"port": grpc_ports[0], "grpc_servicer_functions": [ADD_SERVICE]} if grpc_ports else None
    serve.start(http_options={"host": "127.0.0.1", "port": port}, grpc_options=grpc_options)
    serve.run(DEPLOYMENT.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
