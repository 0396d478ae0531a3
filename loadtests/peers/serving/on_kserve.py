"""A custom predictor of KServe's SDK.

    python on_kserve.py --http_port PORT --enable_grpc false --enable_latency_logging false

Its server listens on every address and has no option for that; the subclass keeps it on this machine.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import kserve.model_server  # type: ignore[import-not-found]  # in an environment of its own
import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.rest.server import RESTServer  # type: ignore[import-not-found]


class Doubler(Model):  # type: ignore[misc]  # untyped here
    """Twice the first tensor."""

    def load(self) -> bool:
        """Nothing to load."""
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """As KServe calls it."""
        x = payload.inputs[0]
        y = InferOutput(name="y", datatype="FP32", shape=x.shape)
        y.set_data_from_numpy(x.as_numpy() * np.float32(2), binary_data=False)
        return InferResponse(response_id=payload.id or str(uuid4()), model_name=self.name, infer_outputs=[y])


class LocalServer(RESTServer):  # type: ignore[misc]  # untyped here
    """KServe's own, on one address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.host = "127.0.0.1"


if __name__ == "__main__":
    kserve.model_server.RESTServer = LocalServer
    model = Doubler("dbl")
    model.load()
    ModelServer().start([model])
