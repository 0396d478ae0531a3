"""What the command `pointsman` says, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing, closing
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3
import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.store import StoreOptions, open_store
from tests.unit.gateway.store.samples import deferred


@pytest.fixture
def store_file(config: Path) -> Path:
    """The store of *config*, with three rows in its decision log."""
    path = config.with_name("store.db")

    async def fill() -> None:
        async with aclosing(await open_store(StoreOptions(path))) as store:
            await store.commit(*deferred(items=3))

    asyncio.run(fill())
    return path


def verify_log(config: Path) -> Result:
    return CliRunner().invoke(main, ["audit", "verify", os.fspath(config)])


def test_a_whole_log_is_said_to_be_whole(config: Path, store_file: Path) -> None:
    before = sorted(store_file.parent.iterdir())
    result = verify_log(config)
    assert (result.exit_code, result.output) == (0, "the decision log is whole\n")
    assert sorted(store_file.parent.iterdir()) == before


def test_a_tampered_row_is_told(config: Path, store_file: Path) -> None:
    with closing(sqlite3.connect(os.fspath(store_file), isolation_level=None)) as connection:
        connection.execute("UPDATE decision_log SET label = 'owl' WHERE seq = 2")
    result = verify_log(config)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "chain 0: row 2 was altered, or the one before it",
        "Error: the decision log is broken in 1 places",
    ]


def test_a_store_that_is_not_there_is_told_and_not_made(config: Path) -> None:
    result = verify_log(config)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: store file {config.with_name('store.db')}: No such file or directory; check `path` of `store`\n"
    )
    assert list(config.parent.iterdir()) == [config]


RULES = """
models: {tongue: {backend: echo, expose: true}}
routes: {desk: {input: {content: {datatype: BYTES, shape: [1]}}, cascade: [], human: {queue: desk, form: text}}}
classify:
  - {name: pictures, when: {content_type: "image/*"}, route: desk}
  - {when: {size: "<= 5B", parameters: {urgent: true}}, route: desk, to: human}
  - otherwise: none
store: {path: store.db}
"""


def explain(config: Path, sent: bytes, *arguments: str) -> Result:
    config.write_text(RULES)
    return CliRunner().invoke(main, ["explain", os.fspath(config), *arguments], input=sent)


def test_a_request_is_explained_rule_by_rule_and_nothing_is_kept(config: Path) -> None:
    result = explain(config, b"hello", "--content-type", "text/plain", "-p", "urgent=true", "-p", "team=billing")

    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "request  auto, text/plain, 5 bytes",
        "rule     1 pictures: content_type is 'text/plain', not image/*",
        "rule     2: matches, to desk",
        "route    desk, straight to a person (routed_to_person: rule 2 of `classify`)",
        "people   queue desk",
    ]
    assert list(config.parent.iterdir()) == [config]


def test_an_explanation_is_json_too_and_a_refusal_ends_with_1(config: Path) -> None:
    result = explain(config, b"hello", "--json")

    assert result.exit_code == 1
    told = json.loads(result.output)
    assert (told["route"], told["reason"], told["request"]["content_type"]) == (None, "no_rule_matched", None)
    assert explain(config, b"", "--route", "nowhere").output.splitlines()[-1] == "route    none"


def test_a_parameter_without_a_value_is_told(config: Path) -> None:
    result = explain(config, b"", "-p", "urgent")

    assert result.exit_code == 2
    assert "'urgent' is not of the form NAME=VALUE" in result.output


def test_workers_are_refused_beside_what_one_process_alone_can_do(config: Path) -> None:
    with config.open("a") as file:
        file.write("server: {shared_memory: {enabled: true}}\n")

    result = CliRunner().invoke(main, ["serve", os.fspath(config), "--workers", "2"])

    assert result.exit_code == 1
    assert "--workers 2 shares the ports among processes" in result.output


def test_a_redis_is_for_a_manifest_alone(config: Path) -> None:
    result = CliRunner().invoke(main, ["cluster", "config", os.fspath(config), "--redis", "redis:6379"])

    assert result.exit_code == 2
    assert "--image" in result.output
