"""What each transport owes beyond single calls: where it listens, how it ends, and readers that are slow."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.grpc_edge import health, transport
from gateway.grpc_edge.calls import Call, CallServer, Offer, Streaming
from gateway.grpc_edge.on_grpcio import GrpcioListener
from gateway.grpc_edge.transport import Transport, chosen
from gateway.grpc_server import GrpcServer
from gateway.security import Authenticator, SecurityOptions
from pointsman_pb import rich_error_pb2
from tests.faults.raw_http2 import END_HEADERS, HEADERS, WINDOW_UPDATE, Http2, Stream, call_headers, frame, message
from tests.unit.gateway.grpc.conftest import Exchanges
from tests.unit.gateway.scripted import ScriptedService

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
EVERYBODY = Authenticator(SecurityOptions())
INSTALLED = find_spec(transport.PACKAGE) is not None


def a_request(script: str = "accept", count: int = 1) -> Any:
    tensor = {"name": "FP32", "datatype": "FP32", "shape": [1, count]}
    return service_pb2.ModelInferRequest(
        model_name="echo",
        inputs=[tensor],
        raw_input_contents=[np.arange(count, dtype=np.float32).tobytes()],
        parameters={"script": {"string_param": script}},
    )


async def echoed(address: str) -> str:
    async with aio.insecure_channel(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return str((await stub.ModelInfer(a_request(), timeout=10)).model_name)


# --- which ---


@pytest.mark.parametrize(
    ("wanted", "host", "found"),
    [
        (Transport.AUTO, "127.0.0.1", Transport.NATIVE if INSTALLED else Transport.GRPCIO),
        (Transport.AUTO, "::1", Transport.NATIVE if INSTALLED else Transport.GRPCIO),
        (Transport.AUTO, "localhost", Transport.NATIVE if INSTALLED else Transport.GRPCIO),
        (Transport.AUTO, "0.0.0.0", Transport.GRPCIO),
        (Transport.AUTO, "gateway.example", Transport.GRPCIO),
        (Transport.GRPCIO, "127.0.0.1", Transport.GRPCIO),
    ],
)
def test_native_is_chosen_where_only_this_machine_can_connect(wanted: Transport, host: str, found: Transport) -> None:
    assert chosen(wanted, host) is found


def test_without_its_package_native_is_refused_and_auto_is_grpcio(
    monkeypatch: pytest.MonkeyPatch, service: ScriptedService, exchanges: Exchanges
) -> None:
    monkeypatch.setattr(transport, "PACKAGE", "a_package_that_nobody_has")

    assert chosen(Transport.AUTO, "127.0.0.1") is Transport.GRPCIO
    with pytest.raises(ValueError, match="grpc_transport: native needs pygrpc-native, which is not installed"):
        GrpcServer(service, EVERYBODY, exchanges, transport=Transport.NATIVE)


async def test_a_native_server_that_others_can_reach_says_what_that_means(
    service: ScriptedService, exchanges: Exchanges, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(transport.PACKAGE)
    server = GrpcServer(service, EVERYBODY, exchanges, host="127.0.0.1.", transport=Transport.NATIVE)

    with pytest.raises(OSError, match="cannot listen on"):
        await server.__aenter__()

    assert "takes messages into memory before their size is known" in caplog.text


# --- where ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
async def test_it_listens_on_addresses_of_both_kinds_and_on_names(
    service: ScriptedService, exchanges: Exchanges, transport: Transport, host: str
) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with GrpcServer(service, EVERYBODY, exchanges, host=host, transport=transport) as server:
        assert await echoed(server.address) == "echo"


async def test_two_servers_share_a_port_where_both_say_so(
    service: ScriptedService, exchanges: Exchanges, transport: Transport
) -> None:
    async def enter(port: int, *, reuse_port: bool) -> GrpcServer:
        server = GrpcServer(service, EVERYBODY, exchanges, port=port, transport=transport, reuse_port=reuse_port)
        return await server.__aenter__()

    first = await enter(0, reuse_port=True)
    port = int(first.address.rpartition(":")[2])
    second = await enter(port, reuse_port=True)
    with pytest.raises(OSError, match="choose another port"):
        await enter(port, reuse_port=False)

    await first.drain(0.0)
    assert await echoed(second.address) == "echo"
    await second.drain(0.0)


async def test_a_port_can_be_taken_again_at_once(
    service: ScriptedService, exchanges: Exchanges, transport: Transport
) -> None:
    port = 0
    for _ in range(3):
        async with GrpcServer(service, EVERYBODY, exchanges, port=port, transport=transport) as server:
            port = int(server.address.rpartition(":")[2])
            assert await echoed(server.address) == "echo"


def found_in(folder: Path) -> dict[str, int]:
    """What is in *folder*, with its permissions."""
    return {found.name: found.stat().st_mode & 0o777 for found in folder.iterdir()}


async def test_a_server_that_ended_leaves_nothing_behind(
    service: ScriptedService,
    exchanges: Exchanges,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(transport.PACKAGE)
    folder = tmp_path_factory.mktemp("s")  # a short name, as that of a socket within it has to be one
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    async with GrpcServer(service, EVERYBODY, exchanges, transport=Transport.NATIVE) as server:
        assert list(found_in(folder).values()) == [0o700]
        assert await echoed(server.address) == "echo"

    assert found_in(folder) == {}
    assert "stopped" in repr(server)


async def test_a_folder_too_deep_for_a_socket_is_told_with_its_remedy(
    service: ScriptedService, exchanges: Exchanges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(transport.PACKAGE)
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))

    with pytest.raises(OSError, match="too long a name; set TMPDIR"):
        await GrpcServer(service, EVERYBODY, exchanges, transport=Transport.NATIVE).__aenter__()

    assert found_in(deep) == {}


async def test_a_port_whose_server_could_not_start_is_free_again(
    service: ScriptedService, exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(transport.PACKAGE)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

    async def fail(self: GrpcioListener) -> int:
        raise OSError("no")

    with monkeypatch.context() as broken:
        broken.setattr(GrpcioListener, "start", fail)
        with pytest.raises(OSError, match="cannot listen on 127"):
            await GrpcServer(service, EVERYBODY, exchanges, port=port, transport=Transport.NATIVE).__aenter__()

    async with GrpcServer(service, EVERYBODY, exchanges, port=port, transport=Transport.NATIVE) as server:
        assert await echoed(server.address) == "echo"


# --- how it ends ---


async def test_while_it_drains_new_calls_are_unavailable(
    server: GrpcServer, channel: Any, service: ScriptedService
) -> None:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    in_flight = stub.ModelInfer(a_request("hang"))
    await asyncio.wait_for(service.hanging.wait(), 5)
    draining = asyncio.create_task(server.drain(10.0))
    await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).code()  # ended: it drains

    with pytest.raises(aio.AioRpcError) as late:
        await stub.ModelInfer(a_request(), timeout=10)

    assert late.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(service.requests) == 1
    service.release.set()
    assert (await in_flight).model_name == "echo"
    await asyncio.wait_for(draining, 5)


async def test_callers_go_on_with_the_next_server_when_one_hands_over(
    service: ScriptedService, exchanges: Exchanges
) -> None:
    """Of grpcio, whose plain stop cancels some of their calls in nearly every run of this."""

    async def enter(port: int) -> GrpcServer:
        return await GrpcServer(
            service, EVERYBODY, exchanges, port=port, transport=Transport.GRPCIO, reuse_port=True
        ).__aenter__()

    serving = await enter(0)
    address, port = serving.address, int(serving.address.rpartition(":")[2])
    stop, told = threading.Event(), list[str]()
    callers = [threading.Thread(target=call_until, args=(address, stop, told)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(5):
        before, following = len(told), await enter(port)
        await serving.hand_over(5.0)
        serving = following
        while len(told) < before + 40:  # noqa: ASYNC110  # threads tell no event of this loop
            await asyncio.sleep(0.01)
    stop.set()
    for caller in callers:
        await asyncio.to_thread(caller.join, 20)
    await serving.drain(0.0)

    assert set(told) == {"echo"}


def call_until(address: str, stop: threading.Event, told: list[str]) -> None:
    """Call again and again, on a connection of one's own, and tell what comes."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        while not stop.is_set():
            try:
                told.append(infer(a_request(), timeout=20).model_name)
            except grpc.RpcError as error:
                told.append(str(error))


