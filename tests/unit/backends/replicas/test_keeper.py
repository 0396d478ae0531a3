"""Replicas are opened, probed, opened anew and closed beside the calls, and nothing that goes wrong ends that."""

from __future__ import annotations

import asyncio
import logging

import pytest

from backends.contract import Backend, Limits, State
from backends.errors import InvalidInput, NotFound, ReplicaFailed, Unavailable
from backends.replicas import ReplicaOptions, ReplicaState, open_replicas
from tests.unit.backends.replicas.servers import Scene, Served, Server
from tests.unit.backends.replicas.test_replicas import in_virtual_time
from tests.unit.batching.conftest import idle, now


@in_virtual_time
async def test_a_pool_opens_with_those_that_can_be_opened_and_the_others_join_later() -> None:
    late = Server("late")
    late.open_fault = ReplicaFailed("connection refused; see whether it runs")
    async with Scene(late, Server("b")) as scene:
        one = scene.pool.statistics().replicas[0]
        assert (one.state, one.reason) == (
            ReplicaState.JOINING,
            "it cannot be opened: connection refused; see whether it runs",
        )
        assert scene.pool.state is State.READY
        assert scene.pool.limits.max_in_flight == 4
        assert await scene.ask(3) == 3

        await asyncio.sleep(5.0)
        late.is_well()
        await asyncio.sleep(30.0)

        assert scene.states()["late"] in (ReplicaState.RAMPING, ReplicaState.HEALTHY)
        assert scene.pool.statistics().replicas[0].reason is None


@in_virtual_time
async def test_openings_that_fail_are_repeated_ever_more_rarely() -> None:
    gone = Server("gone")
    gone.open_fault = ReplicaFailed("refused")
    async with Scene(gone, Server("b")) as scene:
        await asyncio.sleep(30.0)
        first = gone.openings
        await asyncio.sleep(300.0)

        assert 4 <= first <= 9
        assert 10 <= gone.openings - first <= 20
        assert scene.pool.state is State.READY


@in_virtual_time
async def test_a_start_waits_for_slow_replicas_some_seconds_and_no_longer() -> None:
    soon, slow = Server("soon"), Server("slow")
    soon.opens_after_s, slow.opens_after_s = 2.0, 20.0
    began = now()
    async with Scene(slow, soon, Server("b")) as scene:
        assert now() - began == pytest.approx(3.0)
        assert scene.states() == {
            "slow": ReplicaState.JOINING,
            "soon": ReplicaState.HEALTHY,
            "b": ReplicaState.HEALTHY,
        }

        await asyncio.sleep(20.0)

        assert scene.states()["slow"] is ReplicaState.RAMPING
        assert slow.openings == 1


@in_virtual_time
async def test_a_pool_may_be_closed_while_a_replica_is_still_being_opened() -> None:
    slow = Server("slow")
    slow.opens_after_s = 20.0
    async with Scene(slow, Server("b")):
        pass

    assert slow.openings == 1
    assert not slow.opened


@in_virtual_time
async def test_where_none_can_be_opened_all_reasons_are_told() -> None:
    servers = [Server("a"), Server("b")]
    for server in servers:
        server.open_fault = NotFound(f"there is no model on {server.address}")

    with pytest.raises(NotFound, match="no replica of model 'm' can be opened: a: there is no model on a; b: there is"):
        await open_replicas("m", {server.address: server.open for server in servers}, ReplicaOptions(), clock=now)


@in_virtual_time
async def test_the_error_of_an_only_replica_is_its_own() -> None:
    server = Server("a")
    server.open_fault = NotFound("there is no model m")

    with pytest.raises(NotFound) as caught:
        await open_replicas("m", {"a": server.open}, ReplicaOptions(), clock=now)

    assert caught.value is server.open_fault


@in_virtual_time
async def test_an_opener_that_hangs_is_given_up() -> None:
    server = Server("a")
    server.opens_after_s = 1000.0

    with pytest.raises(Unavailable, match="did not open within 60 s"):
        await open_replicas("m", {"a": server.open}, ReplicaOptions(), clock=now)


@in_virtual_time
async def test_a_start_that_is_cancelled_leaves_nothing_open() -> None:
    quick, slow = Server("quick"), Server("slow")
    slow.opens_after_s = 20.0
    starting = asyncio.create_task(
        open_replicas("m", {"quick": quick.open, "slow": slow.open}, ReplicaOptions(), clock=now)
    )
    await asyncio.sleep(1.0)

    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [served.is_closed for served in quick.opened] == [True]
    assert not slow.opened


