"""Sends the demo's items as callers would, over HTTP and gRPC, and follows each to its final answer.

Requests arrive at random moments at a steady rate, whether or not earlier ones were answered, as callers do; only when
too many are under way does the next one wait. Who is told "a person will decide" asks for the final answer by long
poll, which holds up nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp
import numpy as np
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from gateway.demo.items import Item
from gateway.demo.mail import INTAKE
from gateway.demo.pages import ROUTE
from gateway.demo.server import Addresses
from gateway.demo.summary import Ended, Result

RATE_PER_S = 60.0
"""Requests a second that are sent: what a small machine answers beside its own load generator."""

PATIENCE_S = 60.0
"""How long a caller waits for a person's answer."""

_ODD_EVERY = 20
_PAGE_EVERY = 8
_RARE = {INTAKE: _ODD_EVERY, ROUTE: _PAGE_EVERY}
_IN_FLIGHT = 32
_POLL_S = 20
_TIMEOUT_S = 30.0
_SEED = 7

# Of the gateway's replies, those that tell of a failure and not of a refusal.
_FAILED_HTTP = frozenset({500, 502})
_FAILED_GRPC = frozenset({"StatusCode.INTERNAL", "StatusCode.UNKNOWN"})


class Way(StrEnum):
    """How a request is sent."""

    HTTP = "http"
    HTTP_AUTO = "http_auto"
    GRPC = "grpc"


_WAYS = (Way.GRPC, Way.HTTP, Way.GRPC, Way.HTTP, Way.GRPC, Way.HTTP_AUTO, Way.GRPC, Way.HTTP, Way.GRPC, Way.HTTP)


