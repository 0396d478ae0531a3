"""A Triton that moves on to the next version of a model, under a gateway in front of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as client
import yaml

from tests.conformance.repository import only, write_repository
from tests.conformance.triton import triton, why_not
from tests.faults.oracle import wait_for
from tests.integration.process import running


def factor_at(url: str) -> float | None:
    """By what the model that answers there multiplies; None where none does."""
    x = client.InferInput("x", [1, 16], "FP32")
    x.set_data_from_numpy(np.ones((1, 16), np.float32))
    with client.InferenceServerClient(url) as asked:
        try:
            return float(asked.infer("dbl", [x]).as_numpy("y")[0, 0])
        except client.InferenceServerException:
            return None


@pytest.mark.timeout(180)
def test_the_next_version_is_followed_and_never_answers_in_the_name_of_the_one_before(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    models = write_repository(tmp_path / "models", only("dbl"))
    config = {
        "models": {"dbl": {"backend": "triton", "expose": True, "replicas": {"probe_every_s": 0.3}}},
        "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
    }
    folder = tmp_path / "triton"
    folder.mkdir()
    options = ("--model-control-mode=explicit", "--load-model=dbl")
    with triton(folder, models, *options) as server:
        config["models"]["dbl"]["url"] = f"http://{server.http}"  # type: ignore[index]  # nested as written above
        with running(tmp_path, yaml.safe_dump(config)) as gateway:
            at = gateway.http.removeprefix("http://")
            assert factor_at(at) == 2.0

            shutil.move(models / "dbl" / "1", models / "dbl" / "2")
            functions = models / "dbl" / "2" / "models.py"
            functions.write_text(functions.read_text().replace("np.float32(2)", "np.float32(3)"))
            with client.InferenceServerClient(server.http) as control:
                control.load_model("dbl")

            wait_for(lambda: factor_at(at) == 3.0, within_s=60)

            log = "".join(gateway.log)
            assert "loaded 'dbl: 2'" in log
            assert "This is a bug" not in log
