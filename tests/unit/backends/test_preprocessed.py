"""Plans around a model, checked against it before the first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import (
    NO_DEADLINE,
    Backend,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    Limits,
    Memory,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from backends.echo import Echo, EchoOptions
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, Unavailable
from backends.onnx import OnnxOptions, open_onnx
from backends.preprocessed import costs_of, kernels_of, preprocessed, weigh
from backends.python import Python, PythonOptions
from kernels import fused
from kernels.devices import KernelOptions
from kernels.dlpack import to_host
from tests.elsewhere import Elsewhere, run_there, scores_there

SCORES = TensorSpec("logits", Datatype.FP32, (3,))
TEXT = TensorSpec("text", Datatype.BYTES, (1,))
PICTURE = TensorSpec("image", Datatype.UINT8, (-1, -1, 3))
TO_FOUR = ["gray", {"resize": [2, 2]}, {"scale": 1 / 255}, "flatten"]
LABELS = ("cat", "dog", "owl")


def function(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], call: Callable[[Any], Any], in_flight: int = 2
) -> Python:
    """*call* as a model."""
    options = PythonOptions("given:directly", tuple(inputs), tuple(outputs), max_batch=6, max_in_flight=in_flight)
    return Python("m", call, options)


async def wrapped(
    backend: Backend,
    inputs: Sequence[TensorSpec],
    preprocess: Sequence[object] = (),
    postprocess: Sequence[object] = (),
    labels: Sequence[str] | None = None,
) -> Backend:
    return await preprocessed(backend, tuple(inputs), preprocess, postprocess, labels=labels, base=Path())


def texts(*values: bytes) -> Batch:
    return Batch.of({"text": Tensor.of(np.array(values, object).reshape(-1, 1))})


def pictures(size: int, rng: np.random.Generator) -> Batch:
    """One shape a batch: rows one by one compare with the batch, and the kit needs arrays."""
    return Batch.of({"image": Tensor.of(rng.integers(0, 256, (size, 5, 4, 3), np.uint8))})


def unequal_pictures(size: int, rng: np.random.Generator) -> Batch:
    rows = tuple(rng.integers(0, 256, (4 + i, 9 - i % 3, 3), np.uint8) for i in range(size))
    return Batch.of({"image": Tensor.ragged(Datatype.UINT8, rows)})


def upper(values: dict[str, HostArray]) -> dict[str, HostArray]:
    return {"out": np.asarray(np.frompyfunc(bytes.upper, 1, 1)(values["x"]))}


def text_model() -> Python:
    return function([TensorSpec("x", Datatype.BYTES, (1,))], [TensorSpec("out", Datatype.BYTES, (1,))], upper)


# The contract


@pytest.mark.parametrize("sample", [pictures, unequal_pictures])
async def test_an_image_classifier_keeps_the_contract(
    linear: Path, sample: Callable[[int, np.random.Generator], Batch]
) -> None:
    async def open_backend() -> Backend:
        model = await open_onnx("m", OnnxOptions(linear, max_batch=5, max_in_flight=2))
        return await wrapped(model, [PICTURE], TO_FOUR, ["softmax"], LABELS)

    await exercise_backend(open_backend, sample)


async def test_a_text_model_keeps_the_contract() -> None:
    async def open_backend() -> Backend:
        return await wrapped(text_model(), [TEXT], ["lower"])

    def sample(size: int, rng: np.random.Generator) -> Batch:
        return texts(*(b"A%d" % number for number in rng.integers(0, 10**9, size)))

    await exercise_backend(open_backend, sample)


# The outer signature


async def test_the_outer_signature_is_the_plans_and_the_limits_are_the_models(linear: Path) -> None:
    model = await open_onnx("m", OnnxOptions(linear, version="3", max_batch=5, max_in_flight=2))
    backend = await wrapped(model, [PICTURE], TO_FOUR, ["softmax"], LABELS)

    assert backend.signature.inputs == (PICTURE,)
    assert {spec.name: (spec.datatype, spec.shape) for spec in backend.signature.outputs} == {
        "probabilities": (Datatype.FP32, (3,)),
        "label": (Datatype.BYTES, (1,)),
    }
    assert (backend.limits.max_batch, backend.limits.max_in_flight, backend.version) == (5, 2, "3")
    assert repr(backend) == f"<Preprocessed {model!r}>"
    await backend.aclose()


async def test_ragged_inputs_are_taken_where_the_plan_makes_them_equal(linear: Path) -> None:
    backend = await wrapped(await open_onnx("m", OnnxOptions(linear)), [PICTURE], TO_FOUR)

    assert backend.limits.memory == {Memory.HOST, Memory.RAGGED}
    await backend.aclose()


async def test_ragged_inputs_are_not_taken_where_they_would_reach_the_model() -> None:
    model = function([TensorSpec("x", Datatype.FP32, (-1,))], [TensorSpec("y", Datatype.FP32, (-1,))], lambda v: v)
    backend = await wrapped(model, [TensorSpec("x", Datatype.UINT8, (-1,))], [{"scale": 1.0}])

    assert backend.limits.memory == {Memory.HOST}
    await backend.aclose()


async def test_plans_that_change_nothing_leave_the_backend_as_it_is() -> None:
    model = text_model()

    assert await wrapped(model, model.signature.inputs) is model
    await model.aclose()


async def test_a_single_input_takes_the_single_value_whatever_its_name() -> None:
    backend = await wrapped(text_model(), [TEXT])

    outputs = await backend.infer(texts(b"hello"), NO_DEADLINE)

    assert outputs["out"].numpy().tolist() == [[b"HELLO"]]
    await backend.aclose()


async def test_several_inputs_are_matched_by_name_and_the_rest_is_left_out() -> None:
    a, b, c = (TensorSpec(name, Datatype.FP32, (1,)) for name in "abc")
    model = function([b, a], [SCORES], lambda v: {"logits": np.hstack([v["a"], v["b"], v["b"]])})
    backend = await wrapped(model, [a, b, c])
    batch = Batch.of({name: Tensor.of(np.full((1, 1), i, np.float32)) for i, name in enumerate("abc")})

    outputs = await backend.infer(batch, NO_DEADLINE)

    assert outputs["logits"].numpy().tolist() == [[0, 1, 1]]
    await backend.aclose()


async def test_labels_alone_name_the_best_probability() -> None:
    given = np.array([[0.1, 0.7, 0.2]], np.float32)
    backend = await wrapped(function([TEXT], [SCORES], lambda v: {"logits": given}), [TEXT], labels=LABELS)

    outputs = await backend.infer(texts(b"x"), NO_DEADLINE)

    assert outputs["label"].numpy().tolist() == [[b"dog"]]
    np.testing.assert_array_equal(outputs["probabilities"].numpy(), given)
    await backend.aclose()


async def test_mean_pool_finds_the_mask_that_preprocessing_left() -> None:
    mask = TensorSpec("attention_mask", Datatype.INT64, (-1,))
    states = TensorSpec("states", Datatype.FP32, (-1, 2))
    model = function([mask], [states], lambda v: {"states": np.stack([v["attention_mask"]] * 2, 2).astype("f4") * 4})
    backend = await wrapped(model, [mask], [], [{"mean_pool": {"input": "states"}}])

    outputs = await backend.infer(Batch.of({"attention_mask": Tensor.of(np.array([[1, 1, 0]]))}), NO_DEADLINE)

    assert backend.signature.outputs == (TensorSpec("states", Datatype.FP32, (2,)),)
    assert outputs["states"].numpy().tolist() == [[4, 4]]
    await backend.aclose()


async def test_an_output_that_no_step_changes_keeps_its_datatype() -> None:
    model = Echo(EchoOptions(Datatype.BF16, (2,)))
    backend = await wrapped(model, [TensorSpec("bits", Datatype.BF16, (2,))])

    outputs = await backend.infer(
        Batch.of({"bits": Tensor.of(np.array([[1, 2]], np.uint16), Datatype.BF16)}), NO_DEADLINE
    )

    assert backend.signature.outputs == model.signature.outputs
    assert outputs["output"].datatype is Datatype.BF16


# Refused before the first request


@pytest.mark.parametrize(
    ("inputs", "preprocess", "postprocess", "labels", "message"),
    [
        ([PICTURE], ["grey"], [], None, "preprocess: step 1 of 1: unknown step 'grey'; did you mean gray"),
        ([PICTURE], TO_FOUR, ["softmx"], None, "postprocess: step 1 of 1: unknown step 'softmx'"),
        ([PICTURE], TO_FOUR, [], ("one", "two"), "postprocess: labels: 0 outputs fit 2 labels"),
        ([PICTURE], ["gray"], [], None, r"preprocess leaves uint8\[-1, -1, 1\] for input 'x', which takes FP32\[4\]"),
        ([TEXT], [], [], None, r"preprocess leaves bytes\[1\] for input 'x', which takes FP32\[4\]"),
        ([PICTURE, TEXT], [], [], None, "preprocess leaves .*, and the model takes 'x'; rename the value"),
    ],
)
async def test_plans_that_do_not_fit_the_model_are_refused(
    linear: Path,
    inputs: list[TensorSpec],
    preprocess: list[object],
    postprocess: list[object],
    labels: tuple[str, ...] | None,
    message: str,
) -> None:
    model = await open_onnx("m", OnnxOptions(linear))

    with pytest.raises(InvalidInput, match=message):
        await wrapped(model, inputs, preprocess, postprocess, labels)
    assert model.state is State.READY  # still its opener's to close
    await model.aclose()


# While running


async def test_an_item_that_cannot_be_preprocessed_is_the_callers_fault() -> None:
    backend = await wrapped(text_model(), [TEXT], ["lower"])

    with pytest.raises(InvalidInput, match="item 1: "):
        await backend.infer(texts(b"fine", b"\xff"), NO_DEADLINE)
    assert (await backend.infer(texts(b"fine"), NO_DEADLINE))["out"].numpy().tolist() == [[b"FINE"]]
    await backend.aclose()


async def test_a_step_that_breaks_is_not_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = await wrapped(text_model(), [TEXT], ["lower"])

    def out_of_memory(values: object) -> HostArray:
        raise MemoryError

    monkeypatch.setattr("kernels.text.lower", out_of_memory)

    with pytest.raises(BackendFailed, match="preprocessing failed on this batch"):
        await backend.infer(texts(b"x"), NO_DEADLINE)
    await backend.aclose()


class Misbehaving(Echo):
    """Gives what `answer` says, whatever its signature promises."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__(EchoOptions(shape=(3,)))
        self.answer = answer

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        return {"output": self.answer}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Tensor.of(np.zeros((2, 3), np.float32)), r"broke its signature: output 'output' has shape \[2, 3\]"),
        (Tensor(Datatype.FP32, (1, 3), np.zeros((1, 3))), "outputs cannot be used: .*holds float64"),
    ],
)
async def test_outputs_that_break_the_signature_fail_the_batch(answer: Tensor, message: str) -> None:
    backend = await wrapped(Misbehaving(answer), [TensorSpec("scores", Datatype.FP32, (3,))], [], ["softmax"])

    with pytest.raises(BackendFailed, match=message):
        await backend.infer(Batch.of({"scores": Tensor.of(np.zeros((1, 3), np.float32))}), NO_DEADLINE)
    await backend.aclose()