def pick(items: Sequence[Item], count: int) -> Iterator[Item]:
    """*count* of *items*, the routes by turns, each in a random order; all over again where there are too few.

    Every `_ODD_EVERY`th is odd mail, and of the others every `_PAGE_EVERY`th a page, where there are any: a page takes
    as long as all the rest.
    """
    rng = random.Random(_SEED)  # noqa: S311 (a sample, not a secret)
    routes: dict[str, list[Item]] = {}
    for item in items:
        routes.setdefault(item.route, []).append(item)
    for members in routes.values():
        rng.shuffle(members)
    rare = [(every, itertools.cycle(routes.pop(name, []))) for name, every in _RARE.items()]
    turns = itertools.chain.from_iterable(zip(*map(itertools.cycle, routes.values()), strict=True))
    for number in range(1, count + 1):
        yield next((item for every, some in rare if number % every == 0 for item in some), None) or next(turns)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as the gateway told it last.

    Attributes:
        is_open: it waits for a person.
        certified: None where the protocol does not say.
    """

    answer_id: str
    is_open: bool
    decided_by: str
    stage: str | None
    label: str | None
    certified: bool | None


class _Refused(Exception):
    """The gateway said no, or failed, and said so."""

    def __init__(self, ended: Ended, detail: str) -> None:
        super().__init__(detail)
        self.ended = ended


class Callers:
    """Everybody who sends requests; used by one event loop.

    Attributes:
        waiting: answers that wait for a person now.
    """

    def __init__(self, addresses: Addresses, session: aiohttp.ClientSession, grpc: InferenceServerClient) -> None:
        self._http = addresses.http
        self._session = session
        self._grpc = grpc
        self.waiting = 0

    async def send_all(self, items: Sequence[Item], on_result: Callable[[Result], None]) -> float:
        """Send *items* and follow each to its end; the seconds from the first request to the last first reply."""
        rng = random.Random(_SEED)  # noqa: S311 (as above)
        in_flight = asyncio.Semaphore(_IN_FLIGHT)
        first = due = time.perf_counter()
        replied: list[float] = []

        async def follow(item: Item, way: Way) -> None:
            on_result(await self._follow(item, way, in_flight, replied))

        async with asyncio.TaskGroup() as callers:
            for number, item in enumerate(items):
                await asyncio.sleep(due - time.perf_counter())
                await in_flight.acquire()
                # The routes take turns, so that a pair of requests has one way. Odd mail has no route to name.
                way = Way.HTTP_AUTO if item.route == INTAKE else _WAYS[number // 2 % len(_WAYS)]
                callers.create_task(follow(item, way))
                due += rng.expovariate(RATE_PER_S)
        return max(replied, default=first) - first

    async def _follow(self, item: Item, way: Way, in_flight: asyncio.Semaphore, replied: list[float]) -> Result:
        started = time.perf_counter()
        try:
            try:
                told = await self._ask(item, way)
            finally:
                in_flight.release()
                replied.append(time.perf_counter())
            latency_s = replied[-1] - started
            if told.is_open:
                told = await self._wait_final(told.answer_id)
        except _Refused as refusal:
            return Result(item, refusal.ended, time.perf_counter() - started, detail=str(refusal))
        except (aiohttp.ClientError, TimeoutError) as error:
            detail = f"{type(error).__name__}: {error}"
            return Result(item, Ended.ERROR, time.perf_counter() - started, detail=detail)
        ended = Ended.HUMAN if told.decided_by.startswith("person:") else Ended.ACCEPTED
        return Result(item, ended, latency_s, told.stage, told.label, told.certified)

    async def _ask(self, item: Item, way: Way) -> Told:
        """The first reply."""
        if way is Way.GRPC:
            return await self._ask_grpc(item)
        return await self.decide(item, "auto" if way is Way.HTTP_AUTO else item.route)

    async def decide(self, item: Item, route: str) -> Told:
        """The first reply to *item*, sent as it is to *route*.

        Raises:
            aiohttp.ClientError: there was no reply.
        """
        headers = {"Content-Type": item.content_type}
        address = f"{self._http}/v1/routes/{route}:decide"
        async with self._session.post(address, data=item.payload, headers=headers) as response:
            return await _told(response)

    async def _ask_grpc(self, item: Item) -> Told:
        name = "text" if item.content_type.startswith("text/") else "image"
        value = InferInput(name, [1, 1], "BYTES")
        value.set_data_from_numpy(np.array([[item.payload]], dtype=object))
        try:
            found = await self._grpc.infer(item.route, [value], client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            failed = error.status() in _FAILED_GRPC
            raise _Refused(Ended.ERROR if failed else Ended.REFUSED, f"{error.status()}: {error.message()}") from error
        parameters = {key: _value(value) for key, value in found.get_response().parameters.items()}
        return Told(
            answer_id=parameters["pointsman_answer_id"],
            is_open="pointsman_decided_by" not in parameters,
            decided_by=parameters.get("pointsman_decided_by", ""),
            stage=parameters.get("pointsman_stage"),
            label=parameters.get("pointsman_label"),
            certified=None,
        )

    async def _wait_final(self, answer_id: str) -> Told:
        self.waiting += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (told := await self._poll(answer_id)).is_open:
                    pass
        except TimeoutError as error:
            raise _Refused(Ended.ERROR, f"no person decided within {PATIENCE_S:.0f} s") from error
        finally:
            self.waiting -= 1
        return told

    async def _poll(self, answer_id: str) -> Told:
        headers = {"Prefer": f"wait={_POLL_S}"}
        async with self._session.get(f"{self._http}/v1/answers/{answer_id}", headers=headers) as response:
            return await _told(response)


async def _told(response: aiohttp.ClientResponse) -> Told:
    """What a reply of `/v1` says.

    Raises:
        _Refused: it says no.
    """
    if response.status not in (200, 202):
        ended = Ended.ERROR if response.status in _FAILED_HTTP else Ended.REFUSED
        raise _Refused(ended, f"{response.status}: {(await response.text())[:200]}")
    answer: Mapping[str, Any] = await response.json()
    return Told(
        answer_id=answer["answer_id"],
        is_open=response.status == 202,
        decided_by=answer["decided_by"] or "",
        stage=answer["stage"],
        label=answer["label"],
        certified=answer["certified"],
    )


def _value(parameter: Any) -> Any:  # Any: a protobuf oneof
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))
