"""Sequences through the gateway and straight to Triton: the same answers, the same refusals, over every transport."""

from __future__ import annotations

import asyncio
import json
import queue
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http.aio
import yaml
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from gateway.discover import configuration_of
from tests.conformance.clients import FLAVOURS, Client, client_of, got
from tests.conformance.sequences.repository import IDLE_S, network, sequence_servers, why_no_sequences
from tests.conformance.sequences.vad import CHUNK, Listener, session
from tests.integration.process import running

# Any, throughout: tritonclient is untyped.

Sound = NDArray[np.float32]

STREAMS = 12
CHUNKS = 24


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens (host:port), what it calls a model, and whether it is the gateway."""

    http: str
    grpc: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Servers:
    triton: Address
    gateway: Address
    over_http: Address
    """The gateway again, whose models here are asked over HTTP."""
    over_oip: Address
    """The gateway again, which takes the Triton for any server of the protocol."""
    control: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if reason := why_no_sequences():
        pytest.skip(reason)
    with sequence_servers(tmp_path_factory.mktemp("sequences")) as (real, gateway):
        http = gateway.http.removeprefix("http://")
        yield Servers(
            Address(real.http, real.grpc),
            Address(http, gateway.grpc),
            Address(http, gateway.grpc, suffix="_http"),
            Address(http, gateway.grpc, suffix="_oip"),
            gateway.control,
        )


@pytest.fixture(params=["gateway", "over_http", "over_oip"])
def gateway(servers: Servers, request: pytest.FixtureRequest) -> Address:
    found: Address = getattr(servers, request.param)
    return found


@pytest.fixture(scope="module")
def sounds() -> list[list[Sound]]:
    """Voices of so many speakers, (CHUNK,) each: harmonics of a pitch that glides, in syllables, and a little noise."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(STREAMS):
        t = np.arange(CHUNKS * CHUNK) / 16_000
        phase = 2 * np.pi * np.cumsum(rng.uniform(90, 240) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * t)))
        voice = sum(np.sin(k * phase / 16_000) / k for k in range(1, 20))
        syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * t + rng.uniform(0, 6)), 0, 1)
        sound = 0.3 * voice * syllables + rng.normal(0, 0.01, t.shape)
        found.append([chunk.astype(np.float32) for chunk in np.split(sound, CHUNKS)])
    return found


@pytest.fixture(scope="module")
def heard(servers: Servers, sounds: list[list[Sound]]) -> list[list[float]]:
    """What the detector makes of each, in this process."""
    net = session(network())
    return [[listener.hear(chunk) for chunk in chunks] for chunks in sounds if (listener := Listener(net))]


async def step(client: Client, model: str, tensor: str, value: NDArray[np.float32], **sequence: Any) -> list[float]:
    """The first output for *value*, (1, ...)."""
    asked = client.tensor(tensor, value.reshape(1, -1), "FP32")
    result = await got(client.client.infer(model, [asked], **sequence))
    output = {"sound": "speech", "x": "y"}[tensor]
    return [float(number) for number in result.as_numpy(output).reshape(-1)]


def flags(index: int, count: int) -> dict[str, bool]:
    return {"sequence_start": index == 0, "sequence_end": index == count - 1}


async def listened(client: Client, model: str, chunks: Sequence[Sound], sequence: int | str) -> list[float]:
    """What *model* makes of *chunks*, one request after the other."""
    found = []
    for index, chunk in enumerate(chunks):
        found += await step(client, model, "sound", chunk, sequence_id=sequence, **flags(index, len(chunks)))
    return found


def test_a_state_matters(heard: list[list[float]], sounds: list[list[Sound]]) -> None:
    """Or the tests that follow would show nothing: without the state, other probabilities come."""
    net = session(network())
    without = [[Listener(net).hear(chunk) for chunk in chunks] for chunks in sounds]

    assert np.abs(np.array(without) - np.array(heard))[:, 1:].max(axis=1).min() > 0.05
    assert np.ptp(np.array(heard), axis=1).min() > 0.05  # and these change over a sequence


