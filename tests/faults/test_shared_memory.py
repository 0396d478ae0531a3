"""Whatever a client does to memory that it shares, other callers are answered, and nobody sees what is not theirs."""

from __future__ import annotations

import os
import select
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from backends.errors import InvalidInput
from gateway.compose import compose
from gateway.security import new_api_key
from gateway.settings import load_settings
from tests.integration.process import CONFIG, GatewayProcess, running

SHM = Path("/dev/shm")
HELD = """
  held:
    backend: python
    target: tests.faults.held_model:double
    inputs: [{name: x, datatype: FP32, shape: [-1]}]
    outputs: [{name: y, datatype: FP32, shape: [-1]}]
    expose: true

routes:"""
SHARING = CONFIG.replace("\nroutes:", HELD) + "\nserver: {shared_memory: {enabled: true}}\n"
KEYS = """
security:
  api_keys:
    - {{name: ours, tenant: ours, sha256: {ours}}}
    - {{name: theirs, tenant: theirs, sha256: {theirs}}}
"""
LARGE = np.arange(2_500_000, dtype=np.float32).reshape(1, -1)
SMALL = np.array([[1.5, 2.5]], dtype=np.float32)


@contextmanager
def an_object(size: int) -> Iterator[Path]:
    """A shared memory object, as the file that it is."""
    path = SHM / f"pointsman-test-{uuid.uuid4().hex}"
    with path.open("xb") as file:
        file.truncate(size)
    try:
        yield path
    finally:
        path.unlink()


@dataclass(frozen=True, slots=True)
class Held:
    """The model `held`, by the pipes that it is held by."""

    begun: int
    go_on: int

    def wait_until_begun(self, call: Future[Any]) -> None:
        """Return when the model is at work for *call*; raises what that raises, should it end before."""
        while not select.select([self.begun], [], [], 0.1)[0]:
            if call.done():
                call.result()
                raise AssertionError("the call ended, and the model was never asked")
        os.read(self.begun, 1)

    def let_go(self) -> None:
        os.write(self.go_on, b"!")


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setenv("POINTSMAN_HELD", str(tmp_path))
    pipes = []
    for name in ("begun", "go_on"):
        os.mkfifo(tmp_path / name)
        pipes.append(os.open(tmp_path / name, os.O_RDWR))  # which waits for nobody
    yield Held(*pipes)
    for pipe in pipes:
        os.close(pipe)


def http_client(gateway: GatewayProcess) -> Any:
    return triton_http.InferenceServerClient(gateway.http.removeprefix("http://"), network_timeout=60)


def an_input(module: Any, values: Any, region: str | None = None) -> Any:
    tensor = module.InferInput("x", list(values.shape), "FP32")
    if region is None:
        tensor.set_data_from_numpy(values)
    else:
        tensor.set_shared_memory(region, values.nbytes)
    return tensor


def an_output(module: Any, region: str, size: int, offset: int = 0) -> Any:
    output = module.InferRequestedOutput("y")
    output.set_shared_memory(region, size, offset)
    return output


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_an_object_that_is_shortened_again_and_again_in_mid_request_ends_no_gateway(
    tmp_path: Path, module: Any
) -> None:
    """Were it mapped, the first read behind its new end would be SIGBUS."""
    answered: list[str] = []
    with running(tmp_path, SHARING) as gateway, an_object(2 * LARGE.nbytes) as path:
        address = gateway.grpc if module is triton_grpc else gateway.http.removeprefix("http://")
        stop = threading.Event()

        def shorten() -> None:
            with path.open("r+b") as file:
                while not stop.is_set():
                    file.truncate(0)
                    file.truncate(2 * LARGE.nbytes)

        with ThreadPoolExecutor(1) as pool, module.InferenceServerClient(address) as client:
            client.register_system_shared_memory("r", f"/{path.name}", 2 * LARGE.nbytes)
            shortening = pool.submit(shorten)
            try:
                for _ in range(60):
                    try:
                        output = an_output(module, "r", LARGE.nbytes, LARGE.nbytes)
                        client.infer("double", [an_input(module, LARGE, "r")], outputs=[output])
                        answered.append("")
                    except InferenceServerException as error:
                        answered.append(error.message())
            finally:
                stop.set()
            shortening.result()
            path.write_bytes(LARGE.tobytes() + bytes(LARGE.nbytes))
            client.infer("double", [an_input(module, LARGE, "r")], outputs=[output])

        np.testing.assert_array_equal(np.frombuffer(path.read_bytes()[LARGE.nbytes :], np.float32), LARGE[0] * 2)
        assert gateway.process.poll() is None
    refused = [message for message in answered if message]
    assert refused, "it was never too short: this test has tested nothing"
    assert all("has been shortened" in message for message in refused)


