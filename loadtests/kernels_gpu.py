"""How fast pictures become model inputs on a CUDA device, as goal 6 asks: beside a copy, and beside torchvision.

    python -m loadtests.kernels_gpu [--rounds 7] [--quick]

Recipe and pictures are those of `loadtests.kernels`, antialiased as torchvision does it. The sides:

- `copy`: a gibibyte from one place of the device to another. Its bandwidth is of bytes read and bytes written.
- `fused`: one launch over a batch that lies on the device, as `kernels.cuda.device` has sent it there. The launch is
  the product's own, caught on its way.
- `torchvision`: v2's functions on a batch that lies on the device, whole where its pictures have one size, with the
  same size and place of every crop. Where torchvision is not installed, that is told, and its part of the goal is open.
- `fused, sent` and `torchvision, sent`: from pictures on the host to a result on the device, by way of page-locked
  memory that is kept; fused, in pieces as the product makes them. Told beside the goal, which is of the device: these
  are bound to the bus.

What the kernel achieves of the copy's bandwidth goes by the bytes that it must move at the least: the pixels that have
a weight in the result, once, and the result. What it moves beyond them counts against it; what of a result is still on
its way from the device's cache to memory when the clock stops (that holds some tens of megabytes) counts for it.

Times are between CUDA events. Before each there is a copy, which leaves nothing of the batch in the device's cache, and
behind which the sides that need no host queue what they launch: what that costs the host is hidden as long as the copy
takes, on both sides alike. Sides take turns, the order reversed with every round; a side runs until `_TURN_S` have
passed, and its median counts for the round. Ratios are of medians over rounds, with a bootstrap interval of 95 %.

The goal holds where each of its parts holds for every kind of picture and every batch, on an H200.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import devices
from kernels.arrays import Array
from kernels.cuda import layout
from kernels.cuda.sources import variant_of
from kernels.decode import DECODERS
from kernels.guard import LEVELS_APART, Kernels
from kernels.plan import Plan
from kernels.recipe import Axis, Recipe
from loadtests.kernels import DEVIATION, MEAN, PICTURES, noise, steps
from loadtests.peers.goals import LEAST_ROUNDS, Verdict
from loadtests.peers.machine import machine
from loadtests.ratios import Spread, ratio, spread

RESULT = Path(__file__).parent / "results" / "kernels_gpu.json"
KINDS: Mapping[str, Sequence[tuple[int, int]]] = {
    **{kind: (size,) for kind, size in PICTURES.items()},
    "640 x 480": ((480, 640),),
    "mixed": (
        (480, 640),
        (2339, 1654),
        (1080, 1920),
        (3000, 4000),
        (600, 450),
        (1500, 2100),
        (768, 1024),
        (3508, 2480),
    ),
}
"""(height, width) of the pictures of a batch, in turn."""

BATCHES = (1, 8, 32, 128)
SIDE, CROP = 256, 224
COPY_BYTES = 2**30
"""Many times what the device's caches hold."""

BANDWIDTH, FASTER, GOAL_DEVICE = 0.7, 3.0, "H200"
_DISTINCT = 4
_TURN_S = 0.05
_TURN_RUNS = 3
_ELEMENTS = 2**31 - 1
"""Most that a tensor of torchvision's side has: kernels of PyTorch count in 32 bits."""

_QUEUED = ("copy", "fused", "torchvision")

Pictures = Sequence[NDArray[np.uint8]]
Side = Callable[[], Any]
"""Does a batch, and gives the result, on the device. (Any: of CuPy or PyTorch.)"""


# What must be moved


def least_bytes(recipe: Recipe, pictures: Pictures) -> int:
    """The bytes of *pictures* that have a weight in the result of *recipe*, and those of the result."""
    result = len(pictures) * int(np.prod(recipe.shape)) * recipe.dtype.itemsize
    for height, width, channels in (picture.shape for picture in pictures):
        placement = recipe.place(height, width)
        assert placement is not None
        rows, columns = map(_weighed, recipe.axes(placement, height, width))
        result += rows * columns * channels
    return result


def _weighed(axis: Axis) -> int:
    """How many inputs of *axis* have a weight in what is kept of it."""
    first, weights = axis.taps()
    inputs = first[:, np.newaxis] + np.arange(weights.shape[1])
    return len(np.unique(inputs[weights != 0]))


# Sides


