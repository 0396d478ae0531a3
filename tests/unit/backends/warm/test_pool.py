"""A pool loads what is wanted, once, within its budget, and never takes a model from under a call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Deadline, State, Tensor, Tensors
from backends.echo import Echo, EchoOptions
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from backends.told import Loaded
from backends.warm.entry import Kind, Known, Ladder, WarmOptions
from backends.warm.policy import Phase
from backends.warm.pool import Pooled, WarmPool
from backends.warm.report import Step, StepReport


class Clock:
    """Stands still until it is moved, and is ahead of the real one, on which the models look at deadlines."""

    def __init__(self) -> None:
        self.now = 2.0**32

    def __call__(self) -> float:
        return self.now


class Watch:
    """Remembers what it is told, and lets tests wait for it."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.cold: list[str] = []
        self.unloaded: list[str] = []
        self._news = asyncio.Event()

    def on_load_step(self, report: StepReport) -> None:
        self.steps.append(report)
        self._news.set()

    def on_cold_start(self, model: str) -> None:
        self.cold.append(model)
        self._news.set()

    def on_unload(self, model: str, error: BaseException | None) -> None:
        assert error is None
        self.unloaded.append(model)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Model(Echo):
    """An echo whose calls can be held up."""

    def __init__(self) -> None:
        super().__init__(EchoOptions(shape=(1,)))
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        self.running += 1
        try:
            await self.gate.wait()
            return await super().infer(batch, deadline)
        finally:
            self.running -= 1

    async def aclose(self) -> None:
        assert not self.running, "a model was closed under a call"
        await super().aclose()


class Maker:
    """Opens models, when it is let, and as slowly as the test's clock says."""

    def __init__(self, clock: Clock, load_s: float = 2.0) -> None:
        self._clock = clock
        self._load_s = load_s
        self.gate = asyncio.Event()
        self.gate.set()
        self.made: list[Model] = []
        self.warmed = 0
        self.error: Exception | None = None
        self.started = asyncio.Event()

    async def open(self) -> Backend:
        self.started.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self._clock.now += self._load_s
        self.made.append(Model())
        return self.made[-1]

    async def warm_up(self, backend: Backend) -> None:
        self.warmed += 1

    @property
    def ladder(self) -> Ladder:
        return Ladder(self.open, self.warm_up)

    def shut(self) -> None:
        self.gate.clear()
        self.started.clear()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def pool(clock: Clock, watch: Watch) -> AsyncIterator[WarmPool]:
    async with WarmPool(100, clock=clock, observer=watch) as one:
        yield one


def sized(nbytes: int, keep: int = 0) -> WarmOptions:
    return WarmOptions(keep, nbytes)


def a_batch(value: float = 1.0) -> Batch:
    return Batch.of({"input": Tensor.of(np.full((1, 1), value, np.float32))})


async def ask(model: Pooled, deadline: Deadline = NO_DEADLINE) -> float:
    return float((await model.infer(a_batch(7.0), deadline))["output"].numpy()[0, 0])


async def put_out(pool: WarmPool, clock: Clock, watch: Watch, name: str) -> None:
    """Let so much time pass that *name* is unloaded."""
    before = watch.unloaded.count(name)
    clock.now += 10_000.0
    pool.poke()
    await watch.until(lambda: watch.unloaded.count(name) > before)


async def test_a_pooled_model_keeps_the_contract() -> None:
    async with WarmPool() as pool:

        async def open_pooled() -> Backend:
            async def open_echo() -> Backend:
                return Echo(EchoOptions(shape=(2,)))

            return await pool.open("echo", Ladder(open_echo))

        def sample(size: int, rng: np.random.Generator) -> Batch:
            return Batch.of({"input": Tensor.of(rng.random((size, 2), np.float32))})

        await exercise_backend(open_pooled, sample)


async def test_a_model_goes_up_the_ladder_and_each_step_is_told(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    maker = Maker(clock, load_s=2.0)

    async def read() -> None:
        clock.now += 0.5

    model = await pool.open("m", Ladder(maker.open, maker.warm_up, read), sized(10))

    assert [(report.step, report.duration_s) for report in watch.steps] == [
        (Step.READ, 0.5),
        (Step.OPEN, 2.0),
        (Step.WARM_UP, 0.0),
    ]
    assert maker.warmed == 1
    assert (model.warmth.phase, model.warmth.load_s, model.warmth.nbytes) == (Phase.WARM, 0.0, 10)
    assert await ask(model) == 7.0
    assert watch.cold == []


async def test_an_unused_model_is_unloaded_and_the_next_call_loads_it_again(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))

    await put_out(pool, clock, watch, "m")

    assert model.warmth.phase is Phase.COLD
    assert (model.state, maker.made[0].state) == (State.READY, State.CLOSED)
    assert pool.taken_bytes == 0
    assert model.warmth.load_s == 2.0
    assert await ask(model) == 7.0
    assert (len(maker.made), watch.cold) == (2, ["m"])


