"""Kinds of backend are found by name, and a broken one breaks only those that ask for it."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from backends.contract import Datatype, TensorSpec
from backends.echo import ECHO, EchoOptions
from backends.errors import BackendFailed, NotFound
from backends.onnx import OnnxOptions
from backends.python import PythonOptions
from backends.registry import BUILT_IN, GROUP, BackendType, BackendTypes, backend_type, backend_types

ROOT = Path(__file__).parents[3]


_KINDS = ["echo", "langid", "magika", "oip", "onnx", "openai", "python", "ray_serve", "triton"]


def installed(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_what_only_decides_how_a_model_runs_must_be_an_option() -> None:
    with pytest.raises(ValueError, match="has no option 'batches'"):
        BackendType("mine", EchoOptions, ECHO.open, frozenset({"batches"}))


def test_every_built_in_kind_says_that_batches_and_servers_decide_no_answer() -> None:
    for kind in map(backend_type, _KINDS):
        names = {field.name for field in dataclasses.fields(kind.options)}
        assert kind.running_only >= names & {"max_batch", "max_in_flight", "url", "replicas", "connect_timeout_s"}
        assert not kind.running_only & {"path", "target", "model", "version", "prompt", "labels"}


def test_a_built_in_kind_is_found_by_name() -> None:
    assert backend_type("echo") is ECHO


def test_the_built_in_kinds_are_there_without_installation_metadata() -> None:
    types = BackendTypes([])

    assert list(types) == _KINDS
    assert [types[name].name for name in types] == _KINDS


def test_the_built_in_kinds_are_those_that_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["entry-points"][GROUP] == BUILT_IN


def test_an_unknown_kind_is_refused_with_what_there_is_and_what_it_is_close_to() -> None:
    with pytest.raises(NotFound, match=r"no backend 'onx'; did you mean 'onnx'\? there are echo, langid, magika, oip"):
        backend_type("onx")


def test_an_unknown_kind_close_to_nothing_gets_no_suggestion() -> None:
    with pytest.raises(NotFound) as raised:
        backend_type("zzz")
    assert "did you mean" not in str(raised.value)


def test_a_package_adds_a_kind() -> None:
    types = BackendTypes([installed("mine", "backends.echo:ECHO")])

    assert types["mine"] is ECHO
    assert "mine" in types
    assert len(types) == len(BUILT_IN) + 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package.backend:MINE", "ModuleNotFoundError"),
        ("backends.echo:MISSING", "AttributeError"),
        ("backends.echo:EchoOptions", "must name a BackendType"),
    ],
)
def test_a_broken_kind_is_reported_when_it_is_asked_for_and_breaks_no_other(value: str, reason: str) -> None:
    types = BackendTypes([installed("broken", value)])

    assert "broken" in list(types)
    assert types["echo"] is ECHO
    with pytest.raises(BackendFailed, match=reason):
        types["broken"]


def test_a_name_that_two_packages_claim_is_refused() -> None:
    types = BackendTypes([installed("mine", "one:MINE"), installed("mine", "two:MINE")])

    with pytest.raises(BackendFailed, match=r"several packages \(one:MINE, two:MINE\)"):
        types["mine"]


def test_the_same_entry_point_found_twice_is_one() -> None:
    assert BackendTypes([installed("mine", "backends.echo:ECHO")] * 2)["mine"] is ECHO


def test_a_built_in_name_cannot_be_taken_over() -> None:
    assert BackendTypes([installed("echo", "evil:ECHO")])["echo"] is ECHO


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"datatype": "INT64", "shape": [2, -1]}, EchoOptions(Datatype.INT64, (2, -1))),
        ({"path": "models/a.onnx", "threads": 2}, OnnxOptions(Path("models/a.onnx"), threads=2)),
        (
            {
                "target": "a.b:c",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}],
                "outputs": [{"name": "y", "datatype": "BYTES", "shape": [1]}],
            },
            PythonOptions("a.b:c", (TensorSpec("x", Datatype.FP32, (3,)),), (TensorSpec("y", Datatype.BYTES, (1,)),)),
        ),
    ],
)
def test_options_are_read_from_what_a_configuration_file_holds(written: Mapping[str, Any], expected: object) -> None:
    assert TypeAdapter(type(expected)).validate_python(written) == expected


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_options_are_frozen_and_every_field_is_described(name: str) -> None:
    options = backend_types()[name].options

    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]  # the dataclass decorator sets it
    for field in dataclasses.fields(options):
        assert any(f"{field.name}: " in (kind.__doc__ or "") for kind in options.__mro__)
