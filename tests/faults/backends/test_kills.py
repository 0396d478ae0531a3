"""Servers that are killed, wedged and cut off while they work cost no request its answer, as long as others are well.

The servers are real: killed with SIGKILL, and started again on the same ports. How many seconds that takes bounds how
often it can be done; proxies that refuse and reset do what a kill does to connections, as often as one likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.conformance.triton import TritonProcess
from tests.faults.backends.fault import Fault
from tests.faults.backends.fault_proxy import Protocol, fault_proxy
from tests.faults.backends.killable import Killable, killables, wait_ready
from tests.faults.backends.load import CALLERS, Load, Outcome
from tests.faults.oracle import wait_for
from tests.integration.process import running

SERVERS = 4  # a start takes more than a second: with four, two are up whenever one is killed each second
KILLS = 8
CUTS = 8
DEADLINE_S = 3.0
CONFIG = """
models:
  dbl:
    backend: triton
    url: [{urls}]
    expose: true
    connect_timeout_s: 0.5
    replicas: {{eject_s: 1, max_eject_s: 2, ramp_s: 0, probe_every_s: 0.3, probe_timeout_s: 0.3}}
"""


@pytest.fixture(params=Protocol)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    found: Protocol = request.param
    return found


@pytest.fixture(scope="module")
def all_servers(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Killable]]:
    with killables(tmp_path_factory.mktemp("tritons"), repository, SERVERS) as found:
        yield found


@pytest.fixture
def servers(all_servers: list[Killable]) -> list[Killable]:
    """All of them, ready."""
    wait_ready(all_servers)
    return all_servers


def config_of(protocol: Protocol, addresses: Sequence[str]) -> str:
    return CONFIG.format(urls=", ".join(f"{protocol}://{address}" for address in addresses))


def addresses_of(protocol: Protocol, servers: Sequence[Killable]) -> list[str]:
    return [server.http if protocol is Protocol.HTTP else server.grpc for server in servers]


def every(interval_s: float, count: int) -> Iterator[int]:
    """0 to *count*, one each *interval_s* seconds; the pace is what is tested."""
    began = time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, began + i * interval_s - time.monotonic()))
        yield i


def assert_nearly_all_right(outcomes: list[Outcome], *, share: float = 0.999) -> None:
    """None is crossed, none late, and 99.9 % are answered."""
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    assert [outcome for outcome in outcomes if outcome.is_crossed] == []
    assert [outcome for outcome in outcomes if outcome.took_s > DEADLINE_S + 0.5] == []
    most = max((1 - share) * len(outcomes), 0 if share == 1 else CALLERS)  # callers that share a batch share its fate
    assert len(wrong) <= most, f"{len(wrong)} of {len(outcomes)} failed, such as {wrong[:5]}"


def test_a_kill_a_second_costs_fewer_than_one_request_in_a_thousand(
    tmp_path: Path, servers: list[Killable], protocol: Protocol
) -> None:
    with running(tmp_path, config_of(protocol, addresses_of(protocol, servers))) as gateway:
        with Load(gateway, protocol).asking(DEADLINE_S) as outcomes:
            wait_for(lambda: len(outcomes) >= 200)
            for i in every(1.0, KILLS):
                wait_for(partial(leaves_two, servers, servers[i % SERVERS]), within_s=60)
                servers[i % SERVERS].kill()
                servers[i % SERVERS].start()
        wait_ready(servers)

        assert_nearly_all_right(outcomes)
        with Load(gateway, protocol).asking(DEADLINE_S) as later:  # each works again
            wait_for(lambda: all(server.answered() > 0 for server in servers), within_s=25)
        assert_nearly_all_right(later, share=1.0)


def leaves_two(servers: list[Killable], victim: Killable) -> bool:
    """Whether *victim* is up, and two others are."""
    return victim.is_ready() and sum(server.is_ready() for server in servers) >= 3


def test_a_server_that_is_wedged_is_left_out_and_works_again_when_it_goes_on(
    tmp_path: Path, servers: list[Killable], protocol: Protocol
) -> None:
    """SIGSTOP: the kernel still takes connections and bytes for it."""
    one, other = servers[:2]
    with running(tmp_path, config_of(protocol, addresses_of(protocol, [one, other]))) as gateway:
        with Load(gateway, protocol).asking(DEADLINE_S) as outcomes:
            wait_for(lambda: len(outcomes) >= 200)
            stopped = len(outcomes)
            one.stop()
            try:
                wait_for(lambda: len(outcomes) >= stopped + 600 and any(o.took_s > 0.5 for o in outcomes[stopped:]))
            finally:
                one.go_on()
            before = one.answered()
            wait_for(lambda: one.answered() > before + 30, within_s=25)  # more than it had left to do

        assert_nearly_all_right(outcomes, share=1.0)
        assert len([outcome for outcome in outcomes if outcome.took_s > 0.9]) <= 12


def test_connections_that_are_cut_each_second_cost_fewer_than_one_request_in_a_thousand(
    tmp_path: Path, server: TritonProcess, protocol: Protocol
) -> None:
    address = server.http if protocol is Protocol.HTTP else server.grpc
    with ExitStack() as stack:
        proxies = [stack.enter_context(fault_proxy(protocol, address)) for _ in range(SERVERS)]
        gateway = stack.enter_context(running(tmp_path, config_of(protocol, [proxy.address for proxy in proxies])))
        with Load(gateway, protocol).asking(DEADLINE_S) as outcomes:
            wait_for(lambda: len(outcomes) >= 200)
            for i in every(1.0, CUTS):
                proxies[(i - 2) % SERVERS].fault = Fault.NONE  # so that two are well at any time
                proxies[i % SERVERS].fault = Fault.REFUSE
        assert_nearly_all_right(outcomes)
