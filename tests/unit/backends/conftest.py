"""Tiny ONNX models, written when a test asks for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# An axis is an int where fixed, a str where symbolic, None where nothing is known.
Shape = Sequence[int | str | None] | None
WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """A function that writes a model file and returns its path.

    Its arguments: the nodes, as (operator, inputs, outputs, attributes); inputs and outputs, as name: (type, shape);
    weights, by name; the file's name.
    """

    def write(
        nodes: Sequence[tuple[str, list[str], list[str], Mapping[str, Any]]],  # Any: ONNX attributes
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, tuple[int, Shape]],
        weights: Mapping[str, NDArray[Any]] | None = None,
        name: str = "model.onnx",
    ) -> Path:
        graph = helper.make_graph(
            [helper.make_node(operator, given, left, **attributes) for operator, given, left, attributes in nodes],
            "graph",
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
            [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def linear(write_model: WriteModel) -> Path:
    """y = x W: FP32 [N, 4] to [N, 3]."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
    return write_model(
        [("MatMul", ["x", "w"], ["y"], {})],
        {"x": (onnx.TensorProto.FLOAT, ["N", 4])},
        {"y": (onnx.TensorProto.FLOAT, ["N", 3])},
        {"w": weights},
    )