@pytest.mark.parametrize("flavour", ["http.aio", "grpc.aio"])
async def test_many_interleaved_sequences_are_answered_as_by_triton_and_by_the_model_alone(
    servers: Servers, gateway: Address, flavour: str, sounds: list[list[Sound]], heard: list[list[float]]
) -> None:
    async def all_of(address: Address) -> list[list[float]]:
        async with client_of(flavour, address.http, address.grpc) as client:
            model = f"vad{address.suffix}"
            names: list[int | str] = [i + 1 for i in range(len(sounds))]
            if address is gateway:  # this Triton mixes up texts where its model asks for numbers
                names = [name if i % 2 else f"call {name}" for i, name in enumerate(names)]
            return await asyncio.gather(
                *(listened(client, model, chunks, name) for chunks, name in zip(sounds, names, strict=True))
            )

    through = await all_of(gateway)

    np.testing.assert_array_equal(through, await all_of(servers.triton))
    np.testing.assert_allclose(through, heard, atol=1e-5)


@pytest.mark.parametrize("flavour", list(FLAVOURS))
async def test_every_client_can_take_the_steps_of_a_sequence(
    gateway: Address, flavour: str, sounds: list[list[Sound]], heard: list[list[float]]
) -> None:
    async with client_of(flavour, gateway.http, gateway.grpc) as client:
        found = await listened(client, f"vad{gateway.suffix}", sounds[0][:6], 2**63 - 1)

    np.testing.assert_allclose(found, heard[0][:6], atol=1e-5)


def test_what_is_sent_at_once_over_a_stream_is_answered_in_its_order(
    gateway: Address, sounds: list[list[Sound]], heard: list[list[float]]
) -> None:
    """As Triton's own example of a stream does it: nobody waits for a reply before the next request."""
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))
        for index in range(CHUNKS):
            for stream, chunks in enumerate(sounds):
                asked = tritonclient.grpc.InferInput("sound", [1, CHUNK], "FP32")
                asked.set_data_from_numpy(chunks[index].reshape(1, -1))
                client.async_stream_infer(
                    f"vad{gateway.suffix}", [asked], request_id=f"{stream}/{index}", sequence_id=1000 + stream,
                    **flags(index, CHUNKS),
                )  # fmt: skip
        found: dict[int, list[tuple[int, float]]] = {}
        for _ in range(STREAMS * CHUNKS):
            result, error = replies.get(timeout=30)
            assert error is None
            stream, index = map(int, result.get_response().id.split("/"))
            found.setdefault(stream, []).append((index, float(result.as_numpy("speech")[0, 0])))
        client.stop_stream()

    assert all([index for index, _ in found[stream]] == list(range(CHUNKS)) for stream in found)
    np.testing.assert_allclose([[speech for _, speech in found[s]] for s in range(STREAMS)], heard, atol=1e-5)


# Totals: what a sequence's state is can be read from every answer.


@asynccontextmanager
async def totals(address: Address) -> AsyncIterator[Callable[..., Awaitable[list[float]]]]:
    """Asks a model that adds up: *add* with what to add, how long to take, and the sequence."""
    async with client_of("grpc.aio", address.http, address.grpc) as client:

        async def add(value: float, sequence: int | str = 0, takes_s: float = 0.0, **more: Any) -> list[float]:
            model = more.pop("model", "total")
            pair = np.array([value, takes_s], np.float32)
            return await step(client, f"{model}{address.suffix}", "x", pair, sequence_id=sequence, **more)

        yield add


START, END = {"sequence_start": True}, {"sequence_end": True}


async def outcome(asked: Awaitable[list[float]]) -> object:
    """The answer, or how it was refused: the status, and of a bad request what it was told."""
    try:
        return await asked
    except InferenceServerException as error:
        is_bad = error.status() == "StatusCode.INVALID_ARGUMENT"
        return error.status(), (error.message() or "").split(":")[0].split(";")[0] if is_bad else ""


