"""How sure a model is of its answers, as one more output of it.

A confidence is worked out where the outputs are still one batch: NumPy takes as long for one row as for sixty, so that
doing it for each caller apart would cost more than routing and judging together. It then travels like every other
output, which the batcher hands to the caller whose row it is.

An output that the batcher cuts back to the length of each item is another case. Before that it is as long as the
longest item in the batch, and how sure a model is would depend on the company (an entropy is told in units of the
number of classes): such a confidence is worked out where the item is alone again, by `Scoring`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Ragged,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from backends.errors import InvalidInput
from router.calibration import Calibrator, confidences
from router.confidence import Measure, is_quick, measured

CONFIDENCE = "pointsman.confidence"
"""The output that `Scored` adds: FP64, one an item, NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How sure a model is: *calibrator*'s reading of *measure*."""

    measure: Measure
    calibrator: Calibrator

    async def of(self, outputs: Tensors, size: int) -> NDArray[np.float64]:
        """Of *size* items: (size,), NaN where there is none."""
        if is_quick(self.measure, outputs):
            return self._now(outputs, size)
        return await asyncio.to_thread(self._now, outputs, size)

    def _now(self, outputs: Tensors, size: int) -> NDArray[np.float64]:
        name = measured(self.measure, outputs)
        if name is None or not isinstance(rows := outputs[name].data, Ragged) or len(rows.rows) != size:
            return confidences(self.measure, self.calibrator, outputs, size)
        datatype = outputs[name].datatype
        return np.array(
            [
                confidences(self.measure, self.calibrator, {name: Tensor.of(row[np.newaxis], datatype)}, 1)[0]
                for row in rows.rows
            ]
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """A backend with the calibrated confidence as an output beside its own; owns *backend*."""

    backend: Backend
    scoring: Scoring
    signature: Signature

    @classmethod
    def of(cls, model_name: str, backend: Backend, scoring: Scoring) -> Scored:
        """Score *backend* by *scoring*.

        Raises:
            InvalidInput: it has an output of that name already.
        """
        own = backend.signature
        if any(spec.name == CONFIDENCE for spec in own.outputs):
            raise InvalidInput(f"model {model_name!r} has an output {CONFIDENCE!r}, which is the gateway's; rename it")
        spec = TensorSpec(CONFIDENCE, Datatype.FP64, ())
        return cls(backend, scoring, Signature(own.inputs, (*own.outputs, spec)))

    @property
    def version(self) -> str:
        """The backend's."""
        return self.backend.version

    @property
    def limits(self) -> Limits:
        """The backend's."""
        return self.backend.limits

    @property
    def state(self) -> State:
        """The backend's."""
        return self.backend.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """The backend's outputs, and how sure it is of each item."""
        outputs = await self.backend.infer(batch, deadline)
        sure = await self.scoring.of(outputs, batch.size)
        return {**outputs, CONFIDENCE: Tensor(Datatype.FP64, sure.shape, sure)}

    async def aclose(self) -> None:
        """Close the backend."""
        await self.backend.aclose()


def scores_of(outputs: Tensors) -> tuple[Tensors, NDArray[np.float64]]:
    """A scored model's own outputs, and its confidences, (n,)."""
    own = dict(outputs)
    sure: NDArray[np.float64] = own.pop(CONFIDENCE).numpy()  # as `Scored.infer` made it
    return own, sure
