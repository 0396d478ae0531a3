"""Both servers, once for the whole folder; where Triton cannot be had, every test that needs it is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from gateway.grpc_edge.transport import Transport
from tests.conformance.grpc_cases import CASES, observe
from tests.conformance.repository import configuration, write_repository
from tests.conformance.triton import triton, why_not
from tests.integration.process import running


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens (host:port)."""

    http: str
    grpc: str


@dataclass(frozen=True, slots=True)
class Servers:
    """The two that are compared."""

    triton: Server
    gateway: Server


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with the models of `repository.MODELS`."""
    with running(tmp_path_factory.mktemp("gateway"), configuration()) as process:
        yield Server(process.http.removeprefix("http://"), process.grpc)


@pytest.fixture(scope="session")
def servers(gateway: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """It, and a Triton with the same models."""
    with beside_triton(gateway, tmp_path_factory.mktemp("triton")) as both:
        for server in (both.triton, both.gateway):
            with grpc.insecure_channel(server.grpc) as channel:
                _use(channel)
        yield both


@contextmanager
def beside_triton(gateway: Server, folder: Path) -> Iterator[Servers]:
    """*gateway*, and a Triton with the models of `repository.MODELS`, below *folder*; skips where there is none."""
    if reason := why_not():
        pytest.skip(reason)
    with triton(folder, write_repository(folder / "models")) as real:
        yield Servers(Server(real.http, real.grpc), gateway)


def _use(channel: grpc.Channel) -> None:
    """Ask `dbl` once: statistics of a model that was never asked have less in them."""
    (case,) = (case for case in CASES if case.name == "raw")
    assert observe(case, channel)["status"] == "OK"


@pytest.fixture(scope="session", params=[Transport.AUTO, Transport.GRPCIO])
def channels(
    servers: Servers, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    """A channel to Triton, and one to a gateway, over each of its transports."""
    with (
        running(tmp_path_factory.mktemp("transport"), configuration(request.param)) as process,
        grpc.insecure_channel(servers.triton.grpc) as one,
        grpc.insecure_channel(process.grpc) as other,
    ):
        _use(other)
        yield one, other