async def test_a_model_without_addresses_is_refused() -> None:
    with pytest.raises(InvalidInput, match="model 'm' has no replicas; name one address at least"):
        await open_replicas("m", {}, ReplicaOptions())


def test_a_replica_of_another_version_stays_out_until_it_fits_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @in_virtual_time
    async def scenario() -> None:
        other = Server("other")
        other.version = "2"
        async with Scene(Server("a"), other) as scene:
            await asyncio.sleep(100.0)
            one = scene.pool.statistics().replicas[1]
            assert one.state is ReplicaState.JOINING
            assert one.reason is not None
            assert "version '2', not '1'" in one.reason
            assert other.still_open == 0
            assert other.openings > 2

            other.version = "1"
            await asyncio.sleep(31.0)

            assert scene.states()["other"] is not ReplicaState.JOINING

    with caplog.at_level(logging.WARNING):
        scenario()
    assert [record.getMessage()[:40] for record in caplog.records] == ["replica other of model 'm' stays out: it"]


def test_a_replica_that_cannot_be_opened_is_told_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    @in_virtual_time
    async def scenario() -> None:
        gone = Server("gone")
        gone.open_fault = ReplicaFailed("refused")
        async with Scene(Server("a"), gone):
            await asyncio.sleep(60.0)
            gone.open_fault = ReplicaFailed("no such model")
            await asyncio.sleep(60.0)

    with caplog.at_level(logging.WARNING):
        scenario()
    assert [record.getMessage() for record in caplog.records] == [
        "replica gone of model 'm' stays out: it cannot be opened: refused",
        "replica gone of model 'm' stays out: it cannot be opened: no such model",
    ]


@in_virtual_time
async def test_who_joins_later_must_take_the_batches_that_were_promised() -> None:
    small = Server("small", limits=Limits(2))
    small.open_fault = ReplicaFailed("refused")
    async with Scene(small, Server("b")) as scene:
        small.is_well()
        await asyncio.sleep(60.0)

        assert "batches of 2, the others 4" in (scene.pool.statistics().replicas[0].reason or "")


@in_virtual_time
async def test_every_replica_is_probed_again_and_again() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        await asyncio.sleep(51.0)

        assert [server.probes for server in scene.servers] == [10, 10]


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_replica_whose_probes_fail_is_ejected_and_back_when_they_pass(how: str) -> None:
    @in_virtual_time
    async def scenario() -> None:
        async with Scene(Server("a"), Server("b")) as scene:
            server = scene.servers[0]
            server.probe_hangs = how == "hangs"
            server.probe_fault = ReplicaFailed("not well")
            await asyncio.sleep(40.0)
            assert scene.states() == {"a": ReplicaState.EJECTED, "b": ReplicaState.HEALTHY}
            assert [record.address for record in scene.watch.ejected] == ["a"]
            await scene.ask_all(8)
            assert server.calls == 0
            server.is_well()
            await asyncio.sleep(7.1)
            assert scene.states()["a"] is ReplicaState.HALF_OPEN

            for nonce in range(3):
                assert await scene.ask(nonce) == nonce

            assert scene.states()["a"] is ReplicaState.RAMPING

    scenario()


@in_virtual_time
async def test_a_server_that_was_started_again_need_not_wait_for_the_end_of_its_ejection() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        server = scene.servers[0]
        server.refuses()
        server.probe_fault = ReplicaFailed("connection refused")
        await scene.ask_all(10)
        assert scene.states()["a"] is ReplicaState.EJECTED

        server.is_well()
        await asyncio.sleep(5.1)

        assert scene.states()["a"] is ReplicaState.HALF_OPEN


@in_virtual_time
async def test_a_replica_that_is_closed_is_opened_anew() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        server = scene.servers[0]
        await server.opened[0].aclose()
        assert await scene.ask(3) == 3

        await asyncio.sleep(5.1)

        assert len(server.opened) == 2
        assert scene.states()["a"] is ReplicaState.RAMPING


