"""What becomes of a call: balanced, tried again, cut off, hedged, refused; and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Deadline, Limits, State, Tensor
from backends.echo import EchoOptions, open_echo
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    Unavailable,
)
from backends.replicas import ReplicaOptions, Replicas, ReplicaState, open_replicas
from tests.unit.backends.replicas.servers import Scene, Server
from tests.unit.batching.conftest import idle, now, run


def in_virtual_time(scenario: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that is a coroutine function, played in virtual time; no task may be left."""

    @wraps(scenario)
    def play() -> None:
        async def body() -> None:
            await scenario()

        run(body)

    del play.__wrapped__  # or pytest takes it for a coroutine
    return play


async def test_replicas_keep_the_contract() -> None:
    options = EchoOptions(shape=(4,), max_batch=6)

    def sample(size: int, rng: np.random.Generator) -> Batch:
        return Batch.of({"input": Tensor.of(rng.random((size, 4), np.float32))})

    async def open_backend() -> Backend:
        async def open_one() -> Backend:
            return await open_echo("echo", options)

        return await open_replicas("echo", {"a": open_one, "b": open_one}, ReplicaOptions())

    await exercise_backend(open_backend, sample)


@in_virtual_time
async def test_calls_are_spread_over_replicas_by_what_they_have_to_do() -> None:
    async with Scene(Server("a"), Server("b"), Server("c")) as scene:
        await scene.ask_all(9)

        assert [server.most_running for server in scene.servers] == [3, 3, 3]


@in_virtual_time
async def test_a_slow_replica_gets_little() -> None:
    async with Scene(Server("quick"), Server("slow", took_s=0.2)) as scene:
        for _ in range(30):
            await scene.ask()

        quick, slow = scene.servers
        assert quick.calls >= 28
        assert slow.calls <= 2


@in_virtual_time
async def test_a_call_that_fails_is_answered_by_another_replica_at_once() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        scene.servers[0].refuses()

        answers = [await scene.ask(nonce) for nonce in range(4)]

        assert answers == [0, 1, 2, 3]
        (retry, *_) = scene.watch.retries
        assert (retry.failed, retry.address, retry.attempt, retry.backoff_s) == ("a", "b", 2, 0.0)


@in_virtual_time
async def test_a_single_replica_is_tried_three_times_with_pauses() -> None:
    async with Scene(Server("a")) as scene:
        scene.servers[0].refuses()

        with pytest.raises(ReplicaFailed, match="server a refused"):
            await scene.ask()

        assert scene.servers[0].calls == 3
        assert all(0.0 < retry.backoff_s <= 0.1 for retry in scene.watch.retries)
        assert scene.pool.statistics().retries == 2


@pytest.mark.parametrize("error", [InvalidInput("no"), Overloaded("no"), Unavailable("no")])
def test_what_is_not_the_replica_s_fault_is_neither_tried_again_nor_counted(error: PointsmanError) -> None:
    async def scenario() -> None:
        async with Scene(Server("a"), Server("b")) as scene:
            for server in scene.servers:
                server.fault = lambda: error

            for _ in range(30):
                with pytest.raises(type(error), match="no"):
                    await scene.ask()

            assert sum(server.calls for server in scene.servers) == 30
            assert scene.states() == dict.fromkeys("ab", ReplicaState.HEALTHY)
            assert all(one.failures == 0 for one in scene.pool.statistics().replicas)

    run(scenario)


@in_virtual_time
async def test_a_model_that_fails_on_one_server_and_not_on_another_is_that_server_s_fault() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        scene.servers[0].fault = lambda: BackendFailed("no accelerator")

        answers = [await scene.ask(nonce) for nonce in range(30)]

        assert answers == list(range(30))
        assert scene.states()["a"] is ReplicaState.EJECTED
        assert scene.pool.statistics().retries == 5


@in_virtual_time
async def test_a_batch_on_which_the_model_fails_everywhere_is_to_blame_and_no_server() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        for server in scene.servers:
            server.fault = lambda: BackendFailed("no such batch")

        for _ in range(30):
            with pytest.raises(BackendFailed, match="no such batch"):
                await scene.ask()

        assert scene.pool.statistics().retries == 10  # then the budget is used up, and the first opinion counts
        assert scene.states() == dict.fromkeys("ab", ReplicaState.HEALTHY)
        assert all(one.failures == 0 for one in scene.pool.statistics().replicas)


