"""A pooled model before its first answer: who waits for a load, who is refused, and how often replicas hear of it.

Serve's handle is a stand-in, as in `test_attempts`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from typing import Any, cast

import pytest

from backends.contract import NO_DEADLINE, Deadline
from backends.errors import DeadlineExceeded, Unavailable
from backends.ray_serve.messages import Answered, Asked, Refused
from backends.ray_serve.pooled import PooledRayServe
from backends.ray_serve.residence import Residence, Residing, Told, told_of
from backends.warm.policy import Phase
from backends.warm.warming import warming_of
from tests.unit.backends.ray_serve.test_attempts import ABOUT, numbers, value


class Response:
    """A call on its way to a replica."""

    def __init__(self, reply: asyncio.Future[object]) -> None:
        self._reply = reply

    def __await__(self) -> Generator[Any, None, object]:  # Any: what asyncio sends
        return self._reply.__await__()

    def cancel(self) -> None:
        self._reply.cancel()


class Handle:
    """As Serve's; batches come back as they are, and loads end when a test says so."""

    def __init__(self) -> None:
        self.loads: list[asyncio.Future[object]] = []
        self.cold: list[str] = []
        self.method = ""

    def options(self, method_name: str) -> Handle:
        derived = Handle()
        derived.loads, derived.method = self.loads, method_name
        return derived

    def remote(self, asked: Asked | str) -> Response:
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if isinstance(asked, Asked):
            assert self.method == "infer"
            reply.set_result(Answered(asked.batch.inputs, 0.0))
        else:
            assert (self.method, asked) == ("load", ABOUT.digest)
            self.loads.append(reply)
        return Response(reply)

    async def load(self, number: int) -> asyncio.Future[object]:
        """The load of that *number*, once it is asked for."""
        async with asyncio.timeout(10):
            while len(self.loads) < number:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0)
        return self.loads[number - 1]


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
async def model(handle: Handle) -> AsyncIterator[PooledRayServe]:
    found = PooledRayServe("m", cast("Any", handle), replace(ABOUT, load_s=5.0), Residence(), handle.cold.append)
    yield found
    await found.aclose()


async def answered(model: PooledRayServe, deadline: Deadline = NO_DEADLINE) -> float:
    async with model.hold(deadline):
        return value(await model.infer(numbers(3.0), deadline))


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


async def test_many_callers_wait_for_one_load(model: PooledRayServe, handle: Handle) -> None:
    assert warming_of(model) is model
    callers = [asyncio.create_task(answered(model)) for _ in range(20)]

    (await handle.load(1)).set_result(None)

    assert await asyncio.gather(*callers) == [3.0] * 20
    assert len(handle.loads) == 1
    assert handle.cold == ["m"] * 20
    assert model.warmth.phase is Phase.WARM
    assert await answered(model) == 3.0
    assert (len(handle.loads), len(handle.cold)) == (1, 20)


async def test_a_caller_without_the_time_for_a_load_is_told_what_it_takes_and_it_is_loaded_none_the_less(
    model: PooledRayServe, handle: Handle
) -> None:
    with pytest.raises(Unavailable, match="not loaded yet") as refused:
        await answered(model, within(1.0))
    assert refused.value.retry_after_s == 5.0

    (await handle.load(1)).set_result(None)
    async with asyncio.timeout(10):
        assert await answered(model, within(10.0)) == 3.0
    assert len(handle.loads) == 1


async def test_who_leaves_or_whose_deadline_passes_ends_no_load(handle: Handle) -> None:
    model = PooledRayServe("m", cast("Any", handle), ABOUT, Residence())
    leaving, staying = asyncio.create_task(answered(model)), asyncio.create_task(answered(model))
    load = await handle.load(1)
    with pytest.raises(DeadlineExceeded, match="while model 'm' was loaded"):
        await answered(model, within(0.01))
    leaving.cancel()
    await asyncio.wait({leaving})

    load.set_result(None)

    assert await staying == 3.0
    assert len(handle.loads) == 1
    await model.aclose()


async def test_a_load_that_fails_is_told_to_all_and_the_next_caller_tries_again(
    model: PooledRayServe, handle: Handle
) -> None:
    callers = [asyncio.create_task(answered(model)) for _ in range(3)]
    (await handle.load(1)).set_result(Refused(Unavailable, "model 'm' could not be loaded; try again later", 2.0))
    for outcome in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert outcome.retry_after_s == 2.0

    again = asyncio.create_task(answered(model))
    (await handle.load(2)).set_result(None)
    assert await again == 3.0


async def test_a_replica_that_leaves_while_it_loads_is_followed_by_another(
    model: PooledRayServe, handle: Handle
) -> None:
    caller = asyncio.create_task(answered(model))
    (await handle.load(1)).cancel()  # as Serve has it

    (await handle.load(2)).set_result(None)

    assert await caller == 3.0


async def test_wanting_it_loads_it_once_and_nobody_needs_to_hear_of_a_failure(
    model: PooledRayServe, handle: Handle
) -> None:
    model.want()
    model.want()
    (await handle.load(1)).set_result(Refused(Unavailable, "no", None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    model.want()
    await handle.load(2)
    assert len(handle.loads) == 2


async def test_what_replicas_tell_is_how_warm_it_is(handle: Handle) -> None:
    residence = Residence()
    model = PooledRayServe("m", cast("Any", handle), ABOUT, residence)

    residence.tell({"a": told_of(Told(math.inf, {ABOUT.digest: Residing(Phase.WARM, 1.0, 10)}))})

    assert await answered(model) == 3.0
    assert handle.loads == []
    assert model.warmth.nbytes == 10
    await model.aclose()


async def test_one_that_is_closed_loads_nothing(model: PooledRayServe, handle: Handle) -> None:
    waiting = asyncio.create_task(answered(model))
    await handle.load(1)
    await model.aclose()

    with pytest.raises(Unavailable, match="is closed"):
        await waiting
    with pytest.raises(Unavailable, match="is closed"):
        await answered(model)
