"""A backend that fails in any of eight ways fails no request while another is well, and misleads none when none is.

A gateway has two replicas of a model, each a real Triton's behind a proxy that fails as it is told to. Of every fault:
with one replica at fault, every request is answered, and with its own answer; the replica at fault is left out, and
retries stay few. With both, every request ends in time, in an error that says nothing of what is inside. Without any,
all is as before.

Every fault has a model of its own, with two proxies of its own, so that none starts with what another left behind in
budgets, estimates and counts. All of them are one gateway's: what breaks it, breaks the tests that follow.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest

from tests.conformance.triton import TritonProcess
from tests.faults.backends.fault import Fault
from tests.faults.backends.fault_proxy import FaultProxy, Protocol, fault_proxy
from tests.faults.backends.load import CALLERS, Load, Outcome
from tests.faults.oracle import assert_no_growth, assert_no_stall, wait_for
from tests.integration.process import GatewayProcess, running

REPLICAS = {"eject_s": 0.5, "max_eject_s": 1, "ramp_s": 0, "probe_every_s": 0.5, "probe_timeout_s": 0.3}
MODEL = {"backend": "triton", "model": "dbl", "expose": True, "connect_timeout_s": 0.5, "max_reply_bytes": 1_000_000}
DEADLINE_S = 3.0
SLACK_S = 0.5
LOAD = 300
FEWEST_RETRIES = 10  # in ten seconds, however few the calls

REFUSALS = {
    Protocol.HTTP: {"502", "503", "504"},
    Protocol.GRPC: {"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"},  # INTERNAL: what 502 is there
}
INTERNAL = re.compile(r"127\.0\.0\.1|10\.1\.2\.3|:\d{4,5}|Traceback|Error\(|[Ee]rrno|\.py|grpc\.|CUDA|httptools|<html")
FAULTS = [fault for fault in Fault if fault not in (Fault.NONE, Fault.SLOW, Fault.MODEL_ERRORS)]
SILENT = {Fault.BLACKHOLE, Fault.HANG, Fault.DRIP}


@dataclass(frozen=True, slots=True)
class Cell:
    """A model, and what stands for its two replicas."""

    gateway: GatewayProcess
    load: Load
    one: FaultProxy
    other: FaultProxy

    def ask(self, count: int, deadline_s: float = DEADLINE_S) -> list[Outcome]:
        return self.load.ask(count, deadline_s)

    def fail(self, fault: Fault, *proxies: FaultProxy) -> None:
        for proxy in proxies:
            proxy.fault = fault

    def warm_up(self) -> None:
        """Until both replicas are in use, and it is known what they take."""
        seen = self.one.seen, self.other.seen
        wait_for(
            lambda: all_right(self.ask(20)) and self.one.seen >= seen[0] + 20 and self.other.seen >= seen[1] + 20,
            within_s=30,
        )


def all_right(outcomes: list[Outcome]) -> bool:
    return all(outcome.is_right for outcome in outcomes)


@pytest.fixture(scope="module", params=Protocol)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    found: Protocol = request.param
    return found


@pytest.fixture(scope="module")
def cells(
    server: TritonProcess, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Fault, Cell]]:
    """For each fault its own."""
    upstream = server.http if protocol is Protocol.HTTP else server.grpc
    with ExitStack() as stack:
        proxies = {
            fault: [stack.enter_context(fault_proxy(protocol, upstream)) for _ in range(2)]
            for fault in Fault
            if fault is not Fault.NONE
        }
        models = {
            f"dbl_{fault}": {**MODEL, "url": [f"{protocol}://{proxy.address}" for proxy in pair], "replicas": REPLICAS}
            for fault, pair in proxies.items()
        }
        folder = tmp_path_factory.mktemp("gateway")
        gateway = stack.enter_context(running(folder, json.dumps({"models": models})))
        yield {fault: Cell(gateway, Load(gateway, protocol, f"dbl_{fault}"), *pair) for fault, pair in proxies.items()}
        log = "".join(gateway.log)
        assert "Traceback" not in log
        assert "internal error" not in log
        assert "This is a bug" not in log
        assert "never retrieved" not in log


@pytest.mark.parametrize("fault", FAULTS)
def test_a_backend_that_fails_is_left_out_and_no_request_fails(cells: Mapping[Fault, Cell], fault: Fault) -> None:
    cell = cells[fault]
    cell.warm_up()
    cell.fail(fault, cell.one)
    before = cell.one.seen, cell.other.seen

    first = cell.ask(LOAD)
    attempts, calls = cell.one.seen - before[0], cell.other.seen - before[1]
    second = cell.ask(LOAD)

    assert [outcome for outcome in first + second if not outcome.is_right] == []
    assert attempts <= max(FEWEST_RETRIES, 0.1 * calls), f"{attempts} attempts for {calls} calls"
    # tried again when its time is over, and taken back in between two bursts
    assert cell.one.seen - before[0] - attempts <= (10 if fault is Fault.ERRORS else 4)
    trials = cell.one.seen - before[0] - attempts  # of a batch each, which at most all callers are in
    waited = len([outcome for outcome in second if outcome.took_s > 0.9])
    assert waited <= CALLERS * max(1, trials), "calls wait for a replica that is out"
    # one that was silent counts as slow, and so waits for calls, for longer than this test goes on
    assert_recovers(cell, *(() if fault in SILENT else (cell.one,)))


@pytest.mark.parametrize("fault", FAULTS)
def test_when_all_backends_fail_requests_are_refused_in_time_with_nothing_internal(
    cells: Mapping[Fault, Cell], protocol: Protocol, fault: Fault
) -> None:
    deadline_s = 0.7
    cell = cells[fault]
    cell.fail(fault, cell.one, cell.other)

    outcomes = cell.ask(3 * CALLERS, deadline_s)

    assert [outcome for outcome in outcomes if outcome.is_crossed] == []
    refused = [outcome for outcome in outcomes if outcome.status]
    if fault not in (Fault.ERRORS, Fault.SWAPPED):  # bursts end, and the first has nothing to be swapped with
        assert len(refused) == len(outcomes)
    assert refused != []
    assert {outcome.status for outcome in refused} <= REFUSALS[protocol]
    assert [outcome for outcome in refused if INTERNAL.search(outcome.message)] == []
    assert all("dbl" in outcome.message for outcome in refused)
    assert [outcome for outcome in outcomes if outcome.took_s > deadline_s + SLACK_S] == []
    assert_recovers(cell)


def assert_recovers(cell: Cell, *used_again: FaultProxy) -> None:
    """When the fault is over, requests are answered, and *used_again* are."""
    cell.fail(Fault.NONE, cell.one, cell.other)
    wait_for(lambda: all_right(cell.ask(CALLERS)), within_s=15)
    before = [proxy.seen for proxy in used_again]
    wait_for(
        lambda: (
            all_right(cell.ask(20))
            and all(proxy.seen >= seen + 3 for proxy, seen in zip(used_again, before, strict=True))
        ),
        within_s=15,
    )


def test_a_backend_whose_model_fails_on_everything_is_left_out_and_no_request_fails(
    cells: Mapping[Fault, Cell],
) -> None:
    """A GPU that is lost looks so: Triton is live and ready, and answers every inference with 500 and CUDA's error."""
    cell = cells[Fault.MODEL_ERRORS]
    cell.warm_up()
    cell.fail(Fault.MODEL_ERRORS, cell.one)

    outcomes = cell.ask(LOAD)

    assert [outcome for outcome in outcomes if not outcome.is_right] == []


