"""Calls become idle times, and idle times say when a model is due."""

from __future__ import annotations

import math

from backends.warm.histogram import LEAST_SAMPLES, KeepAlive
from backends.warm.usage import Usage

RULE = KeepAlive()
LOAD_S = 5.0


def used_hourly(times: int) -> tuple[Usage, float]:
    usage, now = Usage(RULE, 0.0), 0.0
    for _ in range(times):
        now += 3600.0
        usage.began(now)
        usage.ended(now)
    return usage, now


def test_a_model_in_use_is_due_and_nothing_changes_by_itself() -> None:
    usage = Usage(RULE, 0.0)
    usage.began(1.0)

    assert usage.is_due(1e9, LOAD_S)
    assert usage.next_change_s(1.0, LOAD_S) == math.inf


def test_a_model_that_comes_on_the_hour_lingers_leaves_and_is_loaded_ahead() -> None:
    usage, last = used_hourly(LEAST_SAMPLES + 1)

    assert usage.is_due(last + 59.0, LOAD_S)
    leaves = usage.next_change_s(last + 1.0, LOAD_S)
    assert leaves == last + RULE.linger_s
    assert not usage.is_due(leaves, LOAD_S)
    returns = usage.next_change_s(leaves, LOAD_S)
    assert returns == last + usage.window.start_s - LOAD_S
    assert usage.is_due(returns + 1e-6, LOAD_S)
    gone = usage.next_change_s(returns + 1e-6, LOAD_S)
    assert not usage.is_due(gone + 1e-6, LOAD_S)
    assert usage.next_change_s(gone, LOAD_S) == math.inf


def test_a_model_of_which_little_is_known_is_kept_and_not_loaded_ahead() -> None:
    usage, last = used_hourly(2)

    assert usage.is_due(last + 300.0, LOAD_S)
    assert not usage.is_due(last + 300.0, LOAD_S, is_there=False)


def test_calls_side_by_side_are_one_use() -> None:
    usage = Usage(RULE, 0.0)

    usage.began(10.0)
    usage.began(11.0)
    usage.ended(12.0)

    assert usage.calls == 1
    assert usage.idle_s(13.0) == 0.0
    usage.ended(14.0)
    assert usage.idle_s(15.0) == 1.0


def test_whoever_tries_again_after_a_load_is_no_second_use() -> None:
    usage, now = Usage(RULE, 0.0), 0.0
    for _ in range(LEAST_SAMPLES + 1):
        now += 3600.0
        usage.wanted(now)
        usage.wanted(now + 2.0)
        usage.began(now + 100.0)
        usage.ended(now + 100.0)

    assert usage.window.start_s > 2000.0  # the 100 s until the second try are not among the idle times