@in_virtual_time
async def test_a_server_s_own_deadline_is_no_slowness_and_is_asked_once() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        for server in scene.servers:
            server.fault = lambda: DeadlineExceeded("the route allows 10 ms")

        for _ in range(10):
            with pytest.raises(DeadlineExceeded, match="the route allows"):
                await scene.ask(left_s=5.0)

        assert sum(server.calls for server in scene.servers) == 10
        assert all(one.failures == 0 for one in scene.pool.statistics().replicas)


@in_virtual_time
async def test_a_single_server_s_opinion_of_a_batch_counts_at_once() -> None:
    async with Scene(Server("a")) as scene:
        scene.servers[0].fault = lambda: BackendFailed("no")

        with pytest.raises(BackendFailed):
            await scene.ask()

        assert scene.servers[0].calls == 1


@in_virtual_time
async def test_dead_servers_beyond_half_of_a_pool_draw_next_to_no_calls() -> None:
    async with Scene(*map(Server, "abcd"), probe_every_s=1000.0) as scene:
        for server in scene.servers[:3]:
            server.refuses()
            server.took_s = 0.0
        await scene.ask_all(40)  # two are ejected, and the third is spared
        await asyncio.sleep(11.0)  # for the retry budget
        before = scene.servers[2].calls

        answers = [await scene.ask(nonce) for nonce in range(200)]

        assert answers == list(range(200))
        assert scene.servers[2].calls - before <= 12


@in_virtual_time
async def test_a_server_that_was_slow_once_is_asked_again_when_a_probe_finds_it_well() -> None:
    async with Scene(Server("a"), Server("b"), probe_every_s=5.0) as scene:
        slow, quick = scene.servers
        slow.took_s = 2.0
        while not slow.calls:
            await scene.ask()
        slow.took_s = 0.01
        asked = slow.calls

        await asyncio.sleep(11.0)
        for _ in range(40):
            await scene.ask()

        assert slow.calls > asked + 10
        assert quick.calls > 10


@in_virtual_time
async def test_a_replica_that_hangs_leaves_time_for_another_and_is_ejected() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        await scene.ask_all(30)
        hanging = scene.servers[0]
        hanging.hangs = True

        answers = [await scene.ask(nonce, left_s=0.25) for nonce in range(40)]

        assert answers == list(range(40))
        assert hanging.cancelled == len(scene.watch.retries) > 0

        await scene.ask_all(60, left_s=0.25)
        assert scene.states() == {"a": ReplicaState.EJECTED, "b": ReplicaState.HEALTHY}


@in_virtual_time
async def test_without_a_deadline_a_hang_ends_at_the_attempt_timeout() -> None:
    async with Scene(Server("a"), Server("b"), attempt_timeout_s=4.0) as scene:
        scene.servers[0].hangs = True
        began = now()

        answers = await scene.ask_all(4)

        assert answers == [0, 1, 2, 3]
        assert now() - began == pytest.approx(4.01, abs=0.001)


@in_virtual_time
async def test_a_replica_that_ends_an_attempt_at_its_shorter_deadline_has_timed_out() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        await scene.ask_all(30)
        scene.servers[0].hangs = scene.servers[0].keeps_deadlines = True

        answers = await scene.ask_all(6, left_s=0.3)

        assert answers == list(range(6))
        assert scene.pool.statistics().replicas[0].failures > 0


@in_virtual_time
async def test_a_caller_that_gives_too_little_time_cannot_eject_anybody() -> None:
    async with Scene(Server("a"), attempts=1) as scene:
        await scene.ask_all(30)

        for _ in range(30):
            with pytest.raises(DeadlineExceeded):
                await scene.ask(left_s=0.005)

        assert scene.states() == {"a": ReplicaState.HEALTHY}


