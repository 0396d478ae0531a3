"""One Pointsman behind another, as a server of the Open Inference Protocol: two processes, over HTTP and over gRPC."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from tritonclient.utils import InferenceServerException

from backends.contract import NO_DEADLINE, Batch, Datatype, Deadline, Tensor
from backends.errors import DeadlineExceeded, Overloaded, ReplicaFailed, Unavailable
from backends.oip.model import OIPOptions, open_oip
from tests.conformance.triton import free_port
from tests.integration.process import CONFIG, GatewayProcess, running

_MODELS = ("double", "words", "alone")
_PROMPT_S = 2.0
_BACK_S = 15.0

_SLOW = """
  late:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast]
    accept: {min_confidence: 0.9}
    on_defer: error
    slo: {deadline: 100ms}
"""
_FIRST = CONFIG.replace("\nclassify:", f"{_SLOW}\nclassify:")


@dataclass(frozen=True, slots=True)
class Pair:
    """The gateway that clients call, and the one that has the models."""

    front: GatewayProcess
    behind: GatewayProcess


def behind_it(http: str, grpc: str) -> str:
    """The configuration of a gateway whose models are routes of another one."""
    replicas = {"probe_every_s": 0.2, "probe_timeout_s": 0.5, "eject_s": 0.5}
    models = {
        f"{model}-{scheme}": {
            "backend": "oip", "url": f"{scheme}://{at}", "model": model, "expose": True, "replicas": dict(replicas)
        }
        for scheme, at in (("http", http), ("grpc", grpc))
        for model in _MODELS
    }  # fmt: skip
    store = {"path": "store.db", "retention": "1d", "limit": "1GiB"}
    return yaml.safe_dump({"models": models, "store": store})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("behind"), _FIRST) as behind:
        config = behind_it(behind.http.removeprefix("http://"), behind.grpc)
        with running(tmp_path_factory.mktemp("front"), config) as front:
            yield Pair(front, behind)


@pytest.fixture(params=["http", "grpc"])
def scheme(request: pytest.FixtureRequest) -> str:
    """How the gateways talk."""
    found: str = request.param
    return found


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["by http", "by grpc"])
def library(request: pytest.FixtureRequest) -> Any:
    """How the client talks."""
    return request.param


# Any: tritonclient is untyped.
def ask(library: Any, gateway: GatewayProcess, model: str, output: str, **inputs: tuple[str, Any]) -> Any:
    """The output of a call to *gateway*."""
    url = gateway.http.removeprefix("http://") if library is tritonclient.http else gateway.grpc
    client = library.InferenceServerClient(url)
    try:
        tensors = []
        for name, (datatype, array) in inputs.items():
            tensor = library.InferInput(name, array.shape, datatype)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        return client.infer(model, tensors).as_numpy(output)
    finally:
        client.close()


def texts(*written: str) -> tuple[str, Any]:
    return "BYTES", np.array([[text.encode()] for text in written], object)


def one_text(text: bytes) -> Batch:
    return Batch.of({"text": Tensor(Datatype.BYTES, (1, 1), np.array([[text]], object))})


def status(error: InferenceServerException) -> str:
    return str(error.status())


def test_numbers_come_back_doubled(pair: Pair, scheme: str, library: Any) -> None:
    x = np.random.default_rng(0).random((5, 7), dtype=np.float32)

    y = ask(library, pair.front, f"double-{scheme}", "y", x=("FP32", x))

    np.testing.assert_array_equal(y, x * 2)


def test_a_route_behind_answers_row_by_row(pair: Pair, scheme: str, library: Any) -> None:
    text = texts("fast=0.95:b", "fast=0.99:c", "fast=0.5:a strong=0.97:c")

    found = ask(library, pair.front, f"words-{scheme}", "probabilities", text=text)

    np.testing.assert_allclose(found[[0, 1, 2], [1, 2, 2]], [0.95, 0.99, 0.97], rtol=1e-6)


def test_a_provisional_answer_from_behind_is_an_answer(pair: Pair, scheme: str, library: Any) -> None:
    """A person decides it there; here, the model has answered."""
    found = ask(library, pair.front, f"words-{scheme}", "probabilities", text=texts("fast=0.5:b strong=0.6:b"))

    np.testing.assert_allclose(found, [[0.2, 0.6, 0.2]], rtol=1e-6)


_UNAVAILABLE = {tritonclient.http: "503", tritonclient.grpc: "StatusCode.UNAVAILABLE"}
_FAILED = {tritonclient.http: "502", tritonclient.grpc: "StatusCode.INTERNAL"}


def test_what_nobody_behind_is_sure_of_is_unavailable_and_holds_nobody_else_up(
    pair: Pair, scheme: str, library: Any
) -> None:
    """However often: the gateway behind is as well as it was."""
    for _ in range(8):
        with pytest.raises(InferenceServerException) as raised:
            ask(library, pair.front, f"alone-{scheme}", "probabilities", text=texts("fast=0.5:b"))
        assert status(raised.value) == _UNAVAILABLE[library]

    found = ask(library, pair.front, f"alone-{scheme}", "probabilities", text=texts("fast=0.95:b"))
    np.testing.assert_allclose(found[0, 1], 0.95, rtol=1e-6)


def test_a_model_that_fails_behind_has_failed_here(pair: Pair, scheme: str, library: Any) -> None:
    for _ in range(8):
        with pytest.raises(InferenceServerException) as raised:
            ask(library, pair.front, f"alone-{scheme}", "probabilities", text=texts("fast=fail"))
        assert status(raised.value) == _FAILED[library]
        assert "secret" not in str(raised.value)

    ask(library, pair.front, f"alone-{scheme}", "probabilities", text=texts("fast=0.95:b"))


async def test_a_deadline_that_the_gateway_behind_sets_itself_is_told_as_that(tmp_path: Path, scheme: str) -> None:
    with running(tmp_path, _FIRST) as behind:
        at = behind.http if scheme == "http" else f"grpc://{behind.grpc}"
        backend = await open_oip("mine", OIPOptions(at, model="late"))
        try:
            with pytest.raises(DeadlineExceeded, match="'mine'"):
                await backend.infer(one_text(b"fast=slow"), Deadline(time.monotonic() + 10))
        finally:
            await backend.aclose()


async def test_what_waits_for_a_person_behind_is_asked_once(tmp_path: Path, scheme: str) -> None:
    """Asked again, it would be one more task for a person each time."""
    config = CONFIG.replace("on_defer: provisional", "on_defer: error")
    with running(tmp_path, config) as behind:
        at = behind.http if scheme == "http" else f"grpc://{behind.grpc}"
        backend = await open_oip("mine", OIPOptions(at, model="words"))
        try:
            for _ in range(6):
                with pytest.raises(Unavailable, match="'mine'") as raised:
                    await backend.infer(one_text(b"fast=0.5:b strong=0.6:b"), NO_DEADLINE)
                assert not isinstance(raised.value, ReplicaFailed | Overloaded)
                assert "a person will decide" in str(raised.value.__cause__)
        finally:
            await backend.aclose()
        assert open_tasks(behind) == 6


def open_tasks(gateway: GatewayProcess) -> int:
    """How many wait for a person."""
    with urllib.request.urlopen(f"{gateway.control}/metrics", timeout=5) as reply:
        (found,) = re.findall(r'pointsman_reviews_open{queue="words"} (\d+)', reply.read().decode())
    return int(found)


def until_answered(library: Any, gateway: GatewayProcess, model: str, x: tuple[str, Any]) -> Any:
    """What comes once its server is back in service."""
    until = time.monotonic() + _BACK_S
    while True:
        try:
            return ask(library, gateway, model, "y", x=x)
        except InferenceServerException:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_a_gateway_that_dies_is_told_at_once_and_comes_back_where_it_was(tmp_path: Path) -> None:
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    ports = [part for name, at in (("http", http), ("grpc", grpc)) for part in (f"--{name}-port", at.split(":")[1])]
    first, second = tmp_path / "behind", tmp_path / "front"
    first.mkdir()
    second.mkdir()
    x = ("FP32", np.ones((1, 3), np.float32))
    ways = [(library, model) for library in _UNAVAILABLE for model in ("double-http", "double-grpc")]
    with running(first, _FIRST, ports) as behind, running(second, behind_it(http, grpc)) as front:
        for library, model in ways:
            ask(library, front, model, "y", x=x)
        behind.kill()

        for library, model in ways:
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as raised:
                ask(library, front, model, "y", x=x)
            assert status(raised.value) == _UNAVAILABLE[library]
            assert time.monotonic() - started < _PROMPT_S

        with running(first, _FIRST, ports):
            for library, model in ways:
                np.testing.assert_array_equal(until_answered(library, front, model, x), [[2, 2, 2]])
