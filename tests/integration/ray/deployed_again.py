"""The gateway deployed by what `pointsman cluster config` writes, and deployed again once a file has changed.

    python deployed_again.py CONFIG LABELS FOLDER TOLD

Ray keeps its files in FOLDER. LABELS is changed, which CONFIG names. Which label was answered at first, after another
deployment of what was written before the change, and of what was written after it, goes to the file TOLD, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

from gateway.cluster.launch import LOOPBACK  # imports nothing of Ray

os.environ |= {**LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0"}

import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from gateway.cluster.manifest import serve_config
from gateway.settings import load_settings
from tests.integration.process import wait_for

_QUIET_S = 3.0


def deploy(written: str) -> None:
    """As `serve deploy` does, which asks the dashboard to; returns once it has been built."""
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(written)))
    wait_for(lambda: {app.status for app in serve.status().applications.values()} == {"RUNNING"})


def answered(port: int) -> str:
    where, text = f"http://127.0.0.1:{port}/v1/routes/words:decide", b"fast=0.95:b"
    with urllib.request.urlopen(urllib.request.Request(where, text, {"Content-Type": "text/plain"})) as reply:
        return str(json.loads(reply.read())["label"])


def main() -> None:
    """Deploy, deploy again, tell."""
    config, labels = Path(sys.argv[1]), Path(sys.argv[2])
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, num_cpus=4, object_store_memory=100 * 2**20,
        _temp_dir=sys.argv[3],
    )  # fmt: skip
    serve.start(proxy_location="Disabled")
    port = load_settings(config).server.http_port
    first = serve_config(load_settings(config))
    deploy(first)
    told = [answered(port)]
    labels.write_text(labels.read_text().replace("b", "changed"))
    deploy(first)
    with suppress(AssertionError):  # as is to be expected
        wait_for(lambda: answered(port) != told[0], _QUIET_S)
    told.append(answered(port))
    deploy(serve_config(load_settings(config)))
    wait_for(lambda: answered(port) != told[0])
    told.append(answered(port))
    Path(sys.argv[4]).write_text(json.dumps(told))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
