"""magika as a backend, with its real model and real content."""

from __future__ import annotations

import asyncio
import gzip
import io
import math
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import magika
import numpy as np
import pytest
from PIL import Image

from backends.conformance import exercise_backend
from backends.content_type import MAGIKA, ContentType, ContentTypeOptions, open_content_type
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, Limits, Tensor
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound

ROOT = Path(__file__).parents[3]


def batch_of(*contents: bytes) -> Batch:
    array = np.empty((len(contents), 1), object)
    array[:, 0] = contents
    return Batch.of({"content": Tensor.of(array)})


async def ask(backend: Backend, *contents: bytes) -> list[tuple[str, str, float]]:
    """(label, group, score) of every item."""
    outputs = await backend.infer(batch_of(*contents), NO_DEADLINE)
    label, group, score = (outputs[name].numpy()[:, 0].tolist() for name in ("label", "group", "score"))
    return [(a.decode(), b.decode(), c) for a, b, c in zip(label, group, score, strict=True)]


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("letter.txt", "Dear all, please find enclosed what you asked for. " * 20)
    return file.getvalue()


JSON = b'{"order": 4711, "items": [{"name": "phone", "price": 199.9}], "paid": true}'
HTML = b"<!DOCTYPE html>\n<html><head><title>Orders</title></head><body><p>Nothing yet.</p></body></html>\n"
PDF = (
    b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n2 0 obj\n<< /Type /Pages /Kids [] /Count 0 >>\n"
    b"endobj\nxref\n0 3\ntrailer\n<< /Root 1 0 R /Size 3 >>\nstartxref\n120\n%%EOF\n"
)
TEXT = b"The best phone I ever had. The battery lasts for two days, and it fell twice without a scratch."
CONTENTS = [picture("PNG"), picture("JPEG"), archive(), JSON, HTML, PDF, TEXT, Path(__file__).read_bytes()]


def sample(size: int, rng: np.random.Generator) -> Batch:
    return batch_of(*(CONTENTS[i] + rng.bytes(3) for i in rng.integers(0, len(CONTENTS), size)))


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = await open_content_type("m", ContentTypeOptions())
    yield backend
    await backend.aclose()


@pytest.mark.parametrize("options", [ContentTypeOptions(max_batch=5), ContentTypeOptions("7", 4, 2)], ids=str)
async def test_it_keeps_the_contract(options: ContentTypeOptions) -> None:
    async def open_backend() -> Backend:
        return await MAGIKA.open("m", options)

    await exercise_backend(open_backend, sample)


async def test_it_describes_itself(backend: Backend) -> None:
    assert backend.version == "standard_v3_3"
    assert backend.limits == Limits(max_batch=32, max_in_flight=1)
    assert [(spec.name, spec.datatype, spec.shape) for spec in backend.signature.outputs] == [
        ("label", Datatype.BYTES, (1,)),
        ("group", Datatype.BYTES, (1,)),
        ("score", Datatype.FP32, (1,)),
    ]
    assert repr(backend) == "<ContentType 'm' version standard_v3_3: ready>"


# What it says


@pytest.mark.parametrize(
    ("content", "label", "group"),
    [
        pytest.param(picture("PNG"), "image/png", "image", id="png"),
        pytest.param(picture("JPEG"), "image/jpeg", "image", id="jpeg"),
        pytest.param(picture("PNG")[:200], "image/png", "image", id="png, truncated"),
        pytest.param(PDF, "application/pdf", "document", id="pdf"),
        pytest.param(archive(), "application/zip", "archive", id="zip"),
        pytest.param(gzip.compress(TEXT * 9), "application/gzip", "archive", id="gzip"),
        pytest.param(Path(__file__).read_bytes(), "text/x-python", "code", id="python"),
        pytest.param(JSON, "application/json", "code", id="json"),
        pytest.param(HTML, "text/html", "code", id="html"),
        pytest.param(TEXT, "text/plain", "text", id="text"),
        pytest.param("Das Gerät wurde gestern früh geliefert, danke schön.".encode(), "text/plain", "text", id="utf-8"),
        pytest.param("这部手机很好用,电池可以用两天,我非常喜欢。".encode(), "text/plain", "text", id="chinese"),
        pytest.param(TEXT * 100_000, "text/plain", "text", id="10 MB of text"),
    ],
)
async def test_real_content_is_recognised(backend: Backend, content: bytes, label: str, group: str) -> None:
    [(found, found_group, score)] = await ask(backend, content)

    assert (found, found_group) == (label, group)
    assert 0.5 < score <= 1.0


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"", "inode/x-empty"),
        (b"a", "text/plain"),
        (b"ok", "text/plain"),
        ("schön".encode(), "text/plain"),
        (b" \t\r\n" * 10, "text/plain"),
    ],
)
async def test_too_little_to_ask_the_model_about_is_still_a_fact(backend: Backend, content: bytes, label: str) -> None:
    [(found, _, score)] = await ask(backend, content)

    assert (found, score) == (label, 1.0)


