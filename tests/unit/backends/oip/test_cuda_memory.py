"""Inputs on a device go to a Triton by regions of its memory: leased, fenced, and by the host where it cannot."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import orjson
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

from backends.contract import (
    NO_DEADLINE,
    Batch,
    Datatype,
    Deadline,
    Memory,
    SharedMemoryWindow,
    Signature,
    Tensor,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, ReplicaFailed
from backends.oip.remote import InferCall, InferReply, Remote, because
from backends.triton import leases
from backends.triton.cuda_memory import GRANULE_BYTES, CudaRegion, NoRoom
from backends.triton.model import TritonOptions, open_triton
from backends.triton.shared_memory import SharedTransfer
from kernels.arrays import DeviceArray
from kernels.dlpack import borrowed, to_host
from tests.elsewhere import Elsewhere
from tests.unit.backends.oip.scripted import NEVER, Context, Message, http, over_grpc, over_http

SIGNATURE = Signature(
    (TensorSpec("x", Datatype.FP32, (4,)), TensorSpec("z", Datatype.FP32, (2,))),
    (TensorSpec("y", Datatype.FP32, (4,)),),
)
HANDLE = bytes(range(64))
NO_GPU = "failed to register CUDA shared memory region: 'r', GPUs not supported"


class OnTheHost:
    """Memory of a device, as far as a region knows it: the host's."""

    def __init__(self, nbytes: int, device: Device) -> None:
        self.handle = HANDLE
        self.bytes = bytearray(nbytes)
        self.device = device

    def write(self, parts: Sequence[tuple[int, DeviceArray]]) -> None:
        self.device.while_copying()
        for offset, array in parts:
            with borrowed(array) as found:
                self.bytes[offset : offset + found.nbytes] = to_host(array).tobytes()

    def free(self) -> None:
        self.device.freed.append(self)


class Device:
    """What regions are made on."""

    def __init__(self) -> None:
        self.freed: list[OnTheHost] = []
        self.made: list[tuple[CudaRegion, OnTheHost]] = []  # in threads
        self.while_copying: Callable[[], None] = lambda: None
        self.has_room = True

    def make(self, size: int) -> CudaRegion:
        if not self.has_room:
            raise NoRoom(f"{size} bytes of a device that is full")
        memory = OnTheHost(size, self)
        region = CudaRegion(memory, 1, size)
        self.made.append((region, memory))
        return region

    @property
    def regions(self) -> list[CudaRegion]:
        return [region for region, _ in self.made]

    @property
    def memories(self) -> list[OnTheHost]:
        return [memory for _, memory in self.made]

    def read(self, window: SharedMemoryWindow) -> np.ndarray[Any, np.dtype[np.float32]]:
        (memory,) = (memory for region, memory in self.made if region.name == window.region)
        return np.frombuffer(bytes(memory.bytes[window.offset : window.offset + window.byte_size]), np.float32)


