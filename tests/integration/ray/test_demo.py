"""What `make cluster-demo` runs, `pointsman demo --cluster 2`: each item is answered, and what was promised is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from gateway.demo.data import read_digits
from gateway.demo.items import write_items
from gateway.demo.mail import odd_mail
from gateway.demo.packages import DIGITS, cache_folder, fetch
from gateway.demo.run import DemoOptions, run_demo
from gateway.demo.train import ITEMS, Sizes, build_digits, write_configuration
from tests.integration.ray.clusters import why_not

_ITEMS = 60
_OPTIONS = DemoOptions(items=_ITEMS, once=True, as_json=True, http_port=0, grpc_port=0, control_port=0)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A demo of one route, trained on little."""
    if reason := why_not():
        pytest.skip(reason)
    sizes = Sizes(digits_train=300, digits_calibration=800)
    digits = read_digits(fetch(DIGITS, cache_folder(), lambda step: None))
    built = build_digits(tmp_path, digits, sizes, 0.1, lambda step: None)
    write_items(tmp_path / ITEMS, [*built.held_out[:300], *odd_mail()])
    write_configuration(tmp_path, {"digits": built})
    return tmp_path


async def test_the_demo_on_two_replicas_answers_every_item_and_keeps_its_promise(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    status = await run_demo(replace(_OPTIONS, replicas=2), prepared, Console(stderr=True))

    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    route = summary["by_route"]["digits"]
    assert (status, summary["requests"], summary["errors"]) == (0, _ITEMS, 0)
    assert route["accepted"] + route["human"] == route["requests"]
    assert route["human"] > 0
    assert route["certified"] is True
    assert 0.0 < route["bound"] <= route["max_error"] == 0.1
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before
