"""Options that make no sense stop the start, all faults at once."""

from __future__ import annotations

import math

import pytest

from backends.replicas import ReplicaOptions


def test_every_fault_is_told_at_once_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="attempts is 0; use at least 1") as caught:
        ReplicaOptions(attempts=0, probe_every_s=0.0, slow_factor=1.0, ramp_s=-1.0)

    assert "probe_every_s is 0.0; use a finite number of seconds above 0" in str(caught.value)
    assert "slow_factor is 1.0; use a number above 1" in str(caught.value)
    assert "ramp_s is -1.0; use a finite number of seconds, 0 for none" in str(caught.value)


@pytest.mark.parametrize("name", ["attempt_timeout_s", "probe_timeout_s", "eject_s", "open_timeout_s", "ramp_s"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_a_time_is_a_finite_number_of_seconds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ReplicaOptions(**{name: value})  # type: ignore[arg-type]  # all of them are floats


def test_an_ejection_cannot_be_longer_than_the_longest() -> None:
    with pytest.raises(ValueError, match=r"max_eject_s is 10.0; use at least eject_s, which is 30.0"):
        ReplicaOptions(max_eject_s=10.0)


def test_no_ramp_and_no_grace_are_allowed() -> None:
    assert ReplicaOptions(ramp_s=0.0, start_grace_s=0.0).ramp_s == 0.0
