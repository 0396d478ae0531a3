"""A route in two versions looks to clients like a model of which Triton serves two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.conformance.conftest import Server, Servers
from tests.conformance.repository import only, write_repository
from tests.conformance.triton import triton, why_not
from tests.integration.process import running

MODEL = {
    "backend": "python",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [16]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [16]}],
    "max_batch": 64,
}
CONFIG = {
    "models": {
        "twice": {**MODEL, "target": "tests.conformance.models:double"},
        "once": {**MODEL, "target": "tests.conformance.models:same"},
    },
    "routes": {
        "dbl": {
            "input": {"x": {"datatype": "FP32", "shape": [16]}},
            "accept": {"observe": True},
            "versions": {"1": {"cascade": ["twice"]}, "2": {"cascade": ["once"]}},
        }
    },
    "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both, of whose model `dbl` version 1 doubles and version 2 repeats what it gets."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("versions")
    models = write_repository(folder / "models", only("dbl"))
    shutil.copytree(models / "dbl" / "1", models / "dbl" / "2")
    functions = models / "dbl" / "2" / "models.py"
    functions.write_text(functions.read_text().replace("np.float32(2)", "np.float32(1)"))
    config = models / "dbl" / "config.pbtxt"
    config.write_text(config.read_text() + "\nversion_policy { all { } }\n")
    (folder / "triton").mkdir()
    with (
        triton(folder / "triton", models) as real,
        running(tmp_path_factory.mktemp("gateway"), json.dumps(CONFIG)) as gateway,
    ):
        yield Servers(Server(real.http, real.grpc), Server(gateway.http.removeprefix("http://"), gateway.grpc))


def asked(client: Any, module: Any, version: str) -> tuple[str, float] | str:
    """The version that answers, and what it makes of 1; or that there is none (Any: tritonclient is untyped)."""
    x = module.InferInput("x", [1, 16], "FP32")
    x.set_data_from_numpy(np.ones((1, 16), np.float32))
    try:
        result = client.infer("dbl", [x], model_version=version)
    except module.InferenceServerException:
        return "refused"
    response = result.get_response()
    told = response["model_version"] if isinstance(response, dict) else response.model_version
    return told, float(result.as_numpy("y")[0, 0])


def observed(server: Server) -> dict[str, Any]:
    """What clients see of the versions of `dbl`."""
    with (
        triton_http.InferenceServerClient(server.http) as http,
        triton_grpc.InferenceServerClient(server.grpc) as grpc,
    ):
        answers = {
            (module.__name__, version): asked(client, module, version)
            for client, module in ((http, triton_http), (grpc, triton_grpc))
            for version in ("", "1", "2", "7")
        }
        statistics = http.get_inference_statistics("dbl")["model_stats"]
        of_two = grpc.get_inference_statistics("dbl", "2", as_json=True)["model_stats"]
        return {
            "answers": answers,
            "versions": http.get_model_metadata("dbl")["versions"],
            "versions by gRPC": grpc.get_model_metadata("dbl", as_json=True)["versions"],
            "versions of one": http.get_model_metadata("dbl", "1")["versions"],
            "versions of one by gRPC": grpc.get_model_metadata("dbl", "2", as_json=True)["versions"],
            "policy": http.get_model_config("dbl")["version_policy"],
            "ready": [http.is_model_ready("dbl", version) for version in ("", "1", "2", "7")],
            "index": sorted((row["name"], row["version"], row["state"]) for row in http.get_model_repository_index()),
            "successes": {row["version"]: row["inference_stats"]["success"]["count"] for row in statistics},
            "of two": [(row["name"], row["version"]) for row in of_two],
        }


@pytest.mark.timeout(180)
def test_versions_are_named_told_listed_and_counted_as_triton_does(servers: Servers) -> None:
    gateway = observed(servers.gateway)

    assert gateway == observed(servers.triton)
    assert gateway["answers"]["tritonclient.http", "2"] == ("2", 1.0)  # and not, say, refused by both
