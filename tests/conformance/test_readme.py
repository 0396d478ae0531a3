"""The README's way to put Pointsman in front of a Triton, against a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml

from tests.conformance.conftest import Servers
from tests.conformance.repository import MODELS
from tests.conformance.triton import free_port
from tests.integration.process import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLES: dict[str, str] = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}


def command(example: str, **ports: str) -> str:
    """The command lines of *example*, with this environment's interpreter and other ports."""
    script = EXAMPLES[example].replace(".venv/bin/pointsman", f"exec {sys.executable} -m gateway.cli")
    for written, real in ports.items():
        script = script.replace(written.removeprefix("_"), real)
    return script


def test_pointsman_stands_in_front_of_a_triton_in_five_minutes(servers: Servers, tmp_path: Path) -> None:
    http, grpc, control = str(free_port()), str(free_port()), str(free_port())
    prepared = command("front").replace("127.0.0.1:8000", servers.triton.http).replace("exec ", "")
    subprocess.run(["bash", "-euc", prepared], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=60)

    written = yaml.safe_load((tmp_path / "front.yaml").read_text())
    assert written["models"].keys() == {model.name for model in MODELS}

    serve = command("front-serve", _9000=http, _9001=grpc, _9002=control)
    with subprocess.Popen(
        ["bash", "-euc", serve], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as gateway:
        try:
            assert gateway.stdout is not None
            assert gateway.stdout.readline().startswith("pointsman ready")
            script = EXAMPLES["front-client"].replace("9001", grpc)
            asked = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
            )
            with urllib.request.urlopen(f"http://127.0.0.1:{control}/metrics", timeout=10) as page:
                metrics = page.read().decode()
        finally:
            gateway.terminate()

    assert asked.returncode == 0, asked.stderr
    assert "dbl [('x', 'FP32', [-1, 16])]" in asked.stdout.splitlines()
    assert len(asked.stdout.splitlines()) == len(MODELS)
    assert f'pointsman_replica_up{{model="dbl",replica="http://{servers.triton.http}"}} 1.0' in metrics.splitlines()
