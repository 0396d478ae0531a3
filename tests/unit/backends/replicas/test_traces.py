"""Each attempt at a server is a span of its own within the call's."""

from __future__ import annotations

import asyncio

import pytest

from backends.contract import SERVER_CALLS, TRACE, Batch, Deadline, ServerCall, Tensors
from backends.errors import InvalidInput, ReplicaFailed
from backends.trace_context import TraceContext
from tests.unit.backends.replicas.servers import Scene, Served, Server
from tests.unit.batching.conftest import idle, run

CALL = TraceContext.begin(sampled=True)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, TraceContext | None]]:
    """Which server was asked, and the span that the call named."""
    seen: list[tuple[str, TraceContext | None]] = []
    infer = Served.infer

    async def noted(self: Served, batch: Batch, deadline: Deadline) -> Tensors:
        seen.append((self.server.address, TRACE.get()))
        return await infer(self, batch, deadline)

    monkeypatch.setattr(Served, "infer", noted)
    return seen


async def traced(scene: Scene) -> list[ServerCall]:
    """The attempts that one call makes, in a context of its own as batches have it."""
    entered: list[ServerCall] = []

    async def ask() -> None:
        TRACE.set(CALL)
        SERVER_CALLS.set(entered)
        try:
            await scene.ask()
        finally:
            assert TRACE.get() is CALL

    await asyncio.create_task(ask())
    return entered


def test_a_retry_is_another_span(named: list[tuple[str, TraceContext | None]]) -> None:
    async def scenario() -> None:
        async with Scene(Server("a"), Server("b")) as scene:
            scene.servers[0].refuses()
            entered = await traced(scene)
            while len(entered) == 1:  # the well one was drawn
                named.clear()
                entered = await traced(scene)

            assert [(call.address, call.attempt, call.failure) for call in entered] == [
                ("a", 1, "unavailable"),
                ("b", 2, ""),
            ]
            assert named == [(call.address, call.span) for call in entered]
            assert len({CALL.span_id, *(call.span.span_id for call in entered)}) == 3
            assert all(call.span.trace_id == CALL.trace_id for call in entered)

    run(scenario)


def test_a_hedge_that_was_called_off_says_so(named: list[tuple[str, TraceContext | None]]) -> None:
    async def scenario() -> None:
        async with Scene(Server("a"), Server("b"), hedge=True) as scene:
            for _ in range(100):
                await scene.ask()
            named.clear()
            scene.servers[0].hangs = scene.servers[1].hangs = True
            asking = asyncio.create_task(traced(scene))
            await idle()
            for server in scene.servers:
                server.hangs = server.running > 0
            entered = await asking

            assert [(call.attempt, call.failure) for call in entered] == [(2, ""), (1, "cancelled")]
            assert {span for _, span in named} == {call.span for call in entered}

    run(scenario)


@pytest.mark.parametrize(
    ("error", "told"), [(InvalidInput("no"), "invalid_argument"), (ReplicaFailed("no"), "unavailable")]
)
def test_a_failed_attempt_tells_its_code(error: Exception, told: str) -> None:
    async def scenario() -> None:
        async with Scene(Server("a"), attempts=1) as scene:
            scene.servers[0].fault = lambda: error
            entered: list[ServerCall] = []
            TRACE.set(CALL)
            SERVER_CALLS.set(entered)

            with pytest.raises(type(error)):
                await scene.ask()

            assert [call.failure for call in entered] == [told]

    run(scenario)


def test_without_a_trace_nothing_is_named_or_entered(named: list[tuple[str, TraceContext | None]]) -> None:
    async def scenario() -> None:
        async with Scene(Server("a")) as scene:
            await scene.ask()

    run(scenario)

    assert named == [("a", None)]
