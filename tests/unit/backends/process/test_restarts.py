"""When workers are started again."""

from __future__ import annotations

from backends.process.restarts import Restarts


def test_a_worker_that_does_not_start_is_tried_less_and_less_often_until_one_does() -> None:
    restarts = Restarts()
    delays = [restarts.delay_s(0.0, 0.0)]
    for _ in range(10):
        restarts.failed()
        delays.append(restarts.delay_s(0.0, 0.0))

    assert delays[:4] == [0.0, 0.25, 0.5, 1.0]
    assert delays[-1] == 30.0
    assert restarts.is_hopeless
    restarts.started()
    assert restarts.delay_s(0.0, 0.0) == 0.0
    assert not restarts.is_hopeless


def test_the_deaths_that_it_takes_to_find_a_poisonous_item_are_replaced_at_once() -> None:
    restarts = Restarts()

    for _ in range(11):  # 2 log2 512 calls, half of which die, and the whole batch
        assert restarts.delay_s(0.0, 0.0) == 0.0
        restarts.died(0.0)


def test_a_worker_that_dies_over_and_over_waits_and_is_forgiven_with_time() -> None:
    restarts = Restarts()
    for _ in range(30):
        restarts.died(0.0)

    assert restarts.delay_s(0.0, 0.0) == 30.0
    assert 0.0 < restarts.delay_s(20.0, 0.0) < 30.0
    assert restarts.delay_s(60.0, 0.0) == 0.0


def test_jitter_takes_off_up_to_half() -> None:
    restarts = Restarts()
    restarts.failed()

    assert restarts.delay_s(0.0, 1.0) == restarts.delay_s(0.0, 0.0) / 2


def test_a_very_long_row_of_failures_is_a_number_still() -> None:
    restarts = Restarts()
    for _ in range(100_000):
        restarts.failed()
        restarts.died(0.0)

    assert restarts.delay_s(0.0, 0.0) == 30.0
