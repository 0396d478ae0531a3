"""Questions to a worker."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backends.errors import InvalidInput
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.settings import Settings, load_settings
from gateway.workers.link import Reply, answering, ask, check_sendable


async def test_a_request_and_its_reply_come_across_as_they_are(tmp_path: Path) -> None:
    async def answer(question: object) -> Reply:
        assert isinstance(question, HttpRequest)
        return HttpResponse(201, [("a", "b")], question.octets * 2)

    async with answering(tmp_path / "socket", answer):
        request = HttpRequest("POST", "/v1/x", "q=1", {"c": "d"}, bytes(range(256)) * 1000)
        reply: Any = await ask(tmp_path / "socket", request)

    assert (reply.status, list(reply.headers), reply.body) == (201, [("a", "b")], request.octets * 2)


async def test_where_nobody_answers_there_is_no_reply(tmp_path: Path) -> None:
    assert await ask(tmp_path / "socket", HttpRequest("GET", "/")) is None


async def test_a_question_that_is_taken_back_cancels_the_work_on_it(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(question: object) -> Reply:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with answering(tmp_path / "socket", answer):
        asking = asyncio.create_task(ask(tmp_path / "socket", HttpRequest("GET", "/")))
        await begun.wait()
        asking.cancel()

        async with asyncio.timeout(30):
            await cancelled.wait()


async def test_questions_that_are_open_at_the_end_have_no_reply(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def answer(question: object) -> Reply:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(tmp_path / "socket", answer):
        asking = asyncio.create_task(ask(tmp_path / "socket", HttpRequest("GET", "/")))
        await begun.wait()

    assert await asking is None


@dataclass(frozen=True)
class Unsendable:
    """A backend's options that no other process can be given."""

    def __reduce__(self) -> str:
        raise pickle.PicklingError("they hold a lock")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {echo: {backend: echo, expose: true}}\n")
    return load_settings(path)


def test_options_that_cannot_be_sent_are_told_with_the_remedy(settings: Settings) -> None:
    check_sendable(settings)
    model = replace(settings.models["echo"], options=Unsendable())

    with pytest.raises(InvalidInput, match=r"they hold a lock.*workers: 1"):
        check_sendable(replace(settings, models={"echo": model}))