@pytest.mark.parametrize("model", ["total", "oldest"])
async def test_what_a_sequence_may_and_may_not_is_as_with_triton(
    servers: Servers, gateway: Address, model: str
) -> None:
    async def life(address: Address) -> list[object]:
        async with totals(address) as add:
            of = {"model": model}
            return [
                await outcome(add(1, **of)),  # without a sequence
                await outcome(add(1, **START, **of)),
                await outcome(add(1, 5, **of)),  # not begun
                await outcome(add(1, "five", **of)),
                await outcome(add(1, 5, **START, **of)),
                await outcome(add(1, 5, **of)),
                await outcome(add(float("nan"), 5, **of)),  # the model fails, and the sequence goes on
                await outcome(add(1, 5, **of)),
                await outcome(add(10, 5, **START, **of)),  # begun anew
                await outcome(add(1, 5, **END, **of)),
                await outcome(add(1, 5, **of)),  # ended
                await outcome(add(3, "five", **START, **END, **of)),  # the whole of it at once
                await outcome(add(1, "five", **of)),
                await outcome(add(float("nan"), 7, **START, **of)),  # begun, all the same
                await outcome(add(2, 7, **of)),
                await outcome(add(float("nan"), 7, **END, **of)),  # and ended, all the same
                await outcome(add(2, 7, **of)),
            ]

    through = [_named(seen, gateway.suffix) for seen in await life(gateway)]

    assert through == await life(servers.triton)
    assert [1.0, 1.0] in through
    assert [11.0, 2.0] in through


def _named(seen: object, suffix: str) -> object:
    """What was seen, with the model's name as Triton calls it."""
    return (seen[0], seen[1].replace(suffix, "")) if isinstance(seen, tuple) and suffix else seen


async def test_a_request_of_several_items_is_refused_as_by_triton(servers: Servers) -> None:
    async def refused(address: Address) -> str:
        async with client_of("grpc.aio", address.http, address.grpc) as client:
            two = client.tensor("x", np.zeros((2, 2), np.float32), "FP32")
            with pytest.raises(InferenceServerException) as error:
                await client.client.infer("total", [two], sequence_id=1, sequence_start=True)
            return f"{error.value.status()} {error.value.message()}".split(";")[0]

    assert await refused(servers.gateway) == await refused(servers.triton)


async def test_models_without_state_pay_no_attention_to_sequences_as_in_triton(servers: Servers) -> None:
    for address in (servers.triton, servers.gateway):
        async with totals(address) as add:
            assert len(await add(1, 5, model="stateless")) == 2
            assert len(await add(1, "five", model="stateless", **START, **END)) == 2


async def test_a_sequence_ends_with_its_idle_time_as_in_triton(servers: Servers) -> None:
    async def idles(address: Address) -> None:
        async with totals(address) as add:
            await add(1, "idle", **START)
            await asyncio.sleep(IDLE_S / 2)
            assert await add(1, "idle") == [2, 2]
            await asyncio.sleep(IDLE_S * 1.5)
            assert (await outcome(add(1, "idle"))) == (
                "StatusCode.INVALID_ARGUMENT",
                "inference request for sequence idle to model 'total' must specify the START flag on the first "
                "request of the sequence",
            )

    await asyncio.gather(idles(servers.triton), idles(servers.gateway))


async def test_equal_ids_under_two_names_are_two_sequences(servers: Servers) -> None:
    async with totals(servers.gateway) as add:
        await add(1, 8, **START)
        await add(100, 8, model="sums", **START)

        assert await add(1, 8) == [2, 2]
        assert await add(100, 8, model="sums") == [200, 2]


async def test_requests_sent_at_once_wait_for_each_other(servers: Servers) -> None:
    async with totals(servers.gateway) as add:
        await add(1, 9, **START)
        found = await asyncio.gather(*(add(1, 9, takes_s=0.02) for _ in range(6)))

    assert sorted(found) == [[2 + i, 2 + i] for i in range(6)]


async def test_a_deadline_that_passes_at_work_ends_the_sequence_with_a_clear_error(servers: Servers) -> None:
    async with totals(servers.gateway) as add:
        await add(1, 10, **START)
        assert (await outcome(add(1, 10, takes_s=0.5, timeout=100_000)))[0] == "StatusCode.DEADLINE_EXCEEDED"  # type: ignore[index]
        with pytest.raises(InferenceServerException, match=r"sequence 10 .* is over.*begin it anew") as error:
            await add(1, 10)
        assert error.value.status() == "StatusCode.ABORTED"

        assert await add(5, 10, **START) == [5, 1]  # no trace of what was late


