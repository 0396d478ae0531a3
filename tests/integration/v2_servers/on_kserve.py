"""The models of `servers`, as custom predictors of KServe's SDK 0.21, and a server of them on this machine alone.

    python on_kserve.py --http_port PORT --grpc_port PORT --enable_latency_logging false

It runs in an environment of its own. The SDK's servers listen on every address and have no option for that; what is
replaced here keeps them on 127.0.0.1, and changes nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, TypeAlias
from uuid import uuid4

import kserve.model_server  # type: ignore[import-not-found]  # in an environment of its own
import kserve.protocol.grpc.server  # type: ignore[import-not-found]
import numpy as np
from grpc import aio
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.rest.server import RESTServer  # type: ignore[import-not-found]
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # Any: of each model's datatype
Types: TypeAlias = list[dict[str, Any]]  # Any: JSON


def _types(datatype: str, shape: list[int], *names: str) -> Types:
    return [{"name": name, "datatype": datatype, "shape": shape} for name in names]


class _Model(Model):  # type: ignore[misc]  # untyped here
    inputs: ClassVar[Types]
    outputs: ClassVar[Types]

    def get_input_types(self) -> Types:
        """As KServe asks."""
        return self.inputs

    def get_output_types(self) -> Types:
        """As KServe asks."""
        return self.outputs

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """As KServe calls it."""
        given = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        answer = await self.compute(**given)
        return InferResponse(
            response_id=payload.id or str(uuid4()),  # its HTTP server fails on an answer without
            model_name=self.name,
            infer_outputs=[self.output(name, array, payload.use_binary_outputs) for name, array in answer.items()],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def output(self, name: str, array: Array, is_binary: bool) -> InferOutput:
        """As the SDK's `get_predict_response` makes one."""
        output = InferOutput(name=name, datatype=self.outputs[0]["datatype"], shape=list(array.shape))
        output.set_data_from_numpy(array, binary_data=is_binary)
        return output

    async def compute(self, **given: Array) -> dict[str, Array]:
        """Outputs by name."""
        raise NotImplementedError


class Dbl(_Model):
    """y = 2x, FP32."""

    inputs = _types("FP32", [-1, 16], "x")
    outputs = _types("FP32", [-1, 16], "y")

    async def compute(self, **given: Array) -> dict[str, Array]:
        """See `_Model`."""
        return {"y": given["x"] * np.float32(2)}


class Text(_Model):
    """y = x, BYTES."""

    inputs = _types("BYTES", [-1, 1], "x")
    outputs = _types("BYTES", [-1, 1], "y")

    async def compute(self, **given: Array) -> dict[str, Array]:
        """See `_Model`."""
        return {"y": given["x"]}


class Sums(_Model):
    """sum = a + b, difference = a - b, INT32."""

    inputs = _types("INT32", [-1, -1], "a", "b")
    outputs = _types("INT32", [-1, -1], "sum", "difference")

    async def compute(self, **given: Array) -> dict[str, Array]:
        """See `_Model`."""
        a, b = given["a"], given["b"]
        return {"sum": a + b, "difference": a - b}

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """With lists for outputs, as the SDK's examples have them: by gRPC they are typed, whatever was asked."""
        answer = await self.compute(**{tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = [
            InferOutput(name=name, datatype="INT32", shape=list(array.shape), data=array.flatten().tolist())
            for name, array in answer.items()
        ]
        return InferResponse(response_id=payload.id or str(uuid4()), model_name=self.name, infer_outputs=outputs)


class Fails(Dbl):
    """Never answers."""

    async def compute(self, **given: Array) -> dict[str, Array]:
        """See `_Model`."""
        raise ValueError("this model always fails")


class Waits(_Model):
    """y = x, after x[0] seconds."""

    inputs = _types("FP32", [-1, 1], "x")
    outputs = _types("FP32", [-1, 1], "y")

    async def compute(self, **given: Array) -> dict[str, Array]:
        """See `_Model`."""
        await asyncio.sleep(float(given["x"].flat[0]))
        return {"y": given["x"]}


class LocalRESTServer(RESTServer):  # type: ignore[misc]  # untyped here
    """KServe's own, on one address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.host = "127.0.0.1"


class _LocalAio:
    """`grpc.aio`, whose servers listen on one address."""

    @staticmethod
    def server(*args: Any, **kwargs: Any) -> aio.Server:
        server = aio.server(*args, **kwargs)
        listen = server.add_insecure_port
        server.add_insecure_port = lambda address: listen(address.replace("[::]", "127.0.0.1"))  # type: ignore[method-assign]
        return server


if __name__ == "__main__":
    kserve.model_server.RESTServer = LocalRESTServer
    kserve.protocol.grpc.server.aio = _LocalAio
    models = [Dbl("dbl"), Text("text"), Sums("sums"), Fails("fails"), Waits("waits")]
    for model in models:
        model.load()
    ModelServer().start(models)
