"""Which replica's answer a batch gets: what `RayServe` does about replicas that fail, and about those that hang.

Serve's handle is a stand-in, whose calls end when a test says so; `tests/integration/ray` has the real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest

from backends.contract import (
    NO_DEADLINE,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, ReplicaFailed, Unavailable
from backends.ray_serve import backend as module
from backends.ray_serve.backend import RayServe
from backends.ray_serve.messages import About, AnotherModel, Answered, Asked, Refused
from backends.replicas.pacing import FEWEST_ANSWERS

SIDE = (TensorSpec("x", Datatype.FP32, (1,)),)
ABOUT = About("a digest", Signature(inputs=SIDE, outputs=SIDE), "1", Limits(8))
_PATIENCE_S = 0.05


class Response:
    """A call on its way to a replica."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.was_cancelled = False
        self._reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, object]:  # Any: what asyncio sends
        return asyncio.shield(self._reply).__await__()

    def cancel(self) -> None:
        self.was_cancelled = True

    def answer(self, value: float) -> None:
        self._reply.set_result(Answered(numbers(value).inputs, 0.0))

    def say(self, reply: object) -> None:
        self._reply.set_result(reply)

    def leave(self) -> None:
        self._reply.cancel()


class Handle:
    """As Serve's."""

    def __init__(self) -> None:
        self.responses: list[Response] = []

    def options(self, method_name: str) -> Handle:
        assert method_name == "infer"
        return self

    def remote(self, asked: Asked) -> Response:
        self.responses.append(Response(asked))
        return self.responses[-1]


def numbers(*values: float) -> Batch:
    return Batch.of({"x": Tensor.of(np.array([[value] for value in values], np.float32))})


def value(tensors: Tensors) -> float:
    return float(tensors["x"].numpy()[0, 0])


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


async def until(handle: Handle, responses: int) -> None:
    async with asyncio.timeout(10):
        while len(handle.responses) < responses:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.001)


async def opened(
    monkeypatch: pytest.MonkeyPatch, replicas: int = 2, patience_s: float = _PATIENCE_S
) -> tuple[RayServe, Handle]:
    """A model whose answers have been quick so far."""
    monkeypatch.setattr(module, "patience_s", lambda p99_s: patience_s)
    handle = Handle()
    found = RayServe("m", cast("Any", handle), ABOUT, replicas)
    for number in range(FEWEST_ANSWERS):
        call = asyncio.create_task(found.infer(numbers(1.0), NO_DEADLINE))
        await until(handle, number + 1)
        handle.responses[-1].answer(1.0)
        await call
    handle.responses.clear()
    return found, handle


async def test_a_batch_that_gets_no_answer_is_asked_again_and_the_first_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))
    await until(handle, 2)

    handle.responses[1].answer(6.0)

    assert value(await call) == 6.0
    assert [response.was_cancelled for response in handle.responses] == [False, False]
    await backend.aclose()
    await asyncio.sleep(0)
    assert [response.was_cancelled for response in handle.responses] == [True, False]


async def test_whichever_answers_first_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that was only starting, or stopped for a moment, has done the work."""
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), within(30)))
    await until(handle, 2)

    handle.responses[0].answer(6.0)

    assert value(await call) == 6.0
    await backend.aclose()


async def test_where_there_is_one_replica_its_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch, replicas=1)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))

    await asyncio.sleep(3 * _PATIENCE_S)

    (response,) = handle.responses
    response.answer(6.0)
    assert value(await call) == 6.0
    await backend.aclose()


async def test_a_deadline_ends_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch)

    with pytest.raises(DeadlineExceeded, match="before a replica of model 'm' answered"):
        await backend.infer(numbers(3.0), within(4 * _PATIENCE_S))

    await asyncio.sleep(_PATIENCE_S)
    assert len(handle.responses) > 1
    assert all(response.was_cancelled for response in handle.responses)
    await backend.aclose()


async def test_a_caller_who_leaves_ends_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))
    await until(handle, 2)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert all(response.was_cancelled for response in handle.responses)
    await backend.aclose()


async def test_what_a_model_says_of_a_batch_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))
    await until(handle, 1)

    handle.responses[0].say(Refused.of(BackendFailed("broken")))

    with pytest.raises(BackendFailed, match="broken"):
        await call
    assert len(handle.responses) == 1
    await backend.aclose()


async def test_attempts_that_fail_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))

    for number in range(4):
        await until(handle, number + 1)
        handle.responses[number].leave()

    with pytest.raises(ReplicaFailed, match="its replica left"):
        await call
    assert len(handle.responses) == 4
    await backend.aclose()


async def test_a_batch_finds_its_version_among_others_while_a_deployment_is_upgraded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the first new replica would put out a model whose old ones answer."""
    backend, handle = await opened(monkeypatch, patience_s=30.0)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))

    for number in range(6):
        await until(handle, number + 1)
        handle.responses[number].say(AnotherModel("another"))
    await until(handle, 7)
    handle.responses[6].answer(6.0)

    assert value(await call) == 6.0
    assert backend.state is State.READY
    await backend.aclose()


async def test_a_model_of_whose_version_there_is_no_replica_has_failed_and_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, handle = await opened(monkeypatch, patience_s=30.0)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))

    for number in range(8):
        await until(handle, number + 1)
        handle.responses[number].say(AnotherModel("another"))

    for one in (call, backend.infer(numbers(3.0), NO_DEADLINE)):
        with pytest.raises(Unavailable, match="has been replaced by another version"):
            await one
    assert backend.state is State.FAILED
    assert len(handle.responses) == 8
    await backend.aclose()


async def test_an_answer_that_comes_too_late_does_not_teach_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch)
    call = asyncio.create_task(backend.infer(numbers(3.0), NO_DEADLINE))
    await until(handle, 2)
    handle.responses[1].answer(6.0)
    await call
    known = len(backend._took._sorted)

    handle.responses[0].answer(6.0)
    await asyncio.sleep(0.01)

    assert len(backend._took._sorted) == known
    assert backend._strays == set()
    await backend.aclose()


async def test_misses_are_told_until_a_call_arrives_that_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, handle = await opened(monkeypatch, replicas=1)

    async def asked(wanted: Deadline, reply: object) -> int:
        """What the next call tells; *reply* is what becomes of it, where it is an answer."""
        before = len(handle.responses)
        call = asyncio.create_task(backend.infer(numbers(3.0), wanted))
        await until(handle, before + 1)
        if reply is not None:
            handle.responses[before].say(reply)
        with suppress(DeadlineExceeded, ReplicaFailed):
            await call
        return handle.responses[before].asked.misses

    answer = Answered(numbers(6.0).inputs, 0.0)
    assert await asked(within(_PATIENCE_S), None) == 0
    assert await asked(within(_PATIENCE_S), None) == 1  # on a call that may never have arrived
    assert await asked(within(30), answer) == 2
    assert await asked(within(30), Refused.of(DeadlineExceeded("late"))) == 0
    assert await asked(within(30), answer) == 1
    assert await asked(within(30), answer) == 0
    await backend.aclose()
