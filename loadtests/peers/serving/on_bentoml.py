"""Two services of BentoML, one of them with its adaptive batching.

bentoml serve on_bentoml:Doubler --host 127.0.0.1 --port PORT
"""

from __future__ import annotations

import bentoml  # type: ignore[import-not-found]  # in an environment of its own
import numpy as np


@bentoml.service
class Doubler:
    """Every request by itself."""

    @bentoml.api  # type: ignore[untyped-decorator]
    def infer(self, x: np.ndarray) -> np.ndarray:
        """Twice what comes in."""
        return x.astype(np.float32) * np.float32(2)


@bentoml.service
class BatchedDoubler:
    """Requests that wait are joined."""

    @bentoml.api(batchable=True, max_batch_size=64)  # type: ignore[untyped-decorator]
    def infer(self, x: np.ndarray) -> np.ndarray:
        """Twice what comes in."""
        return x.astype(np.float32) * np.float32(2)