def test_an_object_that_is_shortened_before_its_output_is_written_is_the_caller_s_fault_alone(
    tmp_path: Path, held: Held
) -> None:
    with (
        running(tmp_path, SHARING) as gateway, an_object(64) as path,
        http_client(gateway) as client, ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        client.register_system_shared_memory("r", f"/{path.name}", 64)
        infer = pool.submit(infer_held, gateway, "r")
        held.wait_until_begun(infer)
        os.truncate(path, 4)
        held.let_go()

        with pytest.raises(
            InferenceServerException, match="has been shortened: 8 bytes of it are needed, and it has 4"
        ):
            infer.result()

        assert path.stat().st_size == 4
        assert client.infer("double", [an_input(triton_http, SMALL)]).as_numpy("y").tolist() == (SMALL * 2).tolist()


def test_a_request_in_flight_finishes_on_a_region_that_is_unregistered(tmp_path: Path, held: Held) -> None:
    with (
        running(tmp_path, SHARING) as gateway, an_object(64) as path,
        http_client(gateway) as client, ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        client.register_system_shared_memory("r", f"/{path.name}", 64)
        infer = pool.submit(infer_held, gateway, "r")
        held.wait_until_begun(infer)
        client.unregister_system_shared_memory("r")
        assert client.get_system_shared_memory_status() == []
        held.let_go()

        infer.result()

        assert np.frombuffer(path.read_bytes()[:8], np.float32).tolist() == (SMALL * 2).tolist()[0]
        with pytest.raises(InferenceServerException, match="no shared memory region 'r'"):
            client.infer("double", [an_input(triton_http, SMALL, "r")])


def test_what_a_client_writes_while_the_model_works_changes_nothing(tmp_path: Path, held: Held) -> None:
    with (
        running(tmp_path, SHARING) as gateway, an_object(LARGE.nbytes) as path,
        http_client(gateway) as client, ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        path.write_bytes(LARGE.tobytes())
        client.register_system_shared_memory("r", f"/{path.name}", LARGE.nbytes)

        def infer() -> Any:
            with triton_grpc.InferenceServerClient(gateway.grpc) as client:
                return client.infer("held", [an_input(triton_grpc, LARGE, "r")]).as_numpy("y")

        result = pool.submit(infer)
        held.wait_until_begun(result)
        path.write_bytes(bytes(LARGE.nbytes))
        held.let_go()

        np.testing.assert_array_equal(result.result(), LARGE * 2)


def infer_held(gateway: GatewayProcess, region: str) -> None:
    """Ask `held`, with the output in *region*."""
    with http_client(gateway) as client:
        output = an_output(triton_http, region, SMALL.nbytes)
        client.infer("held", [an_input(triton_http, SMALL)], outputs=[output])


def test_another_tenant_s_region_and_object_are_out_of_reach(tmp_path: Path) -> None:
    (ours, our_digest), (theirs, their_digest) = new_api_key(), new_api_key()
    config = SHARING + KEYS.format(ours=our_digest, theirs=their_digest)
    with running(tmp_path, config) as gateway, an_object(64) as path, http_client(gateway) as client:
        path.write_bytes(SMALL.tobytes() + bytes(56))
        mine, other = {"X-API-Key": ours}, {"X-API-Key": theirs}
        client.register_system_shared_memory("r", f"/{path.name}", 64, headers=mine)

        with pytest.raises(InferenceServerException, match="no shared memory region 'r'"):
            client.infer("double", [an_input(triton_http, SMALL, "r")], headers=other)
        with pytest.raises(InferenceServerException, match="somebody else's"):
            client.register_system_shared_memory("r", path.name, 64, headers=other)
        assert client.get_system_shared_memory_status(headers=other) == []
        client.unregister_system_shared_memory(headers=other)
        result = client.infer("double", [an_input(triton_http, SMALL, "r")], headers=mine)
        assert result.as_numpy("y").tolist() == (SMALL * 2).tolist()


def test_keys_and_sizes_that_reach_beyond_are_refused_and_nothing_is_registered(tmp_path: Path) -> None:
    with running(tmp_path, SHARING) as gateway, an_object(64) as path, http_client(gateway) as client:
        refused = {
            ("/triton_python_backend_shm_region_1", 8, 0): "reserved prefix",
            ("///triton_python_backend_shm_region_1", 8, 0): "names no shared memory object",
            (f"///{path.name}", 8, 0): "names no shared memory object",
            ("/../etc/passwd", 8, 0): "names no shared memory object",
            ("/sem.x", 8, 0): "reserved prefix",
            (f"/{path.name}", 65, 0): "has 64 in all",
            (f"/{path.name}", 8, 64): "has 64 in all",
            (f"/{path.name}", 2**64 - 8, 16): "has 64 in all",
            (f"/{path.name}", 16, 2**64 - 8): "has 64 in all",
        }
        for (key, byte_size, offset), message in refused.items():
            with pytest.raises(InferenceServerException, match=message):
                client.register_system_shared_memory("r", key, byte_size, offset)
            with (
                triton_grpc.InferenceServerClient(gateway.grpc) as other,
                pytest.raises(InferenceServerException, match=message),
            ):
                other.register_system_shared_memory("r", key, byte_size, offset)
        assert client.get_system_shared_memory_status() == []


async def test_memory_is_not_shared_on_an_address_that_others_can_reach(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(SHARING)
    settings = load_settings(tmp_path / "gateway.yaml")
    reachable = replace(settings, server=replace(settings.server, host="0.0.0.0"))

    with pytest.raises(InvalidInput, match=r"for clients on this machine, but host '0\.0\.0\.0' lets others in"):
        async with compose(reachable):
            pass