class Bench:
    """A device, and what is measured on it."""

    def __init__(self, device: Any) -> None:
        """Args:
        device: a `kernels.cuda.device.Device`.
        """
        self._device = device
        self._module = import_module("kernels.cuda.device")
        self.cupy = self._module.cupy
        specs = {"x": DECODERS["image"].output}
        of = partial(Plan.from_spec, steps({}, side=SIDE, crop=CROP), specs, base=Path())
        self._reference = of(kernels=Kernels(fuse=False))
        (self.recipe,) = of(kernels=Kernels(check=0)).recipes
        self._source, self._target = (self.cupy.empty((COPY_BYTES,), dtype=np.uint8) for _ in range(2))

    def sides(self, pictures: Pictures) -> dict[str, Side]:
        """Those that need nothing but CuPy, by name."""
        return {
            "copy": self._copy,
            "fused": self._resident(pictures),
            "fused, sent": lambda: self._device.run_there(self.recipe, pictures),
        }

    def expected(self, pictures: Pictures) -> Array:
        """What the plain steps make of them."""
        return np.asarray(self._reference({"x": tuple(pictures)})["x"])

    def turn(self, name: str, side: Side) -> float:
        """Seconds that a batch takes, the median of what there is time for."""
        found: list[float] = []
        until = time.perf_counter() + _TURN_S
        while len(found) < _TURN_RUNS or time.perf_counter() < until:
            found.append(self._seconds(side, queued=name in _QUEUED))
        return statistics.median(found)

    def _seconds(self, side: Side, *, queued: bool) -> float:
        cuda = self.cupy.cuda
        start, end = cuda.Event(), cuda.Event()
        self._copy()
        if not queued:
            cuda.get_current_stream().synchronize()
        start.record()
        side()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) / 1e3

    def _copy(self) -> None:
        stream = self.cupy.cuda.get_current_stream()
        self._target.data.copy_from_device_async(self._source.data, COPY_BYTES, stream=stream)

    def _resident(self, pictures: Pictures) -> Side:
        """Sends *pictures* over, all in one piece, and keeps the launch."""
        windows = layout.windows(self.recipe, pictures)
        assert windows is not None
        function = self._device._function(variant_of(self.recipe))
        lane, caught = self._module._Lane(), []
        result = self.cupy.empty((len(windows), *self.recipe.shape), dtype=self.recipe.dtype)
        self._device._launch(lane, lambda *launch: caught.append(launch), self.recipe, windows, result)
        lane.stream.synchronize()
        (launch,) = caught

        def again() -> Any:
            assert lane  # whose memory the pictures are in
            function(*launch)
            return result

        return again


def why_no_torchvision() -> str | None:
    """Why there is nothing to compare with; None where there is."""
    if find_spec("torch") is None or find_spec("torchvision") is None:
        return "not installed; install torch and torchvision, built for this device's CUDA"
    if not import_module("torch").cuda.is_available():
        return "PyTorch finds no CUDA device; install a build for this device's CUDA"
    return None


