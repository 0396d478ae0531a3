"""The models of `servers`, as custom runtimes of MLServer 1.7: it imports this file, in an environment of its own.

Tensors are decoded by hand, not by MLServer's codecs: those take the last axis of a BYTES tensor for the length of its
elements, and leave axes of outputs to the codec.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]  # in an environment of its own
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput  # type: ignore[import-not-found]
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # Any: of each model's datatype

_NUMPY = {"FP32": np.float32, "INT32": np.int32}


def _array(payload: InferenceRequest, name: str) -> Array:
    (found,) = (tensor for tensor in payload.inputs if tensor.name == name)
    datatype = getattr(found.datatype, "value", found.datatype)  # an enumeration by HTTP, a string by gRPC
    return np.array(found.data.root, _NUMPY[datatype]).reshape(found.shape)


def _output(name: str, array: Array) -> ResponseOutput:
    datatype = {"f": "FP32", "i": "INT32"}[array.dtype.kind]
    return ResponseOutput(name=name, datatype=datatype, shape=list(array.shape), data=array.flatten().tolist())


class _Model(MLModel):  # type: ignore[misc]  # untyped here
    async def load(self) -> bool:
        """Nothing to load."""
        return True

    def _answer(self, *outputs: ResponseOutput) -> InferenceResponse:
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=list(outputs))


class Dbl(_Model):
    """y = 2x, FP32."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        return self._answer(_output("y", _array(payload, "x") * np.float32(2)))


class Text(_Model):
    """y = x, BYTES."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        (x,) = payload.inputs
        data = np.array(x.data.root, object).flatten().tolist()  # strings by HTTP, bytes by gRPC
        return self._answer(ResponseOutput(name="y", datatype="BYTES", shape=x.shape, data=data))


class Sums(_Model):
    """sum = a + b, difference = a - b, INT32."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        a, b = _array(payload, "a"), _array(payload, "b")
        return self._answer(_output("sum", a + b), _output("difference", a - b))


class Fails(_Model):
    """Never answers."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        raise ValueError("this model always fails")


class Waits(_Model):
    """y = x, after x[0] seconds."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """As MLServer calls it."""
        x = _array(payload, "x")
        await asyncio.sleep(float(x.flat[0]))
        return self._answer(_output("y", x))
