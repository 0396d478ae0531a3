"""The backend `oip` against the real MLServer and the real KServe SDK, over HTTP and gRPC.

Neither states its binary extension, so HTTP is JSON throughout: KServe, which has it, is asked for none of it.
"""

from __future__ import annotations

import asyncio
import string
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from backends.conformance import Sample, exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, Signature, State, Tensor, TensorSpec
from backends.errors import BackendFailed, DeadlineExceeded, NotFound, PointsmanError, ReplicaFailed
from backends.oip.model import OIPOptions, open_oip
from backends.replicas import ReplicaOptions
from gateway.discover import configuration_of
from gateway.settings import load_settings
from tests.integration.v2_servers.servers import Address

_NEVER_EJECTED = ReplicaOptions(attempts=1, eject_after=1000)


@pytest.fixture(params=["mlserver", "kserve"])
def server(request: pytest.FixtureRequest) -> str:
    """Each in turn."""
    name: str = request.param
    return name


@pytest.fixture(params=["http", "grpc"])
def url(server: str, request: pytest.FixtureRequest) -> str:
    """Of that server."""
    address: Address = request.getfixturevalue(f"{server}_address")
    return f"{request.param}://{getattr(address, request.param)}"


def numbers(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.random((n, 16), dtype=np.float32))})


def texts(n: int, rng: np.random.Generator) -> Batch:
    """Printable, as JSON carries nothing else; beyond ASCII, quotes and backslashes among them."""
    written = [["".join(rng.choice([*string.printable, *"äß€駅🚂"], 5)).encode()] for _ in range(n)]
    return Batch.of({"x": Tensor(Datatype.BYTES, (n, 1), np.array(written, object))})


def pairs(n: int, rng: np.random.Generator) -> Batch:
    return Batch.of({name: Tensor.of(rng.integers(-100, 100, (n, 3), dtype=np.int32)) for name in "ab"})


def seconds(wanted: float) -> Batch:
    """For `waits`."""
    return Batch.of({"x": Tensor.of(np.array([[wanted]], np.float32))})


def opening(model: str, url: str) -> Callable[[], Awaitable[Backend]]:
    return lambda: open_oip(model, OIPOptions(url, max_batch=8, max_in_flight=3))


@asynccontextmanager
async def opened(name: str, url: str, **options: object) -> AsyncIterator[Backend]:
    backend = await open_oip(name, OIPOptions(url, **options))  # type: ignore[arg-type]  # of several types
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.mark.parametrize(("model", "sample"), [("dbl", numbers), ("text", texts), ("sums", pairs)])
async def test_a_model_keeps_the_contract(url: str, model: str, sample: Sample) -> None:
    await exercise_backend(opening(model, url), sample)


async def test_what_a_model_takes_is_read_from_its_metadata(url: str) -> None:
    async with opened("mine", url, model="sums", max_batch=5, max_in_flight=3) as backend:
        assert backend.signature == Signature(
            (TensorSpec("a", Datatype.INT32, (-1,)), TensorSpec("b", Datatype.INT32, (-1,))),
            (TensorSpec("sum", Datatype.INT32, (-1,)), TensorSpec("difference", Datatype.INT32, (-1,))),
        )
        assert (backend.version, backend.limits.max_batch, backend.limits.max_in_flight) == ("1", 5, 3)


async def test_a_batch_is_answered_row_by_row_and_by_the_name_of_the_output(url: str) -> None:
    a, b = np.array([[1, 2], [3, 4]], np.int32), np.array([[10, 20], [30, 40]], np.int32)
    async with opened("sums", url) as backend:
        outputs = await backend.infer(Batch.of({"a": Tensor.of(a), "b": Tensor.of(b)}), NO_DEADLINE)

    assert list(outputs) == ["sum", "difference"]
    np.testing.assert_array_equal(outputs["sum"].numpy(), a + b)
    np.testing.assert_array_equal(outputs["difference"].numpy(), a - b)


async def test_a_model_that_fails_is_the_batchs_failure_and_not_the_servers(url: str) -> None:
    options = ReplicaOptions(eject_after=2)
    async with opened("fails", url, replicas=options) as backend:
        for _ in range(4):
            with pytest.raises(BackendFailed, match="model 'fails' failed on this batch") as raised:
                await backend.infer(numbers(1, np.random.default_rng(0)), NO_DEADLINE)
        assert backend.state is State.READY

    assert "always" not in str(raised.value)  # the model's own words are for the log
    assert raised.value.__cause__ is not None


async def test_an_answer_past_its_deadline_is_not_waited_for_and_the_next_one_comes(url: str) -> None:
    async with opened("waits", url, replicas=_NEVER_EJECTED) as backend:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await backend.infer(seconds(0.6), Deadline(started + 0.1))
        took_s = time.monotonic() - started
        answers = await asyncio.gather(*(backend.infer(seconds(0.001 * i), NO_DEADLINE) for i in range(1, 5)))

    assert took_s < 0.5
    assert [answer["y"].numpy()[0, 0] for answer in answers] == [np.float32(0.001 * i) for i in range(1, 5)]


