"""A server that dies takes its sequences with it, which are told so at once; those of the others go on untouched."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import Client, client_of, got
from tests.conformance.sequences.repository import why_no_sequences, write_sequences
from tests.faults.backends.fault_proxy import Protocol
from tests.faults.backends.killable import Killable, killables
from tests.faults.oracle import total
from tests.integration.process import GatewayProcess, running

SEQUENCES = 24
STEPS = 30
CONFIG = """
models:
  total:
    backend: triton
    url: [{urls}]
    expose: true
    replicas: {{probe_every_s: 0.3, probe_timeout_s: 0.3}}
store: {{path: store.db, retention: 1d, limit: 1GiB}}
"""


@pytest.fixture(params=Protocol)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    found: Protocol = request.param
    return found


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Killable]]:
    if reason := why_no_sequences():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("sequences")
    with killables(folder, write_sequences(folder / "models", "total"), 2) as found:
        yield found


@pytest.fixture
def gateway(servers: list[Killable], protocol: Protocol, tmp_path: Path) -> Iterator[GatewayProcess]:
    addresses = [server.http if protocol is Protocol.HTTP else server.grpc for server in servers]
    urls = ", ".join(f"{protocol}://{address}" for address in addresses)
    with ExitStack() as stack:
        yield stack.enter_context(running(tmp_path, CONFIG.format(urls=urls)))


async def step(client: Client, sequence: int, value: float, *, starts: bool = False) -> list[float]:
    asked = [client.tensor("x", np.array([[value, 0.002]], np.float32), "FP32")]
    result = await got(client.client.infer("total", asked, sequence_id=sequence, sequence_start=starts))
    return [float(number) for number in result.as_numpy("y").reshape(-1)]


async def refused(client: Client, sequence: int) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as error:
        await step(client, sequence, sequence)
    return error.value


async def begun_anew(client: Client, sequence: int) -> list[float]:
    """The first step, which may be tried again: where many begin at once, the gateway's budget for that is used up."""
    while True:
        try:
            return await step(client, sequence, sequence, starts=True)
        except InferenceServerException as error:
            if error.status() != "StatusCode.UNAVAILABLE":
                raise
            await asyncio.sleep(0.05)


async def live(client: Client, sequence: int, begun: asyncio.Event) -> int:
    """Take the steps of a sequence, and see that each is right; how often it was over meanwhile.

    A sequence that is over stays so, and begun anew is right from its first step to its last.
    """
    over = 0
    total, since = 0.0, 0
    for index in range(STEPS):
        starts = index == 0
        try:
            total += sequence
            assert await step(client, sequence, sequence, starts=starts) == [total, index + 1 - since]
        except InferenceServerException as error:
            told = [error, await refused(client, sequence)]
            assert {one.status() for one in told} == {"StatusCode.ABORTED"}
            assert all("is over" in one.message() and "begin it anew" in one.message() for one in told)
            over, total, since = over + 1, sequence, index
            assert await begun_anew(client, sequence) == [total, 1]
        if index == 4:
            begun.set()
        await asyncio.sleep(0.01)
    return over


def steps_of(server: Killable) -> int:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/total/stats", timeout=5) as reply:
        return int(json.load(reply)["model_stats"][0]["inference_count"])


async def test_only_the_sequences_of_a_killed_server_are_over(servers: list[Killable], gateway: GatewayProcess) -> None:
    async with client_of("grpc.aio", gateway.http.removeprefix("http://"), gateway.grpc) as client:
        begun = [asyncio.Event() for _ in range(SEQUENCES)]
        living = [asyncio.create_task(live(client, i + 1, event)) for i, event in enumerate(begun)]
        await asyncio.gather(*(event.wait() for event in begun))
        taken = [await asyncio.to_thread(steps_of, server) for server in servers]
        assert min(taken) > 0  # or nothing is at the one, or at the other

        await asyncio.to_thread(servers[0].kill)
        over = await asyncio.gather(*living)

    lost = sum(over)
    assert max(over) == 1
    assert 0 < lost < SEQUENCES
    assert total(gateway, r"pointsman_sequences_lost_total\{.*\}") == lost
    assert await asyncio.to_thread(steps_of, servers[1]) >= STEPS * (SEQUENCES - lost)
