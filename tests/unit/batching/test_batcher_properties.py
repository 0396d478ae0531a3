"""Random lives of a batcher: nothing lost, duplicated, swapped, or late unnoticed."""

import asyncio
import math
import re
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, Limits, Tensor, Tensors
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, Overloaded, TooLarge, Unavailable
from batching.options import BatchingOptions
from tests.unit.batching.conftest import Call, FakeBackend, batcher, echo, now, run, submit, values, within

TICK_S = 0.0021  # what timers may be late
ULP_S = 1e-6  # what they may be early, where sums of milliseconds are rounded


@dataclass(frozen=True)
class Arrival:
    """A caller: when it comes after the one before it, what it brings, how long it waits, and when it leaves.

    One of its items may be poison, on which every call fails.
    """

    gap_ms: int
    size: int
    poison: int | None
    width: int
    patience_ms: int | None
    leaves_ms: int | None
    priority: int
    tenant: str


@dataclass(frozen=True)
class Service:
    """What the backend makes of one call."""

    takes_ms: int
    fault: str


@dataclass(frozen=True)
class World:
    max_batch: int
    slots: int
    max_delay_ms: int | None
    max_queue: int
    max_queue_bytes: int
    levels: int
    arrivals: list[Arrival]
    services: list[Service]

    def options(self) -> BatchingOptions:
        delay_s = None if self.max_delay_ms is None else self.max_delay_ms / 1000
        return BatchingOptions(
            max_delay_s=delay_s,
            max_queue=self.max_queue,
            max_queue_bytes=self.max_queue_bytes,
            priority_levels=self.levels,
        )

    def level(self, index: int) -> int:
        return self.options().level(self.arrivals[index].priority)

    def nonces(self, index: int) -> list[int]:
        return [index * 100 + i for i in range(self.arrivals[index].size)]

    def is_poison(self, nonce: int) -> bool:
        return self.arrivals[nonce // 100].poison == nonce % 100

    def entry(self, nonce: int) -> tuple[int, int]:
        """The caller that brought it, and in which part of its batch."""
        return nonce // 100, nonce % 100 // self.max_batch

    def fault(self, call_index: int) -> str:
        return self.services[call_index % len(self.services)].fault


@dataclass
class Ending:
    """What became of an arrival."""

    nonces: list[int]
    came_s: float
    deadline_s: float
    leaves_s: float
    ended_s: float
    result: Tensors | BaseException


milliseconds = st.integers(0, 12)
arrivals = st.builds(
    Arrival,
    gap_ms=st.sampled_from([0, 0, 0, 1, 3]),
    size=st.integers(1, 6),
    poison=st.sampled_from([None] * 6 + [0, 3]),
    width=st.integers(1, 2),
    patience_ms=st.none() | st.integers(1, 15),
    leaves_ms=st.none() | milliseconds,
    priority=st.integers(0, 3),
    tenant=st.sampled_from(["", "", "greedy", "modest"]),
)
services = st.builds(
    Service,
    takes_ms=milliseconds,
    fault=st.sampled_from(
        ["none"] * 6 + ["unavailable", "crash", "short", "wrong dtype", "wrong shape", "cancels itself"]
    ),
)
worlds = st.builds(
    World,
    max_batch=st.integers(1, 5),
    slots=st.integers(1, 3),
    max_delay_ms=st.sampled_from([None, 0, 2, 8]),
    max_queue=st.sampled_from([5, 12, 1000]),
    max_queue_bytes=st.sampled_from([8 * 7, 10**6, 10**6]),
    levels=st.sampled_from([0, 0, 3]),
    arrivals=st.lists(arrivals, min_size=1, max_size=15),
    services=st.lists(services, min_size=1, max_size=8),
)


async def live(world: World) -> tuple[list[Ending], FakeBackend]:
    """Play *world* to its end."""

    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(world.services[index % len(world.services)].takes_ms / 1000)
        for nonce in filter(world.is_poison, call.nonces):
            raise InvalidInput(f"item {nonce} is poison")
        match world.fault(index):
            case "unavailable":
                raise Unavailable("resting")
            case "crash":
                raise ZeroDivisionError
            case "cancels itself":
                raise asyncio.CancelledError
            case "short":
                return {"nonce": Tensor.of(np.zeros((call.batch.size + 1, 1), np.int64))}
            case "wrong dtype":
                return {"nonce": Tensor.of(np.zeros((call.batch.size, 1), np.float32))}
            case "wrong shape":
                return {"nonce": Tensor.of(np.zeros((call.batch.size, 1, 1), np.int64))}
        return echo(call.batch)

    backend = FakeBackend(Limits(world.max_batch, world.slots), behave)
    async with batcher(backend, world.options()) as b:

        async def call(index: int, arrival: Arrival) -> Ending:
            nonces = world.nonces(index)
            deadline = NO_DEADLINE if arrival.patience_ms is None else within(arrival.patience_ms / 1000)
            came_s = now()
            leaves_s = math.inf if arrival.leaves_ms is None else came_s + arrival.leaves_ms / 1000
            caller = submit(
                b, *nonces, deadline=deadline, width=arrival.width, priority=arrival.priority, tenant=arrival.tenant
            )
            if arrival.leaves_ms is not None:
                asyncio.get_running_loop().call_at(leaves_s, caller.cancel)
            (result,) = await asyncio.gather(caller, return_exceptions=True)
            assert b.statistics().queued_items <= world.max_queue
            assert b.statistics().queued_bytes <= world.max_queue_bytes
            return Ending(nonces, came_s, deadline, leaves_s, now(), result)

        callers = []
        for index, arrival in enumerate(world.arrivals):
            await asyncio.sleep(arrival.gap_ms / 1000)
            callers.append(asyncio.create_task(call(index, arrival)))
        endings = await asyncio.gather(*callers)
        await asyncio.sleep(0.1)  # whatever was abandoned has come down

        told = b.statistics()
        assert (told.queued_items, told.queued_bytes, told.in_flight) == (0, 0, 0)
        assert told.predicted_wait_s == 0.0
    return list(endings), backend


@given(worlds)
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost_duplicated_swapped_or_late_unnoticed(world: World) -> None:
    endings, backend = run(lambda: live(world))

    sent = {nonce: index for index, call in enumerate(backend.calls) for nonce in call.nonces}  # the last time
    faulty = {
        nonce
        for nonce, index in sent.items()
        if world.fault(index) != "none" or any(map(world.is_poison, backend.calls[index].nonces))
    }
    for ending in endings:
        match ending.result:
            case dict():
                assert values(ending.result) == ending.nonces, "swapped"
                assert not faulty & set(ending.nonces)
                assert ending.ended_s < ending.deadline_s, "late"
            case asyncio.CancelledError():
                assert -ULP_S <= ending.ended_s - ending.leaves_s <= TICK_S
            case DeadlineExceeded() if "are left" in str(ending.result):
                assert ending.ended_s - ending.came_s <= TICK_S, "refused late"
                assert not sent.keys() & set(ending.nonces), "refused, yet sent"
            case DeadlineExceeded():
                assert -ULP_S <= ending.ended_s - ending.deadline_s <= TICK_S
            case TooLarge():
                nbytes = 8 * len(ending.nonces) * world.arrivals[ending.nonces[0] // 100].width
                assert len(ending.nonces) > world.max_queue or nbytes > world.max_queue_bytes
            case Overloaded():
                assert ending.result.retry_after_s is not None
                assert ending.result.retry_after_s > 0.0
                assert ending.ended_s <= ending.deadline_s + TICK_S
                waited = re.search("cannot be met any more|less than their share", str(ending.result))
                assert waited or ending.ended_s - ending.came_s <= TICK_S, "refused late"
                whole = len(ending.nonces) <= world.max_batch
                assert not (whole and sent.keys() & set(ending.nonces)), "refused, yet sent"
            case InvalidInput():
                assert str(ending.result) in {f"item {n} is poison" for n in ending.nonces}, "heard of another's item"
            case BackendFailed() | Unavailable():
                assert faulty & set(ending.nonces), "failed with a healthy batch"
            case other:
                raise AssertionError(f"unexpected {other!r}")


@given(worlds)
@settings(deadline=None, max_examples=100)
def test_what_failed_for_an_items_sake_is_run_again_and_nothing_else_is(world: World) -> None:
    _, backend = run(lambda: live(world))

    last: dict[int, int] = {}  # the call that a nonce was in before
    origin: dict[int, int] = {}  # the first call that it was in
    again: dict[int, int] = {}  # calls that were made for what an original call had failed on
    for index, call in enumerate(backend.calls):
        before = {last.get(nonce) for nonce in call.nonces}
        assert len(before) == 1, "what is run again was merged with others"
        for earlier in before - {None}:
            assert earlier is not None
            failed = backend.calls[earlier]
            assert set(call.nonces) < set(failed.nonces)
            assert world.fault(earlier) == "crash" or any(map(world.is_poison, failed.nonces))
            assert failed.ended_s is not None
            assert failed.ended_s <= call.started_s
            again[origin[call.nonces[0]]] = again.get(origin[call.nonces[0]], 0) + 1
        for nonce in call.nonces:
            last[nonce] = index
            origin.setdefault(nonce, index)
    for index, calls in again.items():
        entries = len({world.entry(nonce) for nonce in backend.calls[index].nonces})
        assert calls <= 2 * math.ceil(math.log2(entries)) + 2


@given(worlds)
@settings(deadline=None, max_examples=200)
def test_where_items_are_to_blame_only_their_callers_see_it(world: World) -> None:
    """Unless a batch held several that were poison, more than may be looked for."""
    healthy = replace(world, services=[replace(service, fault="none") for service in world.services])
    endings, backend = run(lambda: live(healthy))

    batches: dict[int, set[int]] = {}  # the first that a nonce was in
    for call in backend.calls:
        for nonce in call.nonces:
            batches.setdefault(nonce, set(call.nonces))
    for ending in endings:
        if isinstance(ending.result, BackendFailed):
            assert str(ending.result) == "model 'm' failed on the batch that the request was in"
            poisonous = [set(map(world.entry, filter(world.is_poison, batches.get(n, ())))) for n in ending.nonces]
            assert max(map(len, poisonous)) >= 2, "an innocent was condemned"
        elif isinstance(ending.result, dict | InvalidInput):
            assert isinstance(ending.result, InvalidInput) == any(map(world.is_poison, ending.nonces))


def _arrival(size: int, leaves_ms: int | None = None) -> Arrival:
    return Arrival(0, size, None, 1, None, leaves_ms, 0, "")


_ONE_LEAVES_THE_MIDDLE = World(
    max_batch=1,
    slots=1,
    max_delay_ms=None,
    max_queue=5,
    max_queue_bytes=8 * 7,
    levels=0,
    arrivals=[_arrival(1), _arrival(3, leaves_ms=0), _arrival(1), _arrival(1), _arrival(1)],
    services=[Service(0, "none")],
)
"""What it gave back once let its tenant's next overtake those that waited."""


@given(worlds)
@example(_ONE_LEAVES_THE_MIDDLE)
@settings(deadline=None, max_examples=100)
def test_every_call_is_worth_making(world: World) -> None:
    endings, backend = run(lambda: live(world))

    owner = {nonce: ending for ending in endings for nonce in ending.nonces}
    width = {nonce: world.arrivals[nonce // 100].width for nonce in owner}
    for call in backend.calls:
        owners = [owner[nonce] for nonce in call.nonces]
        assert call.batch.size <= world.max_batch
        assert len({width[nonce] for nonce in call.nonces}) == 1, "incompatible items were merged"
        assert call.deadline == max(ending.deadline_s for ending in owners)
        assert all(call.started_s < ending.deadline_s for ending in owners), "sent after its deadline"
        assert all(call.started_s <= ending.ended_s for ending in owners), "sent after its caller left"
        assert call.ended_s is not None
        assert call.ended_s <= max(ending.ended_s for ending in owners) + TICK_S, "went on for nobody"
    sent: dict[int, int] = {}
    for index, call in enumerate(backend.calls):
        for nonce in call.nonces:
            sent.setdefault(nonce, index)
    for earlier, later in combinations(sorted(sent), 2):
        alike = [(width[n], world.level(n // 100), world.arrivals[n // 100].tenant) for n in (earlier, later)]
        if alike[0] == alike[1] and owner[earlier].deadline_s <= owner[later].deadline_s:
            assert sent[earlier] <= sent[later], "overtaken by one that is no more urgent"


@given(worlds)
@settings(deadline=None, max_examples=100)
def test_a_close_at_any_moment_leaves_nobody_hanging(world: World) -> None:
    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(0.005)
        if any(map(world.is_poison, call.nonces)):
            raise ZeroDivisionError
        return echo(call.batch)

    async def scenario() -> list[Tensors | BaseException]:
        backend = FakeBackend(Limits(world.max_batch, world.slots), behave)
        b = batcher(backend, replace(world, max_queue=1000, max_queue_bytes=10**6).options())
        b.start()
        callers = []
        for index, arrival in enumerate(world.arrivals):
            await asyncio.sleep(arrival.gap_ms / 1000)
            callers.append(submit(b, *world.nonces(index), width=arrival.width))
        await asyncio.sleep(world.services[0].takes_ms / 1000)
        await b.aclose(drain=world.max_queue == 5)
        results: list[Tensors | BaseException] = await asyncio.gather(*callers, return_exceptions=True)
        return results

    for index, result in enumerate(run(scenario)):
        if isinstance(result, BaseException):
            assert isinstance(result, Unavailable | BackendFailed)
        else:
            assert values(result) == world.nonces(index)
