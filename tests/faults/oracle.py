"""What must hold after whatever a client sent: the gateway serves, its memory and its event loop are as before."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tests.integration.process import GatewayProcess

CANARY = "pm-canary-5ecre7"
"""Stands in inputs, names, headers, keys and paths; must be nowhere but in the reply to whoever sent it."""

STALL_S = 0.1


def silent_about_the_canary(process: GatewayProcess) -> None:
    """End *process*: neither its log nor its metrics hold what was sent, and nothing went wrong inside."""
    metrics = metrics_of(process)
    process.terminate()
    log = "".join(process.log)
    assert [line for line in process.log if CANARY in line] == []
    assert CANARY not in metrics
    assert "Traceback" not in log
    assert "internal error" not in log


def metrics_of(server: GatewayProcess) -> str:
    with urllib.request.urlopen(f"{server.control}/metrics", timeout=10) as response:
        return str(response.read().decode())


def total(server: GatewayProcess, pattern: str) -> float:
    """The sum of all series that *pattern* matches."""
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", metrics_of(server), re.MULTILINE))


def decisions(server: GatewayProcess) -> float:
    """Requests that any model has worked for."""
    return total(server, r"pointsman_stage_duration_seconds_count\{.*\}")


def series(server: GatewayProcess) -> set[str]:
    """The names and labels of all metrics."""
    return {line.rsplit(" ", 1)[0] for line in metrics_of(server).splitlines() if not line.startswith("#")}


def wait_for(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def assert_no_stall(server: GatewayProcess, action: Callable[[], object]) -> None:
    """Fail if *action* makes the event loop late.

    A stall that it makes comes every time, one of a busy machine does not: tries before which the loop was late by
    itself say nothing, and of the others one without a stall clears the action.
    """
    stalls = 0
    for _ in range(40):
        if late_probes(server, lambda: None):
            continue
        if not late_probes(server, action):
            return
        stalls += 1
        if stalls == 8:
            raise AssertionError(f"the event loop was over {STALL_S} s late in each of {stalls} tries")
    pytest.skip(f"this machine stalls by itself: {40 - stalls} of 40 tries said nothing")


def late_probes(server: GatewayProcess, action: Callable[[], object]) -> float:
    """How many of the probes around *action* found the event loop more than `STALL_S` late."""
    late = r'pointsman_event_loop_lag_seconds_bucket\{le="0.1"\}'
    probes = r"pointsman_event_loop_lag_seconds_count"
    before = total(server, probes) - total(server, late)
    action()
    seen = total(server, probes)
    wait_for(lambda: total(server, probes) >= seen + 2)  # the probe that it held up
    return total(server, probes) - total(server, late) - before


def assert_no_growth(server: GatewayProcess, send: Callable[[int], None], times: int = 100) -> None:
    """Fail if memory grows by over 1 MiB in each of some rounds: what leaks does, an allocator's reserve does not."""
    process = psutil.Process(server.process.pid)
    send(times)
    growth = []
    for _ in range(4):
        before = process.memory_info().rss
        send(times)
        growth.append(process.memory_info().rss - before)
        if growth[-1] <= (1 << 20) * times // 100:
            return
    raise AssertionError(f"memory grew by {growth} bytes in rounds of {times}")
