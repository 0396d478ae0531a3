"""Every example of the README does what the README says, on the demo's own models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from gateway.demo.packages import cache_folder
from gateway.demo.run import own_configuration
from gateway.demo.train import prepare
from gateway.settings import load_settings
from tests.integration.process import ROOT, GatewayProcess, running

README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))

pytestmark = pytest.mark.timeout(600)  # whichever is first has the demo's models trained


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway that `make demo` leaves running."""
    folder = tmp_path_factory.mktemp("demo")
    models = prepare(cache_folder(), lambda step: None)
    with running(folder, yaml.safe_dump(own_configuration(models, folder))) as gateway:
        yield gateway


def run(command: list[str], script: str, gateway: GatewayProcess) -> str:
    """What *script* prints, its addresses replaced by *gateway*'s."""
    script = script.replace("http://127.0.0.1:8000", gateway.http).replace("127.0.0.1:8001", gateway.grpc)
    done = subprocess.run([*command, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_example_is_answered(demo: GatewayProcess) -> None:
    answer = json.loads(run(["bash", "-euc"], EXAMPLES["curl"], demo))

    shown = re.search(r'```json\n(\{"answer_id".*?\})\n```', README, re.DOTALL)
    assert shown is not None
    assert answer.keys() == json.loads(shown[1]).keys()
    assert answer["label"] == "positive"


def test_the_waiting_example_ends_with_the_answer_s_state(demo: GatewayProcess) -> None:
    printed = run(["bash", "-euc"], EXAMPLES["curl-wait"], demo)

    if printed:  # a model may be sure of it, and then there is nothing to wait for
        assert json.loads(printed)["status"] in ("provisional", "final")


def test_the_tritonclient_example_prints_the_label(demo: GatewayProcess) -> None:
    assert re.match(r"\[\[b'\w+'\]\] (final|provisional)", run([sys.executable, "-c"], EXAMPLES["tritonclient"], demo))


def shell(example: str, folder: Path) -> str:
    """What the command line *example* prints when it is typed in *folder*, with the command of this environment."""
    script = EXAMPLES[example].replace(".venv/bin/pointsman", f"{sys.executable} -m gateway.cli")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    done = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_explain_example_tells_the_language_and_who_decides(demo: GatewayProcess, tmp_path: Path) -> None:
    told = shell("explain", tmp_path)

    assert "trait    language: de" in told
    assert "route    intake, straight to a person (routed_to_person: foreign text: language is 'de'" in told


def test_the_certify_example_proves_a_threshold_and_draws_it(demo: GatewayProcess, tmp_path: Path) -> None:
    assert "certified: of what is accepted at most 2.00% is wrong, 95.0% sure" in shell("certify", tmp_path)
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_configuration_example_has_no_faults(tmp_path: Path) -> None:
    for name in ("fast", "strong"):
        onnx.save(tickets_model(), tmp_path / f"{name}.onnx")
    (tmp_path / "my.yaml").write_text(EXAMPLES["config"])

    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "check", str(tmp_path / "my.yaml"), "--load"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )

    assert "3 models, 1 routes, no faults" in done.stdout, done.stderr


def test_the_versions_example_has_no_faults(tmp_path: Path) -> None:
    config = yaml.safe_load(EXAMPLES["config"])
    config["models"]["tickets-fast-2"] = config["models"]["tickets-fast"]
    config["routes"] = yaml.safe_load(EXAMPLES["versions"])["routes"]
    for name in ("fast", "strong"):
        onnx.save(tickets_model(), tmp_path / f"{name}.onnx")
    (tmp_path / "my.yaml").write_text(json.dumps(config))

    command = [sys.executable, "-m", "gateway.cli", "explain", str(tmp_path / "my.yaml"), "--route", "tickets"]
    done = subprocess.run(command, input="hello", capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert "version  1: 1 of the requests (told here: it answers all)" in done.stdout, done.stderr
    assert "version  2: 0 of the requests, and is shown what others answer" in done.stdout


def test_the_example_of_queues_has_no_faults(tmp_path: Path) -> None:
    written = yaml.safe_load(EXAMPLES["queues"])
    for number, key in enumerate(written["security"]["api_keys"]):
        key["sha256"] = str(number) * 64
    config = {**yaml.safe_load(EXAMPLES["config"]), **written, "classify": []}
    for name in ("fast", "strong"):
        onnx.save(tickets_model(), tmp_path / f"{name}.onnx")
    (tmp_path / "my.yaml").write_text(json.dumps(config))

    settings = load_settings(tmp_path / "my.yaml")

    assert settings.queues["tickets"].escalate_to == "leads"
    assert [key.scope.is_lead("tickets") for key in settings.security.api_keys] == [False, True]


def test_the_examples_of_who_is_told_and_what_is_hidden_and_kept_have_no_faults(tmp_path: Path) -> None:
    base = {**yaml.safe_load(EXAMPLES["config"]), "classify": []}
    del base["store"]
    chat = '  chat: {url: "https://chat.example.org/", secret_env: CHAT, answers: false}\n'
    examples = [EXAMPLES[example] for example in ("retention", "mask", "notify", "webhooks")]
    for name in ("fast", "strong"):
        onnx.save(tickets_model(), tmp_path / f"{name}.onnx")
    (tmp_path / "my.yaml").write_text("".join([yaml.safe_dump(base), *examples, chat]))

    settings = load_settings(tmp_path / "my.yaml")

    assert [rule.webhook for rule in settings.notify] == [None, "chat"]
    assert len(settings.masks) == 3


def test_the_cluster_example_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(EXAMPLES["cluster"])

    command = [sys.executable, "-m", "gateway.cli", "check", str(tmp_path / "my.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert "2 models, 0 routes, no faults" in done.stdout, done.stderr


def tickets_model() -> onnx.ModelProto:
    """Texts in, three scores out: how often a few words occur."""
    vectorise = helper.make_node(
        "TfIdfVectorizer",
        ["words"],
        ["logits"],
        mode="TF",
        min_gram_length=1,
        max_gram_length=1,
        max_skip_count=0,
        ngram_counts=[0],
        ngram_indexes=[0, 1, 2],
        pool_strings=["invoice", "parcel", "hello"],
    )
    graph = helper.make_graph(
        [vectorise],
        "tickets",
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
