"""Callers' regions of shared memory reach a real Triton without a copy, by way of a gateway in a process of its own."""

from __future__ import annotations

import json
import re
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
import yaml
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from backends.contract import Datatype, TensorSpec
from tests.conformance.conftest import Servers
from tests.conformance.repository import Served, write_repository
from tests.conformance.triton import TritonProcess, triton
from tests.integration.process import GatewayProcess, running

WIDE = 2_500_000  # numbers: 10 MB

# Any, throughout: tritonclient is untyped.


def _fixed(name: str, function: str, length: int, max_batch: int = 8) -> Served:
    shape = (TensorSpec("x", Datatype.FP32, (length,)),), (TensorSpec("y", Datatype.FP32, (length,)),)
    return Served(name, function, *shape, max_batch=max_batch)


MODELS = (
    _fixed("dbl", "double", 16, 64),
    _fixed("slow", "waits", 16),
    _fixed("fails", "fails", 16),
    _fixed("wide", "same", WIDE),
    Served("text", "same", (TensorSpec("x", Datatype.BYTES, (1,)),), (TensorSpec("y", Datatype.BYTES, (1,)),)),
    Served(
        "animals",
        "animals",
        (TensorSpec("x", Datatype.FP32, (4,)),),
        (TensorSpec("probabilities", Datatype.FP32, (4,)),),
    ),
)


@pytest.fixture(scope="module")
def real(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton of this module's own: its list of regions is looked at."""
    folder = tmp_path_factory.mktemp("passing")
    with triton(folder, write_repository(folder / "models", MODELS)) as process:
        yield process


def configuration(real: TritonProcess, other: str, **shared_memory: object) -> str:
    """A gateway before *real*, and for `both` before *other* (host:port of gRPC) too."""
    http, grpc = f"http://{real.http}", f"grpc://{real.grpc}"
    models: dict[str, dict[str, object]] = {
        name: {"url": http} for name in ("dbl", "slow", "fails", "wide", "text", "animals")
    }
    models["dbl_grpc"] = {"url": grpc, "model": "dbl"}
    models["slow_grpc"] = {"url": grpc, "model": "slow"}
    models["both"] = {"url": [grpc, f"grpc://{other}"], "model": "dbl"}
    common = {"backend": "triton", "shared_memory": True, "expose": True}
    route = {
        "input": {"x": {"datatype": "FP32", "shape": [4]}},
        "cascade": ["animals", "animals_again"],
        "accept": {"min_confidence": 0.9},
        "slo": {"deadline": "5s"},
    }
    models["animals_again"] = {"url": grpc, "model": "animals", "shared_memory": False}
    return yaml.safe_dump(
        {
            "models": {name: {**common, **own} for name, own in models.items()},
            "routes": {"judged": route},
            "server": {"shared_memory": {"enabled": True, "pass_from": "1B", **shared_memory}},
            "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
        }
    )


@pytest.fixture(scope="module")
def passing(
    real: TritonProcess, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One that passes on everything."""
    with running(tmp_path_factory.mktemp("gateway"), configuration(real, servers.triton.grpc)) as process:
        yield process


@dataclass(slots=True)
class Memory:
    """A client's object, registered at a gateway under *name*."""

    client: Any
    module: Any
    name: str
    handle: Any

    @property
    def key(self) -> str:
        return f"/{self.name}"

    def put(self, array: NDArray[Any], offset: int = 0) -> None:
        shm.set_shared_memory_region(self.handle, [array], offset)

    def at(self, offset: int, *shape: int) -> NDArray[Any]:
        """A copy of the numbers that lie there."""
        found: NDArray[Any] = shm.get_contents_as_numpy(self.handle, np.float32, list(shape), offset)
        return found.copy()

    def infer(
        self, model: str, rows: int = 1, length: int = 16, out: int | None = None, output: str = "y", **how: Any
    ) -> Any:
        """Ask *model* for the numbers at the beginning; the output goes to *out*, if that is said."""
        tensor = self.module.InferInput("x", [rows, length], "FP32")
        tensor.set_shared_memory(self.name, 4 * rows * length)
        wanted = self.module.InferRequestedOutput(output)
        if out is not None:
            wanted.set_shared_memory(self.name, 4 * rows * length, out)
        return self.client.infer(model, [tensor], outputs=[wanted], **how)


@contextmanager
def registered(gateway: GatewayProcess, size: int, flavour: str = "http") -> Iterator[Memory]:
    """A region of *size* bytes."""
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[flavour]
    address = gateway.grpc if flavour == "grpc" else gateway.http.removeprefix("http://")
    name = f"passing-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(name, f"/{name}", size, create_only=True)
    how = {} if flavour == "grpc" else {"concurrency": 8}
    with module.InferenceServerClient(address, **how) as client:
        try:
            client.register_system_shared_memory(name, f"/{name}", size)
            yield Memory(client, module, name, handle)
        finally:
            client.unregister_system_shared_memory(name)
            shm.destroy_shared_memory_region(handle)


def passed_on(process: TritonProcess) -> dict[str, int]:
    """The callers' regions that Triton lists, with their sizes."""
    with tritonclient.http.InferenceServerClient(process.http) as client:
        found = client.get_system_shared_memory_status()
    return {one["name"]: one["byte_size"] for one in found if one["name"].startswith("pointsman-caller-")}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize("flavour", ["http", "grpc"])
@pytest.mark.parametrize("model", ["dbl", "dbl_grpc"])
def test_numbers_go_from_the_callers_memory_to_triton_and_back(
    passing: GatewayProcess, real: TritonProcess, model: str, flavour: str
) -> None:
    sent = np.arange(48, dtype=np.float32).reshape(3, 16)
    with registered(passing, 4096, flavour) as memory:
        memory.put(sent)

        for _ in range(2):
            memory.infer(model, rows=3, out=1024)
            listed = passed_on(real)

        assert np.array_equal(memory.at(1024, 3, 16), 2 * sent)
        assert list(listed.values()) == [4096]  # one region, once
    until(lambda: not passed_on(real))


def test_the_answer_is_kept_without_what_was_never_seen(passing: GatewayProcess) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))
        said = memory.infer("dbl", out=1024).get_response()["parameters"]
    until(lambda: _answer(passing, said["pointsman_answer_id"]) is not None)  # behind the reply

    kept = _answer(passing, said["pointsman_answer_id"])

    assert (kept["status"], kept["stage"]) == ("final", "dbl")
    assert "outputs" not in kept