@in_virtual_time
async def test_a_deadline_that_has_passed_makes_no_attempt() -> None:
    async with Scene(Server("a")) as scene:
        with pytest.raises(DeadlineExceeded, match="allow more time"):
            await scene.ask(left_s=0.0)

        assert scene.servers[0].calls == 0


@in_virtual_time
async def test_with_less_time_left_than_half_the_answers_take_nothing_is_tried_again() -> None:
    async with Scene(Server("a", took_s=0.1), Server("b", took_s=0.1)) as scene:
        await scene.ask_all(30)
        for server in scene.servers:
            server.refuses()

        with pytest.raises(DeadlineExceeded, match="too little time is left for another"):
            await scene.ask(left_s=0.15)

        assert not scene.watch.retries


@in_virtual_time
async def test_retries_stop_where_their_budget_ends() -> None:
    async with Scene(Server("a"), Server("b"), eject_after=1000) as scene:
        for server in scene.servers:
            server.refuses()

        await scene.ask_all(10)

        statistics = scene.pool.statistics()
        assert sum(server.calls for server in scene.servers) == 10 + statistics.retries
        assert statistics.retries <= 10
        assert statistics.retries_refused >= 7


@in_virtual_time
async def test_calls_that_fail_all_at_once_take_turns_to_be_tried_again() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        dying, other = scene.servers
        dying.refuses()

        answers = await scene.ask_all(20)

        assert answers == list(range(20))
        assert dying.calls == 10
        assert other.most_running == 10
        assert scene.states()["a"] is ReplicaState.EJECTED


@in_virtual_time
async def test_who_waits_for_a_turn_is_refused_at_its_deadline() -> None:
    async with Scene(Server("a"), attempt_timeout_s=5.0, eject_after=100) as scene:
        (server,) = scene.servers
        server.refuses()
        calls = [asyncio.create_task(scene.ask(nonce)) for nonce in range(3)]
        late = asyncio.create_task(scene.ask(left_s=1.0))
        await asyncio.sleep(0.005)
        server.hangs = True  # those that try again
        began = now()

        with pytest.raises(DeadlineExceeded, match="too little time is left"):
            await late

        assert now() - began == pytest.approx(0.995)
        assert server.calls == 7
        server.is_well()
        assert await asyncio.gather(*calls) == [0, 1, 2]


@in_virtual_time
async def test_half_of_a_pool_stays_in_however_it_fails() -> None:
    async with Scene(Server("a"), Server("b"), Server("c"), Server("d")) as scene:
        for server in scene.servers:
            server.refuses()

        for _ in range(100):
            with pytest.raises(ReplicaFailed):
                await scene.ask()

        assert sorted(scene.states().values()) == [ReplicaState.EJECTED] * 2 + [ReplicaState.HEALTHY] * 2
        assert scene.pool.state is State.READY


@in_virtual_time
async def test_a_pool_of_one_refuses_at_once_while_its_replica_is_ejected_and_comes_back() -> None:
    async with Scene(Server("a")) as scene:
        (server,) = scene.servers
        server.refuses()
        while scene.pool.state is State.READY:
            with pytest.raises(Unavailable):
                await scene.ask()
        calls, ejected_at = server.calls, now()

        with pytest.raises(Unavailable, match="no server of model 'm' is in service") as caught:
            await scene.ask()

        assert server.calls == calls == 5
        assert scene.pool.state is State.FAILED
        assert caught.value.retry_after_s == pytest.approx(30.0)
        server.is_well()
        await asyncio.sleep(ejected_at + 30.0 - now())
        assert [await scene.ask(nonce) for nonce in range(3)] == [0, 1, 2]
        assert scene.states() == {"a": ReplicaState.RAMPING}
        assert [record.address for record in scene.watch.readmitted] == ["a"]
        await asyncio.sleep(30.0)
        assert scene.states() == {"a": ReplicaState.HEALTHY}


@in_virtual_time
async def test_a_failed_trial_is_no_failure_of_its_call() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        scene.servers[0].refuses()
        while scene.states()["a"] is not ReplicaState.EJECTED:
            await scene.ask_all(3)
        calls = scene.servers[0].calls
        await asyncio.sleep(30.0)

        answers = await scene.ask_all(5)

        assert answers == [0, 1, 2, 3, 4]
        assert scene.servers[0].calls == calls + 1
        assert scene.watch.ejected[-1].for_s == 60.0


