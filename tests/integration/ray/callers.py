"""Callers that go on while something happens to the cluster, and tell what came of their requests.

They do what protocols allow of any client, and no more. HTTP: a connection that is closed before a reply has begun may
be opened again and the request repeated where that is safe, which an Idempotency-Key makes it (RFC 9110, 9.2.2; RFC
9112, 9.3.1). gRPC: the library repeats by itself what a server has not begun on (GOAWAY).
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as triton

from tests.integration.process import wait_for

ATTEMPTS = 3
DOUBLED = (2,)


@dataclass(slots=True)
class Outcome:
    """What came of requests.

    Attributes:
        answered: rightly.
        repeated: of these, after their connection was closed on them.
        failed: others, as the caller saw them.
        longest_failed_s: that a caller of these waited.
        factors: what numbers were multiplied by, in the order of the answers.
        waits_s: that callers had until an answer, likewise.
    """

    answered: int = 0
    repeated: int = 0
    failed: list[str] = field(default_factory=list)
    longest_failed_s: float = 0.0
    factors: list[int] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    @property
    def longest_s(self) -> float:
        """That a caller waited for an answer."""
        return max(self.waits_s, default=0.0)

    def was_answered(self, x: Sequence[float], y: Sequence[float], factors: Collection[int], asked_s: float) -> None:
        """*y* came for *x*, asked at *asked_s* (`time.monotonic`), which is right for one of *factors*."""
        [factor] = [one for one in factors if list(y) == [one * v for v in x]]
        self.factors.append(factor)
        self.waits_s.append(time.monotonic() - asked_s)
        self.answered += 1

    def has_failed(self, how: str, asked_s: float) -> None:
        """What was asked at *asked_s* was not answered, or not rightly."""
        self.failed.append(how)
        self.longest_failed_s = max(self.longest_failed_s, time.monotonic() - asked_s)


class HttpCaller:
    """One connection at a time, kept as long as the server keeps it."""

    def __init__(self, url: str, deadline_s: float | None = None) -> None:
        self._where = urlsplit(url)
        self._headers = {"Content-Type": "application/json"}
        if deadline_s is not None:
            self._headers["Pointsman-Timeout-Ms"] = str(int(1000 * deadline_s))
        self._connection: HTTPConnection | None = None

    def ask(self, path: str, body: dict[str, Any], outcome: Outcome, status: int = 200) -> Any:
        """The reply to *body*, as JSON.

        Raises:
            ValueError: it is of another *status*.
            ConnectionError, HTTPException: there is none.
        """
        headers = {**self._headers, "Idempotency-Key": f'"{uuid.uuid4()}"'}
        for attempt in range(ATTEMPTS):
            if self._connection is None:
                self._connection = HTTPConnection(self._where.hostname or "", self._where.port, timeout=20)
            try:
                self._connection.request("POST", path, json.dumps(body), headers)
                response = self._connection.getresponse()
                data = response.read()
            except (ConnectionError, HTTPException):
                self.close()
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            if response.will_close:
                self.close()
            if response.status != status:
                raise ValueError(f"{response.status}: {data.decode()}")
            outcome.repeated += attempt > 0
            return json.loads(data)
        raise AssertionError

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def by_http(
    url: str,
    stop: threading.Event,
    outcome: Outcome,
    factors: Collection[int] = DOUBLED,
    deadline_s: float | None = None,
) -> None:
    """Have numbers multiplied until *stop*, each time within *deadline_s*."""
    caller, number = HttpCaller(url, deadline_s), 0
    while not stop.is_set():
        number += 1
        x = [float(number), 1.0]
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": x}]}
        asked_s = time.monotonic()
        try:
            reply = caller.ask("/v2/models/double/infer", body, outcome)
            outcome.was_answered(x, reply["outputs"][0]["data"], factors, asked_s)
        except Exception as error:
            outcome.has_failed(f"http: {error!r}", asked_s)
    caller.close()


def by_grpc(
    address: str,
    stop: threading.Event,
    outcome: Outcome,
    factors: Collection[int] = DOUBLED,
    retries: dict[str, Any] | None = None,
    deadline_s: float = 20.0,
) -> None:
    """As `by_http`; *retries* is the channel's service config."""
    number = 0
    config = None if retries is None else [("grpc.service_config", json.dumps(retries))]
    with triton.InferenceServerClient(address, channel_args=config) as client:
        while not stop.is_set():
            number += 1
            x = np.array([[number, 1.0]], np.float32)
            given = triton.InferInput("x", [1, 2], "FP32")
            given.set_data_from_numpy(x)
            asked_s = time.monotonic()
            try:
                reply = client.infer("double", [given], client_timeout=deadline_s)
                outcome.was_answered(x[0].tolist(), reply.as_numpy("y")[0].tolist(), factors, asked_s)
            except Exception as error:
                outcome.has_failed(f"grpc: {error}", asked_s)


@contextmanager
def calling(
    http: str, grpc: str, each: int = 2, factors: Collection[int] = DOUBLED, retries: dict[str, Any] | None = None
) -> Iterator[Outcome]:
    """Callers of both kinds, *each* of them, until the end of the block; *retries* as `by_grpc` has it."""
    stop, outcome = threading.Event(), Outcome()
    threads = [threading.Thread(target=by_http, args=(http, stop, outcome, factors)) for _ in range(each)]
    threads += [threading.Thread(target=by_grpc, args=(grpc, stop, outcome, factors, retries)) for _ in range(each)]
    for thread in threads:
        thread.start()
    try:
        yield outcome
    finally:
        stop.set()
        for thread in threads:
            with suppress(RuntimeError):
                thread.join(timeout=30)


def many_more(outcome: Outcome, requests: int = 100) -> None:
    """Wait until more than so many further requests have been answered."""
    before = outcome.answered
    wait_for(lambda: outcome.answered > before + requests)
