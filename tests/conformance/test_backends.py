"""The backends `triton` and `oip` against the real Triton: the contract, and what only a real server shows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient

from backends.conformance import Sample, exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, Memory, Signature, Tensor, TensorSpec
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, PointsmanError
from backends.oip.model import OIPOptions, open_oip
from backends.replicas import ReplicaOptions
from backends.triton import shared_memory
from backends.triton.cuda_memory import CudaRegion
from backends.triton.model import TritonOptions, open_triton
from kernels.arrays import DeviceArray
from tests.conformance.conftest import Servers
from tests.elsewhere import Elsewhere

Opened = Callable[[str], "Open"]


class Open:
    """How a model is opened, in each of the ways; called as `exercise_backend` does."""

    def __init__(self, model: str, url: str, way: str) -> None:
        self.model, self.url, self.way = model, url, way

    async def __call__(self) -> Backend:
        if self.way == "oip":
            return await open_oip(self.model, OIPOptions(self.url, max_batch=8))
        shared = self.way == "shared memory"
        return await open_triton(self.model, TritonOptions(self.url, shared_memory=shared, shared_memory_from=0))


@pytest.fixture(autouse=True)
def _names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests share meanwhile, in processes beside this one, is not looked at."""
    monkeypatch.setattr(shared_memory, "_PREFIX", f"pointsman-tensors-{os.getpid()}-")


@pytest.fixture(params=["http", "grpc"])
def url(servers: Servers, request: pytest.FixtureRequest) -> str:
    """Of the real Triton."""
    return f"{request.param}://{getattr(servers.triton, request.param)}"


@pytest.fixture(params=["inline", "shared memory", "oip"])
def opened(url: str, request: pytest.FixtureRequest) -> Opened:
    """Opens a model by its name."""
    return lambda model: Open(model, url, request.param)


def numbers(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.random((n, 16), dtype=np.float32))})


def texts(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor(Datatype.BYTES, (n, 1), np.array([[rng.bytes(5)] for _ in range(n)], object))})


def pairs(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({name: Tensor.of(rng.integers(0, 100, (n, 3), dtype=np.int32)) for name in "ab"})


def patterns(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.integers(0, 2**16, (n, 3), dtype=np.uint16), Datatype.BF16)})


def flags(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.integers(0, 2, (n, 3)) > 0)})


@pytest.mark.parametrize(
    ("model", "sample"),
    [("dbl", numbers), ("text", texts), ("sums", pairs), ("same_bf16", patterns), ("same_bool", flags)],
)
async def test_a_model_on_triton_keeps_the_contract(opened: Opened, model: str, sample: Sample) -> None:
    await exercise_backend(opened(model), sample)


async def test_what_a_model_takes_and_how_much_is_read_from_the_server(url: str) -> None:
    backend = await open_triton("mine", TritonOptions(url, model="dbl"))

    assert backend.signature == Signature(
        (TensorSpec("x", Datatype.FP32, (16,)),), (TensorSpec("y", Datatype.FP32, (16,)),)
    )
    assert (backend.version, backend.limits.max_batch, backend.limits.max_in_flight) == ("1", 64, 2)
    await backend.aclose()


async def test_a_smaller_limit_than_the_servers_is_kept(url: str) -> None:
    backend = await open_triton("dbl", TritonOptions(url, max_batch=4, max_in_flight=5))

    assert (backend.limits.max_batch, backend.limits.max_in_flight) == (4, 5)
    await backend.aclose()


@pytest.mark.parametrize(
    ("options", "expected", "told"),
    [
        ({"model": "nobody"}, NotFound, "nobody"),
        ({"version": "7"}, PointsmanError, "7"),
    ],
)
async def test_what_the_server_has_not_is_told_when_it_is_opened(
    url: str, options: dict[str, str], expected: type[PointsmanError], told: str
) -> None:
    with pytest.raises(expected, match=told):
        await open_triton("dbl", TritonOptions(url, **options))  # type: ignore[arg-type]  # texts, all of them


async def test_a_model_that_fails_is_told_apart_from_a_server_that_does(opened: Opened) -> None:
    backend = await opened("fails")()
    poison = Batch.of({"x": Tensor.of(np.array([[-1.0]], np.float32))})

    with pytest.raises(BackendFailed, match="failed on this batch") as raised:
        await backend.infer(poison, NO_DEADLINE)

    assert "as asked for" not in str(raised.value)  # the model's own words are for the log
    assert "as asked for" in str(raised.value.__cause__)
    await backend.infer(Batch.of({"x": Tensor.of(np.ones((1, 1), np.float32))}), NO_DEADLINE)
    await backend.aclose()


async def test_a_late_answer_is_not_waited_for_and_reaches_nobody(opened: Opened) -> None:
    backend = await opened("waits")()
    slow = Batch.of({"x": Tensor.of(np.array([[0.4]], np.float32))})
    started = time.monotonic()

    with pytest.raises(DeadlineExceeded):
        await backend.infer(slow, Deadline(started + 0.1))

    assert time.monotonic() - started < 0.35
    quick = Batch.of({"x": Tensor.of(np.array([[0.001]], np.float32))})
    answers = await asyncio.gather(*(backend.infer(quick, NO_DEADLINE) for _ in range(4)))
    assert all(answer["y"].numpy()[0, 0] == np.float32(0.001) for answer in answers)
    await backend.aclose()


