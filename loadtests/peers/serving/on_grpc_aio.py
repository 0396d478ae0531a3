"""What gRPC costs in Python without a gateway: grpc.aio over tritonclient's stubs, and nothing else.

python -m loadtests.peers.serving.on_grpc_aio PORT
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Doubler(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """`ModelInfer` over raw contents; nothing is checked."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name; Any: untyped
        """Twice the first tensor."""
        y = np.frombuffer(request.raw_input_contents[0], "<f4") * np.float32(2)
        output = service_pb2.ModelInferResponse.InferOutputTensor(
            name="y", datatype="FP32", shape=request.inputs[0].shape
        )
        return service_pb2.ModelInferResponse(
            model_name=request.model_name, outputs=[output], raw_output_contents=[y.tobytes()]
        )


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Doubler(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
