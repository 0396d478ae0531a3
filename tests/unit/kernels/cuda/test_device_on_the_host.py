"""What stages, launches and waits for the CUDA kernels, tried without a device: every step of `kernels.cuda.device`, on
the unkind stand-in of CuPy, with the kernels' own source run on the host.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import outputs
from kernels.arrays import Array, ArraySpec
from kernels.guard import LEVELS_APART, Fault, KernelChecked, KernelDemoted, Kernels
from kernels.plan import Plan
from tests.unit.kernels.cuda import stand_in
from tests.unit.kernels.cuda.host import COMPILER, NEEDS_COMPILER, TILE_H, TILE_W, Build
from tests.unit.kernels.cuda.stand_in import CuPy, LazyStream

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NEEDS_COMPILER)

IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)
TAIL: list[Any] = [{"scale": 1 / 255}, {"normalize": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}, "chw"]
STEPS: list[Any] = [{"resize_shortest": 9}, {"center_crop": [7, 9]}, *TAIL]


@pytest.fixture
def cupy(built: Build) -> CuPy:
    return CuPy(built)


@pytest.fixture
def device(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> Any:
    return stand_in.opened(cupy, monkeypatch)


class Watched:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.demoted: list[KernelDemoted] = []

    def on_checked(self, record: KernelChecked) -> None: ...

    def on_demoted(self, record: KernelDemoted) -> None:
        self.demoted.append(record)


def pictures(rng: np.random.Generator, *sizes: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)


def plan(kernel: Any, steps: list[Any] = STEPS, observer: Any = None) -> Plan:
    kernels = Kernels(check=0, smallest=0, kernel=kernel, observer=observer or Watched())
    return Plan.from_spec(steps, {"x": IMAGE}, base=Path(), kernels=kernels)


def levels_apart(made: Plan, steps: list[Any], batch: tuple[Array, ...]) -> float:
    expected = Plan.from_spec(steps, {"x": IMAGE}, base=Path(), kernels=Kernels(fuse=False))({"x": batch})["x"]
    before = made.statistics()[0].fused
    got = made({"x": batch})["x"]
    assert made.statistics()[0].fused == before + len(batch)
    return max(made.recipes[0].levels_apart(*pair) for pair in zip(np.asarray(got), np.asarray(expected), strict=True))


@pytest.mark.parametrize(
    "steps",
    [
        STEPS,
        [*STEPS, {"cast": "float16"}],
        [{"letterbox": {"size": [11, 13], "method": "area"}}, *TAIL],
        ["bgr", {"resize": {"size": [6, 17], "method": "nearest"}}],
        [{"resize": {"size": [12, 12], "antialias": False}}, {"cast": "bfloat16"}],
    ],
)
def test_batch_after_batch_gives_what_the_steps_give(device: Any, steps: list[Any], rng: np.random.Generator) -> None:
    made = plan(device.run, steps)
    batches = [
        pictures(rng, (30, 20), (12, 50), (9, 9), (31, 33), (64, 17)),  # pieces of one and of several, on both lanes
        pictures(rng, (10, 11)),
        pictures(rng, *[(20, 20)] * 9),
        pictures(rng, (70, 60), (1, 1)),  # more than a lane has held so far
    ]

    for batch in batches:
        assert levels_apart(made, steps, batch) <= LEVELS_APART


def test_more_pictures_than_a_grid_counts_are_several_pieces(
    device: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.cuda import device as module

    assert stand_in.GRID_LIMITS[2] == module._PIECE_PICTURES
    monkeypatch.setattr(module, "_PIECE_PICTURES", 3)
    monkeypatch.setattr(stand_in, "GRID_LIMITS", (2**31 - 1, 3, 3))
    steps: list[Any] = [{"resize": [2, 2]}]

    assert levels_apart(plan(device.run, steps), steps, pictures(rng, *[(1, 1)] * 7)) <= LEVELS_APART


def test_a_result_of_more_rows_of_tiles_than_a_grids_y_counts(
    device: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stand_in.GRID_LIMITS[1] == 65_535
    monkeypatch.setattr(stand_in, "GRID_LIMITS", (2**31 - 1, 40, 40))
    steps: list[Any] = [{"resize": {"size": [TILE_H * 41, TILE_W + 1], "method": "nearest"}}]

    assert levels_apart(plan(device.run, steps), steps, pictures(rng, (5, 1))) <= LEVELS_APART


def test_threads_share_a_device(device: Any, rng: np.random.Generator) -> None:
    made = plan(device.run)
    batches = [pictures(rng, (30 + index, 20), (9, 14)) for index in range(3)]
    worst = [0.0] * 3

    def work(index: int) -> None:
        for _ in range(3):
            got = np.asarray(made({"x": batches[index]})["x"])
            expected = Plan.from_spec(STEPS, {"x": IMAGE}, base=Path(), kernels=Kernels(fuse=False))
            pairs = zip(got, np.asarray(expected({"x": batches[index]})["x"]), strict=True)
            worst[index] = max(worst[index], *(made.recipes[0].levels_apart(*pair) for pair in pairs))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(worst) <= LEVELS_APART


@pytest.mark.parametrize(("when", "count"), [("before", 1), ("meanwhile", 2)])  # two are more than the lane holds
def test_memory_that_others_have_freed_but_not_left_is_waited_for(
    device: Any, cupy: CuPy, when: str, count: int, rng: np.random.Generator
) -> None:
    """Somebody else's kernel, on the default stream, has yet to read memory that the pool gives a result or a lane."""
    made, seen = plan(device.run), np.zeros(10_000, np.uint8)
    made({"x": pictures(rng, (30, 30))})  # so that tables are there, and nothing else is waited for

    def others(stream: LazyStream) -> None:
        if stream is not cupy.cuda.main or seen.any():
            return
        seen[:] = 1
        theirs = cupy.cuda.alloc(seen.size)
        source = theirs.ptr
        ctypes.memset(source, 7, seen.size)
        stream.add(lambda: ctypes.memmove(seen.ctypes.data, source, seen.size))

    if when == "before":
        others(cupy.cuda.main)
    else:
        cupy.cuda.after_waiting = others

    assert levels_apart(made, STEPS, pictures(rng, *[(30, 30)] * count)) <= LEVELS_APART
    cupy.cuda.main.synchronize()
    assert (seen == 7).all()


