"""Replicas are of one model; who is not stays out, and is told why."""

from __future__ import annotations

import pytest

from backends.contract import Backend, Limits, Memory
from backends.replicas.fit import common
from tests.unit.backends.replicas.servers import SIGNATURE, Served, Server

BOTH = frozenset({Memory.HOST, Memory.SHARED})


def backend(limits: Limits = Limits(4), version: str = "1") -> Served:  # noqa: B008 (frozen)
    served = Served(Server(limits=limits))
    served.version = version
    return served


def test_limits_are_the_smallest_batch_the_sum_of_calls_and_the_memory_of_all() -> None:
    backends: dict[str, Backend] = {"a": backend(Limits(8, 2, BOTH)), "b": backend(Limits(4, 3))}

    shared, misfits = common(backends)

    assert shared.limits == Limits(4, 5, frozenset({Memory.HOST}))
    assert (shared.signature, shared.version, misfits) == (SIGNATURE, "1", {})


def test_another_version_or_memory_stays_out_and_limits_nobody() -> None:
    backends: dict[str, Backend] = {
        "a": backend(Limits(8, 2)),
        "b": backend(Limits(4, 3), version="2"),
        "c": backend(Limits(4, 3, frozenset({Memory.DEVICE}))),
    }

    shared, misfits = common(backends)

    assert shared.limits == Limits(8, 2)
    assert "version '2', not '1'" in misfits["b"]
    assert "no kind of memory" in misfits["c"]


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (backend(Limits(8, 1, BOTH)), None),
        (backend(Limits(2, 1, BOTH)), "batches of 2, the others 4"),
        (backend(Limits(4, 1)), "does not take shared memory"),
        (backend(Limits(4, 1, BOTH), "2"), "version '2'"),
    ],
)
def test_who_comes_later_must_take_what_was_promised(late: Backend, why: str | None) -> None:
    shared, _ = common({"a": backend(Limits(4, 1, BOTH))})

    found = shared.misfit(late)

    assert (found is None) if why is None else (found is not None and why in found)
