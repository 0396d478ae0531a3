"""What the comparison of image kernels on a device counts, says and writes, as far as that needs no device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import devices
from kernels.arrays import Array, ArraySpec
from kernels.plan import Plan
from kernels.recipe import Recipe
from loadtests import kernels_gpu
from loadtests.kernels_gpu import figures, in_turns, least_bytes, main, parts, summary, verdict_of
from loadtests.peers.goals import Verdict
from tests.unit.kernels.cuda.host import COMPILER, NEEDS_COMPILER, builder
from tests.unit.kernels.cuda.stand_in import CuPy, opened

IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)
H200 = "NVIDIA H200"


# Bytes


@pytest.mark.parametrize(
    ("filtering", "pixels"),
    [
        ({"method": "nearest"}, 2 * 3),  # one for each of the result
        ({"antialias": False}, 4 * 6),  # two a side, of which none is another's
        ({"method": "area"}, 8 * 12),
        ({"antialias": True}, 8 * 12),
    ],
)
def test_a_pixel_counts_if_the_result_depends_on_it(filtering: dict[str, Any], pixels: int) -> None:
    recipe = recipe_of([{"resize": {"size": [2, 3], **filtering}}, {"scale": 1 / 255}, "chw"])
    picture = np.zeros((8, 12, 3), np.uint8)

    assert least_bytes(recipe, [picture]) == 3 * pixels + 2 * 3 * 3 * 4
    assert least_bytes(recipe, [picture, np.zeros((2, 3, 3), np.uint8)]) == 3 * (pixels + 2 * 3) + 2 * 2 * 3 * 3 * 4


def test_what_a_crop_leaves_out_is_not_counted() -> None:
    whole = recipe_of([{"resize": {"size": [4, 4], "method": "area"}}])
    cropped = recipe_of([{"resize": {"size": [4, 4], "method": "area"}}, {"center_crop": [2, 2]}])
    picture = np.zeros((40, 80, 3), np.uint8)

    assert least_bytes(whole, [picture]) == 3 * (40 * 80 + 4 * 4)
    assert least_bytes(cropped, [picture]) == 3 * (20 * 40 + 2 * 2)


@pytest.mark.parametrize("filtering", [{"method": "area"}, {"antialias": False}, {"antialias": True}])
def test_pixels_that_are_not_counted_change_nothing(filtering: dict[str, Any]) -> None:
    steps: list[Any] = [{"resize_shortest": {"side": 8, **filtering}}, {"center_crop": [6, 6]}]
    plan = Plan.from_spec(steps, {"x": IMAGE}, base=Path())
    picture = np.zeros((31, 43, 3), np.uint8)

    def result(of: Array) -> Array:
        return np.asarray(plan({"x": (of,)})["x"])

    def matters(place: tuple[slice | int, ...]) -> bool:
        changed = picture.copy()
        changed[place] = 255
        return not np.array_equal(result(changed), result(picture))

    rows = sum(matters((row, slice(None))) for row in range(31))
    columns = sum(matters((slice(None), column)) for column in range(43))
    counted = (least_bytes(plan.recipes[0], [picture]) - 6 * 6 * 3) / 3

    assert rows * columns <= counted <= (rows + 2) * (columns + 2)  # a weight may be too small for a level


# Figures


def test_the_share_of_the_bandwidth_is_of_bytes_moved_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_gpu, "COPY_BYTES", 2_000_000_000)

    found = figures({"copy": [0.001] * 5, "fused": [0.0005] * 5, "fused, sent": [0.002] * 5}, 1_500_000_000, 10)

    assert found["gigabytes_per_second"]["copy"]["median"] == 4000.0  # it reads, and it writes
    assert found["gigabytes_per_second"]["fused"]["median"] == 3000.0
    assert found["of_the_copys_bandwidth"] == {"low": 0.75, "median": 0.75, "high": 0.75}
    assert found["microseconds_an_item"]["fused, sent"]["median"] == 200.0
    assert found["times_as_fast_as_torchvision"] == {}


def test_torchvision_is_compared_with_the_side_that_starts_where_it_does() -> None:
    seconds = {"copy": [1.0], "fused": [1.0], "fused, sent": [10.0], "torchvision": [4.0], "torchvision, sent": [20.0]}

    found = figures(seconds, 1, 1)["times_as_fast_as_torchvision"]

    assert {where: ratio["median"] for where, ratio in found.items()} == {"on the device": 4.0, "sent": 2.0}


def test_sides_take_turns_in_an_order_that_is_reversed_every_round() -> None:
    order: list[str] = []

    def turn(name: str, side: Any) -> float:
        order.append(name)
        return float(len(order))

    found = in_turns(turn, {"a": lambda: None, "b": lambda: None}, 4)

    assert order in (list("abbaabba"), list("baabbaab"))
    assert [len(taken) for taken in found.values()] == [4, 4]


# The goal


def cell(share: float = 0.8, faster: float | None = 4.0, apart: float = 1.0, rounds: int = 5) -> dict[str, Any]:
    beside = {} if faster is None else {"on the device": around(faster), "sent": around(1.1)}
    return {
        "picture": "page",
        "batch": 8,
        "rounds": rounds,
        "of_the_copys_bandwidth": around(share),
        "times_as_fast_as_torchvision": beside,
        "levels_apart": {"fused": 0.0, "fused, sent": apart, "torchvision": 3.0},
    }


def around(value: float) -> Mapping[str, float]:
    return {"low": value - 0.05, "median": value, "high": value + 0.05}


@pytest.mark.parametrize(
    ("of", "verdicts"),
    [
        ({}, ["holds", "holds", "holds"]),
        ({"share": 0.72}, ["open", "holds", "holds"]),
        ({"share": 0.5}, ["fails", "holds", "holds"]),
        ({"faster": 3.02}, ["holds", "open", "holds"]),
        ({"faster": 2.0}, ["holds", "fails", "holds"]),
        ({"faster": None}, ["holds", "open", "holds"]),
        ({"apart": 2.0}, ["holds", "holds", "fails"]),
        ({"rounds": 4}, ["open", "open", "holds"]),  # too few to know how much they differ
        ({"rounds": 4, "apart": 2.0}, ["open", "open", "fails"]),
    ],
)
def test_each_part_of_the_goal_has_its_verdict(of: dict[str, Any], verdicts: list[str]) -> None:
    assert [str(part.verdict) for part in parts([cell(**of)])] == verdicts


def test_the_goal_holds_where_every_part_does_on_the_device_that_it_is_stated_for() -> None:
    def whole(*cells: dict[str, Any], gpu: str = H200) -> Verdict:
        return verdict_of(parts(cells), gpu)

    assert whole(cell(), cell()) is Verdict.HOLDS
    assert whole(cell(), cell(share=0.5)) is Verdict.FAILS
    assert whole(cell(share=0.5), cell(faster=None)) is Verdict.FAILS
    assert whole(cell(), cell(faster=None)) is Verdict.OPEN
    assert whole(cell(), gpu="NVIDIA H100") is Verdict.OPEN
    assert whole(cell(share=0.5), gpu="NVIDIA H100") is Verdict.OPEN
    assert whole() is Verdict.OPEN


def test_the_goal_is_told_in_lines() -> None:
    found = parts([cell(), cell(share=0.5, faster=None)])

    assert str(found[0]) == "holds page, batch 8: share of the copy's bandwidth >= 0.7: 0.8 (0.75 to 0.85)"
    assert str(found[4]) == "open  page, batch 8: times as fast as torchvision >= 3: not measured"
    assert summary(found, H200) == (
        "goal 6 on NVIDIA H200: fails; share of the copy's bandwidth: holds in 1, fails in 1; "
        "times as fast as torchvision: holds in 1, open in 1; levels from the reference: holds in 2"
    )
    assert "on NVIDIA L4: open (it is stated for an H200);" in summary(found, "NVIDIA L4")


# The whole


def test_without_a_device_it_says_why_in_a_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    devices.cuda.cache_clear()
    called_with(monkeypatch, tmp_path)

    assert main() == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("nothing measured: kernels on CUDA devices need CuPy; install ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(COMPILER is None, reason=NEEDS_COMPILER)
def test_a_run_measures_checks_and_writes_down(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it, on the stand-in for CuPy: times mean nothing there, results and the order of work do."""
    device = opened(CuPy(builder(tmp_path_factory.mktemp("emulated"))), monkeypatch)
    monkeypatch.setattr(devices, "cuda", lambda: device)
    monkeypatch.setattr(kernels_gpu, "why_no_torchvision", lambda: "not installed")
    small = {"KINDS": {"one size": ((30, 20),), "mixed": ((12, 50), (9, 9), (31, 33))}, "BATCHES": (1, 5)}
    for name, value in {**small, "SIDE": 9, "CROP": 7, "COPY_BYTES": 10_000, "_TURN_S": 0.0}.items():
        monkeypatch.setattr(kernels_gpu, name, value)
    called_with(monkeypatch, tmp_path, "--rounds", "2")

    assert main() == 0

    report = json.loads((tmp_path / "found.json").read_text())
    assert [(one["picture"], one["batch"]) for one in report["cells"]] == [
        ("one size", 1),
        ("one size", 5),
        ("mixed", 5),
    ]
    for one in report["cells"]:
        assert set(one["levels_apart"]) == {"fused", "fused, sent"}
        assert max(one["levels_apart"].values()) <= 1.01
        assert set(one["microseconds_an_item"]) == {"fused", "fused, sent"}
        assert min(found["median"] for found in one["microseconds_an_item"].values()) > 0
    assert report["absent"] == {"torchvision": "not installed"}
    assert report["machine"]["gpu"] == "Stand-in"
    assert report["goal"]["verdict"] == "open"
    assert (tmp_path / "found.png").stat().st_size > 1000
    assert capsys.readouterr().out.splitlines()[-1].startswith("goal 6 on Stand-in: open (it is stated for an H200)")


def called_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["kernels_gpu", "--out", str(folder / "found.json"), *arguments])


def recipe_of(steps: list[Any]) -> Recipe:
    (recipe,) = Plan.from_spec(steps, {"x": IMAGE}, base=Path()).recipes
    return recipe