async def test_triton_survives_callers_that_leave(opened: Opened) -> None:
    """Over gRPC, cancellations end this version of Triton within seconds where they reach it."""
    before = shared_objects()
    backend = await opened("dbl")()
    rng = np.random.default_rng(0)
    batch = numbers(1, rng)

    for _ in range(400):
        calls = [asyncio.ensure_future(backend.infer(batch, Deadline(time.monotonic() + 1))) for _ in range(4)]
        await asyncio.sleep(rng.random() * 0.002)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    outputs = await backend.infer(batch, NO_DEADLINE)
    assert np.array_equal(outputs["y"].numpy(), 2 * batch.inputs["x"].numpy())
    await backend.aclose()
    assert shared_objects() <= before


# --- shared memory ---


def shared_objects() -> set[str]:
    return {path.name for path in shared_memory.FOLDER.glob(f"{shared_memory._PREFIX}*")}


async def test_shared_memory_is_gone_when_the_backend_is_closed(url: str) -> None:
    before = shared_objects()
    backend = await open_triton("dbl", TritonOptions(url, shared_memory=True, shared_memory_from=0))
    await backend.infer(numbers(3, np.random.default_rng(0)), NO_DEADLINE)
    during = shared_objects() - before

    await backend.aclose()

    assert during
    assert shared_objects() <= before


async def test_a_region_is_never_used_again_while_the_server_may_write_to_it(url: str) -> None:
    backend = await open_triton(
        "waits", TritonOptions(url, shared_memory=True, shared_memory_from=0, replicas=ReplicaOptions(attempts=1))
    )
    slow = Batch.of({"x": Tensor.of(np.array([[0.3]], np.float32))})
    opened = shared_objects()

    with pytest.raises(DeadlineExceeded):
        await backend.infer(slow, Deadline(time.monotonic() + 0.1))

    assert shared_objects() < opened  # the one that it had has lost its name
    await backend.aclose()


async def test_what_killed_gateways_left_in_shared_memory_is_removed(url: str) -> None:
    left = shared_memory.FOLDER / f"{shared_memory._PREFIX}of-a-gateway-that-was-killed"
    left.write_bytes(bytes(4096))
    held = shared_memory.Region(4096)

    backend = await open_triton("dbl", TritonOptions(url, shared_memory=True))

    assert not left.exists()
    assert held.name in shared_objects()  # its owner is there: this process
    held.unlink()
    await backend.aclose()


async def test_a_server_that_cannot_see_the_shared_memory_is_refused_when_it_is_opened(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)  # as in a container with a /dev/shm of its own

    with pytest.raises(InvalidInput, match="one machine"):
        await open_triton("dbl", TritonOptions(url, shared_memory=True))


async def test_a_server_that_has_forgotten_its_regions_is_told_them_again(servers: Servers, url: str) -> None:
    """As it has when it was started again."""
    backend = await open_triton("dbl", TritonOptions(url, shared_memory=True, shared_memory_from=0))
    batch = numbers(2, np.random.default_rng(0))
    await backend.infer(batch, NO_DEADLINE)

    with InferenceServerClient(servers.triton.http) as client:
        client.unregister_system_shared_memory()
    outputs = await backend.infer(batch, NO_DEADLINE)

    assert np.array_equal(outputs["y"].numpy(), 2 * batch.inputs["x"].numpy())
    await backend.aclose()


async def test_tensors_of_ten_megabytes_pass_through_shared_memory(url: str) -> None:
    backend = await open_triton("same_fp32", TritonOptions(url, shared_memory=True))
    x = np.random.default_rng(0).random((8, 330_000), dtype=np.float32)

    outputs = await backend.infer(Batch.of({"x": Tensor.of(x)}), NO_DEADLINE)

    assert np.array_equal(outputs["y"].numpy(), x)
    await backend.aclose()


# --- memory of a CUDA device, as far as a Triton without one says ---


class Unmappable:
    """Memory that no other process can open: its handle is that of nothing."""

    handle = bytes(64)

    def __init__(self) -> None:
        self.is_freed = False

    def write(self, parts: Sequence[tuple[int, DeviceArray]]) -> None:
        raise AssertionError("a region that the server cannot open was written to")

    def free(self) -> None:
        self.is_freed = True


async def test_a_triton_that_cannot_open_a_devices_memory_gets_what_is_there_by_the_host(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Unmappable()
    monkeypatch.setattr(CudaRegion, "made", lambda number, size: CudaRegion(memory, number, size))
    options = TritonOptions(url, shared_memory=True, shared_memory_from=0, cuda_shared_memory="cuda:0")
    x = np.random.default_rng(0).random((3, 16), dtype=np.float32)

    backend = await open_triton("dbl", options)
    there = Batch({"x": Tensor(Datatype.FP32, x.shape, Elsewhere(x))}, 3)
    outputs = await backend.infer(there, NO_DEADLINE)

    assert "cannot open memory of a CUDA device (" in caplog.text
    assert memory.is_freed
    assert Memory.DEVICE not in backend.limits.memory
    assert np.array_equal(outputs["y"].numpy(), 2 * x)
    await backend.aclose()
