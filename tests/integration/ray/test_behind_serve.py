"""The gateway behind Ray Serve's own proxies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.integration.process import ROOT
from tests.integration.ray.clusters import CLUSTER_CONFIG, environment, why_not

_ALONE = ("unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a command where there is no network but loopback."""


def why_not_alone() -> str | None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "Serve's gRPC proxy listens on every interface, and there is no unshare or ip to keep it alone"
    done = subprocess.run([*_ALONE, "true"], capture_output=True, text=True, timeout=10, check=False)
    return f"a network of its own cannot be had: {done.stderr.strip()}" if done.returncode else None


def test_requests_that_come_by_serves_proxies_are_answered_as_others_are(tmp_path: Path) -> None:
    if reason := why_not() or why_not_alone():
        pytest.skip(reason)
    config = CLUSTER_CONFIG.replace("cluster: {replicas: 2", "cluster: {replicas: 1").replace("{replicas: 2, ", "{")
    (tmp_path / "my.yaml").write_text(config)
    script = Path(__file__).with_name("behind_serve.py")
    with tempfile.TemporaryDirectory(prefix="pm", dir="/tmp", ignore_cleanup_errors=True) as short:
        done = subprocess.run(
            [*_ALONE, sys.executable, str(script), str(tmp_path / "my.yaml"), short, str(tmp_path / "told")],
            capture_output=True, text=True, timeout=100, check=False, cwd=ROOT, env=environment(),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    told = json.loads((tmp_path / "told").read_text())

    assert told["decided"][0] == 200
    assert told["decided"][1]["label"] == "b"
    assert told["inferred"][1]["outputs"][0]["data"] == [2.0, 4.0]
    assert told["unknown"][0] == 404
    assert told["grpc"] == [[2.0, 4.0]]
    assert "NOT_FOUND" in told["grpc_unknown"]
    assert told["version"] == "1.0"
