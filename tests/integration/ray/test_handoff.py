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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import psutil
import pytest

from gateway.store import Postgres
from gateway.store.contract import KEY_LEASE_S
from tests.integration import test_tritonclient, test_v1
from tests.integration.process import wait_for
from tests.integration.ray.clusters import GATEWAY, Cluster, shared_config
from tests.integration.test_v1 import UNSURE, Reply, call
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
_DECIDE = "/v1/routes/words:decide"
_LATE = "fast=0.5@1 strong=0.6:b"
"""As `UNSURE`, after a second."""


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

    def holds(self, key: str) -> bool:
        """Whether a gateway has *key* and works on its answer."""
        where = f"state = 'in_progress' AND key = '{key}'"
        ((found,),) = self.server.execute(f"SELECT count(*) FROM idempotency_keys WHERE {where}", self.database)
        return bool(found)

    def end_leases(self) -> None:
        """As if all that are held had been held for too long."""
        self.server.execute("UPDATE idempotency_keys SET lease_until_s = 0 WHERE lease_until_s > 0", self.database)


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
                connection.request("POST", _DECIDE, UNSURE, headers)
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


def test_a_gateway_that_was_paused_for_longer_than_its_lease_does_not_answer_a_second_time(
    gateway: Cluster, reviews: Reviews
) -> None:
    """As a virtual machine is that is moved: it goes on where it was, with a key that another one has by then."""
    paused, other = sorted(gateway.targets())
    before, key = reviews.count(), str(uuid.uuid4())

    def ask(address: str) -> Reply:
        return call(f"http://{address}{_DECIDE}", _LATE.encode(), Idempotency_Key=f'"{key}"')

    with ThreadPoolExecutor() as threads:
        first = threads.submit(ask, paused)
        wait_for(lambda: reviews.holds(key))
        process = _process_at(paused)
        os.kill(process, signal.SIGSTOP)
        try:
            reviews.end_leases()
            repeated = ask(other)
        finally:
            os.kill(process, signal.SIGCONT)
        late = first.result()
    again = [ask(address) for address in (paused, other)]

    assert repeated.status == 202
    assert late.status == 409
    assert "repeat it to get its answer" in late.body["error"]
    assert {(reply.status, reply.body["answer_id"]) for reply in again} == {(202, repeated.body["answer_id"])}
    assert reviews.count() == before + 1
    wait_for(lambda: _is_whole(gateway))


def _process_at(address: str) -> int:
    """The one that listens at *address*."""
    port = int(address.rsplit(":", 1)[1])
    [found] = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    assert found is not None
    return found


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
        again = call(f"{gateway.http}{_DECIDE}", UNSURE.encode(), Idempotency_Key=key)
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
