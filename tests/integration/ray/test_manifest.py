"""What `pointsman cluster config` prints is what Serve takes, and takes again once something has changed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.conformance.triton import free_port
from tests.integration.process import ROOT
from tests.integration.ray.clusters import CLUSTER_CONFIG, command, environment, why_not

_READ = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
print(ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin)).applications[0].import_path)
"""
"""In a process of its own: Ray looks at its environment when it is imported, and other tests say what is in it."""


@pytest.mark.parametrize("image", [(), ("--image", "registry.example/pointsman:1")], ids=["serve", "kubernetes"])
def test_serves_schema_takes_it(tmp_path: Path, image: tuple[str, ...]) -> None:
    if reason := why_not():
        pytest.skip(reason)
    config = CLUSTER_CONFIG.replace("cluster: {replicas: 2", "cluster: {replicas: 1") + (
        f"server: {{host: 0.0.0.0}}\nsecurity: {{api_keys: [{{name: ci, sha256: '{64 * '0'}', roles: [caller]}}]}}\n"
    )
    (tmp_path / "my.yaml").write_text(config)
    written = run(command("config", str(tmp_path / "my.yaml"), *image))
    first = next(iter(yaml.safe_load_all(written)))

    found = run([sys.executable, "-c", _READ], first["spec"]["serveConfigV2"] if image else written)

    assert found.splitlines()[-1] == "gateway.ray_app:app"


def test_what_is_written_after_a_file_has_changed_is_deployed(tmp_path: Path) -> None:
    """Serve compares arguments alone."""
    if reason := why_not():
        pytest.skip(reason)
    labels, told = tmp_path / "labels", tmp_path / "told"
    labels.write_text("a\nb\nc\n")
    ports = ", ".join(f"{name}_port: {free_port()}" for name in ("http", "grpc", "control"))
    config = CLUSTER_CONFIG.replace("cluster: {replicas: 2", "cluster: {replicas: 1").replace("{replicas: 2, ", "{")
    config = config.replace("labels: [a, b, c]", "labels_file: labels") + f"server: {{{ports}}}\n"
    (tmp_path / "my.yaml").write_text(config)
    script = Path(__file__).with_name("deployed_again.py")

    with tempfile.TemporaryDirectory(prefix="pm", dir="/tmp", ignore_cleanup_errors=True) as short:
        run([sys.executable, str(script), str(tmp_path / "my.yaml"), str(labels), short, str(told)], within_s=100)

    assert json.loads(told.read_text()) == ["b", "b", "changed"]


def run(words: list[str], given: str = "", within_s: float = 60) -> str:
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, timeout=within_s, check=False, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
