"""ONNX models in this process, on real ONNX Runtime sessions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, Limits, State, Tensor, TensorSpec
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound
from backends.onnx import ONNX, OnnxOptions, open_onnx

WriteModel = Callable[..., Path]
FLOAT, STRING, INT64 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64


def floats(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 4)).astype(np.float32))})


async def exercise(options: OnnxOptions, sample: Callable[[int, np.random.Generator], Batch]) -> None:
    async def open_backend() -> Backend:
        return await ONNX.open("m", options)

    await exercise_backend(open_backend, sample)


@pytest.fixture
def loop_model(write_model: WriteModel) -> Path:
    """Runs for as many iterations as the input `n` says: a model whose duration a test chooses."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["v", "eye"], ["next_v"]), helper.make_node("Identity", ["go"], ["next_go"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["N", 4]),
        ],
        [
            helper.make_tensor_value_info("next_go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_v", FLOAT, ["N", 4]),
        ],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "eye")],
    )
    return write_model(
        [("ReduceMax", ["n"], ["most"], {"keepdims": 0}), ("Loop", ["most", "", "x"], ["y"], {"body": body})],
        {"x": (FLOAT, ["N", 4]), "n": (INT64, ["N", 1])},
        {"y": (FLOAT, ["N", 4])},
    )


def iterations(count: int) -> Batch:
    return Batch.of({"x": Tensor.of(np.ones((1, 4), np.float32)), "n": Tensor.of(np.array([[count]]))})


FOR_EVER = 10**12


# The contract


@pytest.mark.parametrize(
    "change",
    [{}, {"max_batch": 5, "max_in_flight": 3}, {"threads": 2, "parallel_branches": 2, "arena": True, "max_batch": 4}],
    ids=str,
)
async def test_a_float_model_keeps_the_contract(linear: Path, change: dict[str, Any]) -> None:
    await exercise(replace(OnnxOptions(linear), **change), floats)


async def test_a_text_model_keeps_the_contract(write_model: WriteModel) -> None:
    path = write_model([("Identity", ["x"], ["y"], {})], {"x": (STRING, ["N", 2])}, {"y": (STRING, ["N", 2])})

    def texts(size: int, rng: np.random.Generator) -> Batch:
        elements = [f"é{number}\0".encode() for number in rng.integers(0, 10**9, size * 2)]
        return Batch.of({"x": Tensor.of(np.array(elements, object).reshape(size, 2))})

    await exercise(OnnxOptions(path, max_batch=6, max_in_flight=2), texts)


async def test_a_model_with_a_fixed_batch_keeps_the_contract_at_every_size_up_to_it(write_model: WriteModel) -> None:
    path = write_model(
        [("Add", ["x", "x"], ["y"], {})], {"x": (FLOAT, [4, 4])}, {"y": (FLOAT, [4, 4])}, name="fixed.onnx"
    )

    await exercise(OnnxOptions(path), floats)


async def test_several_inputs_and_outputs_keep_the_contract(write_model: WriteModel) -> None:
    path = write_model(
        [("Cast", ["b"], ["f"], {"to": FLOAT}), ("Add", ["a", "f"], ["sum"], {}), ("Sub", ["a", "f"], ["diff"], {})],
        {"a": (FLOAT, ["N", "T"]), "b": (INT64, ["N", 1])},
        {"sum": (FLOAT, ["N", "T"]), "diff": (FLOAT, ["N", "T"])},
    )

    def sample(size: int, rng: np.random.Generator) -> Batch:
        a = rng.normal(size=(size, 7)).astype(np.float32)
        return Batch.of({"a": Tensor.of(a), "b": Tensor.of(rng.integers(0, 100, (size, 1)))})

    await exercise(OnnxOptions(path, max_batch=5), sample)


# What the model file says