@in_virtual_time
async def test_a_replica_that_has_failed_gets_a_while_to_recover_and_is_then_opened_anew() -> None:
    async with Scene(Server("a")) as scene:
        server = scene.servers[0]
        server.opened[0].state = State.FAILED
        assert scene.pool.state is State.FAILED
        with pytest.raises(Unavailable, match="no server of model 'm' is in service"):
            await scene.ask()
        await asyncio.sleep(5.1)
        server.opened[0].state = State.READY
        await asyncio.sleep(20.0)
        assert len(server.opened) == 1

        server.opened[0].state = State.FAILED
        await asyncio.sleep(10.1)

        assert len(server.opened) == 2
        assert server.still_open == 1
        assert await scene.ask(3) == 3


@in_virtual_time
async def test_a_call_on_a_replica_that_goes_away_is_made_elsewhere() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        server = scene.servers[0]

        def go_away() -> Exception:
            server.opened[0].state = State.CLOSED
            return Unavailable("closed")

        server.fault = go_away

        assert await scene.ask_all(4) == [0, 1, 2, 3]
        server.is_well()
        await idle()
        assert len(server.opened) == 2


@in_virtual_time
async def test_a_replica_that_is_lost_ends_its_calls_before_another_is_opened() -> None:
    async with Scene(Server("a", took_s=20.0)) as scene:
        server = scene.servers[0]
        call = asyncio.create_task(scene.ask(3))
        await idle()
        server.opened[0].state = State.CLOSED
        await asyncio.sleep(10.0)
        assert server.openings == 1

        assert await call == 3

        await asyncio.sleep(1.0)
        assert [served.is_closed for served in server.opened] == [True, False]


class Odd(Served):
    """A backend whose state cannot always be asked for."""

    def __init__(self, server: Server) -> None:
        self.is_odd = False
        super().__init__(server)

    @property
    def state(self) -> State:
        if self.is_odd:
            raise RuntimeError("odd")
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state


def test_a_keeper_survives_what_no_backend_should_do(caplog: pytest.LogCaptureFixture) -> None:
    @in_virtual_time
    async def scenario() -> None:
        server = Server("a")
        odd = Odd(server)

        async def open_odd() -> Backend:
            return odd

        pool = await open_replicas("m", {"a": open_odd}, ReplicaOptions(), clock=now)
        odd.is_odd = True
        await asyncio.sleep(10.1)
        odd.is_odd = False
        await asyncio.sleep(10.0)

        assert server.probes == 2
        await pool.aclose()

    scenario()
    assert ["its keeper failed. This is a bug." in record.getMessage() for record in caplog.records] == [True, True]


def test_a_probe_that_is_cancelled_by_others_ends_no_keeper(caplog: pytest.LogCaptureFixture) -> None:
    @in_virtual_time
    async def scenario() -> None:
        async with Scene(Server("a")) as scene:
            server = scene.servers[0]
            server.probe_fault = asyncio.CancelledError()
            await asyncio.sleep(10.1)
            server.is_well()
            await asyncio.sleep(10.0)

            assert server.probes == 4

    scenario()
    assert ["something in it was cancelled" in record.getMessage() for record in caplog.records] == [True, True]


@in_virtual_time
async def test_an_opening_that_is_cancelled_by_others_is_one_that_failed() -> None:
    first = Server("a")
    openings = 0

    async def open_once() -> Backend:
        nonlocal openings
        openings += 1
        if openings > 1:
            raise asyncio.CancelledError
        return await first.open()

    pool = await open_replicas("m", {"a": open_once}, ReplicaOptions(), clock=now)
    await first.opened[0].aclose()
    await asyncio.sleep(40.0)

    assert openings > 3
    assert "was cancelled" in (pool.statistics().replicas[0].reason or "")
    await pool.aclose()


def test_a_backend_that_does_not_close_is_told_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Served):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    @in_virtual_time
    async def scenario() -> None:
        server = Server("a")
        opened: list[Stuck] = []

        async def open_stuck() -> Backend:
            opened.append(Stuck(server))
            return opened[-1]

        pool = await open_replicas("m", {"a": open_stuck}, ReplicaOptions(), clock=now)
        opened[0].state = State.CLOSED
        await asyncio.sleep(10.0)
        assert len(opened) == 2
        await pool.aclose()

    with caplog.at_level(logging.WARNING):
        scenario()
    assert sum("did not close" in record.getMessage() for record in caplog.records) == 2
