"""The gateway behind Ray Serve's own HTTP and gRPC proxies, asked once in each way.

    python behind_serve.py CONFIG FOLDER TOLD

Ray keeps its files in FOLDER, and what came is written to the file TOLD, as JSON: Ray itself prints a lot.

Serve's gRPC proxy listens on every interface, so this runs where there is none but loopback.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gateway.cluster.launch import LOOPBACK  # imports nothing of Ray

os.environ |= {**LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0"}

import numpy as np
import ray
import tritonclient.grpc as triton
from ray import serve

from gateway.ray_app import AppArguments, ingress

HTTP, GRPC = 18000, 19000


def post(path: str, body: str, media: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{HTTP}{path}", body.encode(), {"Content-Type": media})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def by_grpc(model: str) -> Any:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[1, 2]], np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{GRPC}") as client:
        try:
            return client.infer(model, [given], headers={"application": "default"}).as_numpy("y").tolist()
        except triton.InferenceServerException as error:
            return str(error)


def version() -> str | None:
    """Of the configuration, as the replica's metrics tell it; None where they do not yet."""
    for file in Path(sys.argv[1]).with_name("targets").glob("*.json"):
        (address,) = json.loads(file.read_text())[0]["targets"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as reply:
            found = re.search(r"^pointsman_configuration_version (\S+)$", reply.read().decode(), re.MULTILINE)
        return found and found[1]
    return None


def main() -> None:
    """Start, ask, tell."""
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, num_cpus=4, object_store_memory=100 * 2**20,
        _temp_dir=sys.argv[2],
    )  # fmt: skip
    serve.start(
        http_options={"host": "127.0.0.1", "port": HTTP},
        grpc_options={
            "port": GRPC,
            "grpc_servicer_functions": ["gateway.cluster.proxied.add_inference_service"],
        },
    )
    serve.run(ingress(AppArguments(config=Path(sys.argv[1]), control_port=0)), route_prefix="/")
    until = time.monotonic() + 20
    while not isinstance(found := by_grpc("double"), list) and time.monotonic() < until:
        time.sleep(0.2)  # the gRPC proxy learns of the application a little later
    while version() is None and time.monotonic() < until:
        time.sleep(0.2)  # it has none before it has kept one
    inference = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    told = {
        "decided": post("/v1/routes/words:decide", "fast=0.95:b", "text/plain"),
        "inferred": post("/v2/models/double/infer", inference, "application/json"),
        "unknown": post("/v2/models/nothing/infer", inference, "application/json"),
        "grpc": found,
        "grpc_unknown": by_grpc("nothing"),
        "version": version(),
    }
    Path(sys.argv[3]).write_text(json.dumps(told))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
