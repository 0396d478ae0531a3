"""What both servers serve: each model once, written out as Triton's repository and as the gateway's configuration.

A served model of the gateway is a route of its own name; its batch axis is implied, as it is in Triton with a
`max_batch_size`. Shapes leave it out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from backends.contract import Datatype, TensorSpec
from gateway.grpc_edge.transport import Transport
from tests.conformance.triton import FOLDER

LABELS = ("cat", "dog", "fox", "owl")
BATCH = 8
"""Most items a call of a model takes."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model: *function* of `tests.conformance.models`, and what it takes and gives."""

    name: str
    function: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    max_batch: int = BATCH


def _one(name: str, function: str, datatype: Datatype, shape: tuple[int, ...], output: str = "y") -> Served:
    return Served(
        name, function, (TensorSpec("x", datatype, shape),), (TensorSpec(output, datatype, shape),), max_batch=BATCH
    )


_NUMBERS = (TensorSpec("a", Datatype.INT32, (-1,)), TensorSpec("b", Datatype.INT32, (-1,)))
_RESULTS = (TensorSpec("sum", Datatype.INT32, (-1,)), TensorSpec("difference", Datatype.INT32, (-1,)))

SAME: Mapping[Datatype, str] = {datatype: f"same_{datatype.lower()}" for datatype in Datatype}
"""Of each datatype, the model that gives back what it gets."""

MODELS = (
    Served("dbl", "double", (TensorSpec("x", Datatype.FP32, (16,)),), (TensorSpec("y", Datatype.FP32, (16,)),), (), 64),
    *(_one(name, "same", datatype, (-1,)) for datatype, name in SAME.items()),
    _one("text", "same", Datatype.BYTES, (1,)),
    _one("grid", "same", Datatype.INT32, (-1, 3)),
    Served("sums", "sums", _NUMBERS, _RESULTS),
    Served("scores", "scores", (TensorSpec("x", Datatype.FP32, (4,)),), (TensorSpec("scores", Datatype.FP32, (4,)),)),
    Served(
        "animals",
        "animals",
        (TensorSpec("x", Datatype.FP32, (4,)),),
        (TensorSpec("probabilities", Datatype.FP32, (4,)),),
        LABELS,
    ),
    _one("fails", "fails", Datatype.FP32, (-1,)),
    _one("waits", "waits", Datatype.FP32, (-1,)),
)


def only(*names: str) -> tuple[Served, ...]:
    """Those of `MODELS` that are called so: a Triton of few models starts in a second."""
    return tuple(model for model in MODELS if model.name in names)


def write_repository(folder: Path, models: Sequence[Served] = MODELS) -> Path:
    """Triton's model repository of *models*, written to *folder*."""
    for model in models:
        version = folder / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
        shutil.copy(Path(__file__).with_name("models.py"), version / "models.py")
        (folder / model.name / "config.pbtxt").write_text(_config(model))
        if model.labels:
            (folder / model.name / "labels.txt").write_text("\n".join(model.labels))
    return folder


def _config(model: Served) -> str:
    inputs = ", ".join(_tensor(spec) for spec in model.inputs)
    outputs = ", ".join(_tensor(spec, 'label_filename: "labels.txt"' if model.labels else "") for spec in model.outputs)
    return f"""
        name: "{model.name}"
        backend: "python"
        max_batch_size: {model.max_batch}
        input [ {inputs} ]
        output [ {outputs} ]
        dynamic_batching {{ }}
        parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{FOLDER}" }} }}
        parameters {{ key: "function" value: {{ string_value: "{model.function}" }} }}
    """


def _tensor(spec: TensorSpec, more: str = "") -> str:
    kind = "STRING" if spec.datatype is Datatype.BYTES else spec.datatype
    return f'{{ name: "{spec.name}" data_type: TYPE_{kind} dims: {list(spec.shape)} {more} }}'


def configuration(transport: Transport = Transport.AUTO, model_control: str = "none") -> str:
    """The gateway's configuration of `MODELS`, with gRPC over *transport*."""
    models = {
        model.name: {
            "backend": "python",
            "target": f"tests.conformance.models:{model.function}",
            "inputs": [_written(spec) for spec in model.inputs],
            "outputs": [_written(spec) for spec in model.outputs],
            "max_batch": model.max_batch,
            "expose": True,
            **({"labels": list(model.labels)} if model.labels else {}),
        }
        for model in MODELS
    }
    server = {
        "shared_memory": {"enabled": True},
        "grpc_transport": transport.value,
        "model_control": model_control,
    }
    store = {"path": "store.db", "retention": "1d", "limit": "1GiB"}
    return yaml.safe_dump({"models": models, "server": server, "store": store})


def _written(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)}
