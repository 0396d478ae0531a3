"""What one gateway promises of answers, people and tritonclient, asked of two that share a store on PostgreSQL.

The tests are those of one gateway: each reply may come from either replica, and whatever follows from the other. Then
they are killed again and again.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import pytest

from gateway.store import Postgres
from gateway.store.contract import KEY_LEASE_S
from tests.integration import test_tritonclient, test_v1
from tests.integration.process import wait_for
from tests.integration.ray.clusters import GATEWAY, Cluster, shared_config
from tests.integration.test_v1 import UNSURE, call
from tests.postgres import PostgresServer

_COUNTS_OF_ONE = {
    "test_metrics_tell_what_happened",
    "test_invented_names_make_no_new_series",
    "test_statistics_grow_by_what_was_answered",
}
"""What they look at is counted by each replica for itself."""

globals().update(
    (name, test)
    for module in (test_v1, test_tritonclient)
    for name, test in vars(module).items()
    if name.startswith("test_") and name not in _COUNTS_OF_ONE and "gateway" in inspect.signature(test).parameters
)

KILLS = int(os.environ.get("POINTSMAN_CLUSTER_KILLS", "3"))
_GIVE_UP_S = KEY_LEASE_S + 30.0  # a key that a killed gateway held is free after its lease at the latest
_WHOLE_S = 60.0
_AWAY_S = 3.0


@pytest.fixture(scope="module")
def gateway(shared: Cluster, postgres_database: tuple[Postgres, str]) -> Cluster:
    """Two replicas, on `process.CONFIG`."""
    shared.serve(shared_config(postgres_database[0]))
    return shared


@dataclass(frozen=True, slots=True)
class Reviews:
    """The reviews of a store on PostgreSQL."""

    server: PostgresServer
    database: str

    def count(self) -> int:
        """How many there are."""
        ((found,),) = self.server.execute("SELECT count(*) FROM reviews", self.database)
        return int(found)


@pytest.fixture
def reviews(postgres_server: PostgresServer, postgres_database: tuple[Postgres, str]) -> Reviews:
    return Reviews(postgres_server, postgres_database[1])


@dataclass(slots=True)
class Acknowledged:
    """What callers were told.

    Attributes:
        answers: ids, by the key of their request.
        statuses: of replies.
        broken: connections that ended without a reply.
        given_up: keys of requests that were not acknowledged in time.
    """

    answers: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    given_up: list[str] = field(default_factory=list)

    def reaches(self, answers: int) -> bool:
        """Whether so many have been acknowledged."""
        return len(self.answers) >= answers


def _deferring(url: str, stop: threading.Event, told: Acknowledged) -> None:
    """Ask for people again and again; what had no reply, or was refused, is repeated by its key."""
    where = urlsplit(url)
    while not stop.is_set():
        key, until = f'"{uuid.uuid4()}"', time.monotonic() + _GIVE_UP_S
        while key not in told.answers:
            connection = HTTPConnection(where.hostname or "", where.port, timeout=20)
            try:
                headers = {"Content-Type": "text/plain", "Idempotency-Key": key}
                connection.request("POST", "/v1/routes/words:decide", UNSURE, headers)
                reply = connection.getresponse()
                body = json.loads(reply.read())
            except (OSError, HTTPException):
                told.broken += 1
            else:
                told.statuses[reply.status] += 1
                if reply.status == 202:
                    told.answers[key] = body["answer_id"]
                    break
            finally:
                connection.close()
            time.sleep(0.05)
            if time.monotonic() > until:
                told.given_up.append(key)
                return


@contextmanager
def _deferrals(url: str) -> Iterator[Acknowledged]:
    """Four callers that ask for people until the end of the block."""
    stop, told = threading.Event(), Acknowledged()
    callers = [threading.Thread(target=_deferring, args=(url, stop, told)) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield told
    finally:
        stop.set()
        for caller in callers:
            caller.join(timeout=_GIVE_UP_S + 30)


def test_nothing_acknowledged_is_lost_or_doubled_while_gateways_are_killed(gateway: Cluster, reviews: Reviews) -> None:
    before = reviews.count()
    with _deferrals(gateway.http) as told:
        for _ in range(KILLS):
            wait_for(partial(told.reaches, len(told.answers) + 20))
            victim = min(gateway.replicas(GATEWAY))
            os.kill(victim, signal.SIGKILL)
            wait_for(partial(_is_gone, gateway, victim))
            wait_for(lambda: _is_whole(gateway), _WHOLE_S)

    # 409: the first request with this key had not ended, as far as is known
    _check_kept(gateway, told, reviews.count() - before, {202, 409})


def test_nothing_acknowledged_is_lost_or_doubled_while_the_database_comes_and_goes(
    gateway: Cluster, reviews: Reviews, postgres_server: PostgresServer
) -> None:
    before = reviews.count()
    with _deferrals(gateway.http) as told:
        for how in (signal.SIGINT, signal.SIGQUIT):
            wait_for(partial(told.reaches, len(told.answers) + 20))
            postgres_server.stop(how)
            time.sleep(_AWAY_S)
            postgres_server.start()
        wait_for(partial(told.reaches, len(told.answers) + 20))

    _check_kept(gateway, told, reviews.count() - before, {202, 409, 503})


def _check_kept(gateway: Cluster, told: Acknowledged, reviews: int, statuses: set[int]) -> None:
    """What was acknowledged is there, once, at either replica."""
    print(f"{len(told.answers)} handed over, replies {dict(told.statuses)}, {told.broken} connections broken")
    assert told.given_up == []
    assert set(told.statuses) <= statuses
    assert len(set(told.answers.values())) == len(told.answers) == reviews
    for key, answer_id in told.answers.items():
        again = call(f"{gateway.http}/v1/routes/words:decide", UNSURE.encode(), Idempotency_Key=key)
        assert (again.status, again.body["answer_id"]) == (202, answer_id)
    for address in gateway.targets():
        for answer_id in [*told.answers.values()][-20:]:
            assert call(f"http://{address}/v1/answers/{answer_id}").status == 202


def _is_gone(cluster: Cluster, replica: int) -> bool:
    return replica not in cluster.replicas(GATEWAY)


def _is_whole(cluster: Cluster) -> bool:
    """Whether both replicas answer; one that was killed is among the targets until the next has started."""
    if not len(cluster.replicas(GATEWAY)) == len(cluster.targets()) == 2:
        return False
    try:
        return all(call(f"http://{address}/metrics").status == 200 for address in cluster.targets())
    except OSError:
        return False
