"""Loading and unloading in Triton's explicit mode, step by step on both servers: what differs is in `DIFFERENCES`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.conformance.repository import configuration, write_repository
from tests.conformance.triton import triton, why_not
from tests.integration.process import running

Step = Callable[[Any, Any], object]  # Any: tritonclient, which is untyped, as a client and its module
LOADED = ("dbl", "sums")


def _state(client: Any, _: Any) -> object:
    """What the index says of `dbl`, once it is no longer on its way out."""
    while True:
        index = client.get_model_repository_index()
        rows = (
            index
            if isinstance(index, list)
            else [
                {"name": row.name, "version": row.version, "state": row.state, "reason": row.reason}
                for row in index.models
            ]
        )
        (row,) = (row for row in rows if row["name"] == "dbl")
        if row.get("state") not in ("UNLOADING", "LOADING"):
            return row.get("version"), row.get("state"), row.get("reason", "")
        time.sleep(0.02)


def _infer(client: Any, module: Any) -> object:
    tensor = module.InferInput("x", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 16), np.float32))
    return client.infer("dbl", [tensor]).as_numpy("y").tolist()


def _counted(client: Any, _: Any) -> tuple[int, ...]:
    """Of `dbl`: inferences, executions, requests that succeeded, and batches of one, as far as they were counted."""
    found = client.get_inference_statistics("dbl", **({} if isinstance(client, _HTTP) else {"as_json": True}))
    (row,) = found["model_stats"]
    succeeded = row.get("inference_stats", {}).get("success", {}).get("count", 0)
    ones = [batch["compute_infer"]["count"] for batch in row.get("batch_stats", []) if int(batch["batch_size"]) == 1]
    return tuple(
        int(value) for value in (row.get("inference_count", 0), row.get("execution_count", 0), succeeded, *ones)
    )


def _counted_once(client: Any, module: Any) -> object:
    """The same, once anything was: Triton counts a request a moment after it has answered it."""
    while not any(found := _counted(client, module)):
        time.sleep(0.02)
    return found


_HTTP = tritonclient.http.InferenceServerClient

STEPS: Mapping[str, Step] = {
    "at first": _state,
    "load again": lambda client, _: client.load_model("dbl"),
    "still there": _infer,
    "counted": _counted_once,
    "unload": lambda client, _: client.unload_model("dbl"),
    "unloaded": _state,
    "ready": lambda client, _: client.is_model_ready("dbl"),
    "server ready": lambda client, _: client.is_server_ready(),
    "infer": _infer,
    "metadata": lambda client, _: bool(client.get_model_metadata("dbl")),
    "others": lambda client, _: client.is_model_ready("sums"),
    "unload again": lambda client, _: client.unload_model("dbl"),
    "load": lambda client, _: client.load_model("dbl"),
    "loaded": _state,
    "counted anew": _counted,
    "back": _infer,
    "counted again": _counted_once,
    "unload with dependents": lambda client, _: client.unload_model("dbl", unload_dependents=True),
    "load at the end": lambda client, _: client.load_model("dbl"),
    "load of no model": lambda client, _: client.load_model("nowhere"),
    "unload of no model": lambda client, _: client.unload_model("nowhere"),
}


def played(module: Any, address: str) -> dict[str, object]:
    """What a user sees at each step."""
    found: dict[str, object] = {}
    client = module.InferenceServerClient(address)
    for name, step in STEPS.items():
        try:
            found[name] = step(client, module)
        except InferenceServerException as error:
            found[name] = f"refused: {error.status()}"
    client.close()
    return found


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[str, str]]]:
    """By protocol: where Triton listens, and the gateway, both of which load models when told to."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("explicit")
    options = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in LOADED))
    with (
        triton(folder, write_repository(folder / "models"), *options) as theirs,
        running(tmp_path_factory.mktemp("gateway"), configuration(model_control="explicit")) as process,
    ):
        yield {"http": (theirs.http, process.http.removeprefix("http://")), "grpc": (theirs.grpc, process.grpc)}


# A model that is unloaded is known, and may come back: what it takes is still told, and to ask it is UNAVAILABLE rather
# than NOT_FOUND, as for a route none of whose stages is available. A name that means nothing is NOT_FOUND, to load it
# (which is no fault of the server) and to unload it (which would hide a typing error).
DIFFERENCES: Mapping[str, Mapping[str, tuple[object, object]]] = {
    "http": {
        "infer": ("refused: 404", "refused: 503"),
        "metadata": ("refused: 404", True),
        "load of no model": ("refused: 500", "refused: 404"),
        "unload of no model": (None, "refused: 404"),
    },
    "grpc": {
        "infer": ("refused: StatusCode.NOT_FOUND", "refused: StatusCode.UNAVAILABLE"),
        "metadata": ("refused: StatusCode.NOT_FOUND", True),
        "load of no model": ("refused: StatusCode.INTERNAL", "refused: StatusCode.NOT_FOUND"),
        "unload of no model": (None, "refused: StatusCode.NOT_FOUND"),
    },
}


@pytest.mark.parametrize(("protocol", "module"), [("http", tritonclient.http), ("grpc", tritonclient.grpc)])
def test_loading_and_unloading_look_as_in_triton(
    explicit: Mapping[str, tuple[str, str]], protocol: str, module: Any
) -> None:
    theirs, ours = (played(module, address) for address in explicit[protocol])

    assert {name: (theirs[name], ours[name]) for name in STEPS if theirs[name] != ours[name]} == DIFFERENCES[protocol]