async def test_calls_overlap_at_the_server(url: str) -> None:
    async with opened("waits", url, max_in_flight=4) as backend:
        started = time.monotonic()
        await asyncio.gather(*(backend.infer(seconds(0.4), NO_DEADLINE) for _ in range(4)))

    assert time.monotonic() - started < 1.2  # one after the other: 1.6


async def test_an_unknown_model_is_told_when_it_is_opened(url: str) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await open_oip("nobody", OIPOptions(url))


async def test_a_base_path_that_is_none_is_told_when_it_is_opened(server: str, request: pytest.FixtureRequest) -> None:
    address: Address = request.getfixturevalue(f"{server}_address")
    with pytest.raises(NotFound, match="/elsewhere/v2"):
        await open_oip("dbl", OIPOptions(f"http://{address.http}/elsewhere"))


async def test_callers_that_leave_harm_nobody(url: str) -> None:
    rng = np.random.default_rng(0)
    batch = numbers(2, rng)
    async with opened("dbl", url) as backend:
        for _ in range(50):
            calls = [asyncio.ensure_future(backend.infer(batch, NO_DEADLINE)) for _ in range(3)]
            await asyncio.sleep(rng.random() * 0.004)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        outputs = await backend.infer(batch, NO_DEADLINE)

    np.testing.assert_array_equal(outputs["y"].numpy(), 2 * batch.inputs["x"].numpy())


# --- versions ---


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_the_version_that_is_named_is_asked_for(mlserver_address: Address, scheme: str) -> None:
    url = f"{scheme}://{getattr(mlserver_address, scheme)}"
    batch = numbers(2, np.random.default_rng(0))
    async with opened("dbl", url, version="1") as backend:
        outputs = await backend.infer(batch, NO_DEADLINE)
        assert backend.version == "1"

    np.testing.assert_array_equal(outputs["y"].numpy(), 2 * batch.inputs["x"].numpy())
    with pytest.raises(NotFound, match="dbl"):
        await open_oip("dbl", OIPOptions(url, version="7"))


async def test_a_server_without_versions_says_so_when_one_is_named(kserve_address: Address) -> None:
    with pytest.raises(NotFound, match="versioning"):
        await open_oip("dbl", OIPOptions(f"http://{kserve_address.http}", version="7"))


# --- what JSON does to values ---


async def test_infinities_come_back_as_nan_from_json_and_as_they_are_by_grpc(url: str) -> None:
    x = np.full((2, 16), 3e38, np.float32)  # doubled beyond FP32
    x[1] = 1.5
    async with opened("dbl", url) as backend:
        outputs = await backend.infer(Batch.of({"x": Tensor.of(x)}), NO_DEADLINE)

    first, second = outputs["y"].numpy()
    assert np.isnan(first).all() if url.startswith("http") else np.isinf(first).all()
    assert (second == 3.0).all()


# --- how much a call may have ---


async def test_a_batch_that_a_server_finds_too_large_is_not_held_against_it(
    server: str, request: pytest.FixtureRequest
) -> None:
    """Over gRPC, MLServer takes 4 MiB and KServe 8."""
    address: Address = request.getfixturevalue(f"{server}_address")
    batch = numbers(9 << 14, np.random.default_rng(0))  # 64 bytes a row
    async with opened(
        "dbl", f"grpc://{address.grpc}", max_batch=batch.size, replicas=ReplicaOptions(eject_after=2)
    ) as backend:
        for _ in range(4):
            with pytest.raises(PointsmanError) as raised:
                await backend.infer(batch, NO_DEADLINE)
            assert not isinstance(raised.value, ReplicaFailed)
        assert backend.state is State.READY
        await backend.infer(numbers(1, np.random.default_rng(0)), NO_DEADLINE)


# --- what `pointsman discover` makes of them ---


async def test_what_mlserver_serves_is_discovered(mlserver_address: Address, tmp_path: Path) -> None:
    for url in (f"http://{mlserver_address.http}", f"grpc://{mlserver_address.grpc}"):
        (tmp_path / "found.yaml").write_text(await configuration_of([url], [], shared_memory=False))

        assert set(load_settings(tmp_path / "found.yaml").models) == {"dbl", "text", "sums", "fails", "waits"}


async def test_kserves_models_are_written_down_when_they_are_named(kserve_address: Address, tmp_path: Path) -> None:
    for url in (f"http://{kserve_address.http}", f"grpc://{kserve_address.grpc}"):
        with pytest.raises(NotFound, match=r"does not say what it serves: the server has no .*index.* name --model"):
            await configuration_of([url], [], shared_memory=False)
        (tmp_path / "found.yaml").write_text(await configuration_of([url], ["dbl"], shared_memory=False))

        assert set(load_settings(tmp_path / "found.yaml").models) == {"dbl"}
