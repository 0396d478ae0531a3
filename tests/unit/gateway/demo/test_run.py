"""The demo from its first request to its last word, against a real gateway in a process of its own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from gateway.certify.files import read_scores
from gateway.demo.data import Digits
from gateway.demo.items import Item, write_items
from gateway.demo.load import pick
from gateway.demo.mail import INTAKE, odd_mail
from gateway.demo.pages import ROUTE
from gateway.demo.run import DemoOptions, main, own_configuration, run_demo
from gateway.demo.server import Addresses, GatewayEnded, Listening, parse_ready, serving
from gateway.demo.train import CONFIG, ITEMS, Sizes, build_digits, export_scores, write_configuration

FREE = Listening("127.0.0.1", 0, 0, 0)
OPTIONS = DemoOptions(items=40, once=True, as_json=True, http_port=0, grpc_port=0, control_port=0)


@pytest.fixture(scope="module")
def prepared(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of one route, trained on little."""
    folder = tmp_path_factory.mktemp("prepared")
    built = build_digits(folder, digits, Sizes(digits_train=300, digits_calibration=800), 0.1, lambda step: None)
    write_items(folder / ITEMS, [*built.held_out[:300], *odd_mail()])
    write_configuration(folder, {"digits": built})
    return folder


@pytest.fixture
def config(prepared: Path, tmp_path: Path) -> Path:
    place = tmp_path / CONFIG
    place.write_text(yaml.safe_dump(own_configuration(prepared, tmp_path)))
    return place


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def test_the_demo_answers_every_item_and_tells_it_last(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _children()

    status = await run_demo(OPTIONS, prepared, Console(stderr=True))

    assert status == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    route = summary["by_route"]["digits"]
    intake = summary["by_route"]["intake"]
    assert (summary["requests"], route["requests"], intake["requests"]) == (40, 38, 2)
    assert summary["errors"] == 0
    assert (intake["human"], intake["accuracy_human"]) == (2, 1.0)
    assert route["accepted"] + route["human"] + route["refused"] + route["errors"] == 38
    assert route["human"] > 0
    assert route["human"] <= route["escalated"] < 38
    assert route["accuracy_human"] >= 0.8
    assert route["certified"] is True
    assert 0.0 < route["bound"] <= route["max_error"] == 0.1
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert _children() == before


async def test_a_port_in_use_is_told_with_the_remedy(config: Path, tmp_path: Path, taken_port: int) -> None:
    listening = Listening("127.0.0.1", taken_port, 0, 0)

    with pytest.raises(GatewayEnded, match=r"(?s)status 1:.*cannot listen on 127\.0\.0\.1:\d+.*--http-port"):
        async with serving(config, listening, tmp_path / "log"):
            pytest.fail("it cannot be ready")


async def test_a_gateway_that_dies_is_noticed(config: Path, tmp_path: Path) -> None:
    before = _children()
    async with serving(config, FREE, tmp_path / "log") as server:
        (child,) = _children() - before
        psutil.Process(child).kill()

        assert "the gateway ended with status -9" in str(await server.wait_ended())


async def test_a_cancelled_demo_leaves_no_gateway_behind(config: Path, tmp_path: Path) -> None:
    before, ready = _children(), asyncio.Event()

    async def serve() -> None:
        async with serving(config, FREE, tmp_path / "log"):
            ready.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert _children() == before


def test_a_set_up_that_fails_is_told_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert main(OPTIONS) == 1
    assert "run: python -m ensurepip" in capsys.readouterr().err


def test_the_ready_line_tells_the_addresses() -> None:
    line = "pointsman ready http=http://127.0.0.1:1 grpc=127.0.0.1:2 control=http://127.0.0.1:3 routes=a,b\n"

    assert parse_ready(line) == Addresses("http://127.0.0.1:1", "127.0.0.1:2", "http://127.0.0.1:3")


def test_routes_take_turns_and_start_over_where_items_run_out() -> None:
    items = [
        Item(route, "text/plain", f"{route} {number}".encode(), "x")
        for route, count in (("a", 2), ("b", 5))
        for number in range(count)
    ]

    picked = list(pick(items, 9))

    assert [item.route for item in picked] == ["a", "b"] * 4 + ["a"]
    assert picked == list(pick(items, 9))
    assert {item.payload for item in picked[::2]} == {b"a 0", b"a 1"}
    assert len({item.payload for item in picked[1::2]}) == 4


def test_every_twentieth_is_odd_mail() -> None:
    items = [Item("a", "text/plain", b"a", "x"), Item(INTAKE, "text/plain", b"odd", "French")]

    assert [n for n, item in enumerate(pick(items, 45)) if item.route == INTAKE] == [19, 39]


def test_preparing_alone_leaves_labelled_scores_of_every_item(prepared: Path) -> None:
    (prepared / "feedback.scores.csv").touch()  # this demo has no such route

    export_scores(prepared, lambda step: None)

    found = read_scores(prepared / "digits.scores.csv")
    assert found.stages == ("fast", "strong")
    assert (found.scores.shape, found.fit.sum()) == ((2, 800 + 300), 400)
    assert 0.6 < found.right[1].mean() < 1.0


def test_every_eighth_is_a_page() -> None:
    items = [Item("a", "text/plain", b"a", "x"), Item(ROUTE, "image/jpeg", b"page", "90")]

    assert [n for n, item in enumerate(pick(items, 25)) if item.route == ROUTE] == [7, 15, 23]
