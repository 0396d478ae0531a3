"""Versions get their shares, keys stay where they are, and only a canary that is worse is found to be."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.binomial import at_any_time
from router.versions import (
    HALT_CONFIDENCE,
    Canary,
    Split,
    StickBy,
    Sticky,
    Traffic,
    Trials,
    assigned,
    drawn,
    is_worse,
    shares,
)

KEYS = [f"customer-{number}" for number in range(4000)]
NAMES = ("1", "2", "3", "4")
WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 100.0), min_size=1)
RAMP = (0.01, 0.05, 0.25, 1.0)


def split(weights: Mapping[str, float]) -> Mapping[str, float]:
    return shares(Traffic(NAMES, Split(weights)), 0.0)


def canary(starts_s: float = 1000.0) -> Traffic:
    return Traffic(("1", "2"), Canary("2", "1", RAMP, 600.0, starts_s))


@given(weights=WEIGHTS)
def test_shares_are_in_proportion_to_weights_and_sum_to_one(weights: dict[str, float]) -> None:
    found = split(weights)

    assert found.keys() == weights.keys()
    assert math.fsum(found.values()) == pytest.approx(1.0)
    for version, weight in weights.items():
        assert found[version] == pytest.approx(weight / math.fsum(weights.values()))


def test_a_version_of_weight_nothing_gets_nothing() -> None:
    assert split({"1": 0.0, "2": 3.0}) == {"2": 1.0}


@pytest.mark.parametrize(
    ("now_s", "share"),
    [(0, 0), (999.9, 0), (1000, 0.01), (1599, 0.01), (1600, 0.05), (2200, 0.25), (2800, 1.0), (1e12, 1.0)],
)
def test_a_canary_s_share_is_told_by_the_clock(now_s: float, share: float) -> None:
    found = shares(canary(), now_s)

    assert found.get("2", 0.0) == share
    assert found.get("1", 0.0) == 1.0 - share


def test_a_canary_that_is_halted_gets_nothing_at_any_time() -> None:
    assert shares(canary(), 1e9, is_halted=True) == {"1": 1.0}


@given(weights=WEIGHTS, seed=st.integers(0, 2**32))
def test_drawn_versions_meet_their_shares(weights: dict[str, float], seed: int) -> None:
    found, rng = split(weights), random.Random(seed)
    count = 2000

    seen = Counter(drawn(found, rng.random()) for _ in range(count))

    for version, share in found.items():
        # six standard deviations: of the two hundred or so checks here none should ever fail by chance
        assert abs(seen[version] - share * count) <= 6 * math.sqrt(count * share * (1 - share)) + 1


@pytest.mark.parametrize("point", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_every_point_has_a_version_whatever_rounding_does(point: float) -> None:
    thirds = split({"1": 1.0, "2": 1.0, "3": 1.0})

    assert drawn(thirds, point) in thirds


@pytest.mark.no_cover
@given(weights=WEIGHTS, route=st.sampled_from(["tickets", "pages"]))
def test_keys_meet_the_shares_too(weights: dict[str, float], route: str) -> None:
    found = split(weights)

    seen = Counter(assigned(found, route, key) for key in KEYS)

    for version, share in found.items():
        assert abs(seen[version] - share * len(KEYS)) <= 6 * math.sqrt(len(KEYS) * share * (1 - share)) + 1


def test_a_key_s_version_is_the_same_in_every_process() -> None:
    """The hash is part of the promise: another one would move callers when the gateway is updated."""
    half = split({"1": 1.0, "2": 1.0})

    assert [assigned(half, "tickets", key) for key in KEYS[:8]] == ["2", "2", "2", "1", "2", "1", "2", "1"]


def test_routes_do_not_try_their_canaries_on_the_same_keys() -> None:
    tenth = split({"1": 9.0, "2": 1.0})

    both = sum(assigned(tenth, "tickets", key) == assigned(tenth, "pages", key) == "2" for key in KEYS)

    assert both < 0.02 * len(KEYS)  # a hundredth is what chance gives, a tenth what one hash for all would


@given(weights=WEIGHTS, grown=st.sampled_from(NAMES), more=st.floats(0.01, 100.0))
def test_raising_a_weight_moves_keys_to_that_version_alone(weights: dict[str, float], grown: str, more: float) -> None:
    before = split(weights)
    after = split({**weights, grown: weights.get(grown, 0.0) + more})

    for key in KEYS[:300]:
        old, new = assigned(before, "tickets", key), assigned(after, "tickets", key)
        assert new in (old, grown)


@given(first=st.floats(0.0, 4000.0), later=st.floats(0.0, 4000.0))
def test_a_ramp_never_takes_a_key_away_from_the_canary(first: float, later: float) -> None:
    first, later = sorted((first, later))
    before, after = shares(canary(0.0), first), shares(canary(0.0), later)

    for key in KEYS[:300]:
        if assigned(before, "tickets", key) == "2":
            assert assigned(after, "tickets", key) == "2"


def test_a_sticky_rule_is_told_as_it_is_written() -> None:
    assert str(Sticky(StickBy.TENANT)) == "tenant"
    assert str(Sticky(StickBy.PARAMETER, "customer")) == "parameter:customer"


@pytest.mark.parametrize(
    ("canary", "stable", "worse"),
    [
        (Trials(10, 10), Trials(1000, 0), True),
        (Trials(9, 9), Trials(1000, 0), False),
        (Trials(200, 40), Trials(4000, 40), True),
        (Trials(200, 4), Trials(4000, 40), False),
        (Trials(100, 100), Trials(), False),
        (Trials(100, 100), Trials(100, 100), False),
        (Trials(50, 0), Trials(50, 50), False),
    ],
)
def test_a_canary_is_worse_beyond_doubt_or_not(canary: Trials, stable: Trials, worse: bool) -> None:
    assert is_worse(canary, stable, steps=4) is worse


@pytest.mark.no_cover
def test_looking_after_every_request_halts_a_good_canary_hardly_ever() -> None:
    """Of canaries that fail exactly as often as the stable version, hardly any is ever found to be worse."""
    halted = 0
    for seed in range(150):
        rng = random.Random(seed)
        mine = stable = Trials()
        for _ in range(1500):
            stable = stable.and_one(bad=rng.random() < 0.05)
            if rng.random() < 0.25:
                mine = mine.and_one(bad=rng.random() < 0.05)
                if is_worse(mine, stable, steps=1):
                    halted += 1
                    break

    assert halted <= 150 * (1 - HALT_CONFIDENCE) + 1


def test_a_canary_that_fails_three_times_as_often_is_found_in_hundreds_of_requests() -> None:
    found = []
    for seed in range(20):
        rng = random.Random(seed)
        mine, stable = Trials(), Trials()
        while not is_worse(mine, stable, steps=4) and mine.count < 5000:
            mine = mine.and_one(bad=rng.random() < 0.15)
            for _ in range(3):
                stable = stable.and_one(bad=rng.random() < 0.05)
        found.append(mine.count)

    assert sorted(found)[len(found) // 2] < 600


@given(n=st.integers(0, 3000), share=st.floats(0, 1), level=st.floats(0.5, 0.9999))
def test_bounds_for_any_time_hold_what_was_seen(n: int, share: float, level: float) -> None:
    k = round(share * n)

    low, high = at_any_time(k, n, level)

    assert 0.0 <= low <= high <= 1.0
    if n:
        assert low <= k / n <= high


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_bounds_for_any_time_are_wider_the_surer_they_are(n: int, share: float) -> None:
    k = round(share * n)

    low, high = at_any_time(k, n, 0.9)
    lower, higher = at_any_time(k, n, 0.999)

    assert lower <= low
    assert higher >= high


@pytest.mark.no_cover
def test_bounds_for_any_time_hold_at_all_looks_together() -> None:
    """What they promise: of many runs, hardly any ever leaves them; bounds for one look are left by far more."""
    rate, level, runs, left = 0.1, 0.9, 100, 0
    for seed in range(runs):
        rng, k = random.Random(seed), 0
        for n in range(1, 300):
            k += rng.random() < rate
            low, high = at_any_time(k, n, level)
            if not low <= rate <= high:
                left += 1
                break

    assert left <= runs * (1 - level)
