import math

import pytest

from batching.options import BatchingOptions


def test_options_have_sound_defaults() -> None:
    options = BatchingOptions()

    assert (options.max_batch, options.max_delay_s) == (None, None)
    assert (options.max_queue, options.max_queue_bytes) == (1024, 256 * 1024 * 1024)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"max_batch") as refused:
        BatchingOptions(max_batch=0, max_delay_s=-1, max_queue=0, max_queue_bytes=0)

    assert str(refused.value).split("; ") == [
        "max_batch is 0",
        "use at least 1, or leave it out for the backend's limit",
        "max_delay_s is -1",
        "use a finite number of seconds, 0 for no delay",
        "max_queue is 0",
        "use at least 1 item",
        "max_queue_bytes is 0",
        "use at least 1 byte",
    ]


@pytest.mark.parametrize("delay_s", [math.nan, math.inf, -0.001])
def test_a_delay_that_is_no_delay_is_refused(delay_s: float) -> None:
    with pytest.raises(ValueError, match=r"max_delay_s is .*; use a finite number of seconds"):
        BatchingOptions(max_delay_s=delay_s)


@pytest.mark.parametrize(("priority", "level"), [(0, 2), (1, 1), (3, 3), (4, 2), (2**64 - 1, 2)])
def test_no_priority_and_an_unknown_one_mean_the_default(priority: int, level: int) -> None:
    assert BatchingOptions(priority_levels=3).level(priority) == level


def test_a_default_that_is_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="default_priority is 4; use a level from 1 to priority_levels"):
        BatchingOptions(priority_levels=3, default_priority=4)


def test_what_cannot_be_said_of_lengths_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="length_buckets") as told:
        BatchingOptions(length_buckets=(8, 4), padding={"x": float("inf")}, trim={"y": "ids"})

    for part in (
        "use ascending lengths of at least 1",
        "padding of input 'x' is inf",
        "follow input 'ids', which is not",
    ):
        assert part in str(told.value)
