"""Many clients that do nothing, or everything slowly: none costs much, and none holds up another."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from tests.faults.raw_http import connect, exchange
from tests.integration.process import running
from tests.unit.gateway.http.test_protocol import GET, LIMITS, post, serving, until

IDLE = 500
IDLE_BYTES = 16 * 1024


def test_an_idle_connection_takes_at_most_16_kib(tmp_path: Path) -> None:
    with running(tmp_path) as server, ExitStack() as stack:
        process = psutil.Process(server.process.pid)

        def open_idle() -> None:
            for _ in range(IDLE):
                stack.enter_context(connect(server.http))
            assert exchange(server.http, GET.replace(b"/live", b"/v2/health/live")).statuses == (200,)

        open_idle()  # to warm up
        before = process.memory_info().rss
        open_idle()

        assert process.memory_info().rss - before <= IDLE * IDLE_BYTES


async def test_five_hundred_slow_bodies_are_408_and_others_are_served_meanwhile() -> None:
    async with serving(body_timeout_s=1.0) as served:
        slow = [await served.connect() for _ in range(500)]
        for client in slow:
            client.writer.write(post(b"hello")[:-1])
        await until(lambda: sum("BODY" in repr(connection) for connection in served.listener.connections) == 500)

        good = await served.connect()
        assert [(await good.ask(GET)).status for _ in range(50)] == [200] * 50
        assert {(await client.reply()).status for client in slow} == {408}
        assert (await good.ask(GET)).status == 200


async def test_a_client_that_reads_byte_by_byte_is_cut_off_and_others_are_served_meanwhile() -> None:
    async with serving(replace(LIMITS, write_timeout_s=0.2)) as served:
        slow = await served.connect()
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a reading transport is one, too
        slow.writer.write(GET.replace(b"/live", b"/big?50000000"))
        connection = slow.writer.get_extra_info("socket")
        await until(lambda: any("WRITING" in repr(one) for one in served.listener.connections))

        async def sip() -> None:
            loop = asyncio.get_running_loop()
            with suppress(OSError), connection._sock.dup() as own:
                while await loop.run_in_executor(None, own.recv, 1):  # noqa: ASYNC110 - it reads, and waits for nothing
                    await asyncio.sleep(0.02)

        sipping = asyncio.create_task(sip())
        good = await served.connect()
        assert [(await good.ask(GET)).status for _ in range(50)] == [200] * 50
        await until(lambda: len(served.listener.connections) == 1)
        sipping.cancel()
        await asyncio.wait((sipping,))