def test_a_backend_that_is_twenty_times_slower_is_left_out_while_its_health_is_green(
    cells: Mapping[Fault, Cell],
) -> None:
    cell = cells[Fault.SLOW]
    cell.warm_up()
    usual_s = statistics.median(outcome.took_s for outcome in cell.ask(LOAD))
    cell.one.slow_down(20 * usual_s)
    cell.fail(Fault.SLOW, cell.one)
    before = cell.one.seen, cell.other.seen

    outcomes = cell.ask(LOAD)
    while_in, calls = cell.one.seen - before[0], cell.other.seen - before[1]
    later = cell.ask(LOAD)

    assert [outcome for outcome in outcomes + later if not outcome.is_right] == []
    assert while_in <= 0.2 * (while_in + calls), f"{while_in} of {while_in + calls} calls went to it"
    assert cell.one.seen - before[0] - while_in <= 4
    assert statistics.median(outcome.took_s for outcome in later) < 5 * usual_s
    assert_recovers(cell)


def test_backends_that_are_all_too_slow_for_the_deadline_are_504_in_time(cells: Mapping[Fault, Cell]) -> None:
    cell = cells[Fault.SLOW]
    for proxy in (cell.one, cell.other):
        proxy.slow_down(1.0)
    cell.fail(Fault.SLOW, cell.one, cell.other)

    outcomes = cell.ask(2 * CALLERS, deadline_s=0.5)

    assert [outcome for outcome in outcomes if outcome.is_crossed] == []
    assert {outcome.status for outcome in outcomes} <= {"503", "504", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert [outcome for outcome in outcomes if outcome.took_s > 0.5 + SLACK_S] == []
    assert_recovers(cell)


def test_replies_that_nobody_can_want_take_no_memory(cells: Mapping[Fault, Cell]) -> None:
    cell = cells[Fault.OVERSIZED]
    process = psutil.Process(cell.gateway.process.pid)
    before = process.memory_info().rss
    cell.fail(Fault.OVERSIZED, cell.one, cell.other)

    cell.ask(200, 1.0)

    assert process.memory_info().rss - before < 48 << 20  # the replies of one second are more
    assert_no_growth(cell.gateway, lambda times: ask_only(cell, times), times=150)
    assert_recovers(cell)


@pytest.mark.parametrize("fault", [Fault.WRONG, Fault.MALFORMED])
def test_nonsense_does_not_stall_the_event_loop(cells: Mapping[Fault, Cell], fault: Fault) -> None:
    cell = cells[fault]
    cell.fail(fault, cell.one, cell.other)

    assert_no_stall(cell.gateway, lambda: cell.ask(20, 1.0))


def ask_only(cell: Cell, times: int) -> None:
    """Ask, whatever becomes of it."""
    cell.ask(times, 1.0)
