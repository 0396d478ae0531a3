"""What Triton serves in the tests of sequences, and where the network of its detector is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.triton import FOLDER, TritonProcess, triton, why_not
from tests.integration.process import GatewayProcess, running

IDLE_S = 2.0
"""How long these models keep the state of a sequence without requests."""

_CONTROLS = f"""
    max_sequence_idle_microseconds: {IDLE_S * 1e6:.0f}
    control_input [
        {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }} ] }},
        {{ name: "END" control [ {{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }} ] }},
        {{ name: "READY" control [ {{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }} ] }},
        {{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} ] }}
    ]
"""
_MODELS = {
    "vad": ("vad_model.py", "sound", 512, "speech", 1, f"sequence_batching {{ direct {{ }} {_CONTROLS} }}"),
    "total": ("total_model.py", "x", 2, "y", 2, f"sequence_batching {{ direct {{ }} {_CONTROLS} }}"),
    "oldest": (
        "total_model.py", "x", 2, "y", 2,
        f"sequence_batching {{ oldest {{ max_candidate_sequences: 8 }} {_CONTROLS} }}",
    ),
    "stateless": ("total_model.py", "x", 2, "y", 2, "dynamic_batching { }"),
}  # fmt: skip

_SLOTS = {"vad": 8, "total": 32, "oldest": 8, "stateless": 8}
"""Sequences that have a slot of the model's only instance at a time; further ones wait until one of these ends."""


def network() -> Path:
    """The detector's file."""
    return next(iter(FOLDER.glob("lib/python3.*/site-packages/silero_vad/data/silero_vad_16k_op15.onnx")), FOLDER)


def why_no_sequences() -> str | None:
    """Why these models cannot be served here, or None where they can."""
    if reason := why_not():
        return reason
    return None if network().is_file() else "there is no silero-vad beside Triton; run make triton"


def write_sequences(folder: Path, *names: str) -> Path:
    """Triton's model repository of these models, all where none is named, written to *folder*."""
    for name in names or _MODELS:
        code, takes, length, gives, width, batching = _MODELS[name]
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name(code), version / "model.py")
        shutil.copy(Path(__file__).with_name("vad.py"), version / "vad.py")
        (folder / name / "config.pbtxt").write_text(f"""
            name: "{name}"
            backend: "python"
            max_batch_size: {_SLOTS[name]}
            input [ {{ name: "{takes}" data_type: TYPE_FP32 dims: [ {length} ] }} ]
            output [ {{ name: "{gives}" data_type: TYPE_FP32 dims: [ {width} ] }} ]
            {batching}
            parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{FOLDER}" }} }}
        """)
    return folder


def configuration(grpc: str, http: str) -> str:
    """A gateway's, over one such Triton: by gRPC under the models' own names, by HTTP with `_http` behind them.

    And with `_oip` behind them as models of any server of the protocol, of which the configuration says that they keep
    state.
    """
    models = "".join(
        f"  {name}: {{backend: triton, url: 'grpc://{grpc}', expose: true}}\n"
        f"  {name}_http: {{backend: triton, url: 'http://{http}', model: {name}, expose: true}}\n"
        for name in _MODELS
    )
    models += "".join(
        f"  {name}_oip: {{backend: oip, url: 'grpc://{grpc}', model: {name}, sequence_idle_s: {IDLE_S}, "
        f"expose: true}}\n"
        for name, (*_, batching) in _MODELS.items()
        if "sequence_batching" in batching
    )
    return f"""
models:
{models}
routes:
  sums:
    input: {{x: {{datatype: FP32, shape: [2]}}}}
    cascade: [total]
    accept: {{any: true}}
    slo: {{deadline: 10s}}
store: {{path: store.db, retention: 1d, limit: 1GiB}}
"""


@contextmanager
def sequence_servers(folder: Path) -> Iterator[tuple[TritonProcess, GatewayProcess]]:
    """A Triton with these models, and a gateway before it."""
    (folder / "triton").mkdir()
    with (
        triton(folder / "triton", write_sequences(folder / "models")) as real,
        running(folder, configuration(real.grpc, real.http)) as gateway,
    ):
        yield real, gateway