@pytest.fixture
async def counting() -> AsyncIterator[tuple[Backend, list[int]]]:
    """A backend, and the sizes of the batches that reached its model."""
    sizes: list[int] = []

    def count(values: dict[str, HostArray]) -> dict[str, HostArray]:
        sizes.append(len(values["x"]))
        return upper(values)

    model = function([TensorSpec("x", Datatype.BYTES, (1,))], [TensorSpec("out", Datatype.BYTES, (1,))], count)
    backend = await wrapped(model, [TEXT], ["lower"])
    yield backend, sizes
    await backend.aclose()


async def test_a_device_that_cannot_be_used_stops_the_start_with_the_remedy() -> None:
    model = function([TensorSpec("x", Datatype.FP32, (4,))], [SCORES], lambda values: values)

    with pytest.raises(InvalidInput, match=r"^kernels: (CUDA device 98 cannot be used|kernels on a CUDA device need)"):
        await preprocessed(
            model, (PICTURE,), TO_FOUR, (), labels=None, base=Path(), kernels=KernelOptions(device="cuda:98")
        )
    await model.aclose()


@pytest.mark.parametrize("options", [KernelOptions(), KernelOptions(fuse=False)])
async def test_kernels_are_told_through_what_stands_around_them(options: KernelOptions) -> None:
    model = function([TensorSpec("x", Datatype.FP32, (4,))], [SCORES], lambda values: {"logits": values["x"][:, :3]})
    backend = await preprocessed(model, (PICTURE,), TO_FOUR, (), labels=None, base=Path(), kernels=options)

    await backend.infer(Batch.of({"image": Tensor.of(np.zeros((3, 90, 80, 3), np.uint8))}), NO_DEADLINE)

    assert [found.fused for found in kernels_of(backend)] == ([3] if options.fuse else [])
    assert kernels_of(model) == ()
    await backend.aclose()


