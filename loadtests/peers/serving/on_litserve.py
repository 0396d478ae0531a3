"""A `LitAPI`, by itself or with LitServe's batching.

python on_litserve.py PORT MAX_BATCH
"""

from __future__ import annotations

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]  # in an environment of its own
import numpy as np


class Doubler(litserve.LitAPI):  # type: ignore[misc]  # untyped here
    """Twice what comes in; LitServe stacks the arrays of a batch, and takes them apart again."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would take a type for a schema
        """Numbers to an array."""
        return np.array(request["x"], np.float32)

    def predict(self, x: Any) -> Any:
        """As LitServe calls it."""
        return x * np.float32(2)

    def encode_response(self, output: Any) -> Any:
        """An array to numbers."""
        return {"y": output.tolist()}


if __name__ == "__main__":
    port, max_batch = map(int, sys.argv[1:])
    api = Doubler(max_batch_size=max_batch, batch_timeout=0.0)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning"
    )
