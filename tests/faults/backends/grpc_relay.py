"""What a server can do wrong in gRPC: a proxy of unary calls as bytes, which spoils those of `ModelInfer`.

It is grpcio's server of threads, since its asyncio one shares one poller with every other loop of the process. Neither
deadlines nor cancellations go on to the server: a Triton 2.51 can end over them, which is not what is tested.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from tests.faults.backends.answers import LIES, from_grpc, to_grpc
from tests.faults.backends.fault import BURST, OVERSIZED_BYTES, PAUSE, Fault

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_THREADS = 256  # calls that hang keep theirs
_LONGEST_S = 60.0
_MALFORMED = (b"\xff" * 20, b"\x08", b"\x2a\x7f", b"\x12\x02\xff\xfe", b"")
_UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

# Any, throughout: grpcio's stubs know no untyped messages.


class GrpcRelay(grpc.GenericRpcHandler):
    """The proxy; see `HttpRelay`."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.fault = Fault.NONE
        self.seen = 0
        self.slow_s = 0.0
        self._lock = threading.Lock()
        self._count = itertools.count()
        self._previous: bytes | None = None
        host, port = upstream
        options = (*_UNLIMITED, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500))
        self._channel = grpc.insecure_channel(f"{host}:{port}", options)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS), [self], options=(*_UNLIMITED, ("grpc.so_reuseport", 0))
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._spoil: Mapping[Fault, Callable[[Any, bytes], bytes]] = {
            Fault.HANG: self._hang,
            Fault.ERRORS: self._err,
            Fault.MODEL_ERRORS: self._err_as_a_model,
            Fault.MALFORMED: self._malform,
            Fault.OVERSIZED: lambda context, reply: bytes(OVERSIZED_BYTES),
            Fault.WRONG: self._lie,
            Fault.SWAPPED: self._swap,
            Fault.SLOW: self._delay,
        }

    def start(self) -> None:
        """Listen."""
        self._server.start()

    def close(self) -> None:
        """Listen no more, and end every call."""
        self._server.stop(0).wait(5)
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """How calls of a method are handled; every method is known."""
        method: str = details.method
        call: Any = self._channel.unary_unary(method)

        def handle(request: bytes, context: Any) -> bytes:
            return self._relay(call, request, context, is_inference=method == _INFER)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _relay(self, call: Any, request: bytes, context: Any, *, is_inference: bool) -> bytes:
        if is_inference:
            with self._lock:
                self.seen += 1
        try:
            reply: bytes = call(request, timeout=_LONGEST_S, metadata=_passed_on(context))
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if not is_inference:
            return reply
        spoil = self._spoil.get(self.fault)
        return reply if spoil is None else spoil(context, reply)

    def _hang(self, context: Any, reply: bytes) -> bytes:
        context.send_initial_metadata(())
        left = threading.Event()
        if context.add_callback(left.set):
            left.wait()
        return reply

    def _err(self, context: Any, reply: bytes) -> bytes:
        if next(self._count) % (BURST + PAUSE) < BURST:
            _abort(context, grpc.StatusCode.UNAVAILABLE, "upstream 10.1.2.3 has failed")
        return reply

    def _err_as_a_model(self, context: Any, reply: bytes) -> bytes:
        _abort(context, grpc.StatusCode.INTERNAL, "CUDA error: an illegal memory access was encountered")

    def _malform(self, context: Any, reply: bytes) -> bytes:
        return _MALFORMED[next(self._count) % len(_MALFORMED)]

    def _lie(self, context: Any, reply: bytes) -> bytes:
        return to_grpc(LIES[next(self._count) % len(LIES)](from_grpc(reply)))

    def _swap(self, context: Any, reply: bytes) -> bytes:
        with self._lock:
            others, self._previous = self._previous, reply
        return others or reply

    def _delay(self, context: Any, reply: bytes) -> bytes:
        time.sleep(self.slow_s)  # which is the fault
        return reply


def _abort(context: Any, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort returned")


def _passed_on(context: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (name, value) for name, value in context.invocation_metadata() if not name.startswith(("grpc-", "user-agent"))
    )
