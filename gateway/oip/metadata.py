"""What the server says of itself and of what it serves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from backends.contract import Datatype, TensorSpec
from gateway.service import ModelMetadata
from gateway.shared_memory import SharedMemory

SERVER_NAME = "pointsman"
SERVER_VERSION = version("pointsman")

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
)
"""The protocol's extensions that always work here."""

_MODEL_CONTROL = ("model_repository", "model_repository(unload_dependents)")

_TYPES = {datatype: f"TYPE_{datatype}" for datatype in Datatype} | {Datatype.BYTES: "TYPE_STRING"}


def extensions(memory: SharedMemory, *, model_control: bool = False) -> tuple[str, ...]:
    """The protocol's extensions that work here, and no others.

    The repository's index always works; its extension is listed where models can be loaded and unloaded too
    (*model_control*), as a client that finds it there may count on all three.
    """
    return (
        *EXTENSIONS,
        *(("system_shared_memory",) if memory.enabled else ()),
        *(_MODEL_CONTROL if model_control else ()),
    )


def model_config(found: ModelMetadata) -> dict[str, Any]:
    """The model configuration of *found*, as Triton's `inference.ModelConfig` in JSON has it (hence Any).

    Every member that clients look for is there; dims leave the batch axis out. A request may have more items than
    `max_batch_size`: these reach the model in several calls.

    Source:
        model_config.proto of https://github.com/triton-inference-server/common.
    """
    config: dict[str, Any] = {
        "name": found.name,
        "platform": found.platform,
        "backend": found.platform,
        "version_policy": {"latest": {"num_versions": 1}} if len(found.versions) == 1 else {"all": {}},
        "max_batch_size": found.max_batch,
        "input": [
            {**tensor, "format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": False}
            for tensor in _configured(found.inputs)
        ],
        "output": [{**tensor, "label_filename": ""} for tensor in _configured(found.outputs)],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }
    if found.sequence_idle_s is not None:
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": round(found.sequence_idle_s * 1e6),
            "direct": {},
        }
    elif found.max_delay_s is not None:
        config["dynamic_batching"] = {
            "preferred_batch_size": [found.max_batch],
            "max_queue_delay_microseconds": round(found.max_delay_s * 1e6),
            "preserve_ordering": False,
        }
    return config


def _configured(specs: Sequence[TensorSpec]) -> Sequence[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "data_type": _TYPES[spec.datatype],
            "dims": list(spec.shape),
            "is_shape_tensor": False,
        }
        for spec in specs
    ]
