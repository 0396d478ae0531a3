"""What an operator writes of traces, and what is wrong with it."""

# ruff: noqa: E501 (a fault stands on one line here, as it does where it is told)

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError, load_settings
from gateway.tracing import options
from gateway.tracing.options import TracesOptions, why_not_tracing
from tests.integration.process import CONFIG, ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
ENDPOINT = "http://127.0.0.1:4318"


def read(folder: Path, traces: str) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(f"{CONFIG}\ntelemetry: {{traces: {traces}}}\n")
    return load_settings(path)


def test_without_a_word_nothing_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)

    assert load_settings(path).traces is None
    assert read(tmp_path, "null").traces is None


def test_a_gateway_without_traces_does_not_load_what_records_them() -> None:
    code = "import sys, gateway.serve, gateway.workers.worker; print(sorted({'opentelemetry', 'requests'} & {*sys.modules}))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True)

    assert done.stdout == b"[]\n"


def test_the_example_of_the_readme_says_what_is_usual(tmp_path: Path) -> None:
    (example,) = re.findall(r"<!-- example: traces -->\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "gateway.yaml"
    path.write_text(f"{CONFIG}\n{example}")

    assert load_settings(path).traces == TracesOptions(ENDPOINT)


def test_traces_come_to_their_options(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("Authorization: Bearer hunter2\n")
    (tmp_path / "ca.pem").write_text("")
    written = "{endpoint: 'https://spans:4318/otlp/', sample: 5%, service_name: intake, headers_file: headers, ca: ca.pem, timeout: 2s, max_queue: 100}"

    found = read(tmp_path, written)

    assert found.traces == TracesOptions(
        "https://spans:4318/otlp/", 0.05, "intake", tmp_path / "headers", tmp_path / "ca.pem", 2.0, 100
    )
    assert found.traces.url == "https://spans:4318/otlp/v1/traces"
    assert "hunter2" not in repr(found)
    assert b"hunter2" not in pickle.dumps(found)  # as workers get it
    assert read(tmp_path, f"{{endpoint: '{ENDPOINT}'}}").traces == TracesOptions(ENDPOINT)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{}", "telemetry.traces.endpoint: is missing; add it"),
        ("yes", "telemetry.traces: is \"yes\", which is not a mapping; write a mapping"),
        ("{endpoint: 'localhost:4318'}", "telemetry.traces: endpoint is no server's; write it as http://127.0.0.1:4318"),
        ("{endpoint: 'http://me:hunter2@a:4318'}", "telemetry.traces: endpoint has credentials in it; name a `headers_file` instead"),
        ("{endpoint: 'http://a:4318/v1/traces'}", "telemetry.traces: endpoint goes on after what is needed; end it before /v1/traces, without a query"),
        ("{endpoint: 'http://a:99999'}", "telemetry.traces: endpoint is malformed; write it as http://127.0.0.1:4318"),
        ("{endpoint: 'http://a', sample: 200%}", "telemetry.traces.sample: is '200%'; use a share from 0% to 100%, such as 2%"),
        ("{endpoint: 'http://a', max_queue: 0}", "telemetry.traces.max_queue: is 0; use at least 1"),
        ("{endpoint: 'http://a', headers_file: none-such}", "telemetry.traces.headers_file: {folder}/none-such cannot be read (No such file or directory); correct the path or its permissions"),
        ("{endpoint: 'http://a', ca: ca.pem}", "telemetry.traces: ca stands beside an endpoint without TLS; write https, or take ca out"),
        ("{endpoint: 'https://a', ca: none-such}", "telemetry.traces.ca: {folder}/none-such does not exist; correct the path"),
        ("{endpoint: 'http://a', headers: {a: b}}", "telemetry.traces.headers: is an unknown key; did you mean headers_file?"),
    ],
)  # fmt: skip
def test_a_fault_tells_its_place_and_its_remedy(tmp_path: Path, written: str, told: str) -> None:
    (tmp_path / "ca.pem").write_text("")

    with pytest.raises(SettingsError) as raised:
        read(tmp_path, written)

    (fault,) = raised.value.faults
    assert f"{fault.path}: {fault.message}" == told.replace("{folder}", str(tmp_path))
    assert "hunter2" not in str(raised.value)


def test_a_missing_extra_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_tracing() is None

    def find_none(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(options, "find_spec", find_none)
    with pytest.raises(
        SettingsError, match=r"telemetry\.traces: needs OpenTelemetry.*pip install 'pointsman\[tracing\]'"
    ):
        read(tmp_path, f"{{endpoint: '{ENDPOINT}'}}")


def test_options_made_by_hand_list_every_fault() -> None:
    with pytest.raises(ValueError, match=r"sample is 2.*service_name is empty.*timeout is 0.*max_queue is 0"):
        TracesOptions(ENDPOINT, 2, "", None, None, 0, 0)