@in_virtual_time
async def test_a_replica_that_turns_slow_while_its_probes_are_green_is_ejected() -> None:
    async with Scene(Server("a"), Server("b"), Server("c")) as scene:
        for _ in range(10):
            await scene.ask_all(12)
        grey = scene.servers[0]
        grey.took_s *= 20

        for _ in range(3):
            await scene.ask_all(24)

        assert [(record.address, record.reason.value) for record in scene.watch.ejected] == [("a", "slow")]
        calls = grey.calls
        await scene.ask_all(24)
        assert grey.calls == calls


@in_virtual_time
async def test_replicas_that_all_turn_slow_together_stay_in() -> None:
    async with Scene(Server("a"), Server("b"), Server("c")) as scene:
        for _ in range(10):
            await scene.ask_all(12)
        for server in scene.servers:
            server.took_s *= 20

        for _ in range(20):
            await scene.ask_all(12)

        assert not scene.watch.ejected


@in_virtual_time
async def test_a_cancelled_call_cancels_its_attempt_and_counts_for_nothing() -> None:
    async with Scene(Server("a")) as scene:
        scene.servers[0].hangs = True
        call = asyncio.create_task(scene.ask())
        await idle()

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        assert scene.servers[0].cancelled == 1
        assert scene.servers[0].running == 0
        (one,) = scene.pool.statistics().replicas
        assert (one.in_flight, one.failures, one.state) == (0, 0, ReplicaState.HEALTHY)


@in_virtual_time
async def test_a_trial_that_is_cancelled_lets_the_next_call_try() -> None:
    async with Scene(Server("a")) as scene:
        (server,) = scene.servers
        server.refuses()
        while scene.pool.state is State.READY:
            await scene.ask_all(1)
        server.is_well()
        await asyncio.sleep(31.0)
        server.hangs = True
        trial = asyncio.create_task(scene.ask())
        await idle()
        with pytest.raises(Unavailable, match="in service"):
            await scene.ask()

        trial.cancel()
        await asyncio.wait([trial])
        server.is_well()

        assert await scene.ask(3) == 3


@in_virtual_time
async def test_a_call_waiting_for_its_retry_can_be_cancelled() -> None:
    async with Scene(Server("a"), seed=3) as scene:
        scene.servers[0].refuses()
        call = asyncio.create_task(scene.ask())
        await asyncio.sleep(0.0101)
        assert scene.servers[0].calls == 1

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        assert scene.pool.statistics().in_flight == 0


@in_virtual_time
async def test_a_call_that_was_tried_again_keeps_nothing_of_what_it_was_given() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        for server in scene.servers:
            server.refuses()

        async def ask() -> weakref.ref[object]:
            array = np.array([[1]], np.int64)
            with suppress(ReplicaFailed):
                await scene.pool.infer(Batch.of({"nonce": Tensor.of(array)}), NO_DEADLINE)
            return weakref.ref(array)

        gc.disable()
        try:
            assert (await ask())() is None
        finally:
            gc.enable()


@in_virtual_time
async def test_closing_waits_for_calls_that_are_tried_again_and_refuses_new_ones() -> None:
    async with Scene(Server("a"), Server("b"), attempt_timeout_s=4.0) as scene:
        scene.servers[0].hangs = True
        calls = [asyncio.create_task(scene.ask(nonce)) for nonce in range(2)]
        await idle()

        closing = [asyncio.create_task(scene.pool.aclose()) for _ in range(2)]
        await idle()

        with pytest.raises(Unavailable, match="is closed"):
            await scene.ask()
        assert not any(task.done() for task in closing)
        assert await asyncio.gather(*calls) == [0, 1]
        await asyncio.gather(*closing)
        await scene.pool.aclose()
        assert scene.pool.state is State.CLOSED


