"""Callers of a gateway whose every request has its own numbers, so that another's answer shows."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TypeAlias

import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.faults.backends.fault_proxy import Protocol
from tests.integration.process import GatewayProcess

CALLERS = 8
PATIENCE_S = 30.0
"""What a caller waits for a gateway that misses its deadline, which is a failure of the test."""

Numbers: TypeAlias = NDArray[np.float32]

_nonces = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        status: "" where it was answered; the HTTP status or the gRPC code otherwise.
        is_right: it was answered, with twice its own numbers.
        took_s: from the call to its end.
        ended_s: on the monotonic clock.
    """

    status: str
    message: str
    is_right: bool
    took_s: float
    ended_s: float

    @property
    def is_crossed(self) -> bool:
        """It was answered with what is not its answer."""
        return not self.status and not self.is_right


class Caller:
    """One client over a connection of its own; one thread's.

    Over HTTP it is the standard library's: tritonclient's makes an event loop for every thread that ever used it, and
    keeps them all.
    """

    def __init__(self, gateway: GatewayProcess, protocol: Protocol) -> None:
        self._double = self._double_by_http if protocol is Protocol.HTTP else self._double_by_grpc
        self._http = HTTPConnection(gateway.http.removeprefix("http://"), timeout=PATIENCE_S)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._grpc = triton_grpc.InferenceServerClient(gateway.grpc, channel_args=options)

    def ask(self, model: str, deadline_s: float) -> Outcome:
        """Have numbers doubled that nobody else asks for, within *deadline_s* seconds of the gateway's time."""
        sent = np.arange(16, dtype=np.float32) + np.float32(next(_nonces) * 16)
        began = time.monotonic()
        got = self._double(model, sent, int(deadline_s * 1e6))
        ended = time.monotonic()
        if isinstance(got, _Refusal):
            return Outcome(got.status, got.message, False, ended - began, ended)
        return Outcome("", "", np.array_equal(got, sent * 2), ended - began, ended)

    def close(self) -> None:
        self._http.close()
        self._grpc.close()

    def _double_by_http(self, model: str, sent: Numbers, timeout_us: int) -> Numbers | _Refusal:
        tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": sent.tolist()}
        body = json.dumps({"inputs": [tensor], "parameters": {"timeout": timeout_us}})
        self._http.request("POST", f"/v2/models/{model}/infer", body)
        reply = self._http.getresponse()
        said = json.loads(reply.read())
        if reply.status != 200:
            return _Refusal(str(reply.status), said["error"])
        (output,) = said["outputs"]
        return np.array(output["data"], np.float32)

    def _double_by_grpc(self, model: str, sent: Numbers, timeout_us: int) -> Numbers | _Refusal:
        tensor = triton_grpc.InferInput("x", [1, 16], "FP32")
        tensor.set_data_from_numpy(sent[np.newaxis])
        try:
            reply = self._grpc.infer(model, [tensor], timeout=timeout_us, client_timeout=PATIENCE_S)
        except InferenceServerException as error:
            return _Refusal(str(error.status()).removeprefix("StatusCode."), error.message())
        got: Numbers = reply.as_numpy("y").reshape(-1)
        return got


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class Load:
    """Requests for *model*, by several callers at once, each of which asks one after the other."""

    gateway: GatewayProcess
    protocol: Protocol
    model: str = "dbl"

    def ask(self, count: int, deadline_s: float) -> list[Outcome]:
        """The outcomes of *count* requests."""
        left = iter(range(count))  # shared: `next` of a range is atomic
        found: list[Outcome] = []
        self._ask_while(lambda: next(left, None) is not None, deadline_s, found)
        return found

    @contextmanager
    def asking(self, deadline_s: float) -> Iterator[list[Outcome]]:
        """Ask as long as the context lasts; the list of outcomes grows, and is whole once it is left."""
        found: list[Outcome] = []
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._ask_while, lambda: not ended.is_set(), deadline_s, found)
            try:
                yield found
            finally:
                ended.set()
                running.result()

    def _ask_while(self, goes_on: Callable[[], bool], deadline_s: float, found: list[Outcome]) -> None:
        def call() -> None:
            caller = Caller(self.gateway, self.protocol)
            try:
                while goes_on():
                    found.append(caller.ask(self.model, deadline_s))
            finally:
                caller.close()

        with ThreadPoolExecutor(CALLERS) as pool:
            for done in [pool.submit(call) for _ in range(CALLERS)]:
                done.result()
