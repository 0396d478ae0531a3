"""Calls of one sequence go to the server that has its state, once each; only the first may go anywhere."""

from __future__ import annotations

import asyncio

import pytest

from backends.contract import SEQUENCE, Home, Limits, SequenceCall, State
from backends.errors import BackendFailed, ReplicaFailed, SequenceOver, SequenceUnknown
from backends.replicas.fit import common
from tests.unit.backends.replicas.servers import Scene, Served, Server
from tests.unit.backends.replicas.test_replicas import in_virtual_time

KEEPS_STATE = Limits(max_batch=1, max_in_flight=4, sequence_idle_s=5.0)


def servers(*addresses: str) -> list[Server]:
    return [Server(address, limits=KEEPS_STATE) for address in addresses]


async def step(scene: Scene, home: Home, *, starts: bool = False, left_s: float | None = None) -> int:
    """A call of the sequence that lives at *home*."""
    token = SEQUENCE.set(SequenceCall(1, starts, False, home))
    try:
        return await scene.ask(left_s=left_s)
    finally:
        SEQUENCE.reset(token)


def calls(scene: Scene) -> list[int]:
    return [server.calls for server in scene.servers]


@in_virtual_time
async def test_all_calls_go_where_the_first_went() -> None:
    async with Scene(*servers("a", "b", "c")) as scene:
        for _ in range(20):
            home, before = Home(), calls(scene)
            await step(scene, home, starts=True)
            for _ in range(5):
                await step(scene, home)

            assert sorted(now - then for now, then in zip(calls(scene), before, strict=True)) == [0, 0, 6]

        assert min(calls(scene)) > 0  # and the first ones are spread


@in_virtual_time
async def test_the_first_call_is_tried_again_elsewhere_and_the_others_follow_it() -> None:
    async with Scene(*servers("a", "b")) as scene:
        scene.servers[0].refuses()

        for _ in range(4):
            home = Home()
            await step(scene, home, starts=True)
            await step(scene, home)

        assert scene.pool.statistics().retries > 0
        assert scene.servers[1].calls == 8


@in_virtual_time
async def test_a_later_call_is_tried_once_and_nowhere_else() -> None:
    async with Scene(*servers("a", "b")) as scene:
        for error in (ReplicaFailed("it hung up"), BackendFailed("the model says no")):
            home = Home()
            await step(scene, home, starts=True)
            before = sum(calls(scene))
            for server in scene.servers:
                server.fault = lambda error=error: error  # type: ignore[misc]

            with pytest.raises(type(error)):
                await step(scene, home)

            assert sum(calls(scene)) == before + 1
            for server in scene.servers:
                server.is_well()
        assert scene.pool.statistics().retries == 0


@in_virtual_time
async def test_no_call_of_a_sequence_is_copied() -> None:
    async with Scene(*servers("a", "b"), hedge=True) as scene:
        for _ in range(100):
            await scene.ask()
        for server in scene.servers:
            server.took_s = 1.0
        copies = len(scene.watch.hedges)

        await step(scene, Home(), starts=True, left_s=10.0)
        assert len(scene.watch.hedges) == copies

        await scene.ask(left_s=10.0)  # another call is
        assert len(scene.watch.hedges) == copies + 1


@in_virtual_time
async def test_a_server_that_is_out_of_service_is_asked_all_the_same_for_what_it_alone_has() -> None:
    async with Scene(*servers("a", "b")) as scene:
        home = Home()
        await step(scene, home, starts=True)
        mine = max(scene.servers, key=lambda server: server.calls)
        mine.refuses()
        for _ in range(30):
            await scene.ask()
        assert scene.watch.ejected
        mine.is_well()
        before = mine.calls

        await step(scene, home)
        assert mine.calls == before + 1

        await step(scene, home, starts=True)  # begun anew, it may go where all is well
        assert mine.calls == before + 1


@in_virtual_time
async def test_a_server_that_was_opened_anew_has_no_state() -> None:
    async with Scene(*servers("a"), probe_every_s=0.1) as scene:
        home = Home()
        await step(scene, home, starts=True)
        scene.servers[0].opened[-1].state = State.CLOSED

        with pytest.raises(SequenceOver, match="is gone"):
            await step(scene, home)

        await asyncio.sleep(1.0)
        with pytest.raises(SequenceOver, match="is gone"):
            await step(scene, home)
        await step(scene, home, starts=True)


@in_virtual_time
async def test_a_sequence_that_never_came_to_a_server_is_unknown() -> None:
    async with Scene(*servers("a")) as scene:
        with pytest.raises(SequenceUnknown):
            await step(scene, Home())


def test_replicas_keep_states_for_as_long_as_each_does_or_not_at_all() -> None:
    longer = Served(Server(limits=Limits(1, sequence_idle_s=9.0)))
    mine, none = Served(Server(limits=KEEPS_STATE)), Served(Server())

    shared, misfits = common({"a": longer, "b": mine, "c": none})

    assert shared.limits.sequence_idle_s == 5.0
    assert list(misfits) == ["c"]
    assert shared.misfit(longer) is None
    assert "sooner" in (shared.misfit(Served(Server(limits=Limits(1, 4, sequence_idle_s=1.0)))) or "")