@in_virtual_time
async def test_a_closer_that_is_cancelled_leaves_the_closing_to_go_on() -> None:
    async with Scene(Server("a", took_s=5.0)) as scene:
        call = asyncio.create_task(scene.ask(4))
        await idle()
        closing = asyncio.create_task(scene.pool.aclose())
        await idle()

        closing.cancel()
        await asyncio.wait([closing])

        assert await call == 4
        await idle()
        assert scene.servers[0].still_open == 0


@in_virtual_time
async def test_batches_beyond_the_smallest_limit_are_refused() -> None:
    async with Scene(Server("a", limits=Limits(2)), Server("b", limits=Limits(8))) as scene:
        batch = Batch.of({"nonce": Tensor.of(np.zeros((3, 1), np.int64))})

        with pytest.raises(InvalidInput, match="batch of 3 is outside 1 to 2"):
            await scene.pool.infer(batch, NO_DEADLINE)


async def warmed_up(scene: Scene, calls: int = 100) -> None:
    """So many calls of 10 ms; from 100 on copies are made."""
    for nonce in range(calls):
        await scene.ask(nonce)


@in_virtual_time
async def test_a_call_that_takes_longer_than_usual_is_copied_and_the_slower_attempt_cancelled() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene)
        scene.servers[0].hangs = scene.servers[1].hangs = True
        began = now()
        call = asyncio.create_task(scene.ask(5))
        await idle()
        slow, quick = sorted(scene.servers, key=lambda server: -server.running)
        quick.hangs = False

        assert await call == 5

        assert now() - began == pytest.approx(0.02, abs=0.001)
        assert [(hedge.slow, hedge.address) for hedge in scene.watch.hedges] == [(slow.address, quick.address)]
        assert (slow.cancelled, slow.running) == (1, 0)
        assert all(one.failures == 0 for one in scene.pool.statistics().replicas)


@in_virtual_time
async def test_nothing_is_copied_while_too_little_is_known() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene, calls=99)
        scene.servers[0].took_s = scene.servers[1].took_s = 0.5

        await scene.ask()

        assert not scene.watch.hedges


@in_virtual_time
async def test_nothing_is_copied_under_load() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene)
        scene.servers[0].took_s = scene.servers[1].took_s = 0.5

        await scene.ask_all(5)

        assert not scene.watch.hedges


@in_virtual_time
async def test_copies_are_few() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene)

        for _ in range(100):
            scene.servers[0].took_s *= 1.01
            scene.servers[1].took_s *= 1.01
            await scene.ask()

        assert 0 < len(scene.watch.hedges) <= 10
        assert scene.pool.statistics().hedges == len(scene.watch.hedges)


@in_virtual_time
async def test_a_copied_call_fails_only_when_both_attempts_have() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True, attempts=1) as scene:
        await warmed_up(scene)
        for server in scene.servers:
            server.took_s = 0.05
            server.refuses()

        with pytest.raises(ReplicaFailed):
            await scene.ask()
        assert len(scene.watch.hedges) == 1
        for server in scene.servers:
            server.is_well()
        scene.servers[0].refuses()
        assert await scene.ask(8) == 8


@in_virtual_time
async def test_a_copied_call_that_is_cancelled_cancels_both_attempts() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene)
        scene.servers[0].hangs = scene.servers[1].hangs = True
        call = asyncio.create_task(scene.ask())
        await asyncio.sleep(0.05)
        assert [server.running for server in scene.servers] == [1, 1]

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        assert [server.running for server in scene.servers] == [0, 0]


@in_virtual_time
async def test_a_copied_call_ends_only_when_both_attempts_have_however_often_it_is_cancelled() -> None:
    async with Scene(Server("a"), Server("b"), hedge=True) as scene:
        await warmed_up(scene)
        for server in scene.servers:
            server.hangs = True
            server.let_go.clear()
        call = asyncio.create_task(scene.ask())
        await asyncio.sleep(0.05)

        for _ in range(3):
            call.cancel()
            await idle()
        assert not call.done()
        assert [server.running for server in scene.servers] == [1, 1]
        for server in scene.servers:
            server.let_go.set()

        with pytest.raises(asyncio.CancelledError):
            await call