async def test_many_callers_of_a_cold_model_wait_for_one_load(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.shut()

    calls = [asyncio.create_task(ask(model)) for _ in range(20)]
    await maker.started.wait()
    assert model.warmth.phase is Phase.LOADING
    maker.gate.set()

    assert await asyncio.gather(*calls) == [7.0] * 20
    assert len(maker.made) == 2


async def test_loads_do_not_wait_for_each_other(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    slow, quick = Maker(clock), Maker(clock)
    slow.shut()

    opening = asyncio.create_task(pool.open("slow", slow.ladder, sized(10)))
    await slow.started.wait()
    model = await pool.open("quick", quick.ladder, sized(10))

    assert await ask(model) == 7.0
    assert not opening.done()
    slow.gate.set()
    await opening


async def test_a_caller_who_leaves_ends_neither_the_load_nor_the_wait_of_others(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.shut()
    leaver, stayer = asyncio.create_task(ask(model)), asyncio.create_task(ask(model))
    await maker.started.wait()

    leaver.cancel()
    with suppress(asyncio.CancelledError):
        await leaver
    maker.gate.set()

    assert await stayer == 7.0


async def test_a_deadline_too_short_for_the_load_is_refused_at_once_and_the_next_try_finds_it_warm(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock, load_s=2.0)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")

    with pytest.raises(Unavailable, match="not loaded yet") as refused:
        await ask(model, Deadline(clock.now + 1.0))

    assert refused.value.retry_after_s == 2.0
    await watch.until(lambda: len(maker.made) == 2)
    assert await ask(model, Deadline(clock.now + 1.0)) == 7.0
    assert watch.cold == ["m"]


async def test_a_caller_waits_for_a_load_no_longer_than_its_deadline(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock, load_s=0.0)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.shut()

    with pytest.raises(DeadlineExceeded, match="was loaded"):
        await ask(model, Deadline(clock.now + 0.01))
    maker.gate.set()


async def test_a_load_that_fails_is_told_to_all_who_wait_and_not_tried_again_at_once(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.error = BackendFailed("secret of the operator's")

    found = await asyncio.gather(ask(model), ask(model), return_exceptions=True)

    for error in found:
        assert isinstance(error, Unavailable)
        assert "secret" not in str(error)
        assert error.__cause__ is maker.error
        assert error.retry_after_s is not None
    assert found[0] is not found[1]
    assert (model.state, model.warmth.phase) == (State.FAILED, Phase.FAILED)
    with pytest.raises(Unavailable, match="could not be loaded"):
        await ask(model)
    assert sum(report.error is not None for report in watch.steps) == 1


async def test_after_the_backoff_a_model_that_failed_is_loaded_again(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.error = BackendFailed("not now")
    with pytest.raises(Unavailable):
        await ask(model)
    maker.error = None

    clock.now += 1.5

    assert model.state is State.READY
    assert await ask(model) == 7.0


async def test_a_first_opening_that_fails_is_told_as_it_is(pool: WarmPool, clock: Clock) -> None:
    maker = Maker(clock)
    maker.error = NotFound("there is no file")

    with pytest.raises(NotFound, match="no file"):
        await pool.open("m", maker.ladder, sized(10))

    assert pool.taken_bytes == 0


async def test_a_model_that_is_known_is_loaded_when_it_is_wanted_and_not_before(pool: WarmPool, clock: Clock) -> None:
    there = Maker(clock)
    first = await pool.open("there", there.ladder, sized(10))
    known = Known(Kind.of(first), first.load_s)
    here = Maker(clock)

    model = await pool.open("here", here.ladder, sized(10), known=known)

    assert here.made == []
    assert (model.signature, model.version, model.limits) == (first.signature, first.version, first.limits)
    assert (model.state, model.warmth.phase, model.warmth.load_s) == (State.READY, Phase.COLD, 2.0)
    assert await ask(model) == await ask(first)
    assert len(here.made) == 1


async def test_a_model_that_is_known_and_always_kept_is_loaded_at_once(pool: WarmPool, clock: Clock) -> None:
    known = Known(Kind.of(await pool.open("there", Maker(clock).ladder, sized(10))), 2.0)

    model = await pool.open("here", Maker(clock).ladder, sized(10, keep=1), known=known)

    assert model.warmth.phase is Phase.WARM
    assert pool.room_bytes == 80


async def test_a_model_that_turns_out_to_be_another_than_was_known_is_refused(pool: WarmPool, clock: Clock) -> None:
    kind = Kind.of(await pool.open("there", Maker(clock).ladder, sized(10)))
    known = Known(replace(kind, version="another"), 2.0)

    model = await pool.open("here", Maker(clock).ladder, sized(10), known=known)

    with pytest.raises(Unavailable, match="could not be loaded") as refused:
        await ask(model)
    assert "is not what it was" in str(refused.value.__cause__)


async def test_a_model_that_does_not_warm_up_is_closed_and_has_failed(pool: WarmPool, clock: Clock) -> None:
    maker = Maker(clock)

    async def fail(backend: Backend) -> None:
        raise InvalidInput("zeros are not taken")

    with pytest.raises(InvalidInput, match="zeros"):
        await pool.open("m", Ladder(maker.open, fail), sized(10))

    assert maker.made[0].state is State.CLOSED


async def test_a_model_that_comes_back_as_another_is_not_served(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")

    async def other() -> Backend:
        changed = Echo(EchoOptions(shape=(3,)))
        maker.made.append(changed)  # type: ignore[arg-type]
        return changed

    maker.open = other  # type: ignore[method-assign]
    model._entry.ladder = maker.ladder

    with pytest.raises(Unavailable, match="could not be loaded") as told:
        await ask(model)
    assert "not what it was" in str(told.value.__cause__)
    assert maker.made[-1].state is State.CLOSED


async def test_a_model_that_comes_back_overlapping_fewer_calls_is_served(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    """As one whose second server is away."""

    wide = Model()
    wide.limits = replace(wide.limits, max_in_flight=wide.limits.max_in_flight + 3)
    both, models = wide.limits, [wide, Model()]

    async def open_next() -> Backend:
        return models.pop(0)

    model = await pool.open("m", Ladder(open_next), sized(10))
    await put_out(pool, clock, watch, "m")

    assert await ask(model) == 7.0
    assert model.limits == both


class OnServer(Model):
    """A model that is loaded on a server, which says what it takes there."""

    def __init__(self, nbytes: int | None) -> None:
        super().__init__()
        self.loaded = Loaded(nbytes)


async def test_of_a_model_on_a_server_its_own_account_of_memory_counts(pool: WarmPool) -> None:
    async def open_one() -> Backend:
        return OnServer(42)

    model = await pool.open("m", Ladder(open_one))

    assert (model.warmth.nbytes, pool.taken_bytes) == (42, 42)


async def test_where_there_is_a_limit_somebody_must_say_what_a_model_on_a_server_takes(pool: WarmPool) -> None:
    silent: list[OnServer] = []

    async def open_one() -> Backend:
        silent.append(OnServer(None))
        return silent[-1]

    with pytest.raises(InvalidInput, match=r"warm: {memory: 2GiB}"):
        await pool.open("m", Ladder(open_one))
    assert silent[0].state is State.CLOSED
    assert (await pool.open("m", Ladder(open_one), sized(10))).warmth.nbytes == 10
    async with WarmPool() as unlimited:
        await (await unlimited.open("m", Ladder(open_one))).aclose()


async def test_the_budget_is_kept_and_the_least_worth_keeping_makes_room(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    makers = {name: Maker(clock, load_s=load_s) for name, load_s in (("dear", 50.0), ("cheap", 1.0), ("third", 1.0))}
    dear = await pool.open("dear", makers["dear"].ladder, sized(40))
    cheap = await pool.open("cheap", makers["cheap"].ladder, sized(40))

    third = await pool.open("third", makers["third"].ladder, sized(40))

    assert watch.unloaded == ["cheap"]
    assert pool.taken_bytes == 80
    assert [model.warmth.phase for model in (dear, cheap, third)] == [Phase.WARM, Phase.COLD, Phase.WARM]


async def test_a_call_in_flight_keeps_its_model_and_whoever_needs_the_room_waits(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    first, second = Maker(clock), Maker(clock)
    busy = await pool.open("busy", first.ladder, sized(80))
    first.made[0].gate.clear()
    call = asyncio.create_task(ask(busy))
    await asyncio.sleep(0)

    opening = asyncio.create_task(pool.open("waits", second.ladder, sized(80)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.made
    first.made[0].gate.set()

    assert await call == 7.0
    assert await ask(await opening) == 7.0
    assert first.made[0].state is State.CLOSED


async def test_what_is_kept_stays_however_long_it_is_unused(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    kept = await pool.open("kept", Maker(clock).ladder, sized(60, keep=1))
    other = await pool.open("other", Maker(clock).ladder, sized(40))

    await put_out(pool, clock, watch, "other")

    assert kept.warmth.phase is Phase.WARM
    assert other.warmth.phase is Phase.COLD


async def test_a_model_that_never_fits_is_refused(pool: WarmPool, clock: Clock) -> None:
    with pytest.raises(InvalidInput, match="takes 101 bytes, and the pool has 100"):
        await pool.open("huge", Maker(clock).ladder, sized(101))
    pool.reserve(60)
    with pytest.raises(InvalidInput, match="pool has 40"):
        await pool.open("large", Maker(clock).ladder, sized(50))
    with pytest.raises(InvalidInput, match="take 110 bytes"):
        pool.reserve(50)


async def test_a_hold_keeps_a_model_between_calls(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))

    async with model.hold(NO_DEADLINE):
        clock.now += 1e6
        pool.poke()
        for _ in range(20):
            await asyncio.sleep(0)
        assert model.warmth.phase is Phase.WARM
        assert await ask(model) == 7.0

    await put_out(pool, clock, watch, "m")


async def test_a_model_that_comes_on_the_hour_is_loaded_ahead(pool: WarmPool, clock: Clock, watch: Watch) -> None:
    maker = Maker(clock, load_s=0.0)
    model = await pool.open("m", maker.ladder, sized(10))
    for _ in range(12):
        clock.now += 3600.0
        pool.poke()
        assert await ask(model) == 7.0
    cold_before, made_before = len(watch.cold), len(maker.made)
    clock.now += 120.0
    pool.poke()
    await watch.until(lambda: model.warmth.phase is Phase.COLD)

    clock.now += 3300.0
    pool.poke()
    await watch.until(lambda: len(maker.made) > made_before and model.warmth.phase is Phase.WARM)

    assert await ask(model) == 7.0
    assert len(watch.cold) == cold_before


async def test_closing_a_model_waits_for_its_calls_and_leaves_room_for_others(pool: WarmPool, clock: Clock) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(90))
    maker.made[0].gate.clear()
    call = asyncio.create_task(ask(model))
    await asyncio.sleep(0)

    closing = asyncio.create_task(model.aclose())
    await asyncio.sleep(0)
    assert model.state is State.CLOSED
    maker.made[0].gate.set()
    await closing

    assert await call == 7.0
    assert pool.taken_bytes == 0
    with pytest.raises(Unavailable, match="closed"):
        await ask(model)
    assert await ask(await pool.open("next", maker.ladder, sized(90))) == 7.0


async def test_a_model_that_is_closed_while_it_loads_leaves_nothing_open(
    pool: WarmPool, clock: Clock, watch: Watch
) -> None:
    maker = Maker(clock)
    model = await pool.open("m", maker.ladder, sized(10))
    await put_out(pool, clock, watch, "m")
    maker.shut()
    call = asyncio.create_task(ask(model))
    await maker.started.wait()

    closing = asyncio.create_task(model.aclose())
    with pytest.raises(Unavailable, match="closed"):
        await call
    maker.gate.set()
    await closing

    assert all(made.state is State.CLOSED for made in maker.made)


async def test_a_pool_that_is_closed_loads_nothing_more(clock: Clock) -> None:
    pool = WarmPool(math.inf, clock=clock)
    pool.start()
    await pool.open("m", Maker(clock).ladder, sized(10))

    await pool.aclose()
    await pool.aclose()

    with pytest.raises(Unavailable, match="closed"):
        await pool.open("n", Maker(clock).ladder, sized(10))


async def test_random_traffic_over_more_models_than_fit_is_answered_and_never_over_budget(clock: Clock) -> None:
    rng = np.random.default_rng(5)
    async with WarmPool(100, clock=clock) as pool:
        models = [await pool.open(f"m{i}", Maker(clock, 0.1).ladder, sized(30)) for i in range(8)]

        async def caller(seed: int) -> None:
            own = np.random.default_rng(seed)
            for _ in range(30):
                assert await ask(models[int(own.integers(8))]) == 7.0
                assert pool.taken_bytes <= 100
                clock.now += float(rng.exponential(20.0))

        async with asyncio.timeout(30), asyncio.TaskGroup() as callers:
            for seed in range(6):
                callers.create_task(caller(seed))
        for model in models:
            await model.aclose()
        assert pool.taken_bytes == 0
