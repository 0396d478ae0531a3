"""Where a call of a pooled model goes, by what replicas have told and what this gateway has seen."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.ray_serve.residence import Residence, Residing, Told, told_by, told_of
from backends.warm.policy import Phase

REPLICAS = ("a", "b", "c", "d")
PHASES = st.sampled_from([Phase.WARM, Phase.LOADING, Phase.FAILED])
TOLD = st.builds(
    Told,
    st.one_of(st.just(math.inf), st.integers(0, 2**40).map(float)),
    st.dictionaries(st.sampled_from(["m", "n"]), st.builds(Residing, PHASES, st.just(0.5), st.integers(0, 2**40))),
)


def stats(phase: Phase | None = None, room: float = math.inf, nbytes: int = 10) -> dict[str, Any]:
    """Of a replica with the model `m` in *phase*."""
    return told_of(Told(room, {} if phase is None else {"m": Residing(phase, 2.0, nbytes)}))


def residence_of(**replicas: dict[str, Any]) -> Residence:
    residence = Residence()
    residence.tell(replicas)
    return residence


@given(told=TOLD)
def test_what_is_told_arrives(told: Told) -> None:
    assert told_by(told_of(told)) == told


def test_a_replica_that_has_told_nothing_yet_has_nothing_and_all_the_room() -> None:
    assert told_by({}) == Told(math.inf, {})


@given(told=st.dictionaries(st.sampled_from(REPLICAS), TOLD), near=st.sets(st.sampled_from(REPLICAS)))
def test_every_replica_is_in_the_order_once_and_those_that_have_the_model_come_first(
    told: dict[str, Told], near: set[str]
) -> None:
    residence = residence_of(**{name: told_of(one) for name, one in told.items()})

    order = [name for rank in residence.ranked("m", REPLICAS, near, 0.0) for name in rank]

    assert sorted(order) == sorted(REPLICAS)

    def having(name: str) -> bool:
        return "m" in told.get(name, Told(0.0, {})).models and told[name].models["m"].phase is Phase.WARM

    warm = [having(name) for name in order]
    assert warm == sorted(warm, reverse=True)
    near_first = [name in near for name in order if having(name)]
    assert near_first == sorted(near_first, reverse=True)


def test_one_that_loads_the_model_comes_before_one_with_room_and_that_before_one_without() -> None:
    residence = residence_of(a=stats(room=5.0), b=stats(), c=stats(Phase.LOADING), d=stats(Phase.FAILED))

    assert residence.ranked("m", REPLICAS, (), 0.0) == [["c"], ["b"], ["a"], ["d"]]


def test_whoever_was_asked_lately_is_asked_again_until_replicas_will_have_told() -> None:
    residence = residence_of(a=stats(), b=stats())
    (first,), (second,) = residence.ranked("m", ("a", "b"), (), 100.0)

    residence.asks("m", second, 100.0)

    assert residence.ranked("m", ("a", "b"), (), 101.0) == [[second], [first]]
    assert residence.ranked("m", ("a", "b"), (), 110.0) == [[first], [second]]
    assert residence.ranked("n", ("a", "b"), (), 101.0) == Residence().ranked("n", ("a", "b"), (), 0.0)


def test_gateways_that_know_the_same_ask_the_same_replica_and_models_spread_over_all() -> None:
    chosen = [Residence().ranked(f"model {n}", REPLICAS, (), 0.0)[0][0] for n in range(400)]
    again = [Residence().ranked(f"model {n}", reversed(REPLICAS), ("a",), 9.0)[0][0] for n in range(400)]

    assert chosen == again
    assert all(count > 60 for count in Counter(chosen).values())


def test_when_a_replica_comes_only_models_that_it_takes_move() -> None:
    for number in range(100):
        before = Residence().ranked(f"model {number}", REPLICAS, (), 0.0)[0]
        after = Residence().ranked(f"model {number}", (*REPLICAS, "e"), (), 0.0)[0]
        assert after in (before, ["e"])


def test_a_model_is_as_warm_as_it_is_where_it_is_warmest() -> None:
    assert residence_of(a=stats(), b=stats()).warmth("m", 7.0, 0.0).phase is Phase.COLD
    assert residence_of(a=stats(), b=stats()).warmth("m", 7.0, 0.0).load_s == 7.0
    assert residence_of(a=stats(Phase.LOADING), b=stats()).warmth("m", 7.0, 0.0).load_s == 2.0
    assert residence_of(a=stats(Phase.LOADING), b=stats(Phase.WARM)).warmth("m", 7.0, 0.0).load_s == 0.0
    assert residence_of(a=stats(Phase.FAILED), b=stats()).warmth("m", 7.0, 0.0).phase is Phase.COLD
    assert residence_of(a=stats(Phase.FAILED)).warmth("m", 7.0, 0.0).phase is Phase.FAILED
    assert Residence().warmth("m", 7.0, 0.0).phase is Phase.COLD


def test_what_has_just_answered_is_warm_before_it_is_told_and_only_for_a_while() -> None:
    residence = residence_of(a=stats())

    residence.is_warm("m", 100.0)

    assert residence.warmth("m", 7.0, 101.0).phase is Phase.WARM
    assert residence.warmth("n", 7.0, 101.0).phase is Phase.COLD
    assert residence.warmth("m", 7.0, 110.0).phase is Phase.COLD


def test_a_replica_that_is_gone_has_nothing() -> None:
    residence = residence_of(a=stats(Phase.WARM))

    residence.tell({"b": stats()})

    assert residence.warmth("m", 7.0, 0.0).phase is Phase.COLD