@in_virtual_time
async def test_an_attempt_that_is_cut_off_is_waited_for_before_the_next() -> None:
    async with Scene(Server("a"), Server("b"), attempt_timeout_s=1.0) as scene:
        for server in scene.servers:
            server.hangs = True
            server.let_go.clear()
        call = asyncio.create_task(scene.ask(6))
        await asyncio.sleep(5.0)
        assert sum(server.running for server in scene.servers) == 1
        assert scene.servers[0].calls + scene.servers[1].calls == 1

        for server in scene.servers:
            server.hangs = False
            server.let_go.set()

        assert await call == 6


@in_virtual_time
async def test_an_adapter_s_own_timeout_error_is_no_attempt_that_ran_out() -> None:
    async with Scene(Server("a"), Server("b")) as scene:
        for server in scene.servers:
            server.fault = lambda: TimeoutError("a bug of the adapter")

        with pytest.raises(TimeoutError, match="a bug of the adapter"):
            await scene.ask()

        assert not scene.watch.retries


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hedge", [False, True])
def test_no_replies_are_crossed_and_nearly_all_calls_answered_while_servers_fail_at_random(
    seed: int, hedge: bool
) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        servers = [Server(address) for address in "abcd"]
        for server in servers:
            server.fault = lambda: ReplicaFailed("by chance") if rng.random() < 0.02 else None

        async def break_and_mend() -> None:
            while True:
                broken = rng.choice(servers[:2])
                how = rng.choice(["refuses", "hangs", "slow"])
                fault, took_s = broken.fault, broken.took_s
                if how == "refuses":
                    broken.refuses()
                broken.hangs = how == "hangs"
                broken.took_s = 0.2 if how == "slow" else took_s
                await asyncio.sleep(1.0)
                broken.hangs, broken.fault, broken.took_s = False, fault, took_s

        async with Scene(*servers, seed=seed, hedge=hedge) as scene:
            async with asyncio.TaskGroup() as group:
                chaos = group.create_task(break_and_mend())
                callers = [group.create_task(caller(scene, 1000 * i, rng)) for i in range(8)]
                outcomes = [outcome for each in callers for outcome in await each]
                chaos.cancel()

            answered = [(nonce, answer) for nonce, answer in outcomes if isinstance(answer, int)]
            assert all(nonce == answer for nonce, answer in answered)
            assert all(isinstance(answer, int | ReplicaFailed | DeadlineExceeded) for _, answer in outcomes)
            assert len(answered) >= 0.999 * len(outcomes)
            assert scene.pool.statistics().retries <= 0.1 * len(outcomes)

    run(scenario)


async def caller(scene: Scene, first: int, rng: random.Random) -> list[tuple[int, int | PointsmanError]]:
    outcomes: list[tuple[int, int | PointsmanError]] = []
    for nonce in range(first, first + 400):
        try:
            outcomes.append((nonce, await scene.ask(nonce, left_s=1.0)))
        except PointsmanError as error:
            outcomes.append((nonce, error))
        await asyncio.sleep(rng.uniform(0.0, 0.05))
    return outcomes


def test_the_pool_says_how_it_is() -> None:
    async def scenario() -> None:
        async with Scene(Server("a"), Server("b")) as scene:
            assert isinstance(scene.pool, Replicas)
            assert repr(scene.pool) == "<Replicas of 'm': ready, 0 calls; a healthy, b healthy>"
            assert scene.pool.limits == Limits(4, 8)
            await scene.ask()
            one, other = scene.pool.statistics().replicas
            assert one.answered + other.answered == 1
            assert max(one.latency_s or 0.0, other.latency_s or 0.0) == pytest.approx(0.01)

    run(scenario)


async def test_real_deadlines_are_on_the_monotonic_clock() -> None:
    async def open_one() -> Backend:
        return await open_echo("echo", EchoOptions(shape=(1,)))

    pool = await open_replicas("echo", {"a": open_one}, ReplicaOptions())
    with pytest.raises(DeadlineExceeded):
        await pool.infer(Batch.of({"input": Tensor.of(np.zeros((1, 1), np.float32))}), Deadline(0.0))
    await pool.aclose()