RELAY = """
models:
  total: {{backend: oip, url: "{url}", expose: true, sequence_idle_s: 2}}
store: {{path: store.db, retention: 1d, limit: 1GiB}}
"""


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_what_is_discovered_of_a_gateway_keeps_state_where_its_models_do(servers: Servers, scheme: str) -> None:
    url = f"{scheme}://{getattr(servers.gateway, scheme)}"

    found = yaml.safe_load(await configuration_of([url], ["total", "stateless"], shared_memory=False))["models"]

    assert found["total"] == {"backend": "oip", "url": url, "sequence_idle_s": IDLE_S, "expose": True}
    assert found["stateless"] == {"backend": "oip", "url": url, "expose": True}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_gateway_before_a_gateway_keeps_sequences_apart_and_in_order(
    servers: Servers, scheme: str, tmp_path: Path
) -> None:
    with running(tmp_path, RELAY.format(url=f"{scheme}://{getattr(servers.gateway, scheme)}")) as front:
        async with totals(Address(front.http.removeprefix("http://"), front.grpc)) as add:
            assert await add(1, 30, **START) == [1, 1]
            assert await add(1, 30) == [2, 2]
            assert (await outcome(add(1, 30, takes_s=0.5, timeout=100_000)))[0] == "StatusCode.DEADLINE_EXCEEDED"  # type: ignore[index]
            assert (await outcome(add(1, 30)))[0] == "StatusCode.ABORTED"  # type: ignore[index]
            assert await add(5, 30, **START) == [5, 1]
            assert await add(5, 31, **START, **END) == [5, 1]


def posted(
    address: Address, parameters: dict[str, Any], key: str = "", *, model: str = "total", takes_s: float = 0.0
) -> tuple[int, Any]:
    """What HTTP answers to adding 1."""
    data = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, takes_s]}
    body = {"inputs": [data], "parameters": parameters}
    headers = {"content-type": "application/json", **({"idempotency-key": key} if key else {})}
    request = urllib.request.Request(
        f"http://{address.http}/v2/models/{model}/infer", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply)["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def test_a_repeated_idempotency_key_takes_no_step(servers: Servers) -> None:
    address = servers.gateway
    assert posted(address, {"sequence_id": 11, "sequence_start": True}, "a") == (200, [1, 1])
    assert posted(address, {"sequence_id": 11}, "b") == (200, [2, 2])
    assert posted(address, {"sequence_id": 11}, "b") == (200, [2, 2])
    assert posted(address, {"sequence_id": 11, "sequence_start": True}, "a") == (200, [1, 1])  # nor begins it anew
    assert posted(address, {"sequence_id": 11}, "c") == (200, [3, 3])

    assert posted(address, {"sequence_id": 12}, "c")[0] == 422  # the same key in another sequence
    assert posted(address, {"sequence_id": 12}, "d")[0] == 400  # which is not begun
    assert posted(address, {"sequence_id": 12, "sequence_start": True}) == (200, [1, 1])
    assert posted(address, {"sequence_id": 12}, "d") == (200, [2, 2])  # the refusal was not kept


def test_the_configuration_says_that_a_model_keeps_state(servers: Servers) -> None:
    """Or `perf_analyzer` would send it requests that stand alone."""
    with urllib.request.urlopen(f"http://{servers.gateway.http}/v2/models/total/config", timeout=10) as reply:
        config = json.load(reply)

    assert config["sequence_batching"]["max_sequence_idle_microseconds"] == IDLE_S * 1e6
    assert "dynamic_batching" not in config


def test_live_and_lost_sequences_are_counted(servers: Servers) -> None:
    def counted(model: str) -> tuple[float, float]:
        with urllib.request.urlopen(f"{servers.control}/metrics", timeout=10) as reply:
            lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
        of = f'{{model="{model}"}}'
        return float(lines[f"pointsman_sequences_live{of}"]), float(lines[f"pointsman_sequences_lost_total{of}"])

    for sequence in (21, 22, 23):
        posted(servers.gateway, {"sequence_id": sequence, "sequence_start": True}, model="total_http")
    posted(servers.gateway, {"sequence_id": 21, "sequence_end": True}, model="total_http")
    assert counted("total_http") == (2, 0)

    late = {"sequence_id": 22, "timeout": 50_000}
    assert posted(servers.gateway, late, model="total_http", takes_s=0.3)[0] == 504
    assert counted("total_http") == (1, 1)