def _answer(gateway: GatewayProcess, answer_id: str) -> Any:
    """The answer as the gateway keeps it; None while it does not."""
    try:
        with urllib.request.urlopen(f"{gateway.http}/v1/answers/{answer_id}", timeout=5) as reply:
            return json.load(reply)
    except HTTPError as error:
        error.close()
        return None


def test_an_output_that_is_wanted_in_the_reply_comes_with_it(passing: GatewayProcess, real: TritonProcess) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))

        told = memory.infer("dbl")

        assert np.array_equal(told.as_numpy("y"), np.full((1, 16), 6, np.float32))
        assert len(passed_on(real)) == 1


@pytest.mark.parametrize("flavour", ["http", "grpc"])
def test_texts_are_passed_on_and_triton_says_what_is_wrong_with_them(
    passing: GatewayProcess, real: TritonProcess, flavour: str
) -> None:
    with registered(passing, 4096, flavour) as memory:
        memory.put(np.frombuffer(b"\4\0\0\0wide\7\0\0\0and far", np.uint8))
        tensor = memory.module.InferInput("x", [2, 1], "BYTES")
        tensor.set_shared_memory(memory.name, 8 + 11)

        told = memory.client.infer("text", [tensor])

        assert told.as_numpy("y").tolist() == [[b"wide"], [b"and far"]]
        assert len(passed_on(real)) == 1
        memory.put(np.full((1, 1), np.nan, np.float32))  # no length of a text that is there
        with pytest.raises(InferenceServerException, match="refuses these values"):
            memory.client.infer("text", [tensor])
        tensor.set_shared_memory(memory.name, 7)
        with pytest.raises(InferenceServerException, match="has 7 bytes; 2 BYTES elements take at least 8"):
            memory.client.infer("text", [tensor])


def test_a_route_that_judges_sees_the_outputs_and_reads_for_its_second_stage(
    passing: GatewayProcess, real: TritonProcess
) -> None:
    with registered(passing, 4096) as memory:
        for sure in (0.97, 0.4):
            row = np.array([[sure, 1 - sure, 0, 0]], np.float32)
            memory.put(row)

            if sure > 0.9:
                told = memory.infer("judged", length=4, out=1024, output="probabilities")
                said = told.get_response()["parameters"]
                assert (said["pointsman_stage"], said["pointsman_confidence"]) == ("animals", pytest.approx(sure))
                assert np.array_equal(memory.at(1024, 1, 4), row)
            else:  # and people there are none
                told = memory.infer("judged", length=4, output="probabilities")
                assert told.get_response()["parameters"]["pointsman_stage"] == "animals_again"
        assert len(passed_on(real)) == 1  # by the first stage's backend; the second got bytes


