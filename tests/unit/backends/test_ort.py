"""How ONNX Runtime is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.process import ROOT


def test_the_runtime_keeps_no_device_id_and_no_telemetry_database(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    subprocess.run([sys.executable, "-c", "import backends.onnx"], check=True, env=environment)

    assert list(tmp_path.rglob("*")) == []