class FakeServer:
    """A `Remote` that has regions as Triton does, and answers y = 2 x; calls wait for *until* where there is one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.here: set[str] = set()
        self.there: set[str] = set()
        self.registered: list[tuple[str, bytes, int, int]] = []
        self.unregistered: list[str] = []
        self.calls: list[InferCall] = []
        self.refusal: Exception | None = None
        self.until: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def register(self, region: str, key: str, byte_size: int, deadline: Deadline, offset: int = 0) -> None:
        self.here.add(region)

    async def unregister(self, region: str, deadline: Deadline) -> None:
        self.here.discard(region)

    async def register_cuda(self, region: str, handle: bytes, device: int, byte_size: int, deadline: Deadline) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.registered.append((region, handle, device, byte_size))
        self.there.add(region)

    async def unregister_cuda(self, region: str, deadline: Deadline) -> None:
        self.there.discard(region)
        self.unregistered.append(region)

    async def infer(self, call: InferCall, deadline: Deadline) -> InferReply:
        self.calls.append(call)
        x = call.inputs["x"]
        for window in (tensor.data for tensor in call.inputs.values()):
            if isinstance(window, SharedMemoryWindow) and window.region not in self.here | self.there:
                raise because(ReplicaFailed("no"), f"Unable to find shared memory region: '{window.region}'")
        if self.until is not None:
            try:
                async with asyncio.timeout_at(deadline if deadline < NO_DEADLINE else None):
                    await self.until.wait()
            except TimeoutError:
                raise DeadlineExceeded("late") from None
        if self.failure is not None:
            raise self.failure
        values = self.device.read(x.data) if isinstance(x.data, SharedMemoryWindow) else x.numpy()
        return InferReply(call.id, "1", {"y": Tensor.of(2 * values.reshape(x.shape))})


class Case:
    """A transfer with regions on *device*, to *server*; only what is on the device goes through shared memory."""

    def __init__(self) -> None:
        self.device = Device()
        self.server = FakeServer(self.device)
        self.remote = cast(Remote, self.server)
        self.transfer = SharedTransfer("m", SIGNATURE, 1 << 40, self.device.make)

    async def opened(self) -> Case:
        await self.transfer.open(self.remote, NO_DEADLINE)
        return self

    async def infer(self, value: float, items: int = 1, deadline: Deadline = NO_DEADLINE) -> Any:
        x = np.full((items, 4), value, np.float32)
        z = np.zeros((items, 2), np.float32)
        inputs = {"x": Tensor(Datatype.FP32, x.shape, Elsewhere(x)), "z": Tensor.of(z)}
        batch = Batch(inputs, items)
        reply = await self.transfer.infer(self.remote, InferCall("m", "1", "id", inputs, {}, {}), batch, deadline)
        return reply.outputs["y"].numpy()

    def window(self, call: int = -1) -> SharedMemoryWindow:
        data = self.server.calls[call].inputs["x"].data
        assert isinstance(data, SharedMemoryWindow)
        return data


async def test_what_is_on_the_device_is_named_and_all_else_goes_with_the_call() -> None:
    case = await Case().opened()

    assert (await case.infer(3)).tolist() == [[6] * 4]

    assert case.window() == SharedMemoryWindow(case.device.regions[0].name, 0, 16)
    assert case.server.calls[0].inputs["z"].memory is Memory.HOST
    assert case.server.registered == [(case.device.regions[0].name, HANDLE, 1, GRANULE_BYTES)]
    assert case.transfer.takes_there
    await case.transfer.aclose(case.remote)


async def test_several_inputs_lie_side_by_side() -> None:
    case = await Case().opened()
    x, z = (np.full((3, n), n, np.float32) for n in (4, 2))
    inputs = {name: Tensor(Datatype.FP32, a.shape, Elsewhere(a)) for name, a in (("x", x), ("z", z))}

    await case.transfer.infer(case.remote, InferCall("m", "1", "id", inputs, {}, {}), Batch(inputs, 3), NO_DEADLINE)

    windows = [cast(SharedMemoryWindow, case.server.calls[0].inputs[name].data) for name in "xz"]
    assert [(window.offset, window.byte_size) for window in windows] == [(0, 48), (64, 24)]
    assert [case.device.read(window).tolist() for window in windows] == [[4.0] * 12, [2.0] * 6]
    await case.transfer.aclose(case.remote)


async def test_calls_at_once_have_a_region_each_and_calls_one_after_the_other_share_one() -> None:
    case = await Case().opened()
    for value in range(5):
        assert (await case.infer(value))[0, 0] == 2 * value
    assert len(case.device.regions) == 1

    answers = await asyncio.gather(*(case.infer(value) for value in range(4)))

    assert [answer[0, 0] for answer in answers] == [0, 2, 4, 6]
    assert len({case.window(-1 - n).region for n in range(4)}) == 4
    await case.transfer.aclose(case.remote)


async def test_a_batch_that_is_too_large_for_a_region_gets_a_larger_one() -> None:
    case = await Case().opened()
    items = GRANULE_BYTES // 16 + 1

    assert (await case.infer(1, items)).shape == (items, 4)

    assert [region.size for region in case.device.regions] == [GRANULE_BYTES, 2 * GRANULE_BYTES]
    await case.transfer.aclose(case.remote)


@pytest.mark.parametrize("ending", ["late", "cancelled", "hung up"])
async def test_a_region_that_the_server_may_still_read_is_never_used_again(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RETIRED_S", 1000.0)
    case = await Case().opened()
    case.server.until = asyncio.Event()
    call = asyncio.create_task(case.infer(1, deadline=Deadline(time.monotonic() + 0.02 if ending == "late" else 1e9)))
    while not case.server.calls:  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.001)
    match ending:
        case "cancelled":
            call.cancel()
        case "hung up":
            case.server.failure = ReplicaFailed("its server hung up")
            case.server.until.set()
    with pytest.raises((DeadlineExceeded, asyncio.CancelledError, ReplicaFailed)):
        await call
    case.server.until = case.server.failure = None
    touched = case.window()

    for value in range(3):
        assert (await case.infer(value))[0, 0] == 2 * value
        assert case.window().region != touched.region

    assert touched.region in case.server.there  # letting go would take the memory away from under the call
    assert case.device.freed == []
    await case.transfer.aclose(case.remote)


async def test_a_region_that_was_retired_long_ago_is_let_go_of_and_then_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RETIRED_S", 0.0)
    case = await Case().opened()
    case.server.failure = ReplicaFailed("its server hung up")
    with pytest.raises(ReplicaFailed):
        await case.infer(1)
    case.server.failure = None

    await case.infer(2)

    assert case.server.unregistered == [case.device.regions[0].name]
    assert case.device.freed == [case.device.memories[0]]
    await case.transfer.aclose(case.remote)


@pytest.mark.parametrize("refusal", [InvalidInput("no"), BackendFailed("no")])
async def test_a_refusal_of_the_batch_gives_its_region_back(refusal: Exception) -> None:
    case = await Case().opened()
    case.server.failure = refusal
    with pytest.raises(type(refusal)):
        await case.infer(1)
    case.server.failure = None

    await case.infer(2)

    assert len(case.device.regions) == 1
    await case.transfer.aclose(case.remote)


async def test_a_cancelled_call_is_over_when_nothing_reads_its_inputs_any_more() -> None:
    case = await Case().opened()
    loop, copying, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def copy_slowly() -> None:
        loop.call_soon_threadsafe(copying.set)
        go_on.wait(5)

    case.device.while_copying = copy_slowly
    call = asyncio.create_task(case.infer(1))
    await copying.wait()
    call.cancel()
    await asyncio.sleep(0.02)
    assert not call.done()
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await call
    await case.transfer.aclose(case.remote)


async def test_a_server_that_was_started_again_is_told_of_the_region_again() -> None:
    case = await Case().opened()
    await case.infer(1)
    case.server.there.clear()

    assert (await case.infer(2))[0, 0] == 4

    assert len({name for name, *_ in case.server.registered}) == 1
    assert len(case.server.registered) == 2
    await case.transfer.aclose(case.remote)


@pytest.mark.parametrize("refusal", [InvalidInput("m refuses"), BackendFailed("m failed"), NotFound("no such thing")])
async def test_a_server_without_cuda_gets_all_by_the_host_and_the_log_says_why(
    refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    case.server.refusal = because(refusal, NO_GPU)  # type: ignore[type-var]  # one of the errors, all of which it takes
    with caplog.at_level(logging.WARNING, "pointsman.triton"):
        await case.opened()

    assert not case.transfer.takes_there
    assert (
        f"cannot open memory of a CUDA device ({NO_GPU}); what preprocessing leaves there goes through" in caplog.text
    )
    assert case.device.freed == case.device.memories
    assert (await case.infer(3))[0, 0] == 6
    assert case.server.calls[0].inputs["x"].memory is Memory.HOST
    await case.transfer.aclose(case.remote)


async def test_a_server_that_loses_its_device_gets_all_by_the_host_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = await Case().opened()
    await case.infer(1)
    case.server.there.clear()
    case.server.refusal = because(InvalidInput("m refuses"), NO_GPU)

    assert [(await case.infer(value))[0, 0] for value in (2, 3)] == [4, 6]

    assert caplog.text.count("cannot open memory") == 1
    assert case.server.calls[-1].inputs["x"].memory is Memory.HOST
    await case.transfer.aclose(case.remote)


async def test_a_device_without_room_costs_that_batch_a_copy_alone() -> None:
    case = await Case().opened()
    case.device.has_room = False

    assert [answer[0, 0] for answer in await asyncio.gather(*(case.infer(value) for value in (1, 2)))] == [2, 4]
    assert sorted(call.inputs["x"].memory for call in case.server.calls) == [Memory.HOST, Memory.SHARED]
    case.device.has_room = True
    await asyncio.gather(*(case.infer(value) for value in (1, 2)))

    assert [call.inputs["x"].memory for call in case.server.calls[2:]] == [Memory.SHARED] * 2
    await case.transfer.aclose(case.remote)


async def test_a_device_that_fails_fails_the_batch_and_not_the_server() -> None:
    case = await Case().opened()

    def broken() -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    case.device.while_copying = broken

    with pytest.raises(BackendFailed):
        await case.infer(1)
    await case.transfer.aclose(case.remote)


async def test_closing_lets_go_of_every_region_and_then_frees_it() -> None:
    case = await Case().opened()
    await asyncio.gather(*(case.infer(value) for value in range(3)))

    await case.transfer.aclose(case.remote)

    assert (case.server.there, case.server.here) == (set(), set())
    assert len(case.device.freed) == len(case.device.memories) == 3


async def test_a_device_that_cannot_be_used_stops_the_start_and_leaves_nothing_behind() -> None:
    case = Case()
    case.device.has_room = False

    with pytest.raises(InvalidInput, match=r"^`cuda_shared_memory`: .* bytes of a device that is full"):
        await case.opened()
    assert case.server.here == set()


# What is configured


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cuda_shared_memory": "cuda:0"}, "goes with shared_memory: true"),
        ({"cuda_shared_memory": "cpu", "shared_memory": True}, "name a CUDA device, such as cuda:0"),
        ({"cuda_shared_memory": "gpu", "shared_memory": True}, "'gpu' is no device"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TritonOptions("http://here", **options)


# On the wire: what tritonclient sends


async def test_over_http_a_region_is_told_of_as_tritonclient_tells_it() -> None:
    async with over_http(http(200, b"{}")) as (remote, server):
        await remote.register_cuda("a region", HANDLE, 3, 4096, NEVER)
        await remote.unregister_cuda("a region", NEVER)

        def theirs() -> None:
            with tritonclient.http.InferenceServerClient(server.address) as client:
                client.register_cuda_shared_memory("a region", base64.b64encode(HANDLE).decode(), 3, 4096)
                client.unregister_cuda_shared_memory("a region")

        await asyncio.to_thread(theirs)

    ours, others = server.requests[:2], server.requests[2:]
    assert [(one.method, one.path) for one in ours] == [(one.method, f"/{one.path.lstrip('/')}") for one in others]
    assert ours[0].json() == others[0].json()


async def test_over_grpc_a_region_is_told_of_as_tritonclient_tells_it() -> None:
    async def answer(name: str, request: Message, context: Context) -> Message:
        return getattr(service_pb2, f"{name}Response")()

    async with over_grpc(answer) as (remote, server):
        await remote.register_cuda("a region", HANDLE, 3, 4096, NEVER)
        await remote.unregister_cuda("a region", NEVER)

        def theirs() -> None:
            with tritonclient.grpc.InferenceServerClient(server.address) as client:
                client.register_cuda_shared_memory("a region", base64.b64encode(HANDLE), 3, 4096)
                client.unregister_cuda_shared_memory("a region")

        await asyncio.to_thread(theirs)

    assert server.calls[:2] == server.calls[2:]


# On a device


@pytest.mark.gpu
async def test_memory_of_a_real_device_has_a_handle_and_takes_what_is_there() -> None:
    cupy = pytest.importorskip("cupy", reason="memory of a device needs CuPy")
    try:
        region = CudaRegion.made(0, 1000)
    except ValueError as error:
        pytest.skip(str(error))
    memory = cast(Any, region)._memory  # Any: what is inside is CuPy's, which has no types

    region.fill([(256, cupy.arange(100, dtype=np.float32))])

    assert len(memory.handle) == 64
    found = cupy.ndarray((100,), np.float32, cupy.cuda.MemoryPointer(memory._memory, 256))
    np.testing.assert_array_equal(found.get(), np.arange(100))
    region.free()


async def test_without_a_device_a_model_says_what_to_check() -> None:
    pytest.importorskip("cupy", reason="the message is CuPy's")
    metadata = {
        "name": "m",
        "versions": ["1"],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }

    def answer(request: Any) -> bytes:
        found = {"v2": {"name": "triton", "version": "2.58.0", "extensions": []}, "config": {"max_batch_size": 8}}
        return http(200, orjson.dumps(found.get(request.path.rsplit("/", 1)[-1], metadata)))

    async with over_http(answer) as (_, server):
        options = TritonOptions(f"http://{server.address}", shared_memory=True, cuda_shared_memory="cuda:99")
        with pytest.raises(InvalidInput, match=r"CUDA device 99 cannot be used: .*; check it with nvidia-smi"):
            await open_triton("m", options)
