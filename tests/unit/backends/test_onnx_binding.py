"""Runs by IO binding, on the CPU by addresses of the host, and on a device where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Memory, Tensor
from backends.errors import BackendFailed, InvalidInput
from backends.onnx import Onnx, OnnxOptions, open_onnx
from backends.onnx_binding import Processor, Wanted, run_bound
from backends.ort import CUDA, open_session, ort
from kernels.dlpack import to_host
from tests.elsewhere import Elsewhere

WriteModel = Callable[..., Path]
FLOAT = TensorProto.FLOAT
CPU = Processor()
X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = Wanted("y", np.dtype(np.float32), (2, 3))


def session_of(path: Path) -> Any:
    return open_session(path, ort.SessionOptions())


def here(x: Any) -> Batch:
    return Batch.of({"x": Tensor.of(x)})


def bound(session: Any, feed: dict[str, Any], *outputs: Wanted) -> list[Any]:
    return run_bound(session, CPU, feed, outputs, ort.RunOptions())


@pytest.fixture
def linear_session(linear: Path) -> Any:
    return session_of(linear)


@pytest.mark.parametrize("wrapped", [np.asarray, Elsewhere])
@pytest.mark.parametrize("shape", [(2, 3), None], ids=["known", "unknown"])
def test_inputs_by_address_and_outputs_in_their_place_give_what_a_run_gives(
    linear_session: Any, wrapped: Callable[[Any], Any], shape: tuple[int, int] | None
) -> None:
    (got,) = bound(linear_session, {"x": wrapped(X)}, Wanted("y", np.dtype(np.float32), shape))

    (expected,) = linear_session.run(["y"], {"x": X})
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("element", ["bool", "uint8", "int8", "uint16", "int32", "uint64", "float16", "double"])
def test_every_kind_of_number_is_bound(write_model: WriteModel, element: str) -> None:
    kind = getattr(TensorProto, {"double": "DOUBLE", "bool": "BOOL"}.get(element, element.upper()))
    path = write_model([("Identity", ["x"], ["y"], {})], {"x": (kind, ["N", 2])}, {"y": (kind, ["N", 2])})
    x = np.array([[0, 1], [1, 0]]).astype(element)

    (got,) = bound(session_of(path), {"x": Elsewhere(x)}, Wanted("y", x.dtype, (2, 2)))

    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got, x)


def test_outputs_come_in_the_order_that_was_asked_for(write_model: WriteModel) -> None:
    path = write_model(
        [("Add", ["x", "x"], ["twice"], {}), ("Neg", ["x"], ["minus"], {})],
        {"x": (FLOAT, ["N", 4])},
        {"twice": (FLOAT, ["N", 4]), "minus": (FLOAT, ["N", "T"])},
    )
    known, unknown = Wanted("twice", np.dtype(np.float32), (2, 4)), Wanted("minus", np.dtype(np.float32), None)

    for outputs in ((known, unknown), (unknown, known)):
        found = dict(zip([one.name for one in outputs], bound(session_of(path), {"x": X}, *outputs), strict=True))
        np.testing.assert_array_equal(found["twice"], 2 * X)
        np.testing.assert_array_equal(found["minus"], -X)


def test_what_a_run_gives_is_nobody_elses(linear_session: Any) -> None:
    (first,) = bound(linear_session, {"x": X}, Y)
    kept = first.copy()

    bound(linear_session, {"x": X + 1}, Y)

    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable


@pytest.mark.parametrize("wanted", [Wanted("y", np.dtype(np.float32), (2, 4)), Wanted("y", np.dtype(np.int64), (2, 3))])
def test_an_output_that_is_not_what_was_said_is_an_error_and_the_session_lives(
    linear_session: Any, wanted: Wanted
) -> None:
    with pytest.raises(Exception, match=r"(?i)shape|dimension|type"):
        bound(linear_session, {"x": X}, wanted)

    assert bound(linear_session, {"x": X}, Y)[0].shape == (2, 3)


def test_an_array_on_another_device_goes_by_the_host(linear_session: Any) -> None:
    class OnTheSecond(Elsewhere):
        """On device 1 of the host's kind, which is not the session's."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 1

    (got,) = bound(linear_session, {"x": OnTheSecond(X)}, Y)

    np.testing.assert_array_equal(got, bound(linear_session, {"x": X}, Y)[0])


# As a backend: what is meant for a device, over a session on the CPU


def as_on_a_device(path: Path, **options: Any) -> Onnx:
    return Onnx("m", OnnxOptions(path, device="cuda:0", **options), session_of(path))


def floats(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 4)).astype(np.float32))})


async def test_a_model_that_is_run_by_binding_keeps_the_contract(linear: Path) -> None:
    async def open_backend() -> Backend:
        return as_on_a_device(linear, max_batch=5, max_in_flight=3)

    await exercise_backend(open_backend, floats)


async def test_so_does_one_with_a_fixed_batch_and_an_output_of_open_length(write_model: WriteModel) -> None:
    path = write_model(
        [("Add", ["x", "x"], ["y"], {}), ("Neg", ["x"], ["z"], {})],
        {"x": (FLOAT, [4, 4])},
        {"y": (FLOAT, [4, 4]), "z": (FLOAT, [4, "T"])},
    )

    async def open_backend() -> Backend:
        return as_on_a_device(path)

    await exercise_backend(open_backend, floats)


async def test_an_array_that_dlpack_alone_can_read_is_taken(linear: Path) -> None:
    backend = as_on_a_device(linear)

    there = Batch({"x": Tensor(Datatype.FP32, X.shape, Elsewhere(X))}, 2)
    outputs, expected = await backend.infer(there, NO_DEADLINE), await backend.infer(here(X), NO_DEADLINE)

    assert backend.limits.memory == {Memory.HOST, Memory.DEVICE}
    np.testing.assert_array_equal(outputs["y"].numpy(), expected["y"].numpy())
    await backend.aclose()


