"""What replicas cannot share is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import InvalidInput
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from gateway.cluster.application import replicated
from gateway.grpc_edge.transport import Transport
from gateway.settings import ControlMode, ServerOptions, SettingsError, load_settings
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