async def test_what_is_refused_never_reaches_the_model(counting: tuple[Backend, list[int]]) -> None:
    backend, sizes = counting

    with pytest.raises(DeadlineExceeded):
        await backend.infer(texts(b"x"), Deadline(0.0))
    with pytest.raises(InvalidInput):
        await backend.infer(texts(b"\xff"), NO_DEADLINE)
    with pytest.raises(InvalidInput):
        await backend.infer(texts(*[b"x"] * 7), NO_DEADLINE)

    assert sizes == []


async def test_closing_closes_the_model_after_the_calls_in_flight() -> None:
    model = text_model()
    backend = await wrapped(model, [TEXT], ["lower"])
    calls = [asyncio.create_task(backend.infer(texts(b"x"), NO_DEADLINE)) for _ in range(3)]
    await asyncio.sleep(0)

    closing = asyncio.create_task(backend.aclose())
    await asyncio.sleep(0)
    assert backend.state is State.CLOSED
    with pytest.raises(Unavailable, match="closed; send the request elsewhere"):
        await backend.infer(texts(b"x"), NO_DEADLINE)
    await closing

    assert [outputs["out"].numpy().tolist() for outputs in await asyncio.gather(*calls)] == [[[b"X"]]] * 3
    assert model.state is State.CLOSED


