"""The proxy that fails does fail, in each of its ways, and is no obstacle otherwise."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.conformance.triton import TritonProcess
from tests.faults.backends.fault import BURST, PAUSE, Fault
from tests.faults.backends.fault_proxy import FaultProxy, Protocol, fault_proxy

TIMEOUT_S = 0.5
SILENT = (Fault.BLACKHOLE, Fault.HANG, Fault.DRIP)


@pytest.fixture(params=Protocol)
def proxy(request: pytest.FixtureRequest, server: TritonProcess) -> Iterator[FaultProxy]:
    protocol: Protocol = request.param
    with fault_proxy(protocol, server.http if protocol is Protocol.HTTP else server.grpc) as proxy:
        yield proxy


class Client:
    """tritonclient, of either protocol, over a connection of its own."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.is_http = proxy.protocol is Protocol.HTTP
        self._module: Any = triton_http if self.is_http else triton_grpc
        if self.is_http:
            options: dict[str, Any] = {"network_timeout": TIMEOUT_S, "connection_timeout": TIMEOUT_S}
        else:
            options = {"channel_args": [("grpc.use_local_subchannel_pool", 1)]}
        self._client = self._module.InferenceServerClient(proxy.address, **options)

    def double(self) -> bool:
        """Whether the answer to a random question is right."""
        sent = np.random.default_rng().normal(size=(2, 16)).astype(np.float32)
        tensor = self._module.InferInput("x", [2, 16], "FP32")
        tensor.set_data_from_numpy(sent)
        patience = {} if self.is_http else {"client_timeout": TIMEOUT_S}
        got = self._client.infer("dbl", [tensor], **patience).as_numpy("y")
        return got is not None and np.array_equal(got, sent * 2)

    def is_well(self) -> bool:
        """Whether the server says that it is."""
        patience = {} if self.is_http else {"client_timeout": TIMEOUT_S}
        return bool(self._client.is_model_ready("dbl", **patience))

    def close(self) -> None:
        self._client.close()


def outcome(client: Client) -> str:
    """What became of a question: right, wrong, or the name of the error."""
    try:
        return "right" if client.double() else "wrong"
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    except Exception as error:  # geventhttpclient, and whatever tritonclient makes of nonsense
        return type(error).__name__


def test_what_passes_is_as_it_was(proxy: FaultProxy) -> None:
    client = Client(proxy)
    try:
        assert [client.double() for _ in range(20)] == [True] * 20
        assert client.is_well()
        assert proxy.seen == 20
    finally:
        client.close()


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in (Fault.NONE, Fault.SLOW, Fault.ERRORS)])
def test_a_fault_reaches_connections_that_there_are_and_new_ones_and_ends(proxy: FaultProxy, fault: Fault) -> None:
    client = Client(proxy)
    try:
        assert outcome(client) == "right"
        proxy.fault = fault
        if fault is Fault.SWAPPED:
            outcome(client)  # there is none before it
        before = time.monotonic()

        first = outcome(client)

        assert first != "right"
        if fault in SILENT:
            assert time.monotonic() - before > 0.9 * TIMEOUT_S
        newcomer = Client(proxy)
        assert outcome(newcomer) != "right"
        newcomer.close()
        proxy.fault = Fault.NONE
        newcomer = Client(proxy)
        assert outcome(newcomer) == "right"
        newcomer.close()
    finally:
        client.close()


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.ERRORS, Fault.MALFORMED, Fault.WRONG, Fault.SLOW])
def test_health_stays_green_while_inferences_fail(proxy: FaultProxy, fault: Fault) -> None:
    proxy.slow_down(2 * TIMEOUT_S)
    proxy.fault = fault
    client = Client(proxy)
    try:
        assert outcome(client) != "right"
        assert client.is_well()
    finally:
        client.close()


def test_errors_come_in_bursts(proxy: FaultProxy) -> None:
    proxy.fault = Fault.ERRORS
    client = Client(proxy)
    try:
        found = [outcome(client) for _ in range(BURST + PAUSE)]
    finally:
        client.close()

    assert ["right" not in one for one in found] == [True] * BURST + [False] * PAUSE


def test_a_port_that_refuses_does_so_at_once_and_is_kept(proxy: FaultProxy) -> None:
    address = proxy.address
    proxy.fault = Fault.REFUSE
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.2)
    before = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        _connect(address)

    assert time.monotonic() - before < 0.1
    proxy.fault = Fault.NONE
    assert proxy.address == address
    _connect(address)


def test_no_connection_is_established_in_a_blackhole(proxy: FaultProxy) -> None:
    proxy.fault = Fault.BLACKHOLE

    with pytest.raises(TimeoutError):
        _connect(proxy.address)


def _connect(address: str) -> None:
    host, port = address.split(":")
    socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