async def test_an_array_that_is_not_what_the_tensor_says_fails_its_batch_and_no_other(linear: Path) -> None:
    backend = as_on_a_device(linear)

    for wrong in (X.astype(np.float64), X[:1], X.reshape(4, 2)):
        with pytest.raises(InvalidInput, match=r"tensor 'x' states FP32 \[2, 4\] and holds "):
            await backend.infer(Batch({"x": Tensor(Datatype.FP32, X.shape, Elsewhere(wrong))}, 2), NO_DEADLINE)
    assert (await backend.infer(here(X), NO_DEADLINE))["y"].shape == (2, 3)
    await backend.aclose()


async def test_a_model_that_says_another_size_than_it_gives_fails_its_batch(write_model: WriteModel) -> None:
    path = write_model([("Concat", ["x", "x"], ["y"], {"axis": 0})], {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])})
    backend = as_on_a_device(path)

    with pytest.raises(BackendFailed):
        await backend.infer(here(X), NO_DEADLINE)
    await backend.aclose()


@pytest.mark.parametrize("kind", ["texts", "a fixed batch"])
async def test_models_that_take_the_hosts_memory_alone_say_so(write_model: WriteModel, kind: str) -> None:
    element, batch = (TensorProto.STRING, "N") if kind == "texts" else (FLOAT, 4)
    path = write_model([("Identity", ["x"], ["y"], {})], {"x": (element, [batch, 1])}, {"y": (element, [batch, 1])})
    backend = as_on_a_device(path)

    assert backend.limits.memory == {Memory.HOST}
    await backend.aclose()


async def test_on_the_cpu_a_model_takes_what_the_host_has(linear: Path) -> None:
    backend = await open_onnx("m", OnnxOptions(linear))

    assert backend.limits.memory == {Memory.HOST}
    await backend.aclose()


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cuda:-1", ""])
async def test_devices_that_are_none_are_refused(linear: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match="is no device; name cpu, cuda, or cuda:1"):
        await open_onnx("m", OnnxOptions(linear, device=device))


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime can compute on CUDA devices")
async def test_without_onnxruntime_gpu_a_device_says_what_to_install(linear: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cuda:1: .*on the CPU alone; put onnxruntime-gpu in its place"):
        await open_onnx("m", OnnxOptions(linear, device="cuda:1"))


def test_a_session_that_fell_back_to_the_cpu_is_refused(linear_session: Any) -> None:
    """As ONNX Runtime's do where CUDA, cuDNN or the device is missing."""
    with pytest.raises(InvalidInput, match="cuda:0 cannot be used by ONNX Runtime; check the device with nvidia-smi"):
        Processor("cuda").check(linear_session)
    CPU.check(linear_session)


async def test_graphs_for_the_cpu_are_not_kept_for_a_device(linear: Path) -> None:
    with pytest.raises(InvalidInput, match="graph_cache keeps graphs for the CPU"):
        await open_onnx("m", OnnxOptions(linear, device="cuda", graph_cache=True))


# On a device


@pytest.fixture
def cupy() -> Any:
    if CUDA not in ort.get_available_providers():
        pytest.skip("computing on a device needs onnxruntime-gpu")
    found = pytest.importorskip("cupy", reason="arrays on a device need CuPy")
    try:
        found.cuda.runtime.getDeviceCount()
    except found.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"there is no CUDA device: {error}")
    return found


@pytest.mark.gpu
async def test_a_device_reads_what_is_there_and_leaves_there_what_is_wanted(linear: Path, cupy: Any) -> None:
    backend = await open_onnx("m", OnnxOptions(linear, device="cuda:0"))
    there = Tensor(Datatype.FP32, X.shape, cupy.asarray(X))

    expected = (await backend.infer(here(X), NO_DEADLINE))["y"].numpy()
    by_host = await backend.infer(Batch({"x": there}, 2), NO_DEADLINE)
    stayed = await backend.infer(Batch({"x": there}, 2, there=frozenset({"y"})), NO_DEADLINE)

    assert backend.limits.memory == {Memory.HOST, Memory.DEVICE}
    np.testing.assert_allclose(expected, session_of(linear).run(["y"], {"x": X})[0], rtol=1e-5)
    np.testing.assert_array_equal(by_host["y"].numpy(), expected)
    assert stayed["y"].memory is Memory.DEVICE
    np.testing.assert_array_equal(to_host(stayed["y"].data), expected)
    await backend.aclose()


@pytest.mark.gpu
async def test_a_device_waits_for_the_stream_that_makes_an_input(write_model: WriteModel, cupy: Any) -> None:
    kind = onnx.TensorProto.FLOAT
    path = write_model([("Neg", ["x"], ["y"], {})], {"x": (kind, ["N", 1_000_000])}, {"y": (kind, ["N", 1_000_000])})
    backend = await open_onnx("m", OnnxOptions(path, device="cuda:0"))
    stream = cupy.cuda.Stream(non_blocking=True)
    for value in range(1, 20):
        with stream:
            x = cupy.zeros((1, 1_000_000), np.float32)
            for _ in range(200):  # some milliseconds of work that nobody has waited for
                x += 1
            x[...] = value
            outputs = await backend.infer(Batch({"x": Tensor(Datatype.FP32, x.shape, x)}, 1), NO_DEADLINE)
        assert (outputs["y"].numpy() == -value).all()
    await backend.aclose()