@pytest.mark.parametrize("size", [16, 100, 1_000, 100_000])
async def test_unknown_content_is_never_confident(backend: Backend, size: int) -> None:
    [(label, group, score)] = await ask(backend, np.random.default_rng(size).bytes(size))

    assert (label, group) == ("application/octet-stream", "unknown")
    assert math.isnan(score)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        pytest.param(b"\xff", "application/octet-stream", id="one byte that is not UTF-8"),
        pytest.param(b"\0", "text/plain", id="NUL"),
        pytest.param(b"\x01\x02\x03\x04", "text/plain", id="control characters"),
        pytest.param(b" " * 5_000 + picture("PNG"), "text/plain", id="a picture behind white space"),
    ],
)
async def test_a_rule_without_evidence_is_never_confident(backend: Backend, content: bytes, label: str) -> None:
    [(found, _, score)] = await ask(backend, content)

    assert found == label
    assert math.isnan(score)


@pytest.mark.parametrize("byte", [b"\0", b"a", b"\xff"])
async def test_one_byte_repeated_is_answered(backend: Backend, byte: bytes) -> None:
    [(label, _, _)] = await ask(backend, byte * 10_000)

    assert label == "application/x-iso9660-image"  # which it is not: a known mistake of the model, see the module


# How it ends


class Slow:
    """A magika that takes 20 ms an item and counts them."""

    def __init__(self) -> None:
        self.items = 0
        self.started = threading.Event()

    def get_model_name(self) -> str:
        return "slow"

    def identify_bytes(self, content: bytes) -> Any:
        self.items += 1
        self.started.set()
        time.sleep(0.02)
        info = SimpleNamespace(label="txt", mime_type="text/plain", group="text")
        return SimpleNamespace(prediction=SimpleNamespace(output=info, dl=info, score=0.5))


def slow() -> tuple[Slow, ContentType]:
    model: Any = Slow()
    return model, ContentType("m", ContentTypeOptions(), model)


async def test_a_cancelled_call_ends_after_the_item_it_is_at() -> None:
    model, backend = slow()
    call = asyncio.create_task(backend.infer(batch_of(*[b"x"] * 32), NO_DEADLINE))
    await asyncio.to_thread(model.started.wait)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert model.items < 32
    assert len(await ask(backend, b"x")) == 1
    await backend.aclose()


async def test_a_late_call_ends_after_the_item_it_is_at() -> None:
    model, backend = slow()

    with pytest.raises(DeadlineExceeded, match="while model 'm' was at work"):
        await backend.infer(batch_of(*[b"x"] * 32), Deadline(time.monotonic() + 0.05))
    assert model.items < 32
    assert len(await ask(backend, b"x")) == 1
    await backend.aclose()


async def test_what_magika_raises_fails_the_batch_and_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes) -> Any:
        raise OSError("/etc/secret")

    model, backend = slow()
    monkeypatch.setattr(model, "identify_bytes", fail)

    with pytest.raises(BackendFailed) as raised:
        await ask(backend, b"x")
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)
    await backend.aclose()


async def test_elements_must_be_bytes(backend: Backend) -> None:
    with pytest.raises(InvalidInput, match="holds a str; encode it"):
        await backend.infer(Batch.of({"content": Tensor.of(np.array([["text"]], object))}), NO_DEADLINE)


# How it is opened


def test_nothing_is_imported_before_a_model_asks_for_it() -> None:
    code = """
import sys
from backends.registry import backend_type
backend_type("magika")
assert not {"magika", "onnxruntime"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_onnx_runtime_is_told_not_to_send_anything_home_before_magika_imports_it() -> None:
    code = """
import asyncio, os
from backends.content_type import ContentTypeOptions, open_content_type
asyncio.run(open_content_type("m", ContentTypeOptions()))
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


async def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "magika", None)

    with pytest.raises(NotFound, match=r"model 'm': magika cannot be loaded: .*; install the package magika, 1\.0\.3"):
        await open_content_type("m", ContentTypeOptions())


async def test_an_incomplete_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> Any:
        raise magika.MagikaError("model not found")

    monkeypatch.setattr(magika.Magika, "_load_model_config", fail)

    with pytest.raises(NotFound, match="model not found; install the package magika"):
        await open_content_type("m", ContentTypeOptions())


@pytest.mark.parametrize("options", [ContentTypeOptions(max_batch=0), ContentTypeOptions(max_in_flight=0)])
async def test_limits_that_make_no_sense_are_refused(options: ContentTypeOptions) -> None:
    with pytest.raises(InvalidInput, match="is 0; it must be at least 1"):
        await open_content_type("m", options)


async def test_magika_runs_on_one_thread() -> None:
    backend = await open_content_type("m", ContentTypeOptions())
    try:
        (magika,) = vars(backend)["_magika"]
        options = magika._onnx_session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    finally:
        await backend.aclose()
