"""What replicas cannot share is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import InvalidInput
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from gateway.cluster.apart import apart, apartments, deployed
from gateway.cluster.application import replicated
from gateway.grpc_edge.transport import Transport
from gateway.settings import ControlMode, ServerOptions, Settings, SettingsError, load_settings
from gateway.shared_memory import SharedMemoryOptions


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (ServerOptions(workers=2), "a replica is one process; leave `workers` out"),
        (ServerOptions(shared_memory=SharedMemoryOptions(enabled=True)), "set shared_memory: {enabled: false}"),
        (ServerOptions(model_control=ControlMode.EXPLICIT), "set model_control: none"),
    ],
)
def test_what_one_process_alone_can_do_is_refused(server: ServerOptions, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        replicated(server)


def test_replicas_share_their_ports_on_the_transport_that_can_leave_one() -> None:
    assert replicated(ServerOptions()).grpc_transport is Transport.GRPCIO
    assert replicated(ServerOptions(grpc_transport=Transport.NATIVE)).grpc_transport is Transport.NATIVE
    assert replicated(ServerOptions()).has_siblings


def load(folder: Path, model: str) -> DeploymentOptions | None:
    (folder / "my.yaml").write_text(f"models: {{m: {{backend: echo, expose: true, {model}}}}}\n")
    return load_settings(folder / "my.yaml").models["m"].serve


def test_a_model_says_how_it_is_deployed(tmp_path: Path) -> None:
    assert load(tmp_path, "cost: 1") is None
    assert load(tmp_path, "serve: {}") == DeploymentOptions()
    assert load(tmp_path, "serve: {replicas: 3, num_cpus: 0.5, num_gpus: 0.25, memory: 1GiB}") == DeploymentOptions(
        3, 0.5, 0.25, 2**30
    )
    scaled = load(tmp_path, "serve: {autoscale: {min: 0, max: 4, queue_delay: 50ms, down_after: 30s}}")
    assert scaled == DeploymentOptions(scaling=ScalingOptions(4, 0, 0.05, 5.0, 30.0))
    assert scaled.most_replicas == 4


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("serve: {replicas: 2, autoscale: {max: 2}}", "models.m.serve.autoscale: stands beside replicas"),
        ("serve: {autoscale: {min: 3, max: 2}}", "models.m.serve.autoscale.min: is 3; use at most max (2)"),
        ("serve: {gpus: 1}", "models.m.serve.gpus: is an unknown key; did you mean num_gpus?"),
        ("serve: {}, warm: {keep: 0}", "models.m.serve: stands beside `warm: {keep: 0}`"),
    ],
)
def test_a_fault_of_a_deployment_is_told_with_its_place(tmp_path: Path, model: str, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, model)

    (fault,) = error.value.faults
    assert told in str(fault)


_POOLED = """
models:
  a: {backend: echo, expose: true, warm: {keep: 0, memory: 1MiB}, serve: {pool: small}}
  b: {backend: echo, expose: true, serve: {pool: small}}
  c: {backend: echo, expose: true, serve: {num_cpus: 2}}
cluster: {pools: {small: {replicas: 3, num_cpus: 0.5, memory: 1GiB}, unused: {}}}
"""


def pooled(folder: Path, old: str = "", new: str = "") -> Settings:
    assert old in _POOLED
    (folder / "my.yaml").write_text(_POOLED.replace(old, new))
    return load_settings(folder / "my.yaml")


def test_models_of_a_pool_are_one_application_and_others_one_each(tmp_path: Path) -> None:
    settings = pooled(tmp_path)
    small = DeploymentOptions(3, 0.5, memory_bytes=2**30)

    lone, pool = apartments(settings)

    assert [model.name for model, _ in lone.models] == ["c"]
    assert ([model.name for model, _ in pool.models], pool.options, pool.is_pool) == (["a", "b"], small, True)
    assert deployed(settings) == [DeploymentOptions(num_cpus=2.0), small]
    places = apart(settings)
    assert places["a"].app == places["b"].app == pool.app != places["c"].app
    assert places["a"].digest != places["b"].digest


@pytest.mark.parametrize(
    ("old", "new"),
    [("memory: 1MiB", "memory: 2MiB"), ("1GiB", "2GiB"), ("b: {backend: echo", "b: {backend: echo, labels: [x]")],
)
def test_a_pool_of_which_anything_changes_is_another_application(tmp_path: Path, old: str, new: str) -> None:
    before, after = (apartments(pooled(tmp_path, *change)) for change in (("", ""), (old, new)))

    assert before[0].app == after[0].app
    assert before[1].app != after[1].app


def test_with_another_number_of_replicas_it_is_the_same(tmp_path: Path) -> None:
    assert apartments(pooled(tmp_path))[1].app == apartments(pooled(tmp_path, "replicas: 3", "replicas: 4"))[1].app


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "{pool: small}}\n  b",
            "{pool: smal}}\n  b",
            "models.a.serve.pool: there is no pool 'smal'; did you mean small?",
        ),
        ("{pool: small}}\n  b", "{pool: small, num_cpus: 1}}\n  b", "models.a.serve.pool: stands beside num_cpus"),
        ("replicas: 3", "replicas: 3, autoscale: {max: 2}", "cluster.pools.small.autoscale: stands beside replicas"),
        ("unused", "'no name'", "cluster.pools.no name: is no name; use 1 to 128"),
        ("num_cpus: 2", "pool: small, autoscale: {max: 2}", "models.c.serve.pool: stands beside autoscale"),
    ],
)
def test_pools_that_contradict_themselves_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        pooled(tmp_path, old, new)

    assert told in str(refused.value)
