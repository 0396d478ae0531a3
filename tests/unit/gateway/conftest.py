"""What tests of every edge share."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def done_in_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that were run beside the event loop, in order."""
    names: list[str] = []

    async def to_thread(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        names.append(function.__name__)
        return await asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments, **named))

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    return names


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose store is not there yet."""
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {echo: {backend: echo, expose: true}}\nstore: {path: store.db}\n")
    return path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `localhost` that proves itself, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificates with openssl, which is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([openssl, *made, *named, *files], cwd=folder, check=True, timeout=30, capture_output=True)
    return folder


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    """What a server proves itself with, to who trusts that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context
