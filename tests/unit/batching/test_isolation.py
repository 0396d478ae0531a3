import asyncio
import math
from collections.abc import Collection
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BackendFailed, Cancelled, DeadlineExceeded, InvalidInput, Unavailable
from batching.isolation import Isolation, may_be_an_items_fault


def search(entries: int, poison: Collection[int]) -> tuple[list[int], list[list[int]], int]:
    """Take the batch of *entries* apart, each run failing where it holds poison: entries that passed, groups that
    failed to the end, runs."""
    isolation: Isolation[int] = Isolation(entries)
    passed: list[int] = []
    failed: list[list[int]] = []
    runs = 0
    isolation.halve(range(entries))
    while group := list(isolation.next_group()):
        runs += 1
        if not set(group) & set(poison):
            passed += group
        elif len(group) == 1 or not isolation.halve(group):
            failed.append(group)
    return passed, failed, runs


@given(st.integers(2, 300), st.data())
def test_one_poisonous_entry_is_found_alone(entries: int, data: st.DataObject) -> None:
    poison = data.draw(st.integers(0, entries - 1))

    passed, failed, runs = search(entries, [poison])

    assert failed == [[poison]]
    assert sorted(passed) == [entry for entry in range(entries) if entry != poison]
    assert runs <= 2 * math.ceil(math.log2(entries))


@given(st.integers(2, 300), st.data())
def test_every_entry_ends_in_one_group_within_the_bound(entries: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, entries - 1)))

    passed, failed, runs = search(entries, poison)

    assert sorted([*passed, *chain(*failed)]) == list(range(entries))
    assert runs <= 2 * math.ceil(math.log2(entries)) + 2


def test_two_poisonous_entries_do_not_keep_the_rest_from_being_tried() -> None:
    passed, failed, _ = search(64, [0, 63])

    assert len(passed) == 56
    assert failed == [[0, 1, 2, 3], [60, 61, 62, 63]]


@pytest.mark.parametrize("error", [InvalidInput("item 3"), BackendFailed("NaN"), ZeroDivisionError(), MemoryError()])
def test_these_may_be_an_items_fault(error: Exception) -> None:
    assert may_be_an_items_fault(error)


class Overheated(Unavailable):
    """An adapter's own."""


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("full"),
        Overheated("99 degrees"),
        DeadlineExceeded("late"),
        Cancelled("left"),
        asyncio.CancelledError(),
    ],
)
def test_these_are_nobodys_fault(error: BaseException) -> None:
    assert not may_be_an_items_fault(error)