@pytest.mark.parametrize(
    ("onnx_type", "datatype"),
    [
        (TensorProto.BOOL, Datatype.BOOL),
        (TensorProto.UINT8, Datatype.UINT8),
        (TensorProto.UINT16, Datatype.UINT16),
        (TensorProto.UINT32, Datatype.UINT32),
        (TensorProto.UINT64, Datatype.UINT64),
        (TensorProto.INT8, Datatype.INT8),
        (TensorProto.INT16, Datatype.INT16),
        (TensorProto.INT32, Datatype.INT32),
        (TensorProto.INT64, Datatype.INT64),
        (TensorProto.FLOAT16, Datatype.FP16),
        (TensorProto.FLOAT, Datatype.FP32),
        (TensorProto.DOUBLE, Datatype.FP64),
        (TensorProto.STRING, Datatype.BYTES),
    ],
)
async def test_every_type_passes_through_unchanged(write_model: WriteModel, onnx_type: int, datatype: Datatype) -> None:
    path = write_model([("Identity", ["x"], ["y"], {})], {"x": (onnx_type, ["N", 2])}, {"y": (onnx_type, ["N", 2])})
    backend = await open_onnx("m", OnnxOptions(path))
    values = np.array([[b"1", b"0"]] if datatype is Datatype.BYTES else [[1, 0]], datatype.numpy)

    outputs = await backend.infer(Batch.of({"x": Tensor.of(values)}), NO_DEADLINE)

    assert outputs["y"].datatype is datatype
    assert outputs["y"].numpy().dtype == datatype.numpy
    assert outputs["y"].numpy().tolist() == values.tolist()
    await backend.aclose()


async def test_symbolic_and_absent_lengths_are_open_and_the_batch_axis_is_left_out(write_model: WriteModel) -> None:
    path = write_model(
        [("Identity", ["x"], ["y"], {})], {"x": (FLOAT, [None, "T", 3, None])}, {"y": (FLOAT, ["N", "T", 3, None])}
    )
    backend = await open_onnx("m", OnnxOptions(path, version="2024-05", max_batch=8, max_in_flight=2))

    assert backend.signature.inputs == (TensorSpec("x", Datatype.FP32, (-1, 3, -1)),)
    assert backend.signature.outputs == (TensorSpec("y", Datatype.FP32, (-1, 3, -1)),)
    assert backend.limits == Limits(max_batch=8, max_in_flight=2)
    assert backend.version == "2024-05"
    assert repr(backend) == "<Onnx 'm' version 2024-05: ready>"
    await backend.aclose()
    assert repr(backend) == "<Onnx 'm' version 2024-05: closed>"


@pytest.mark.parametrize(("configured", "limit"), [(64, 4), (2, 2)])
async def test_a_fixed_batch_axis_is_a_limit_and_smaller_batches_are_filled_up(
    write_model: WriteModel, configured: int, limit: int
) -> None:
    path = write_model([("Neg", ["x"], ["y"], {})], {"x": (FLOAT, [4, 1])}, {"y": (FLOAT, [4, 1])})
    backend = await open_onnx("m", OnnxOptions(path, max_batch=configured))

    outputs = await backend.infer(Batch.of({"x": Tensor.of(np.array([[1], [2]], np.float32))}), NO_DEADLINE)

    assert backend.limits.max_batch == limit
    assert outputs["y"].numpy().tolist() == [[-1], [-2]]
    await backend.aclose()


# Refused when loading


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": (FLOAT, [])}, {"y": (FLOAT, ["N"])}, r"input 'x' has no batch axis; export it with the shape \[N"),
        ({"x": (FLOAT, None)}, {"y": (FLOAT, ["N"])}, "input 'x' has no batch axis"),
        ({"x": (TensorProto.BFLOAT16, ["N"])}, {"y": (TensorProto.BFLOAT16, ["N"])}, r"tensor\(bfloat16\), which"),
        ({"x": (FLOAT, [0])}, {"y": (FLOAT, [0])}, "batch axis is fixed at 0"),
    ],
)
async def test_a_signature_that_cannot_be_served_is_refused(
    write_model: WriteModel, inputs: dict[str, Any], outputs: dict[str, Any], message: str
) -> None:
    path = write_model([("Identity", ["x"], ["y"], {})], inputs, outputs)

    with pytest.raises(InvalidInput, match=message) as raised:
        await open_onnx("m", OnnxOptions(path))
    assert str(raised.value).startswith(f"model 'm': {path}: ")


