"""A gateway with less memory than its models take: they come when they are asked for, and make room for each other."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from tests.integration.process import GatewayProcess, running

POOLED = """
models:
  one:
    backend: python
    target: tests.integration.models:double
    inputs: [{name: x, datatype: FP32, shape: [2]}]
    outputs: [{name: y, datatype: FP32, shape: [2]}]
    max_batch: 4
    expose: true
    warm: {keep: 0, memory: 60MiB}
  two:
    backend: python
    target: tests.integration.models:double
    inputs: [{name: x, datatype: FP32, shape: [2]}]
    outputs: [{name: y, datatype: FP32, shape: [2]}]
    max_batch: 4
    process: true
    expose: true
    warm: {keep: 0, memory: 60MiB}
pool: {memory: 100MiB}
store: {path: store.db}
"""


def ask(gateway: GatewayProcess, model: str) -> list[float]:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 4.0]}]
    call = urllib.request.Request(
        f"{gateway.http}/v2/models/{model}/infer",
        json.dumps({"inputs": inputs}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=30) as response:
        (output,) = [one for one in json.load(response)["outputs"] if one["name"] == "y"]
        found: list[float] = output["data"]
        return found


def metrics(gateway: GatewayProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"{gateway.control}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def residency(found: dict[str, float], model: str) -> list[str]:
    states = ("cold", "loading", "warm", "unloading", "failed")
    return [state for state in states if found[f'pointsman_model_residency{{model="{model}",state="{state}"}}']]


def test_a_model_is_loaded_when_it_is_asked_for_leaves_for_another_and_answers_again(tmp_path: Path) -> None:
    with running(tmp_path, POOLED) as gateway:
        ask(gateway, "two")  # whichever was opened last at the start, from here on it is known who is where
        before = metrics(gateway)
        assert (residency(before, "one"), residency(before, "two")) == (["cold"], ["warm"])

        assert ask(gateway, "one") == [6.0, 8.0]
        loaded = metrics(gateway)
        assert (residency(loaded, "one"), residency(loaded, "two")) == (["warm"], ["cold"])
        assert ask(gateway, "two") == [6.0, 8.0]
        assert residency(metrics(gateway), "one") == ["cold"]
        assert ask(gateway, "one") == [6.0, 8.0]

        after = metrics(gateway)
        grown = {name: after[name] - before.get(name, 0.0) for name in after}
        assert grown['pointsman_cold_starts_total{model="one"}'] == 2
        assert grown['pointsman_model_unloads_total{model="one"}'] == 1
        assert grown['pointsman_model_load_seconds_count{model="one",step="open"}'] == 2
        assert residency(after, "one") == ["warm"]

        two = {name: value for name, value in after.items() if name.startswith("pointsman_model_process")}
        assert two['pointsman_model_processes{model="two",state="idle"}'] == 0
        assert two['pointsman_model_process_starts_total{model="two"}'] >= 2  # over its times in memory
        assert two['pointsman_model_process_calls_total{model="two"}'] >= 2
        assert two['pointsman_model_process_ends_total{model="two",reason="died"}'] == 0
        assert loaded['pointsman_model_process_memory_bytes{model="two"}'] == 0
        assert before['pointsman_model_processes{model="two",state="idle"}'] == 1
        assert before['pointsman_model_process_memory_bytes{model="two"}'] > 1e6
        assert not any('model="one"' in name for name in two)
        assert gateway.terminate() == 0