async def test_native_says_when_to_retry_while_it_drains(service: ScriptedService, exchanges: Exchanges) -> None:
    pytest.importorskip(transport.PACKAGE)
    server = await GrpcServer(service, EVERYBODY, exchanges, transport=Transport.NATIVE).__aenter__()
    async with aio.insecure_channel(server.address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        in_flight = stub.ModelInfer(a_request("hang"))
        await asyncio.wait_for(service.hanging.wait(), 5)
        draining = asyncio.create_task(server.drain(10.0))
        await asyncio.sleep(0)

        with pytest.raises(aio.AioRpcError) as late:
            await stub.ModelInfer(a_request(), timeout=10)

        service.release.set()
        await in_flight
        await draining
    assert late.value.details() == "this gateway is shutting down; call another"
    metadata = dict(late.value.trailing_metadata() or ())
    status = rich_error_pb2.RichError.FromString(bytes(metadata["grpc-status-details-bin"]))
    assert any(detail.type_url.endswith("RetryInfo") for detail in status.details)


async def test_what_is_not_done_in_time_is_ended_and_told_so(
    server: GrpcServer, channel: Any, service: ScriptedService, exchanges: Exchanges
) -> None:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    in_flight = stub.ModelInfer(a_request("hang"), timeout=30)
    await asyncio.wait_for(service.hanging.wait(), 5)

    await asyncio.wait_for(server.drain(0.1), 10)

    assert await in_flight.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert service.cancelled.is_set()
    assert exchanges.seen[-1].code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_reply_that_is_read_slowly_while_the_server_drains_arrives_whole(
    server: GrpcServer, service: ScriptedService
) -> None:
    request = a_request(count=200_000)
    begun, draining = threading.Event(), threading.Event()

    def read_slowly() -> Stream:
        with Http2(server.address) as connection:
            connection.send(frame(HEADERS, END_HEADERS, 1, call_headers(MODEL_INFER)))
            connection.send_body(1, message(request.SerializeToString()))
            connection.read_until(lambda: len(connection.stream(1).data) > 10_000)
            begun.set()
            draining.wait(10)
            stream, more = connection.stream(1), struct.pack(">I", 2048)
            while not stream.is_over and not connection.closed:
                had = len(stream.data)
                connection.send(frame(WINDOW_UPDATE, 0, 0, more), frame(WINDOW_UPDATE, 0, 1, more))
                connection.read_until(lambda had=had: len(stream.data) > had or stream.is_over)  # type: ignore[misc]
            return stream

    reading = asyncio.ensure_future(asyncio.to_thread(read_slowly))
    await asyncio.to_thread(begun.wait, 10)
    ending = asyncio.create_task(server.drain(20.0))
    await asyncio.sleep(0)
    draining.set()
    stream = await reading
    await asyncio.wait_for(ending, 10)

    assert stream.status == 0
    assert request.raw_input_contents[0] in stream.data


async def test_draining_twice_and_without_start_is_harmless(
    service: ScriptedService, exchanges: Exchanges, transport: Transport
) -> None:
    server = GrpcServer(service, EVERYBODY, exchanges, transport=transport)
    await server.drain(0.0)
    async with server:
        await server.drain(0.0)
        await server.drain(1.0)


# --- callers that leave, and readers that are slow ---


async def test_calls_that_are_cancelled_at_once_leave_nothing_behind(
    server: GrpcServer, channel: Any, service: ScriptedService, exchanges: Exchanges
) -> None:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    for _ in range(200):
        stub.ModelInfer(a_request("hang")).cancel()
    assert (await stub.ModelInfer(a_request(), timeout=10)).model_name == "echo"

    while service.at_once:
        exchanges.told.clear()
        await asyncio.wait_for(exchanges.told.wait(), 10)

    running = getattr(server._listener, "_running", {})
    assert len(running) == 0
    codes = [exchange.code for exchange in exchanges.seen]
    assert codes.count(grpc.StatusCode.OK) == 1
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


PIECE = "a" * (64 * 1024)
PIECES = 1000


async def test_a_slow_reader_holds_its_stream_up_and_nothing_else(exchanges: Exchanges, transport: Transport) -> None:
    written = read = most_ahead = 0

    async def many(call: Call, request: Any) -> AsyncIterator[Message]:
        nonlocal written
        while written < PIECES:
            written += 1
            yield health_pb2.HealthCheckRequest(service=PIECE)

    calls = CallServer(EVERYBODY, exchanges)
    offer = Offer(health.SERVICE, {"Watch": Streaming(health_pb2.HealthCheckRequest, many, role=None)}, "hint")
    listener: Any
    if transport is Transport.NATIVE:
        from gateway.grpc_edge.on_native import NativeListener as listener  # noqa: N813
    else:
        listener = GrpcioListener
    running = listener(calls, (offer,), "127.0.0.1:0", 1 << 20)
    port = await running.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
            stream = call(b"")
            while await stream.read() is not aio.EOF:
                read += 1
                most_ahead = max(most_ahead, written - read)
    finally:
        await running.stop(0.0)

    assert most_ahead < PIECES // 2
    assert (read, written) == (PIECES, PIECES)
    assert exchanges.seen[-1].code is grpc.StatusCode.OK