def test_without_page_locked_memory_the_steps_take_over(device: Any, cupy: CuPy, rng: np.random.Generator) -> None:
    watched = Watched()
    made = plan(device.run, observer=watched)
    cupy.cuda.page_locked_limit = 100

    made({"x": pictures(rng, (30, 30))})

    assert [(record.shape, record.fault) for record in watched.demoted] == [((30, 30, 3), Fault.OUT_OF_MEMORY)]
    assert made.statistics()[0].plain == 1
    cupy.cuda.page_locked_limit = 2**40
    assert levels_apart(made, STEPS, pictures(rng, (31, 30))) <= LEVELS_APART


def test_what_the_steps_refuse_is_left_to_them_and_so_are_five_channels(device: Any) -> None:
    recipe = plan(device.run).recipes[0]
    assert device.run(recipe, [np.zeros((0, 4, 3), np.uint8)]) is None

    five = {"x": ArraySpec(np.dtype(np.uint8), (-1, -1, 5), ragged=True)}
    assert Plan.from_spec([{"resize": [4, 4]}], five, base=Path()).recipes == ()


def test_tables_that_are_too_many_are_made_anew(
    device: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.cuda import device as module

    monkeypatch.setattr(module, "_TABLE_BYTES", 2_000)
    made = plan(device.run)
    most = 0

    for width in range(20, 40):
        assert levels_apart(made, STEPS, pictures(rng, (30, width), (29, width))) <= LEVELS_APART
        held = sum(table.first.nbytes + table.weights.nbytes for table in device._tables)
        assert held == device._table_bytes
        most = max(most, held)

    assert 2_000 < most < 4_000


@pytest.mark.parametrize("k", [None, 3])
def test_scores_become_what_the_reference_makes_of_them(device: Any, cupy: CuPy, k: int | None) -> None:
    scores = np.random.default_rng(1).normal(scale=4, size=(5, 40)).astype(np.float32)

    found = device.scores(cupy.asarray(scores), k, 1.5)

    probabilities = outputs.softmax(scores, temperature=1.5)
    expected: tuple[NDArray[Any], ...] = (probabilities,) if k is None else outputs.top_k(probabilities, k)
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert np.allclose(got, wanted, rtol=1e-6, atol=0)


def test_a_device_says_what_it_is(device: Any) -> None:
    assert repr(device) == "<Device Stand-in (sm_90)>"
