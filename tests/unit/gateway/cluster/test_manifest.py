"""Files for clusters that run already; `tests/integration/ray` holds the first against Serve's own schema."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidInput
from gateway.cluster.manifest import Share, packed, ray_service, revision, serve_config
from gateway.ray_app import AppArguments
from gateway.settings import Settings, load_settings

TEXT = """
models: {m: {backend: echo, expose: true}}
server: {host: 0.0.0.0, http_port: 9000, grpc_port: 9001, control_port: 9002, drain: 7s}
cluster: {num_cpus: 2}
security: {api_keys: [{name: ci, sha256: "KEY", roles: [caller]}]}
"""
TEXT = TEXT.replace("KEY", 64 * "0")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "my.yaml").write_text(TEXT)
    return load_settings(tmp_path / "my.yaml")


def test_serve_is_told_of_the_configuration_and_has_no_proxies(settings: Settings) -> None:
    found = yaml.safe_load(serve_config(settings))

    (app,) = found["applications"]
    assert found["proxy_location"] == "Disabled"
    assert app["args"] == {"config": str(settings.file), "replicas": 1, "revision": revision(settings)}
    assert AppArguments(**app["args"]).settings() == settings
    assert app["route_prefix"] is None


def test_a_revision_changes_with_the_file_and_with_what_it_names_and_with_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    (tmp_path / "m.onnx").write_bytes(b"one")
    (tmp_path / "labels").write_text("a\nb\n")

    def written(text: str) -> str:
        path.write_text(text)
        (app,) = yaml.safe_load(serve_config(load_settings(path)))["applications"]
        return str(app["args"]["revision"])

    named = TEXT.replace("{m: {backend: echo,", "{m: {backend: onnx, path: m.onnx, labels_file: labels,")
    first = written(named)
    assert written(named) == first

    found = {first, written(named + "# a word\n")}
    (tmp_path / "m.onnx").write_bytes(b"two")
    found.add(written(named))
    (tmp_path / "labels").write_text("a\nc\n")
    found.add(written(named))

    assert len(found) == 4


def test_a_pod_has_one_gateway_and_its_ports(settings: Settings) -> None:
    service: Any
    ray: Any
    ray, service = yaml.safe_load_all(ray_service(settings, "registry.example/pointsman:1"))

    (group,) = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (app,) = yaml.safe_load(ray["spec"]["serveConfigV2"])["applications"]
    (override,) = app["deployments"]
    assert override["ray_actor_options"]["resources"] == {"gateway": 1}
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {"gateway": 1}
    assert group["replicas"] == 1
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": 9000, "grpc": 9001, "control": 9002,
    }  # fmt: skip
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        "http": 9000, "grpc": 9001, "control": 9002,
    }  # fmt: skip
    assert service["spec"]["selector"].items() <= group["template"]["metadata"]["labels"].items()


def test_pods_outlive_their_head_where_a_redis_keeps_its_tables(settings: Settings) -> None:
    kept, _ = yaml.safe_load_all(ray_service(settings, "an/image", "redis:6379"))
    alone, _ = yaml.safe_load_all(ray_service(settings, "an/image"))

    assert kept["spec"]["rayClusterConfig"].pop("gcsFaultToleranceOptions") == {"redisAddress": "redis:6379"}
    assert kept == alone


def test_what_would_let_anybody_in_is_refused_when_it_is_written_as_when_it_is_deployed(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TEXT[: TEXT.index("security:")])
    open_to_all = load_settings(tmp_path / "my.yaml")
    with pytest.raises(ValueError, match="without API keys would let anybody in") as deployed:
        AppArguments(config=tmp_path / "my.yaml").settings()

    with pytest.raises(InvalidInput) as for_serve:
        serve_config(open_to_all)
    with pytest.raises(InvalidInput) as for_pods:
        ray_service(open_to_all, "an/image")

    assert str(for_serve.value) == str(for_pods.value) == str(deployed.value)


def test_what_is_written_is_what_deploying_takes(settings: Settings) -> None:
    (app,) = yaml.safe_load(serve_config(settings))["applications"]

    assert AppArguments(**app["args"]).settings().server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("host: 0.0.0.0", "host: 127.0.0.1", "a pod is reached by its address"), ("num_cpus: 2", "replicas: 2", "SQLite")],
)
def test_what_pods_cannot_do_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "my.yaml").write_text(TEXT.replace(old, new))

    with pytest.raises(InvalidInput, match=told):
        ray_service(load_settings(tmp_path / "my.yaml"), "an/image")


def test_pods_share_a_store_on_postgresql(tmp_path: Path) -> None:
    text = TEXT.replace("num_cpus: 2", "replicas: 3") + "store: {postgres: {url_env: STORE_URL}, key_env: STORE_KEY}\n"
    (tmp_path / "my.yaml").write_text(text)

    ray = next(iter(yaml.safe_load_all(ray_service(load_settings(tmp_path / "my.yaml"), "an/image"))))

    (gateways,) = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert gateways["replicas"] == gateways["minReplicas"] == gateways["maxReplicas"] == 3


def pods_of(folder: Path, *serve: str) -> list[tuple[str, int, dict[str, str]]]:
    """Groups of pods for models that are deployed so: name, pods, limits of each."""
    models = "\n".join(
        f"  m{number}: {{backend: echo, expose: true, serve: {{{one}}}}}" for number, one in enumerate(serve)
    )
    (folder / "my.yaml").write_text(TEXT.replace("models: {m: {backend: echo, expose: true}}", f"models:\n{models}"))
    ray = next(iter(yaml.safe_load_all(ray_service(load_settings(folder / "my.yaml"), "an/image"))))
    _, *groups = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return [
        (group["groupName"], group["replicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in groups
    ]


@pytest.mark.parametrize(
    ("serve", "pods", "limits"),
    [
        ("num_gpus: 0.25, num_cpus: 0.5, autoscale: {max: 6}", 2, {"cpu": "2", "nvidia.com/gpu": "1"}),
        ("num_gpus: 2", 2, {"cpu": "1", "nvidia.com/gpu": "2"}),
        ("num_gpus: 0.6, replicas: 3", 4, {"cpu": "1", "nvidia.com/gpu": "1"}),
        ("num_gpus: 0.1, num_cpus: 0, replicas: 9", 1, {"cpu": "1", "nvidia.com/gpu": "1"}),
        ("num_cpus: 8", 2, {"cpu": "8"}),
        ("num_cpus: 3, replicas: 2", 3, {"cpu": "3"}),
        ("num_cpus: 0.5", 1, {"cpu": "1"}),
        ("num_cpus: 1, memory: 3GiB, replicas: 2", 1, {"cpu": "3", "memory": "10240Mi"}),
    ],
    ids=str,
)
def test_each_replica_fits_into_a_pod_with_one_more_for_an_upgrade(
    tmp_path: Path, serve: str, pods: int, limits: dict[str, str]
) -> None:
    [(_, found, given)] = pods_of(tmp_path, serve)

    assert (found, given) == (pods, limits)


def test_models_that_need_no_gpu_take_no_pod_that_has_one(tmp_path: Path) -> None:
    found = pods_of(tmp_path, "num_gpus: 1, replicas: 2", "num_cpus: 2")

    assert found == [("models", 1, {"cpu": "4"}), ("gpu-models", 3, {"cpu": "1", "nvidia.com/gpu": "1"})]


def test_replicas_that_say_nothing_of_memory_are_not_held_to_what_others_ask_for(tmp_path: Path) -> None:
    assert pods_of(tmp_path, "memory: 3GiB", "num_cpus: 1") == [("models", 1, {"cpu": "4"})]


@given(
    st.lists(
        st.builds(
            Share, st.sampled_from([0.0, 0.1, 0.25, 0.6, 1.0, 2.0]), st.sampled_from([0.0, 0.5, 8.0]), st.none(),
        ),
        min_size=1,
    )
)  # fmt: skip
def test_packing_loses_no_replica_and_fills_no_pod_beyond_its_gpus(shares: list[Share]) -> None:
    pods = packed(shares)

    assert Counter(share for pod in pods for share in pod) == Counter(shares)
    gpus = max(share.gpus for share in shares)
    assert all(sum(share.gpus for share in pod) <= max(1.0, gpus) + 1e-9 for pod in pods)


def test_a_pod_is_given_the_time_that_a_drain_may_take(settings: Settings) -> None:
    patient = replace(settings, server=replace(settings.server, drain_s=100.0))
    ray = next(iter(yaml.safe_load_all(ray_service(patient, "an/image"))))

    (group,) = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 100


def test_a_pod_that_ends_waits_for_its_replicas_within_its_time(tmp_path: Path) -> None:
    apart = TEXT.replace("expose: true", "expose: true, serve: {replicas: 2}")
    (tmp_path / "my.yaml").write_text(apart)
    ray = next(iter(yaml.safe_load_all(ray_service(load_settings(tmp_path / "my.yaml"), "an/image"))))

    for group in ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        *program, within_s = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert program == ["python", "-m", "gateway.cluster.leave"]
        assert 7 < int(within_s) < pod["terminationGracePeriodSeconds"]


def test_a_pod_for_models_is_ready_without_a_proxy_of_serves(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TEXT.replace("expose: true", "expose: true, serve: {replicas: 2}"))
    ray = next(iter(yaml.safe_load_all(ray_service(load_settings(tmp_path / "my.yaml"), "an/image"))))

    _, models = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert models["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == 52365


def test_prometheus_finds_the_metrics_of_a_gateways_pod(settings: Settings) -> None:
    ray = next(iter(yaml.safe_load_all(ray_service(settings, "an/image"))))

    (group,) = ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    found = group["template"]["metadata"]["annotations"]
    assert (found["prometheus.io/port"], found["prometheus.io/path"]) == ("9002", "/metrics")
