"""A trace goes on in the real Triton, whose own spans have ours above them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from backends.contract import Tensor
from backends.trace_context import TraceContext
from gateway.compose import compose
from gateway.request import Protocol, Request, TensorInputs
from gateway.settings import load_settings
from tests.conformance.repository import only, write_repository
from tests.conformance.triton import TritonProcess, triton, why_not
from tests.otlp import CLIENT, SERVER, Receiver, line_up, receiving

CALLER = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=17")
_MODEL = "dbl"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def real(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton with one model, which sends a span of each of its requests to *receiver*."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("traced")
    repository = write_repository(folder / "models", only(_MODEL))
    said = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS", "opentelemetry,bsp_schedule_delay=50",
            f"opentelemetry,url={receiver.endpoint}/v1/traces")  # fmt: skip
    with triton(folder, repository, *(f"--trace-config={one}" for one in said)) as process:
        yield process


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_tritons_spans_are_within_the_call_that_it_got(
    scheme: str, real: TritonProcess, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.spans.clear()
    path = tmp_path / "front.yaml"
    model = {"backend": "triton", "url": f"{scheme}://{getattr(real, scheme)}", "expose": True}
    path.write_text(
        yaml.safe_dump(
            {
                "models": {_MODEL: model},
                "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
                "telemetry": {"traces": {"endpoint": receiver.endpoint}},
            }
        )
    )
    async with compose(load_settings(path)) as gateway:
        inputs = TensorInputs({"x": Tensor.of(np.ones((2, 16), np.float32))})
        await gateway.pipeline.decide(Request(_MODEL, inputs, Protocol.OIP_GRPC, trace=CALLER))

    spans = {span.name: span for span in receiver.wait_for(f"call {_MODEL}", "InferRequest", _MODEL, "compute")}
    assert {span.trace_id for span in spans.values()} == {CALLER.trace_id}
    line = line_up(spans["compute"], receiver.spans)
    assert [span.name for span in line] == [
        "compute",
        _MODEL,
        "InferRequest",
        f"call {_MODEL}",
        f"batch {_MODEL}",
        f"stage {_MODEL}",
        "inference.GRPCInferenceService/ModelInfer",
    ]
    assert (line[3].kind, line[-1].kind, line[-1].parent_id) == (CLIENT, SERVER, CALLER.span_id)
    assert line[3].attributes["server.port"] == int(getattr(real, scheme).rpartition(":")[2])