# On a device


class OnDevice:
    """A device whose memory is the host's, where that can be looked into."""

    run = staticmethod(fused.run)
    run_there = staticmethod(run_there)
    scores = staticmethod(scores_there)


class Taking(Echo):
    """A model over pictures of 4 numbers that takes what is on a device, and leaves logits there where it may."""

    def __init__(self, *memory: Memory) -> None:
        super().__init__(EchoOptions(shape=(4, 2, 2)))
        self.signature = replace(self.signature, outputs=(TensorSpec("logits", Datatype.FP32, (3,)),))
        self.limits = Limits(8, memory=frozenset(memory))
        self.came: list[Batch] = []

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        self.came.append(batch)
        given = to_host(batch.inputs["input"].data).reshape(batch.size, -1)
        logits = np.ascontiguousarray(given[:, :3])
        left = "logits" in batch.there
        return {"logits": Tensor(Datatype.FP32, logits.shape, Elsewhere(logits) if left else logits)}


TO_PLANES: list[object] = [{"resize": [2, 2]}, {"scale": 1 / 255}, "chw"]
RGBA = TensorSpec("image", Datatype.UINT8, (-1, -1, 4))


async def on_device(
    model: Backend, monkeypatch: pytest.MonkeyPatch, pre: list[object], post: list[object], device: str = "cuda"
) -> Backend:
    monkeypatch.setattr("kernels.devices.cuda", lambda number: OnDevice())
    options = KernelOptions(device=device, check=0.0)
    return await preprocessed(model, (RGBA,), pre, post, labels=LABELS, base=Path(), kernels=options)


