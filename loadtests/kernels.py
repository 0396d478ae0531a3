"""How fast pictures become model inputs on this CPU: fused, by the plain steps, and by OpenCV with NumPy.

    python -m loadtests.kernels [--rounds 5] [--quick]

The recipe is that of most image models: shorter side 256, centre 224x224, /255, ImageNet mean and deviation, channels
first, float32, one contiguous batch. Pictures are noise: what resampling takes does not depend on what is on them.
Each convention is compared with OpenCV's of the same name; for `antialiased` bilinear, which OpenCV has not, with
INTER_AREA, the one that skips no pixel either. How far the results lie apart is told beside the times.

Sides take turns, the order reversed with every round; figures are medians over rounds, ratios of medians have a
bootstrap interval of 95 %. Times are of the wall clock, each side with the threads it would use; CPU time beside them.
A side runs until `_TURN_S` have passed, on other pictures each time, and its median counts for the round: a single
picture takes a millisecond, in which anything may happen. Before it begins, the threads of the side before have
`_REST_S` to fall asleep: OpenBLAS lets those of the plain steps spin for tens of milliseconds, on cores that others
would be charged for.

**The event loop.** While worker threads do batches of pages and of photos, a task on the loop asks for a millisecond of
sleep again and again; how late it wakes is set beside the same without work, and beside batches of pages computed on
the loop itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels import images
from kernels.arrays import Array
from kernels.decode import DECODERS
from kernels.guard import Kernels
from kernels.plan import Plan
from loadtests.peers.machine import machine
from loadtests.ratios import ratio, spread

RESULT = Path(__file__).parent / "results" / "kernels.json"
PICTURES = {"page, 200 dpi": (2339, 1654), "photo, 12 megapixels": (3000, 4000)}
BATCHES = (1, 8, 32)
CONVENTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "area": ({"method": "area"}, cv2.INTER_AREA),
    "bilinear": ({"antialias": False}, cv2.INTER_LINEAR),
    "antialiased": ({}, cv2.INTER_AREA),
}
SIDES = ("fused", "plain", "opencv")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DISTINCT = 4
"""Different pictures of a batch: more than caches hold, less than memory does."""

_TURN_S = 0.05
_REST_S = 0.1

Side = Callable[[Sequence[NDArray[np.uint8]]], Array]


def steps(arguments: Mapping[str, Any], side: int = 256, crop: int = 224) -> list[Any]:
    """The recipe as a plan has it, with *arguments* of the resize."""
    return [
        {"resize_shortest": {"side": side, **arguments}},
        {"center_crop": [crop, crop]},
        {"scale": 1 / 255},
        {"normalize": {"mean": list(MEAN), "std": list(DEVIATION)}},
        "chw",
    ]


def sides(convention: str) -> dict[str, Side]:
    """What does the recipe, by name."""
    arguments, interpolation = CONVENTIONS[convention]

    def planned(kernels: Kernels) -> Side:
        plan = Plan.from_spec(steps(arguments), {"x": DECODERS["image"].output}, base=Path(), kernels=kernels)
        return lambda pictures: np.asarray(plan({"x": tuple(pictures)})["x"])

    return {
        "fused": planned(Kernels(check=0)),
        "plain": planned(Kernels(fuse=False)),
        "opencv": lambda pictures: opencv(pictures, interpolation),
    }


def opencv(pictures: Sequence[NDArray[np.uint8]], interpolation: int) -> Array:
    """The recipe as one writes it with OpenCV and NumPy, in place where that is possible."""
    mean, deviation = (np.array(numbers, dtype=np.float32) for numbers in (MEAN, DEVIATION))
    result = np.empty((len(pictures), 3, 224, 224), dtype=np.float32)
    for item, picture in zip(result, pictures, strict=True):
        height, width = images.shortest_size(picture.shape[0], picture.shape[1], 256)
        resized = cv2.resize(picture, (width, height), interpolation=interpolation)
        levels = images.center_crop(resized, (224, 224)).astype(np.float32)
        levels *= np.float32(1 / 255)
        levels -= mean
        levels /= deviation
        item[...] = levels.transpose(2, 0, 1)
    return result


def noise(size: tuple[int, int], count: int) -> list[NDArray[np.uint8]]:
    """*count* pictures, of which at most `_DISTINCT` are different."""
    rng = np.random.default_rng(0)
    distinct = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(min(count, _DISTINCT))]
    return [distinct[index % len(distinct)] for index in range(count)]


def compare(rounds: int, batches: Sequence[int]) -> list[dict[str, Any]]:
    """Every cell: a kind of picture, a convention, a size of batch."""
    cells = []
    for kind, size in PICTURES.items():
        pictures = noise(size, max(batches))
        for convention in CONVENTIONS:
            doing = sides(convention)
            apart = {other: _levels_apart(doing["fused"], doing[other], pictures[:2]) for other in SIDES[1:]}
            for batch in batches:
                wall_s: dict[str, list[float]] = {side: [] for side in SIDES}
                cpu_s: dict[str, list[float]] = {side: [] for side in SIDES}
                for number in range(rounds):
                    for side in SIDES if number % 2 else reversed(SIDES):
                        wall, cpu = _turn(doing[side], pictures, batch)
                        wall_s[side].append(wall)
                        cpu_s[side].append(cpu)
                cells.append(
                    {
                        "picture": kind,
                        "convention": convention,
                        "batch": batch,
                        "milliseconds_an_item": {
                            side: asdict(spread([1e3 * s / batch for s in wall_s[side]], 2)) for side in SIDES
                        },
                        "cpu_milliseconds_an_item": {
                            side: asdict(spread([1e3 * s / batch for s in cpu_s[side]], 2)) for side in SIDES
                        },
                        "times_as_fast_as": {
                            other: asdict(ratio(wall_s[other], wall_s["fused"])) for other in SIDES[1:]
                        },
                        "levels_apart": apart,
                    }
                )
                _tell(cells[-1])
    return cells


def _turn(side: Side, pictures: Sequence[NDArray[np.uint8]], batch: int) -> tuple[float, float]:
    """What *side* takes for *batch* of *pictures*, of the wall clock and of the CPU, in seconds."""
    time.sleep(_REST_S)
    wall_s: list[float] = []
    before = time.process_time()
    while sum(wall_s) < _TURN_S:
        first = len(wall_s) % _DISTINCT
        chosen = [pictures[(first + place) % len(pictures)] for place in range(batch)]
        started = time.perf_counter()
        side(chosen)
        wall_s.append(time.perf_counter() - started)
    return statistics.median(wall_s), (time.process_time() - before) / len(wall_s)


def _levels_apart(one: Side, other: Side, pictures: Sequence[NDArray[np.uint8]]) -> float:
    """The largest difference in levels of uint8; this also warms both up."""
    apart = np.abs(one(pictures) - other(pictures)) * 255 * np.array(DEVIATION)[:, np.newaxis, np.newaxis]
    return round(float(apart.max()), 3)


def _tell(cell: dict[str, Any]) -> None:
    taken = ", ".join(f"{side} {cell['milliseconds_an_item'][side]['median']}" for side in SIDES)
    faster = ", ".join(
        f"{found['median']} ({found['low']} to {found['high']}) x {other}"
        for other, found in cell["times_as_fast_as"].items()
    )
    print(f"{cell['picture']}, {cell['convention']}, batch {cell['batch']} [ms an item]: {taken}; {faster}", flush=True)


async def lateness(seconds: float) -> dict[str, Any]:
    """How late a task on the event loop wakes, in milliseconds: idle, beside worker threads, and blocked.

    Args:
        seconds: for how long each is watched.
    """
    pages = noise(PICTURES["page, 200 dpi"], 8)
    fused = sides("area")["fused"]

    async def beside(work: Callable[[], Any]) -> dict[str, float]:
        late_ms: list[float] = []
        over = asyncio.Event()

        async def tick() -> None:
            while not over.is_set():
                asked = time.perf_counter()
                await asyncio.sleep(0.001)
                late_ms.append(1e3 * (time.perf_counter() - asked - 0.001))

        ticking = asyncio.create_task(tick())
        started = time.perf_counter()
        await work()
        took_s = time.perf_counter() - started
        over.set()
        await ticking
        late_ms.sort()
        return {
            "seconds": round(took_s, 3),
            "wakes": len(late_ms),
            "p50": round(statistics.median(late_ms), 3),
            "p99": round(late_ms[int(0.99 * (len(late_ms) - 1))], 3),
            "max": round(late_ms[-1], 3),
        }

    async def in_thread(side: Side, pictures: Sequence[NDArray[np.uint8]]) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await asyncio.to_thread(side, pictures)

    async def blocked() -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            fused(pages)
            await asyncio.sleep(0)

    found = {"idle": await beside(lambda: asyncio.sleep(seconds))}
    for kind, size in PICTURES.items():
        pictures = noise(size, 8)
        for convention in CONVENTIONS:
            side = sides(convention)["fused"]
            await asyncio.to_thread(side, pictures)
            name = f"beside a thread with batches of 8: {kind}, {convention}"
            found[name] = await beside(partial(in_thread, side, pictures))
    found["with batches of 8 pages on the loop"] = await beside(blocked)
    return found


def plot(report: dict[str, Any], path: Path) -> None:
    """Ratios with their intervals, a panel for each kind of picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(PICTURES), figsize=(5.2 * len(PICTURES), 4.2), sharey=True, layout="constrained"
    )
    for axes, kind in zip(panels, PICTURES, strict=True):
        cells = [cell for cell in report["cells"] if cell["picture"] == kind]
        names = [f"{cell['convention']}\nbatch {cell['batch']}" for cell in cells]
        for number, (other, colour) in enumerate((("plain", "tab:gray"), ("opencv", "tab:blue"))):
            found = [cell["times_as_fast_as"][other] for cell in cells]
            places = np.arange(len(cells)) + 0.38 * number
            middle = np.array([one["median"] for one in found])
            reach = [middle - [one["low"] for one in found], [one["high"] for one in found] - middle]
            label = {"plain": "the plain steps", "opencv": "OpenCV and NumPy"}[other]
            axes.bar(places, middle, 0.36, yerr=np.maximum(reach, 0), color=colour, label=label, capsize=2)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(cells)) + 0.19, names, rotation=90, fontsize=8)
        axes.set_yscale("log")
        axes.set_title(f"{kind} to 224 x 224", fontsize=10)
    panels[0].set_ylabel("fused is so many times as fast as")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compare, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="batches of 1 and 8, three rounds")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rounds, batches = (3, BATCHES[:2]) if arguments.quick else (arguments.rounds, BATCHES)
    report: dict[str, Any] = {
        "what": "pictures to float32[n, 3, 224, 224]: ratios of medians with a bootstrap interval of 95 %",
        "machine": machine(),
        "versions": {name: version(name) for name in ("numpy", "opencv-python-headless")},
        "rounds": rounds,
        "cells": compare(rounds, batches),
        "event_loop_late_ms": asyncio.run(lateness(0.5 if arguments.quick else 3.0)),
    }
    for what, late in report["event_loop_late_ms"].items():
        print(f"event loop, {what}: {late}")
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    plot(report, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
