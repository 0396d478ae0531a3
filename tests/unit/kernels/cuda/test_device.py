"""The kernels on a real device, against the reference; skipped, with the reason, where there is none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import devices, images, outputs
from kernels.arrays import ArraySpec
from kernels.dlpack import CUDA, Place, borrowed, place_of, spec_of, to_host
from kernels.guard import CHECKER, LEVELS_APART, KernelChecked, KernelDemoted, Kernels
from kernels.plan import Plan

pytestmark = pytest.mark.gpu

IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)
TAIL = [{"scale": 1 / 255}, {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}, "chw"]
PAGE = [{"resize_shortest": 256}, {"center_crop": [224, 224]}, *TAIL]


@pytest.fixture(scope="module")
def device() -> Any:
    try:
        return devices.cuda()
    except ValueError as error:
        pytest.skip(str(error))


class Refusing:
    """An observer that takes no kernel's demotion."""

    def on_checked(self, record: KernelChecked) -> None:
        """As it should be."""

    def on_demoted(self, record: KernelDemoted) -> None:
        raise AssertionError(record)


def pictures(rng: np.random.Generator, *sizes: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)


def levels_apart(device: Any, steps: list[Any], batch: tuple[NDArray[np.uint8], ...]) -> float:
    made = Plan.from_spec(steps, {"x": IMAGE}, base=Path(), kernels=Kernels(check=0, smallest=0, kernel=device.run))
    plain = Plan.from_spec(steps, {"x": IMAGE}, base=Path(), kernels=Kernels(fuse=False))
    got, expected = (np.asarray(one({"x": batch})["x"]) for one in (made, plain))
    (statistics,) = made.statistics()
    assert (statistics.fused, statistics.plain) == (len(batch), 0)
    return max(made.recipes[0].levels_apart(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("method", ["nearest", "area", "bilinear"])
@pytest.mark.parametrize("tail", [[], TAIL, [*TAIL, {"cast": "float16"}], [{"cast": "bfloat16"}]])
def test_ragged_batches_give_what_the_steps_give(
    device: Any, method: str, tail: list[Any], rng: np.random.Generator
) -> None:
    batch = pictures(rng, (300, 200), (1, 1), (1, 5000), (4000, 3), (31, 257), (640, 480))

    assert levels_apart(device, [{"resize": {"size": [96, 70], "method": method}}, *tail], batch) <= LEVELS_APART
    assert levels_apart(device, [{"letterbox": {"size": [64, 64], "method": method}}, *tail], batch) <= LEVELS_APART


def test_pieces_larger_than_a_lane_give_what_the_steps_give(device: Any, rng: np.random.Generator) -> None:
    assert levels_apart(device, PAGE, pictures(rng, *[(2339, 1654), (3000, 4000)] * 4)) <= LEVELS_APART


def test_threads_share_a_device(device: Any, rng: np.random.Generator) -> None:
    made = Plan.from_spec(PAGE, {"x": IMAGE}, base=Path(), kernels=Kernels(check=0, smallest=0, kernel=device.run))
    batches = [pictures(rng, (500 + index, 400), (300, 600)) for index in range(4)]
    expected = [np.asarray(made({"x": batch})["x"]) for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not np.array_equal(np.asarray(made({"x": batches[index]})["x"]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_device_without_memory_hands_over_to_the_steps(device: Any, rng: np.random.Generator) -> None:
    import cupy

    pool = cupy.get_default_memory_pool()
    made = Plan.from_spec(PAGE, {"x": IMAGE}, base=Path(), kernels=Kernels(check=0, smallest=0, kernel=device.run))
    batch = pictures(rng, (300, 300)) * 64
    pool.free_all_blocks()
    pool.set_limit(size=2**20)
    try:
        made({"x": batch})
    finally:
        pool.set_limit(size=0)

    (statistics,) = made.statistics()
    assert statistics.plain == 64


def test_a_device_is_checked_while_it_serves(device: Any, rng: np.random.Generator) -> None:
    made = Plan.from_spec(PAGE, {"x": IMAGE}, base=Path(), kernels=Kernels(check=1, kernel=device.run))

    made({"x": pictures(rng, (700, 500))})
    CHECKER.wait_idle()

    (statistics,) = made.statistics()
    assert (statistics.checked, statistics.demoted) == (1, {})


def test_a_result_that_stays_is_what_is_copied_back(device: Any, rng: np.random.Generator) -> None:
    kernels = Kernels(check=1, smallest=0, kernel=device.run, there=device.run_there, observer=Refusing())
    stays, back = (
        Plan.from_spec(PAGE, {"x": IMAGE}, base=Path(), kernels=kernels, leave=leave) for leave in (True, False)
    )
    batch = pictures(rng, (700, 500), (300, 900))

    there = stays({"x": batch})["x"]
    CHECKER.wait_idle()

    assert place_of(there) == Place(CUDA, 0)
    assert spec_of(there) == (np.dtype(np.float32), (2, 3, 224, 224))
    assert np.array_equal(to_host(there), np.asarray(back({"x": batch})["x"]))


def test_an_array_is_whole_when_it_is_borrowed(device: Any) -> None:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    for value in range(1, 20):
        with stream:
            array = cupy.zeros(1_000_000, np.float32)
            for _ in range(200):  # some milliseconds of work that nobody has waited for
                array += 1
            array[...] = value
            with borrowed(array) as found:
                copied = np.empty(found.shape, found.dtype)
                cupy.cuda.runtime.memcpy(copied.ctypes.data, found.address, found.nbytes, 4)
        assert (copied == value).all()


def test_memory_that_stays_is_given_back(device: Any, rng: np.random.Generator) -> None:
    import cupy

    kernels = Kernels(check=0, smallest=0, kernel=device.run, there=device.run_there)
    plan = Plan.from_spec(PAGE, {"x": IMAGE}, base=Path(), kernels=kernels, leave=True)
    batch = pictures(rng, (700, 500)) * 8
    plan({"x": batch})
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()

    for _ in range(20):
        with borrowed(plan({"x": batch})["x"]):
            pass

    assert pool.used_bytes() == before


@pytest.mark.parametrize(("k", "steps"), [(None, []), (5, [{"top_k": 5}])])
def test_scores_are_taken_from_the_device(
    device: Any, k: int | None, steps: list[Any], rng: np.random.Generator
) -> None:
    import cupy

    scores = rng.normal(scale=4, size=(32, 1000)).astype(np.float32)
    spec = {"s": ArraySpec(np.dtype(np.float32), (1000,))}
    kernels = Kernels(check=1, scores=device.scores, observer=Refusing())
    plan = Plan.from_spec([{"softmax": 1.5}, *steps], spec, base=Path(), kernels=kernels)

    got, expected = plan({"s": cupy.asarray(scores)}), plan({"s": scores})
    CHECKER.wait_idle()

    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(value), rtol=1e-6)
    assert plan.statistics()[0].checked > 0


def test_the_reference_itself_works_on_the_device(device: Any, rng: np.random.Generator) -> None:
    import cupy

    (picture,) = pictures(rng, (300, 200))
    scores = rng.normal(size=(4, 1000)).astype(np.float32)

    def chain(image: Any) -> Any:
        resized = images.letterbox(image, (64, 96))
        return images.bfloat16(images.chw(images.normalize(images.scale(resized, 1 / 255), [0.5], [0.2])))

    def ranked(given: Any) -> Any:
        return outputs.top_k(outputs.softmax(given), 5)[0]

    gray: Any = images.gray(cupy.asarray(picture))
    assert np.array_equal(gray.get(), images.gray(picture))
    there, here = (images.from_bfloat16(one) for one in (chain(cupy.asarray(picture)).get(), chain(picture)))
    assert np.abs(there - here).max() <= 2 / 255 / 0.2  # one level, and what bfloat16 rounds off
    np.testing.assert_allclose(ranked(cupy.asarray(scores)).get(), ranked(scores), rtol=1e-5)


@pytest.mark.parametrize(("rows", "classes", "k"), [(1, 1, 1), (32, 1000, 5), (7, 33, 33), (3, 20_000, 10)])
def test_scores_become_what_the_reference_makes_of_them(
    device: Any, rows: int, classes: int, k: int, rng: np.random.Generator
) -> None:
    scores = rng.normal(scale=4, size=(rows, classes)).astype(np.float32)

    probabilities, best, indices = (made.get() for made in device.softmax_top_k(scores, k, temperature=1.5))

    assert np.allclose(probabilities, outputs.softmax(scores, temperature=1.5), rtol=1e-6, atol=0)
    values, places = outputs.top_k(probabilities, k)
    assert np.array_equal(best, values)
    assert np.array_equal(indices, places)
