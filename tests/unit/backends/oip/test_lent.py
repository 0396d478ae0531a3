"""Callers' regions at a server that misbehaves: what is registered, copied instead, withheld, and let go of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backends.contract import (
    NO_DEADLINE,
    Batch,
    Datatype,
    Deadline,
    SharedMemoryWindow,
    Signature,
    Tensor,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, ReplicaFailed, Unavailable
from backends.oip.remote import InferCall, InferReply, Remote, because
from backends.triton import lent
from backends.triton.shared_memory import SharedTransfer
from gateway.shared_memory import Region, SharedMemory, SharedMemoryOptions

SENT = np.arange(4, dtype=np.float32).reshape(1, 4)
SIGNATURE = Signature((TensorSpec("x", Datatype.FP32, (4,)),), (TensorSpec("y", Datatype.FP32, (4,)),))
OUT = 64


class FakeServer:
    """A `Remote` that keeps regions as Triton does, and whose calls of `infer` do as *behave* does."""

    def __init__(self, behave: Callable[[InferCall], Any] | None = None) -> None:
        self.behave = behave
        self.regions: dict[str, int] = {}
        self.told: list[str] = []
        self.calls: list[InferCall] = []
        self.refuses = False

    async def register(self, region: str, key: str, byte_size: int, deadline: Deadline, offset: int = 0) -> None:
        self.told.append(region)
        if self.refuses:
            raise because(BackendFailed("no"), "Unable to open shared memory region")
        if region in self.regions:
            raise because(ReplicaFailed("no"), f"shared memory region '{region}' already in manager")
        self.regions[region] = byte_size

    async def unregister(self, region: str, deadline: Deadline) -> None:
        self.regions.pop(region, None)

    async def infer(self, call: InferCall, deadline: Deadline) -> InferReply:
        self.calls.append(call)
        named = [tensor.data for tensor in call.inputs.values()] + list(call.outputs.values())
        for window in named:
            if isinstance(window, SharedMemoryWindow) and window.region not in self.regions:
                raise because(ReplicaFailed("no"), f"Unable to find shared memory region: '{window.region}'")
        if self.behave is not None:
            await self.behave(call)
        place = call.outputs.get("y")
        data = np.full((1, 4), 7, np.float32) if place is None else place
        return InferReply(call.id, "1", {"y": Tensor(Datatype.FP32, (1, 4), data)})


class Case:
    """A transfer to *server* and a region of a caller."""

    def __init__(self, folder: Path, behave: Callable[[InferCall], Any] | None = None) -> None:
        (folder / "object").write_bytes(SENT.tobytes() + bytes(1000))
        self.file = folder / "object"
        self.memory = SharedMemory(SharedMemoryOptions(enabled=True), folder=folder)
        self.memory.register("t", "r", "/object", 0, 1016)
        self.region: Region = self.memory.region("t", "r")
        self.server = FakeServer(behave)
        self.remote = cast(Remote, self.server)
        self.transfer = SharedTransfer("m", SIGNATURE, 1 << 20)
        self.place = SharedMemoryWindow("r", OUT, 16, self.region)

    async def infer(self, deadline: Deadline = NO_DEADLINE) -> Tensor:
        inputs = {"x": Tensor(Datatype.FP32, (1, 4), SharedMemoryWindow("r", 0, 16, self.region))}
        batch = Batch(inputs, 1, {"y": self.place})
        call = InferCall("m", "1", "id", inputs, {}, {})
        return (await self.transfer.infer(self.remote, call, batch, deadline)).outputs["y"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.001)


def is_withheld(case: Case) -> bool:
    try:
        case.region.check_place(case.place)
    except Unavailable:
        return True
    return False


async def test_a_region_is_registered_once_and_answers_are_told_in_the_callers_words(tmp_path: Path) -> None:
    case = Case(tmp_path)

    outputs = await asyncio.gather(*(case.infer() for _ in range(4)))

    assert [output.data for output in outputs] == [case.place] * 4
    assert len(case.server.regions) == 1
    case.memory.unregister("t", "r")
    await until(lambda: not case.server.regions)
    await case.transfer.aclose(case.remote)


async def test_what_the_server_cannot_open_is_copied(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.server.refuses = True

    for _ in range(2):
        assert np.array_equal((await case.infer()).numpy(), np.full((1, 4), 7, np.float32))

    assert len(case.server.told) == 1  # it is not asked again
    assert np.array_equal(case.server.calls[-1].inputs["x"].numpy(), SENT)


async def test_a_server_that_was_started_again_and_cannot_open_it_any_more_gets_a_copy(tmp_path: Path) -> None:
    case = Case(tmp_path)
    await case.infer()
    case.server.regions.clear()
    case.file.unlink()

    assert np.array_equal((await case.infer()).numpy(), np.full((1, 4), 7, np.float32))


async def test_a_shortened_object_is_refused_before_the_server_is_asked(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with case.file.open("r+b") as file:
        file.truncate(8)

    with pytest.raises(InvalidInput, match="shortened"):
        await case.infer()

    assert not case.server.calls


async def test_the_place_of_a_late_call_is_withheld_until_its_end_and_its_region_kept(tmp_path: Path) -> None:
    release = asyncio.Event()
    case = Case(tmp_path, lambda call: release.wait())

    with pytest.raises(DeadlineExceeded):
        await case.infer(Deadline(time.monotonic() + 0.02))
    case.memory.unregister("t", "r")
    await asyncio.sleep(0)

    assert is_withheld(case)
    assert case.server.regions
    release.set()
    await until(lambda: not is_withheld(case))
    await until(lambda: not case.server.regions)


async def test_so_it_is_where_the_caller_left(tmp_path: Path) -> None:
    release = asyncio.Event()
    case = Case(tmp_path, lambda call: release.wait())
    caller = asyncio.ensure_future(case.infer())
    await until(lambda: bool(case.server.calls))

    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert is_withheld(case)
    release.set()
    await until(lambda: not is_withheld(case))


async def test_after_a_server_has_hung_up_the_place_is_withheld_until_it_is_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lent, "_ASK_AGAIN_S", 0.005)

    async def hang_up(call: InferCall) -> None:
        raise ReplicaFailed("it hung up")

    case = Case(tmp_path, hang_up)
    with pytest.raises(ReplicaFailed):
        await case.infer()
    await asyncio.sleep(0.03)  # it is asked, and still the one that has the region
    assert is_withheld(case)

    case.server.regions.clear()

    await until(lambda: not is_withheld(case))


async def test_or_for_as_long_as_a_call_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent, "_ASK_AGAIN_S", 0.005)
    monkeypatch.setattr(lent, "LATEST_S", 0.02)

    async def hang_up(call: InferCall) -> None:
        raise ReplicaFailed("it hung up")

    case = Case(tmp_path, hang_up)
    with pytest.raises(ReplicaFailed):
        await case.infer()

    await until(lambda: not is_withheld(case))


async def test_closing_gives_up_what_goes_on_and_lets_go_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.triton.shared_memory._LAST_WORD_S", 0.02)
    case = Case(tmp_path, lambda call: asyncio.Event().wait())
    with pytest.raises(DeadlineExceeded):
        await case.infer(Deadline(time.monotonic() + 0.02))

    await case.transfer.aclose(case.remote)

    assert not case.server.regions
    assert not is_withheld(case)
    case.memory.unregister("t", "r")  # nobody is there to hear it