async def test_first_axes_of_different_lengths_are_no_batch_axis(write_model: WriteModel) -> None:
    path = write_model(
        [("Identity", ["a"], ["y"], {}), ("Identity", ["b"], ["z"], {})],
        {"a": (FLOAT, [1, 2]), "b": (FLOAT, [2, 1])},
        {"y": (FLOAT, [1, 2]), "z": (FLOAT, [2, 1])},
    )

    with pytest.raises(InvalidInput, match="fixed at different lengths"):
        await open_onnx("m", OnnxOptions(path))


async def test_sequence_outputs_are_refused_with_the_remedy(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_sequence_value_info("y", FLOAT, ["N", 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "seq.onnx"
    )

    with pytest.raises(InvalidInput, match=r"output 'y' is a seq\(.*zipmap=False"):
        await open_onnx("m", OnnxOptions(tmp_path / "seq.onnx"))


async def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no file .*missing\.onnx; correct its path"):
        await open_onnx("m", OnnxOptions(tmp_path / "missing.onnx"))


async def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is not a file; name the \.onnx file itself"):
        await open_onnx("m", OnnxOptions(tmp_path))


@pytest.fixture(params=["empty", "junk", "truncated"])
def corrupt(request: pytest.FixtureRequest, linear: Path) -> Path:
    contents = {"empty": b"", "junk": b"junk" * 100, "truncated": linear.read_bytes()[:-20]}
    linear.write_bytes(contents[request.param])
    return linear


async def test_a_corrupt_file_is_refused(corrupt: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        await open_onnx("m", OnnxOptions(corrupt))


async def test_an_operator_that_does_not_exist_is_refused(write_model: WriteModel) -> None:
    path = write_model([("Nope", ["x"], ["y"], {})], {"x": (FLOAT, ["N"])}, {"y": (FLOAT, ["N"])})

    with pytest.raises(InvalidInput, match=r"cannot be loaded.*Nope"):
        await open_onnx("m", OnnxOptions(path))


def with_external_data(linear: Path, location: str) -> Path:
    """The linear model with its weights in `w.bin` beside it, and *location* as where the file says they are."""
    model = onnx.load(linear)
    onnx.save(model, linear, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(linear, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    linear.write_bytes(model.SerializeToString())
    return linear


async def test_external_data_beside_the_model_is_loaded(linear: Path) -> None:
    await exercise(OnnxOptions(with_external_data(linear, "w.bin"), max_batch=3), floats)


@pytest.fixture(params=["parent", "absolute", "link", "missing"])
def straying(request: pytest.FixtureRequest, linear: Path, tmp_path: Path) -> Path:
    """A model whose weights lie where it must not reach."""
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(48))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    locations = {"parent": "../outside.bin", "absolute": str(outside), "link": "link.bin", "missing": "missing.bin"}
    return with_external_data(linear.rename(folder / "model.onnx"), locations[request.param])


async def test_external_data_outside_the_model_s_folder_is_refused(straying: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot be loaded.*External data path"):
        await open_onnx("m", OnnxOptions(straying))


@pytest.mark.parametrize("option", ["max_batch", "max_in_flight", "threads", "parallel_branches"])
async def test_numbers_below_one_are_refused(linear: Path, option: str) -> None:
    change: dict[str, Any] = {option: 0}

    with pytest.raises(InvalidInput, match=f"model 'm'.*{option} is 0; it must be at least 1"):
        await open_onnx("m", replace(OnnxOptions(linear), **change))


# While running


async def test_text_that_is_not_utf8_is_the_callers_fault(write_model: WriteModel) -> None:
    path = write_model([("Identity", ["x"], ["y"], {})], {"x": (STRING, ["N", 1])}, {"y": (STRING, ["N", 1])})
    backend = await open_onnx("m", OnnxOptions(path))

    with pytest.raises(InvalidInput, match="input 'x' is not valid UTF-8; the model takes text"):
        await backend.infer(Batch.of({"x": Tensor.of(np.array([[b"\xff"]], object))}), NO_DEADLINE)
    await backend.aclose()


async def test_values_that_the_model_refuses_are_the_callers_fault_and_the_message_tells_nothing_internal(
    write_model: WriteModel, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_model(
        [("Gather", ["table", "x"], ["y"], {})],
        {"x": (INT64, ["N", 1])},
        {"y": (FLOAT, ["N", 1])},
        {"table": np.arange(4, dtype=np.float32)},
    )
    backend = await open_onnx("m", OnnxOptions(path))

    with pytest.raises(InvalidInput) as raised:
        await backend.infer(Batch.of({"x": Tensor.of(np.array([[77]]))}), NO_DEADLINE)
    assert "Gather" not in str(raised.value)
    assert "77" not in str(raised.value)
    assert "Gather" in str(raised.value.__cause__)
    assert "77" not in capfd.readouterr().err
    assert backend.state is State.READY
    await backend.aclose()


async def test_a_failure_inside_the_model_is_the_models_fault(write_model: WriteModel) -> None:
    path = write_model([("Cast", ["x"], ["y"], {"to": INT64})], {"x": (STRING, ["N", 1])}, {"y": (INT64, ["N", 1])})
    backend = await open_onnx("m", OnnxOptions(path))

    with pytest.raises(BackendFailed, match="model 'm' failed on this batch") as raised:
        await backend.infer(Batch.of({"x": Tensor.of(np.array([[b"not a number"]], object))}), NO_DEADLINE)
    assert "not a number" not in str(raised.value)
    await backend.aclose()


async def test_a_big_endian_array_is_read_as_the_numbers_it_holds(linear: Path) -> None:
    backend = await open_onnx("m", OnnxOptions(linear))
    array = np.array([[1, 0, 0, 0]], np.float32)

    expected = await backend.infer(Batch.of({"x": Tensor.of(array)}), NO_DEADLINE)
    outputs = await backend.infer(Batch.of({"x": Tensor.of(array.astype(">f4"))}), NO_DEADLINE)

    np.testing.assert_array_equal(outputs["y"].numpy(), expected["y"].numpy())
    await backend.aclose()


async def test_a_run_is_ended_at_its_deadline_and_its_thread_is_free_again(loop_model: Path) -> None:
    backend = await open_onnx("m", OnnxOptions(loop_model))

    with pytest.raises(DeadlineExceeded, match="while model 'm' was at work"):
        await backend.infer(iterations(FOR_EVER), Deadline(time.monotonic() + 0.05))

    outputs = await backend.infer(iterations(3), NO_DEADLINE)  # on the only thread there is
    assert outputs["y"].numpy().tolist() == [[1, 1, 1, 1]]
    await backend.aclose()


async def test_a_run_is_ended_when_its_call_is_cancelled(loop_model: Path) -> None:
    backend = await open_onnx("m", OnnxOptions(loop_model))
    call = asyncio.create_task(backend.infer(iterations(FOR_EVER), NO_DEADLINE))
    await asyncio.sleep(0)  # it has its thread; whether it computes already makes no difference

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await backend.infer(iterations(3), NO_DEADLINE)
    await backend.aclose()


async def test_a_queued_call_that_is_cancelled_leaves_the_running_one_alone(loop_model: Path) -> None:
    backend = await open_onnx("m", OnnxOptions(loop_model))
    running = asyncio.create_task(backend.infer(iterations(20_000), NO_DEADLINE))
    queued = asyncio.create_task(backend.infer(iterations(FOR_EVER), NO_DEADLINE))
    await asyncio.sleep(0)

    queued.cancel()

    assert (await running)["y"].shape == (1, 4)
    with pytest.raises(asyncio.CancelledError):
        await queued
    await backend.aclose()


async def test_calls_run_on_as_many_threads_as_are_allowed_and_no_more(loop_model: Path) -> None:
    backend = await open_onnx("counted", OnnxOptions(loop_model, max_in_flight=2))
    await asyncio.gather(*(backend.infer(iterations(2_000), NO_DEADLINE) for _ in range(6)))

    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("counted-worker")}

    assert names == {"counted-worker_0", "counted-worker_1"}
    await backend.aclose()
