"""A Python function as a model."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, HostArray, State, Tensor, TensorSpec
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound
from backends.python import PYTHON, PythonOptions, open_python

Arrays = Mapping[str, HostArray]

X = TensorSpec("x", Datatype.FP32, (3,))
Y = TensorSpec("y", Datatype.FP32, (3,))
OPTIONS = PythonOptions("a_test_model:function", (X,), (Y,), version="7", max_batch=5, max_in_flight=2)


@pytest.fixture
def model() -> Iterator[ModuleType]:
    """An importable module, for tests to put functions into."""
    module = ModuleType("a_test_model")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


async def opened(model: ModuleType, function: object, options: PythonOptions = OPTIONS) -> Backend:
    vars(model)["function"] = function
    return await open_python("m", options)


def ones(size: int = 1) -> Batch:
    return Batch.of({"x": Tensor.of(np.ones((size, 3), np.float32))})


def sample(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 3)).astype(np.float32))})


def double(inputs: Arrays) -> Arrays:
    return {"y": np.asarray(inputs["x"] * 2)}


def give_back(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"], "unasked": inputs["x"]}


class Biased:
    """A model that is an instance."""

    def __init__(self, bias: float) -> None:
        self.bias = np.float32(bias)

    def __call__(self, inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] + self.bias}


@pytest.mark.parametrize("function", [double, give_back, Biased(3.0)], ids=["double", "give back", "instance"])
async def test_a_function_keeps_the_contract(model: ModuleType, function: object) -> None:
    vars(model)["function"] = function

    async def open_backend() -> Backend:
        return await PYTHON.open("m", OPTIONS)

    await exercise_backend(open_backend, sample)


async def test_an_inline_function_keeps_the_contract_on_the_thread_of_the_event_loop(model: ModuleType) -> None:
    threads = set()

    def noted(inputs: Arrays) -> Arrays:
        threads.add(threading.current_thread())
        return double(inputs)

    vars(model)["function"] = noted

    async def open_backend() -> Backend:
        return await PYTHON.open("m", dataclasses.replace(OPTIONS, inline=True, max_in_flight=1))

    await exercise_backend(open_backend, sample)

    assert threads == {threading.current_thread()}


async def test_inline_calls_do_not_overlap(model: ModuleType) -> None:
    with pytest.raises(InvalidInput, match="inline calls run one at a time"):
        await opened(model, double, dataclasses.replace(OPTIONS, inline=True))


async def test_bytes_go_in_and_out(model: ModuleType) -> None:
    text = (TensorSpec("x", Datatype.BYTES, (1,)),)
    options = dataclasses.replace(OPTIONS, inputs=text, outputs=(TensorSpec("y", Datatype.BYTES, (1,)),))
    upper = np.frompyfunc(bytes.upper, 1, 1)
    backend = await opened(model, lambda inputs: {"y": upper(inputs["x"])}, options)

    outputs = await backend.infer(Batch.of({"x": Tensor.of(np.array([[b"a\x00"], [b"\xff"]], object))}), NO_DEADLINE)

    assert outputs["y"].numpy().tolist() == [[b"A\x00"], [b"\xff"]]
    await backend.aclose()


async def test_the_version_is_the_configured_one(model: ModuleType) -> None:
    backend = await opened(model, double)

    assert backend.version == "7"
    assert repr(backend) == "<Python 'm' version 7: ready>"
    await backend.aclose()


@pytest.fixture
async def returning(model: ModuleType) -> AsyncIterator[tuple[Backend, dict[str, Any]]]:
    """A backend, and the mapping that its function returns."""
    returned: dict[str, Any] = {}
    backend = await opened(model, lambda inputs: returned.get("instead", returned))
    yield backend, returned
    await backend.aclose()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "broke its signature: output 'y' is missing"),
        ({"y": [[1.0, 2.0, 3.0]]}, "output 'y' as list; FP32 is a NumPy array of float32"),
        ({"y": np.zeros((1, 3))}, "output 'y' as float64; FP32 is a NumPy array of float32"),
        ({"y": np.zeros((1, 4), np.float32)}, r"has shape \[1, 4\]; expected \[-1, 3\]"),
        ({"y": np.zeros((2, 3), np.float32)}, r"output 'y' has shape \[2, 3\] for a batch of 1"),
        ({"instead": None}, "returned a NoneType, not a mapping of arrays"),
    ],
)
async def test_what_a_function_must_not_return_fails_the_batch(
    returning: tuple[Backend, dict[str, Any]], returned: dict[str, Any], message: str
) -> None:
    backend, holder = returning
    holder.update(returned)

    with pytest.raises(BackendFailed, match=message):
        await backend.infer(ones(), NO_DEADLINE)
    holder.clear()
    holder["y"] = np.zeros((1, 3), np.float32)
    await backend.infer(ones(), NO_DEADLINE)


async def test_elements_of_bytes_outputs_must_be_bytes(model: ModuleType) -> None:
    options = dataclasses.replace(OPTIONS, outputs=(TensorSpec("y", Datatype.BYTES, (1,)),))
    backend = await opened(model, lambda inputs: {"y": np.array([["text"]], object)}, options)

    with pytest.raises(BackendFailed, match="elements that are not bytes"):
        await backend.infer(ones(), NO_DEADLINE)
    await backend.aclose()


async def test_an_exception_fails_the_batch_and_stays_inside(model: ModuleType) -> None:
    def fail(inputs: Arrays) -> Arrays:
        raise KeyError("/etc/secret")

    backend = await opened(model, fail)

    with pytest.raises(BackendFailed) as raised:
        await backend.infer(ones(), NO_DEADLINE)
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, KeyError)
    assert backend.state is State.READY
    await backend.aclose()


@pytest.mark.parametrize("inline", [False, True])
async def test_a_function_that_asks_for_the_end_of_the_process_fails_its_batch(model: ModuleType, inline: bool) -> None:
    def leave(inputs: Arrays) -> Arrays:
        raise SystemExit(1)

    backend = await opened(model, leave, replace(OPTIONS, inline=inline, max_in_flight=1))

    with pytest.raises(BackendFailed):
        await backend.infer(ones(), NO_DEADLINE)
    assert backend.state is State.READY
    await backend.aclose()


async def test_a_function_cannot_write_to_its_inputs(model: ModuleType) -> None:
    def write(inputs: Arrays) -> Arrays:
        inputs["x"][:] = 0
        return {"y": inputs["x"]}

    backend = await opened(model, write)
    batch = ones()

    with pytest.raises(BackendFailed):
        await backend.infer(batch, NO_DEADLINE)
    assert (batch.inputs["x"].numpy() == 1).all()
    await backend.aclose()


async def test_an_expired_deadline_calls_nothing(model: ModuleType) -> None:
    calls: list[Arrays] = []
    backend = await opened(model, calls.append)

    with pytest.raises(DeadlineExceeded):
        await backend.infer(ones(), Deadline(time.monotonic() - 1))
    assert calls == []
    await backend.aclose()


async def test_the_event_loop_runs_on_while_a_function_computes(model: ModuleType) -> None:
    let_go = threading.Event()

    def wait(inputs: Arrays) -> Arrays:
        assert let_go.wait(30)
        return double(inputs)

    backend = await opened(model, wait)
    call = asyncio.create_task(backend.infer(ones(), NO_DEADLINE))
    await asyncio.sleep(0)
    let_go.set()  # reached only if the loop is free

    assert (await call)["y"].shape == (1, 3)
    await backend.aclose()


async def answer_async(inputs: Arrays) -> Arrays:
    return inputs


class AsyncCall:
    async def __call__(self, inputs: Arrays) -> Arrays:
        return inputs


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("a_test_model", InvalidInput, 'not of the form "package.module:attribute"'),
        (":function", InvalidInput, 'not of the form "package.module:attribute"'),
        ("no_such_module_at_all:function", NotFound, "No module named 'no_such_module_at_all'; install it"),
        ("a_test_model:missing.part", NotFound, "has no attribute 'missing'; correct the part after the colon"),
        ("a_test_model:number", InvalidInput, "is of type int; name a function"),
        ("a_test_model:answer_async", InvalidInput, "is async; name a plain function"),
        ("a_test_model:async_call", InvalidInput, "is async; name a plain function"),
    ],
)
async def test_a_target_that_cannot_serve_is_refused_when_opening(
    model: ModuleType, target: str, error: type[Exception], message: str
) -> None:
    vars(model).update(number=3, answer_async=answer_async, async_call=AsyncCall())

    with pytest.raises(error, match=message):
        await open_python("m", dataclasses.replace(OPTIONS, target=target))


async def test_a_module_that_fails_while_imported_is_refused_with_its_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(InvalidInput, match="cannot be imported: ZeroDivisionError: division by zero"):
        await open_python("m", dataclasses.replace(OPTIONS, target="fails_on_import:function"))


async def test_a_nested_attribute_is_found(model: ModuleType) -> None:
    vars(model)["holder"] = type("Holder", (), {"double": staticmethod(double)})
    backend = await open_python("m", dataclasses.replace(OPTIONS, target="a_test_model:holder.double"))

    assert (await backend.infer(ones(), NO_DEADLINE))["y"].numpy().tolist() == [[2.0, 2.0, 2.0]]
    await backend.aclose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ()}, "inputs and outputs need one entry each"),
        ({"outputs": ()}, "inputs and outputs need one entry each"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
    ],
)
async def test_options_that_make_no_sense_are_refused(model: ModuleType, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await opened(model, double, dataclasses.replace(OPTIONS, **change))
