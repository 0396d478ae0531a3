"""Random lives of sequences: no step on another's state, out of order, over a gap, twice, or late unnoticed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, SequenceCall
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    PointsmanError,
    ReplicaFailed,
    SequenceOver,
)
from batching.options import SequenceOptions
from tests.unit.batching.conftest import now, run, within
from tests.unit.batching.stateful import Stateful, runner, take

TICK_S = 0.0021  # what timers may be late
INSTANT_S = 2e-6  # what is closer than that happens at once


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes after the one before it, of which sequence, how long it waits, and when it leaves.

    Sequences go on for some while: the first request of each begins it, and few others do.
    """

    gap_ms: int
    tenant: str
    id: int
    starts: bool
    ends: bool
    patience_ms: int | None
    leaves_ms: int | None


@dataclass(frozen=True)
class Service:
    """What the backend makes of one call."""

    takes_ms: int
    fault: str


@dataclass(frozen=True)
class World:
    max_live: int
    max_waiting: int
    arrivals: list[Arrival]
    services: list[Service]


@dataclass
class Ending:
    """What became of an arrival; its nonce is its number."""

    came_s: float
    limit_s: float
    ended_s: float
    result: list[int] | BaseException

    @property
    def history(self) -> list[int] | None:
        """All that its state had seen, if it was answered."""
        return self.result if isinstance(self.result, list) else None


arrivals = st.builds(
    Arrival,
    gap_ms=st.sampled_from([0, 0, 0, 1, 4]),
    tenant=st.sampled_from(["a", "a", "a", "b"]),
    id=st.sampled_from([1, 1, 1, 2]),
    starts=st.sampled_from([False] * 7 + [True]),
    ends=st.sampled_from([False] * 9 + [True]),
    patience_ms=st.sampled_from([None] * 4 + [1, 2, 4, 8]),
    leaves_ms=st.sampled_from([None] * 6 + [0, 1, 3, 6]),
)


def begun(asked: list[Arrival]) -> list[Arrival]:
    """*asked*, in which the first request of every sequence begins it."""
    seen: set[tuple[str, int]] = set()
    found = []
    for one in asked:
        found.append(replace(one, starts=one.starts or (one.tenant, one.id) not in seen))
        seen.add((one.tenant, one.id))
    return found


services = st.builds(
    Service,
    takes_ms=st.sampled_from([0, 1, 3, 3, 6]),
    fault=st.sampled_from(["none"] * 8 + ["fails", "hangs up", "crash", "cancels itself", "forgot"]),
)
worlds = st.builds(
    World,
    max_live=st.integers(1, 4),
    max_waiting=st.sampled_from([1, 3, 64]),
    arrivals=st.lists(arrivals, min_size=4, max_size=24).map(begun),
    services=st.lists(services, min_size=1, max_size=8),
)


async def live(world: World) -> tuple[list[Ending], Stateful]:
    """Play *world* to its end."""

    async def behave(index: int, call: SequenceCall) -> None:
        service = world.services[index % len(world.services)]
        await asyncio.sleep(service.takes_ms / 1000)
        match service.fault:
            case "fails":
                raise BackendFailed("the model says no")
            case "hangs up":
                raise ReplicaFailed("gone")
            case "crash":
                raise ZeroDivisionError
            case "cancels itself":
                raise asyncio.CancelledError
            case "forgot":
                raise SequenceOver("the state is gone")

    backend = Stateful(behave)
    to = runner(backend, SequenceOptions(max_live=world.max_live, max_waiting=world.max_waiting))

    async def ask(nonce: int, arrival: Arrival) -> Ending:
        came_s = now()
        patience_s = math.inf if arrival.patience_ms is None else arrival.patience_ms / 1000
        leaves_s = math.inf if arrival.leaves_ms is None else arrival.leaves_ms / 1000
        deadline = NO_DEADLINE if arrival.patience_ms is None else within(patience_s)
        asked = asyncio.create_task(
            take(
                to,
                nonce,
                arrival.id,
                starts=arrival.starts,
                ends=arrival.ends,
                deadline=deadline,
                tenant=arrival.tenant,
            )
        )
        if leaves_s < math.inf:
            asyncio.get_running_loop().call_later(leaves_s, asked.cancel)
        (result,) = await asyncio.gather(asked, return_exceptions=True)
        assert to.sequences().live <= world.max_live
        return Ending(came_s, came_s + min(patience_s, leaves_s), now(), result)

    callers = []
    for nonce, arrival in enumerate(world.arrivals):
        await asyncio.sleep(arrival.gap_ms / 1000)
        callers.append(asyncio.create_task(ask(nonce, arrival)))
    endings = await asyncio.gather(*callers)
    statistics = to.statistics()
    assert (statistics.queued_items, statistics.queued_bytes, statistics.in_flight) == (0, 0, 0)
    found = to.sequences()
    await to.aclose()
    assert backend.faults == []
    assert found.started >= found.live + found.lost
    return endings, backend


def one_leaves(patience_ms: int | None, leaves_ms: int | None) -> World:
    """One of four that stand in a line leaves it, while the first is answered."""
    first = Arrival(0, "a", 1, True, False, None, None)
    step = replace(first, starts=False)
    return World(4, 64, [first, replace(step, patience_ms=patience_ms, leaves_ms=leaves_ms), step, step], [SLOW])


SLOW = Service(3, "none")


@settings(max_examples=400, deadline=None)
@given(worlds)
@example(one_leaves(None, 1))
@example(one_leaves(2, None))
@example(one_leaves(None, 3))
def test_no_sequence_sees_another_s_state_and_none_is_out_of_order(world: World) -> None:
    endings, backend = run(
        lambda: live(world)
    )  # which itself sees that no step is taken beside or after a doubtful one

    for nonce, ending in enumerate(endings):
        arrival = world.arrivals[nonce]
        assert ending.ended_s <= ending.limit_s + TICK_S
        if ending.history is None:
            assert_told_why(ending)
            continue
        history = ending.history
        assert history[-1] == nonce
        assert history == sorted(set(history))  # in the order in which they came
        assert {(world.arrivals[n].tenant, world.arrivals[n].id) for n in history} == {(arrival.tenant, arrival.id)}
        assert [world.arrivals[n].starts for n in history] == [True] + [False] * (len(history) - 1)
        assert not any(world.arrivals[n].ends for n in history[:-1])
        for missing in set(range(history[0], nonce)) - set(history):
            if (world.arrivals[missing].tenant, world.arrivals[missing].id) == (arrival.tenant, arrival.id):
                next_step = min(n for n in history if n > missing)
                assert_was_no_step(endings[missing], endings[next_step], was_asked=missing in backend.asked)


def assert_told_why(ending: Ending) -> None:
    """An error of the vocabulary, or the cancellation that was asked for, or the backend's own."""
    assert isinstance(ending.result, PointsmanError | asyncio.CancelledError)
    if isinstance(ending.result, DeadlineExceeded):
        assert ending.ended_s >= ending.limit_s - TICK_S


def assert_was_no_step(missing: Ending, behind: Ending, *, was_asked: bool) -> None:
    """It was not answered; and the model said so, or its caller knew before the next step was sent."""
    assert missing.history is None
    if was_asked:
        assert isinstance(missing.result, BackendFailed)
    else:
        assert missing.ended_s <= behind.came_s + INSTANT_S