def large_pictures(n: int = 3) -> Batch:
    rows = tuple(np.random.default_rng(i).integers(0, 256, (90 + i, 80, 4), np.uint8) for i in range(n))
    return Batch.of({"image": Tensor.ragged(Datatype.UINT8, rows)})


@pytest.mark.parametrize(
    ("memory", "pre", "device", "stays"),
    [
        ({Memory.HOST, Memory.DEVICE}, TO_PLANES, "cuda", True),
        ({Memory.HOST}, TO_PLANES, "cuda", False),
        ({Memory.HOST, Memory.DEVICE}, TO_PLANES, "cpu", False),
        ({Memory.HOST, Memory.DEVICE}, [*TO_PLANES, {"impute": 0.0}], "cuda", False),
    ],
)
async def test_a_batch_stays_on_the_device_where_the_model_takes_it_there(
    memory: set[Memory], pre: list[object], device: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Taking(*memory)
    backend = await on_device(model, monkeypatch, pre, ["softmax"], device)

    outputs = await backend.infer(large_pictures(), NO_DEADLINE)

    (came,) = model.came
    assert came.inputs["input"].memory is (Memory.DEVICE if stays else Memory.HOST)
    assert came.inputs["input"].shape == (3, 4, 2, 2)
    assert backend.limits.memory == {Memory.HOST, Memory.RAGGED}
    on_cpu = await on_device(Taking(Memory.HOST), monkeypatch, pre, ["softmax"], "cpu")
    expected = await on_cpu.infer(large_pictures(), NO_DEADLINE)
    np.testing.assert_allclose(outputs["probabilities"].numpy(), expected["probabilities"].numpy(), atol=1e-2)
    assert outputs["label"].numpy().tolist() == expected["label"].numpy().tolist()
    await backend.aclose()
    await on_cpu.aclose()


@pytest.mark.parametrize(
    ("memory", "post", "left", "fused_items"),
    [
        ({Memory.HOST, Memory.DEVICE}, ["softmax"], {"logits"}, [3, 3]),
        ({Memory.HOST, Memory.DEVICE}, ["sigmoid"], set(), [3]),
        ({Memory.HOST}, ["softmax"], set(), [3]),
    ],
)
async def test_outputs_stay_on_the_device_where_a_kernel_begins_with_them(
    memory: set[Memory], post: list[object], left: set[str], fused_items: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Taking(*memory)
    backend = await on_device(model, monkeypatch, TO_PLANES, post)

    outputs = await backend.infer(large_pictures(), NO_DEADLINE)

    assert model.came[0].there == left
    assert all(tensor.memory is Memory.HOST for tensor in outputs.values())
    assert [found.fused for found in kernels_of(backend)] == fused_items
    await backend.aclose()


async def test_an_output_that_was_left_on_a_device_unasked_breaks_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaving(Taking):
        async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
            return await super().infer(replace(batch, there=frozenset({"logits"})), deadline)

    backend = await on_device(Leaving(Memory.HOST, Memory.DEVICE), monkeypatch, TO_PLANES, ["sigmoid"])

    with pytest.raises(BackendFailed, match="not a host array; move it first"):
        await backend.infer(large_pictures(), NO_DEADLINE)
    await backend.aclose()


async def test_what_plans_take_is_told_once_they_are_weighed(linear: Path) -> None:
    model = await open_onnx("m", OnnxOptions(linear))
    backend = await wrapped(model, [PICTURE], TO_FOUR, ["softmax"], LABELS)
    assert costs_of(backend) == {}

    await weigh(backend)
    await weigh(model)

    assert set(costs_of(backend)) == {"preprocess", "postprocess"}
    assert costs_of(backend)["preprocess"].sample == "image uint8[1024, 1024, 3]"
    assert costs_of(model) == {}
    assert [found.fused + found.plain for found in kernels_of(backend)] == [0] * len(kernels_of(backend))
    await backend.aclose()
