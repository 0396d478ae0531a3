"""`pointsman discover` against the real Triton: what it writes down is what a gateway then serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml

from gateway.settings import load_settings
from tests.conformance.conftest import Servers
from tests.conformance.repository import MODELS
from tests.conformance.triton import free_port, triton, why_not
from tests.integration.process import ROOT, GatewayProcess, running


def discover(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command prints, and how it ends."""
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "discover", *arguments],
        capture_output=True, text=True, timeout=90, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )  # fmt: skip


def configuration(*arguments: str) -> str:
    """The configuration that it prints."""
    found = discover(*arguments)
    assert found.returncode == 0, found.stderr
    return found.stdout


def assert_dbl_is_served(gateway: GatewayProcess) -> None:
    x = np.random.default_rng(0).random((3, 16), dtype=np.float32)
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        tensor = tritonclient.grpc.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        np.testing.assert_array_equal(client.infer("dbl", [tensor]).as_numpy("y"), x * 2)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_every_model_is_written_down_and_served(servers: Servers, scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://{getattr(servers.triton, scheme)}"

    printed = configuration(url)

    (tmp_path / "found.yaml").write_text(printed)
    settings = load_settings(tmp_path / "found.yaml")
    assert set(settings.models) == {model.name for model in MODELS}
    assert "left out" not in printed
    assert all(model == {"backend": "triton", "url": url, "expose": True} for model in parsed(printed).values())
    with running(tmp_path, printed) as gateway:
        assert_dbl_is_served(gateway)


def test_models_that_are_named_are_written_down_alone(servers: Servers) -> None:
    printed = configuration(f"grpc://{servers.triton.grpc}", "--model", "text", "--model", "dbl")

    assert list(parsed(printed)) == ["text", "dbl"]


def test_a_model_that_cannot_be_served_is_a_comment(servers: Servers) -> None:
    printed = configuration(f"grpc://{servers.triton.grpc}", "--model", "dbl", "--model", "nobody")

    assert list(parsed(printed)) == ["dbl"]
    (comment,) = (line for line in printed.splitlines() if line.startswith("#"))
    assert comment.startswith("# left out: nobody: the server has no ")


def test_several_servers_of_the_same_models_are_written_to_each(servers: Servers, tmp_path: Path) -> None:
    urls = [f"grpc://{servers.triton.grpc}", f"http://{servers.triton.http}"]

    printed = configuration(*urls, "--model", "dbl", "--model", "text")

    (tmp_path / "found.yaml").write_text(printed)
    assert set(load_settings(tmp_path / "found.yaml").models) == {"dbl", "text"}
    assert [model["url"] for model in parsed(printed).values()] == [urls, urls]
    with running(tmp_path, printed) as gateway:
        assert_dbl_is_served(gateway)


def test_shared_memory_is_tried_and_written_down(servers: Servers, tmp_path: Path) -> None:
    printed = configuration(f"grpc://{servers.triton.grpc}", "--model", "dbl", "--shared-memory")

    assert parsed(printed)["dbl"]["shared_memory"] is True
    with running(tmp_path, printed) as gateway:
        assert_dbl_is_served(gateway)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_another_pointsman_is_written_down_as_any_other_server(servers: Servers, scheme: str, tmp_path: Path) -> None:
    url = getattr(servers.gateway, scheme)

    printed = configuration(f"{scheme}://{url}")

    assert set(parsed(printed)) == {model.name for model in MODELS}
    assert {model["backend"] for model in parsed(printed).values()} == {"oip"}
    with running(tmp_path, printed) as gateway:
        assert_dbl_is_served(gateway)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there_is_told(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"

    found = discover(url)

    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith(f"Error: {url} does not say what it serves: ")
    assert "is it up?" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_url_that_is_none_is_told() -> None:
    found = discover("localhost:8001")

    assert (found.returncode, found.stdout) == (1, "")
    assert "write grpc://host:8001" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_server_without_models_is_told(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    (tmp_path / "models").mkdir()
    with triton(tmp_path, tmp_path / "models") as empty:
        found = [discover(f"http://{empty.http}"), discover(f"grpc://{empty.grpc}")]

    for one in found:
        assert (one.returncode, one.stdout) == (1, "")
        assert "it serves none" in one.stderr
        assert len(one.stderr.splitlines()) == 1


def parsed(printed: str) -> dict[str, dict[str, object]]:
    """The models of a configuration."""
    found: dict[str, dict[str, object]] = yaml.safe_load(printed)["models"]
    return found