def test_two_tritons_both_know_the_region_and_forget_it(
    passing: GatewayProcess, real: TritonProcess, servers: Servers
) -> None:
    other = TritonProcess(servers.triton.http, servers.triton.grpc, 0)
    with registered(passing, 4096, "grpc") as memory:
        memory.put(np.full((1, 16), 3, np.float32))

        for _ in range(24):
            memory.infer("both", out=1024)
            assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 6, np.float32))
            memory.put(np.zeros((1, 16), np.float32), 1024)

        assert (len(passed_on(real)), len(passed_on(other))) == (1, 1)
    until(lambda: not passed_on(real) and not passed_on(other))


@pytest.mark.parametrize("model", ["dbl", "dbl_grpc"])
def test_a_triton_that_has_forgotten_a_region_is_told_of_it_again(
    passing: GatewayProcess, real: TritonProcess, model: str
) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))
        memory.infer(model, out=1024)
        with tritonclient.http.InferenceServerClient(real.http) as direct:
            direct.unregister_system_shared_memory()  # as one that was started again
        memory.put(np.zeros((1, 16), np.float32), 1024)

        memory.infer(model, out=1024)

        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 6, np.float32))
        assert len(passed_on(real)) == 1


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_object_that_has_lost_its_name_still_serves(
    passing: GatewayProcess, real: TritonProcess, forgotten: bool
) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))
        if forgotten:
            memory.infer("dbl", out=1024)
        Path(f"/dev/shm{memory.key}").unlink()
        with tritonclient.http.InferenceServerClient(real.http) as direct:
            direct.unregister_system_shared_memory()
        try:
            memory.put(np.zeros((1, 16), np.float32), 1024)
            memory.infer("dbl", out=1024)  # nothing can be told to Triton: it is read and written here

            assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 6, np.float32))
            assert not passed_on(real)
        finally:
            Path(f"/dev/shm{memory.key}").touch()  # for whoever destroys it


def test_an_object_that_was_shortened_is_refused_before_triton_touches_it(
    passing: GatewayProcess, real: TritonProcess
) -> None:
    with registered(passing, 8192) as memory:
        memory.put(np.full((1, 16), 3, np.float32), 0)
        memory.infer("dbl", out=1024)
        with Path(f"/dev/shm{memory.key}").open("r+b") as file:
            file.truncate(0)
            try:
                with pytest.raises(InferenceServerException, match=r"has been shortened.*keep its length"):
                    memory.infer("dbl", out=1024)
            finally:
                file.truncate(8192)

        memory.put(np.full((1, 16), 4, np.float32))
        memory.infer("dbl", out=1024)  # both servers are alive

        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 8, np.float32))


def test_sizes_are_checked_before_triton_is_asked(passing: GatewayProcess) -> None:
    with registered(passing, 4096) as memory:
        with pytest.raises(InferenceServerException, match="beyond region"):
            memory.infer("dbl", out=4090)
        tensor = memory.module.InferInput("x", [1, 16], "FP32")
        tensor.set_shared_memory(memory.name, 60)
        with pytest.raises(InferenceServerException, match=r"has 60 bytes; shape .* takes 64"):
            memory.client.infer("dbl", [tensor])
        tensor.set_shared_memory(memory.name, 64)
        wanted = memory.module.InferRequestedOutput("y")
        wanted.set_shared_memory(memory.name, 32, 1024)
        with pytest.raises(InferenceServerException, match="takes 64 bytes, and its place in shared memory has 32"):
            memory.client.infer("dbl", [tensor], outputs=[wanted])


def test_a_model_that_fails_is_told_and_the_region_serves_on(passing: GatewayProcess) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), -1, np.float32))
        with pytest.raises(InferenceServerException, match="failed on this"):
            memory.infer("fails", out=1024)
        memory.put(np.full((1, 16), 5, np.float32))

        memory.infer("fails", out=1024)

        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 5, np.float32))


def test_a_region_that_is_unregistered_during_a_call_is_kept_at_triton_until_its_end(
    passing: GatewayProcess, real: TritonProcess
) -> None:
    with registered(passing, 4096, "grpc") as memory, ThreadPoolExecutor(1) as threads:
        memory.put(np.full((1, 16), 0.5, np.float32))
        call = threads.submit(memory.infer, "slow", out=1024)
        until(lambda: bool(passed_on(real)))
        time.sleep(0.1)
        memory.client.unregister_system_shared_memory(memory.name)
        during = passed_on(real)
        with registered(passing, 4096) as another:  # under another key, meanwhile
            another.put(np.full((1, 16), 7, np.float32))
            another.infer("dbl", out=1024)
            assert np.array_equal(another.at(1024, 1, 16), np.full((1, 16), 14, np.float32))

        call.result()

        assert len(during) == 1
        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 0.5, np.float32))
    until(lambda: not passed_on(real))