def torchvision_sides(recipe: Recipe, pictures: Pictures) -> dict[str, Side]:
    """The recipe as one writes it with torchvision's v2, by name.

    Raises:
        RuntimeError: PyTorch's: the device has not enough memory.
    """
    torch, v2 = import_module("torch"), import_module("torchvision.transforms.v2.functional")
    if len({picture.shape for picture in pictures}) == 1:
        here = torch.from_numpy(np.stack(pictures)).split(max(1, _ELEMENTS // pictures[0].size))
    else:
        here = [torch.from_numpy(picture[np.newaxis]) for picture in pictures]
    locked = [batch.pin_memory() for batch in here]

    def sent() -> list[Any]:
        both = zip(locked, here, strict=True)
        return [memory.copy_(batch).to("cuda", non_blocking=True) for memory, batch in both]

    def made(batch: Any) -> Any:
        placement = recipe.place(*batch.shape[1:3])
        assert placement is not None
        resized = v2.resize(batch.permute(0, 3, 1, 2), list(placement.resized), antialias=True)
        levels = v2.to_dtype(v2.crop(resized, *placement.crop, *placement.kept), torch.float32, scale=True)
        return v2.normalize(levels, list(MEAN), list(DEVIATION)).contiguous()  # so far its channels lie last

    def joined(batches: list[Any]) -> Any:
        return made(batches[0]) if len(batches) == 1 else torch.cat([made(batch) for batch in batches])

    there = sent()
    return {"torchvision": lambda: joined(there), "torchvision, sent": lambda: joined(sent())}


# Cells


def compare(bench: Bench, rounds: int, batches: Sequence[int], *, beside_torchvision: bool) -> list[dict[str, Any]]:
    """Every cell: a kind of picture, a size of batch; one picture is not mixed, so that there is no such cell."""
    cells = []
    for kind, sizes in KINDS.items():
        distinct = [one for size in sizes for one in noise(size, _DISTINCT if len(sizes) == 1 else 1)]
        expected = bench.expected(distinct)
        for batch in batches if len(sizes) == 1 else [batch for batch in batches if batch > 1]:
            pictures = [distinct[place % len(distinct)] for place in range(batch)]
            sides, absent = bench.sides(pictures), None
            apart = {name: _apart(bench.recipe, sides[name], expected, batch) for name in sides if name != "copy"}
            if beside_torchvision:
                try:
                    others = torchvision_sides(bench.recipe, pictures)
                    apart |= {name: _apart(bench.recipe, side, expected, batch) for name, side in others.items()}
                    sides |= others
                except RuntimeError as error:  # too much for the device
                    absent = str(error).partition("\n")[0]
            seconds = in_turns(bench.turn, sides, rounds)
            told = {"picture": kind, "batch": batch, **figures(seconds, least_bytes(bench.recipe, pictures), batch)}
            cells.append(told | {"levels_apart": apart, "torchvision_absent": absent})
            _tell(cells[-1])
    return cells


def in_turns(turn: Callable[[str, Side], float], sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds by side, one of each round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 else reversed(list(sides)):
            found[name].append(turn(name, sides[name]))
    return found


def figures(seconds: Mapping[str, Sequence[float]], moved: int, batch: int) -> dict[str, Any]:
    """What the *seconds* of each side say.

    Args:
        moved: bytes of the batch, at the least.
    """
    copied = [s / (2 * COPY_BYTES) for s in seconds["copy"]]
    fused = [s / moved for s in seconds["fused"]]
    return {
        "least_bytes": moved,
        "rounds": len(seconds["fused"]),
        "microseconds_an_item": {
            name: asdict(spread([1e6 * s / batch for s in taken], 3))
            for name, taken in seconds.items()
            if name != "copy"
        },
        "gigabytes_per_second": {
            "copy": asdict(spread([1e-9 / s for s in copied])),
            "fused": asdict(spread([1e-9 / s for s in fused])),
        },
        "of_the_copys_bandwidth": asdict(ratio(copied, fused)),
        "times_as_fast_as_torchvision": {
            where: asdict(ratio(seconds[f"torchvision{sent}"], seconds[f"fused{sent}"]))
            for where, sent in (("on the device", ""), ("sent", ", sent"))
            if f"torchvision{sent}" in seconds
        },
    }


def _apart(recipe: Recipe, side: Side, expected: Array, batch: int) -> float:
    """The largest difference from the reference in levels of uint8; this also warms *side* up."""
    result = side()
    got = result.get() if hasattr(result, "get") else result.cpu().numpy()
    assert got.shape == (batch, *recipe.shape)
    assert got.flags.c_contiguous
    return round(max(recipe.levels_apart(one, expected[i % len(expected)]) for i, one in enumerate(got)), 3)


def _tell(cell: Mapping[str, Any]) -> None:
    taken = ", ".join(f"{name} {found['median']}" for name, found in cell["microseconds_an_item"].items())
    rates = ", ".join(f"{name} {found['median']}" for name, found in cell["gigabytes_per_second"].items())
    print(f"{cell['picture']}, batch {cell['batch']}: [µs an item] {taken}; [GB/s] {rates}", flush=True)


# The goal


@dataclass(frozen=True, slots=True)
class Part:
    """What goal 6 asks of one cell.

    Attributes:
        what: in words.
        found: None: it was not measured.
        bound: the least, or the most if *at_most*.
    """

    picture: str
    batch: int
    what: str
    found: Spread | None
    bound: float
    at_most: bool
    verdict: Verdict

    def __str__(self) -> str:
        found = self.found and f"{self.found.median:g} ({self.found.low:g} to {self.found.high:g})"
        sign = "<=" if self.at_most else ">="
        where = f"{self.picture}, batch {self.batch}"
        return f"{self.verdict:5} {where}: {self.what} {sign} {self.bound:g}: {found or 'not measured'}"


def parts(cells: Sequence[Mapping[str, Any]]) -> list[Part]:
    """What the goal asks of each of *cells*, as `compare` gives them."""
    result = []
    for cell in cells:
        beside = cell["times_as_fast_as_torchvision"].get("on the device")
        apart = max(cell["levels_apart"][name] for name in ("fused", "fused, sent"))
        result += [
            _part(cell, "share of the copy's bandwidth", Spread(**cell["of_the_copys_bandwidth"]), BANDWIDTH),
            _part(cell, "times as fast as torchvision", beside and Spread(**beside), FASTER),
            _part(cell, "levels from the reference", Spread(apart, apart, apart), LEVELS_APART, at_most=True),
        ]
    return result


def _part(cell: Mapping[str, Any], what: str, found: Spread | None, bound: float, *, at_most: bool = False) -> Part:
    verdict = Verdict.OPEN
    if found is not None and (at_most or cell["rounds"] >= LEAST_ROUNDS):  # differences do not vary with rounds
        if (found.high <= bound) if at_most else (found.low >= bound):
            verdict = Verdict.HOLDS
        elif (found.low > bound) if at_most else (found.high < bound):
            verdict = Verdict.FAILS
    return Part(cell["picture"], cell["batch"], what, found, bound, at_most, verdict)


def verdict_of(found: Sequence[Part], gpu: str) -> Verdict:
    """Of the whole goal; open on another device than it is stated for."""
    verdicts = {part.verdict for part in found}
    if GOAL_DEVICE not in gpu or not verdicts:
        return Verdict.OPEN
    return next((one for one in (Verdict.FAILS, Verdict.OPEN) if one in verdicts), Verdict.HOLDS)


def summary(found: Sequence[Part], gpu: str) -> str:
    """The verdict in a line, with what came of each part."""
    told = []
    for what in dict.fromkeys(part.what for part in found):
        verdicts = [part.verdict for part in found if part.what == what]
        counts = ", ".join(f"{one} in {verdicts.count(one)}" for one in Verdict if one in verdicts)
        told.append(f"{what}: {counts}")
    elsewhere = "" if GOAL_DEVICE in gpu else f" (it is stated for an {GOAL_DEVICE})"
    return f"goal 6 on {gpu}: {verdict_of(found, gpu)}{elsewhere}; {'; '.join(told)}"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Shares of the bandwidth and ratios to torchvision with their intervals, and the goal's bounds as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    cells = report["cells"]
    names = [f"{cell['picture']}\nbatch {cell['batch']}" for cell in cells]
    beside = "times_as_fast_as_torchvision"
    shares: list[Any] = [cell["of_the_copys_bandwidth"] for cell in cells]
    _bars(panels[0], shares, 0, "tab:blue", "share of the bandwidth of a copy on the device")
    for number, (where, colour) in enumerate((("on the device", "tab:blue"), ("sent", "tab:gray"))):
        _bars(panels[1], [cell[beside].get(where) for cell in cells], number, colour, where)
    for axes, bound in zip(panels, (BANDWIDTH, FASTER), strict=True):
        axes.axhline(bound, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(cells)) + 0.19, names, rotation=90, fontsize=8)
    panels[0].set_title("share of the bandwidth of a copy on the device", fontsize=10)
    panels[1].set_title("fused is so many times as fast as torchvision", fontsize=10)
    panels[1].set_yscale("log")
    if any(cell[beside] for cell in cells):
        panels[1].legend(fontsize=8)
    figure.suptitle(f"{report['machine']['gpu']}, {report['machine']['date'][:10]}", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axes: Any, found: Sequence[Mapping[str, float] | None], number: int, colour: str, label: str) -> None:
    places = [place for place, one in enumerate(found) if one]
    middle, low, high = (np.array([one[name] for one in found if one]) for name in ("median", "low", "high"))
    if places:
        reach = np.maximum([middle - low, high - middle], 0)
        axes.bar(np.array(places) + 0.38 * number, middle, 0.36, yerr=reach, color=colour, label=label, capsize=2)


def main() -> int:
    """Compare, print the goal, and write down; where there is no device, say so and write nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="batches of 1 and 8, three rounds: too few for a verdict")
    parser.add_argument("--out", type=Path, default=RESULT, help="the plot lies beside it")
    arguments = parser.parse_args()
    try:
        device = devices.cuda()
    except ValueError as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    rounds, batches = (3, BATCHES[:2]) if arguments.quick else (arguments.rounds, BATCHES)
    bench, absent = Bench(device), why_no_torchvision()
    print(f"torchvision: {absent or version('torchvision')}", flush=True)
    runtime = bench.cupy.cuda.runtime
    gpu = runtime.getDeviceProperties(0)["name"].decode()
    where = machine() | {"gpu": gpu, "cuda_driver": runtime.driverGetVersion()}
    cells = compare(bench, rounds, batches, beside_torchvision=absent is None)
    found = parts(cells)
    report: dict[str, Any] = {
        "what": f"pictures to float32[n, 3, {CROP}, {CROP}]: ratios of medians with a bootstrap interval of 95 %",
        "machine": where,
        "versions": {"numpy": np.__version__, "cupy": bench.cupy.__version__}
        | ({} if absent else {name: version(name) for name in ("torch", "torchvision")}),
        "absent": {"torchvision": absent} if absent else {},
        "rounds": rounds,
        "copy_bytes": COPY_BYTES,
        "goal": {"verdict": verdict_of(found, gpu), "parts": [asdict(part) for part in found]},
        "cells": cells,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    plot(report, arguments.out.with_suffix(".png"))
    print(*found, summary(found, gpu), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
