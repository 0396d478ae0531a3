"""A custom runtime of MLServer, named by the model settings that its environment is started with."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]  # in an environment of its own
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]


class Doubler(MLModel):  # type: ignore[misc]  # untyped here
    """Twice the first tensor."""

    async def load(self) -> bool:
        """Nothing to load."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        y = NumpyCodec.decode_input(payload.inputs[0]) * np.float32(2)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