@pytest.mark.parametrize("model", ["slow", "slow_grpc"])
def test_where_a_call_that_was_given_up_may_still_write_no_other_output_goes(
    passing: GatewayProcess, real: TritonProcess, model: str
) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 1.0, np.float32))
        with pytest.raises(InferenceServerException, match="deadline"):
            memory.infer(model, out=1024, timeout=200_000)
        memory.put(np.full((1, 16), 0.01, np.float32))

        with pytest.raises(InferenceServerException, match=r"given up may still write.*use another place"):
            memory.infer("dbl", out=1024 + 32)
        memory.infer("dbl", out=2048)
        assert np.array_equal(memory.at(2048, 1, 16), np.full((1, 16), 0.02, np.float32))

        until(lambda: bool((memory.at(1024, 1, 16) == 1.0).all()))  # so it did write
        until(lambda: _is_answered(memory))
    until(lambda: not passed_on(real))


def _is_answered(memory: Memory) -> bool:
    try:
        memory.infer("dbl", out=1024)
    except InferenceServerException:
        return False
    return bool((memory.at(1024, 1, 16) == np.float32(0.02)).all())


def test_calls_at_once_are_answered_each_with_its_own(passing: GatewayProcess) -> None:
    def asked(i: int) -> bool:
        with registered(passing, 4096, "grpc") as memory:
            for j in range(20):
                sent = np.full((1, 16), 100 * i + j, np.float32)
                memory.put(sent)
                memory.infer("dbl_grpc", out=1024)
                if not np.array_equal(memory.at(1024, 1, 16), 2 * sent):
                    return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(asked, range(8)))


def test_ten_megabytes_leave_no_trace_in_the_gateways_memory(passing: GatewayProcess) -> None:
    sent = np.random.default_rng(0).random((1, WIDE), dtype=np.float32)
    with registered(passing, 2 * sent.nbytes) as memory:
        memory.put(sent)
        memory.infer("wide", length=WIDE, out=sent.nbytes)  # what the first one builds stays
        before = _resident(passing.process.pid)
        Path(f"/proc/{passing.process.pid}/clear_refs").write_text("5")  # the peak begins anew

        for _ in range(3):
            memory.infer("wide", length=WIDE, out=sent.nbytes)

        grown = _resident(passing.process.pid, "VmHWM") - before
        assert np.array_equal(memory.at(sent.nbytes, 1, WIDE), sent)
        assert grown < sent.nbytes / 4


def _resident(pid: int, what: str = "VmRSS") -> int:
    """Bytes, by /proc."""
    (found,) = re.findall(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found)


def test_nothing_of_ours_is_left_in_shared_memory(passing: GatewayProcess, real: TritonProcess) -> None:
    until(lambda: not passed_on(real))

    assert not list(Path("/dev/shm").glob("pointsman-region-*"))


def test_with_an_idempotency_key_or_where_it_is_turned_off_nothing_is_passed_on(
    passing: GatewayProcess, real: TritonProcess, servers: Servers, tmp_path: Path
) -> None:
    with registered(passing, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))
        memory.infer("dbl", out=1024, headers={"Idempotency-Key": f'"{uuid.uuid4().hex}"'})

        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 6, np.float32))
        assert not passed_on(real)
    config = configuration(real, servers.triton.grpc, pass_through=False)
    with running(tmp_path, config) as copying, registered(copying, 4096) as memory:
        memory.put(np.full((1, 16), 3, np.float32))
        memory.infer("dbl", out=1024)

        assert np.array_equal(memory.at(1024, 1, 16), np.full((1, 16), 6, np.float32))
        assert not passed_on(real)


def test_an_object_that_is_shortened_during_a_call_can_end_triton_and_not_the_gateway(
    servers: Servers, tmp_path: Path
) -> None:
    slow = _fixed("slow", "waits", 4096)
    config = {
        "server": {"shared_memory": {"enabled": True, "pass_from": "1B"}},
        "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
    }
    (tmp_path / "triton").mkdir()
    with triton(tmp_path / "triton", write_repository(tmp_path / "models", [slow])) as doomed:
        model = {"backend": "triton", "shared_memory": True, "expose": True, "url": f"grpc://{doomed.grpc}"}
        written = yaml.safe_dump({"models": {"slow": model}, **config})
        with running(tmp_path, written) as gateway, registered(gateway, 65536, "grpc") as memory:
            memory.put(np.full((1, 4096), 0.3, np.float32))
            with ThreadPoolExecutor(1) as threads, Path(f"/dev/shm{memory.key}").open("r+b") as file:
                call = threads.submit(memory.infer, "slow", length=4096, out=32768)
                until(lambda: bool(passed_on(doomed)))
                time.sleep(0.1)
                file.truncate(0)

                error = call.exception()
                file.truncate(65536)

            assert error is None or isinstance(error, InferenceServerException)  # as Triton has it
            assert gateway.process.poll() is None
            assert memory.client.is_server_live()
