"""`POST /v1/erasures` and `pointsman erase`, through the real handler and a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.http.erasures import erasure_endpoints
from gateway.http.handler import Handler, HttpExchange
from gateway.http.messages import HttpRequest
from gateway.request import Role
from gateway.security import ApiKey, Authenticator, SecurityOptions, new_api_key
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import ReviewState
from gateway.store.key import open_key
from tests.unit.gateway.store.conformance import SECRET, decide_with, known, texted
from tests.unit.gateway.store.samples import TENANT, deferred

KEYS = {role: new_api_key() for role in ("olga", "carl", "other")}


class Ignore:
    def on_http(self, exchange: HttpExchange) -> None:
        pass


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with aclosing(await open_store(StoreOptions(tmp_path / "store.db"))) as opened:
        yield opened


@pytest.fixture
def handler(store: SqlStore) -> Handler:
    keys = (
        ApiKey("olga", KEYS["olga"][1], TENANT, frozenset({Role.OPERATOR})),
        ApiKey("carl", KEYS["carl"][1], TENANT, frozenset({Role.CALLER, Role.REVIEWER})),
        ApiKey("other", KEYS["other"][1], "other", frozenset({Role.OPERATOR})),
    )
    return Handler(erasure_endpoints(store, known), Authenticator(SecurityOptions(keys)), Ignore())


async def post(
    handler: Handler, body: Any, who: str = "olga", content_type: str = "application/json"
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": content_type, "x-api-key": KEYS[who][0]}
    response = await handler.handle(HttpRequest("POST", "/v1/erasures", "", headers, data))
    return response.status, json.loads(response.body)


async def test_an_operator_erases_what_is_about_somebody_and_what_an_answer_is_made_of(
    store: SqlStore, handler: Handler
) -> None:
    (mine, tasks), (other, other_tasks) = texted(), texted()
    await store.commit(replace(mine, subject=store.subject(TENANT, "anna")), tasks)
    await decide_with(store, SECRET)
    await store.commit(other, other_tasks)

    by_subject = await post(handler, {"subject": "anna"})
    again = await post(handler, {"subject": "anna"})
    by_answer = await post(handler, {"answer_id": other.id})

    assert by_subject == (200, {"answers": 1, "reviews_cancelled": 0, "gold_items": 0, "overwritten": True})
    assert again == (200, {"answers": 0, "reviews_cancelled": 0, "gold_items": 0, "overwritten": True})
    assert by_answer == (200, {"answers": 1, "reviews_cancelled": 1, "gold_items": 0, "overwritten": True})


async def test_others_may_not(store: SqlStore, handler: Handler) -> None:
    answer, tasks = texted()
    await store.commit(answer, tasks)

    assert (await post(handler, {"answer_id": answer.id}, "carl"))[0] == 403
    assert (await post(handler, {"answer_id": answer.id}, "other"))[0] == 404
    assert len(await store.reviews(TENANT)) == 1


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "say what is to be erased by one of them"),
        ({"subject": "a", "answer_id": "b"}, 400, "say what is to be erased by one of them"),
        ({"subject": ""}, 400, "the subject is not a text of 1 to 255 printable characters"),
        ({"subject": None}, 400, "the subject is null"),
        ({"subject": 7}, 400, "the subject is not a text"),
        ({"answer_id": 7}, 400, "answer_id is no text"),
        ({"answer_id": "x"}, 404, "there is no answer"),
        ({"answer_id": "0" * 32}, 404, "there is no answer"),
        ({"subjects": "a"}, 400, "subjects"),
        (b"not json", 400, ""),
        (b" " * 5000, 413, "at most 4096 are read"),
    ],
)
async def test_what_cannot_be_erased_is_told(handler: Handler, body: Any, status: int, told: str) -> None:
    found, problem = await post(handler, body)
    assert found == status
    assert told in problem["detail"]


async def test_a_form_is_no_erasure(handler: Handler) -> None:
    assert (await post(handler, b"subject=a", content_type="application/x-www-form-urlencoded"))[0] == 415


def test_the_command_erases_beside_a_gateway_or_without_one(config: Path) -> None:
    options = StoreOptions(config.with_name("store.db"))

    async def fill() -> str:
        async with aclosing(await open_store(options)) as opened:
            for _ in range(2):
                answer, tasks = texted()
                await opened.commit(replace(answer, subject=opened.subject(TENANT, "anna")), tasks)
            answer, tasks = deferred()
            await opened.commit(answer, tasks)
            return answer.id

    answer_id = asyncio.run(fill())

    def erase(*arguments: str, input_: str | None = None) -> Any:
        return CliRunner().invoke(main, ["erase", str(config), "--tenant", TENANT, *arguments], input=input_)

    assert erase("--subject", "-", input_="anna\n").output == "2 answers erased, 2 open reviews cancelled\n"
    assert erase("--subject", "anna").output == "0 answers erased, 0 open reviews cancelled\n"
    assert erase("--answer", answer_id).output == "1 answers erased, 1 open reviews cancelled\n"
    assert erase("--answer", "0" * 32).output == f"Error: there is no answer '{'0' * 32}'\n"
    assert erase("--answer", "x").exit_code == 1
    assert erase().exit_code == 2
    told = CliRunner().invoke(main, ["audit", "show", str(config), answer_id]).output
    assert "erased by operator:pointsman erase" in told
    assert CliRunner().invoke(main, ["audit", "verify", str(config)]).output == "the decision log is whole\n"

    async def left() -> list[object]:
        async with aclosing(await open_store(options)) as opened:
            return list(await opened.reviews(TENANT, state=ReviewState.OPEN))

    assert asyncio.run(left()) == []


def test_the_commands_about_the_store_s_file_and_key(config: Path, tmp_path: Path) -> None:
    options = StoreOptions(config.with_name("store.db"))

    async def make() -> None:
        async with aclosing(await open_store(options)):
            pass

    asyncio.run(make())
    sent = tmp_path / "input.txt"
    sent.write_bytes(b"an input")

    vacuumed = CliRunner().invoke(main, ["store", "vacuum", str(config)]).output
    digest = CliRunner().invoke(main, ["audit", "digest", str(config), str(sent)]).output
    key = CliRunner().invoke(main, ["store", "key"]).output

    assert "bytes, nothing deleted among them" in vacuumed
    assert digest == open_key(options).of_input(b"an input").hex() + "\n"
    assert len(bytes.fromhex(key)) == 32
