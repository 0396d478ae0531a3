"""What a pool loads and unloads, decided from snapshots."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from backends.warm.policy import Phase, Plan, Seen, plan


def cold(key: str, nbytes: int = 1, **more: object) -> Seen[str]:
    return Seen(key, Phase.COLD, nbytes, **more)  # type: ignore[arg-type]


def warm(key: str, nbytes: int = 1, **more: object) -> Seen[str]:
    return Seen(key, Phase.WARM, nbytes, **more)  # type: ignore[arg-type]


def test_what_somebody_waits_for_is_loaded_and_what_is_due_too() -> None:
    models = [cold("asked", asked_s=1.0), cold("due", is_due=True, worth=1.0), cold("idle")]

    assert plan(models, math.inf) == Plan(("asked", "due"), ())


def test_what_is_not_due_leaves_however_much_memory_is_free() -> None:
    assert plan([warm("idle"), warm("due", is_due=True)], math.inf) == Plan((), ("idle",))


def test_the_floor_is_loaded_first_and_never_leaves() -> None:
    models = [cold("asked", asked_s=0.0), cold("floor", is_floor=True), warm("kept", is_floor=True)]

    assert plan(models, 2) == Plan(("floor",), ())


def test_the_cheapest_to_lose_makes_room_for_what_somebody_waits_for() -> None:
    models = [
        warm("dear", 4, is_due=True, worth=5.0),
        warm("cheap", 4, is_due=True, worth=1.0),
        cold("asked", 4, asked_s=0.0),
    ]

    assert plan(models, 8) == Plan((), ("cheap",))


def test_a_load_begins_when_its_memory_is_free_and_not_before() -> None:
    leaving = Seen("leaving", Phase.UNLOADING, 4)
    asked = cold("asked", 4, asked_s=0.0)

    assert plan([leaving, asked], 6) == Plan((), ())
    assert plan([leaving, asked], 8) == Plan(("asked",), ())


def test_what_answers_calls_stays_whatever_waits() -> None:
    assert plan([warm("busy", 8, is_busy=True), cold("asked", 8, asked_s=0.0)], 8) == Plan((), ())


def test_nothing_is_loaded_ahead_while_somebody_s_model_has_no_room() -> None:
    models = [
        warm("busy", 6, is_busy=True),
        cold("asked", 8, asked_s=0.0),
        cold("due", 2, is_due=True, worth=9.0),
    ]

    assert plan(models, 8) == Plan((), ())


def test_models_of_like_worth_do_not_chase_each_other() -> None:
    here = warm("here", is_due=True, worth=1.0)

    assert plan([here, cold("like", is_due=True, worth=3.9)], 1) == Plan((), ())
    assert plan([here, cold("better", is_due=True, worth=4.1)], 1) == Plan((), ("here",))


def test_who_waits_longest_comes_first() -> None:
    models = [cold("second", asked_s=2.0), cold("first", asked_s=1.0)]

    assert plan(models, 1) == Plan(("first",), ())


def test_what_failed_is_left_alone_until_its_backoff_is_over() -> None:
    assert plan([Seen("broken", Phase.FAILED, 1, asked_s=0.0, is_due=True)], 9) == Plan((), ())


_SEEN = st.builds(
    Seen,
    key=st.uuids(),
    phase=st.sampled_from(Phase),
    nbytes=st.integers(0, 10),
    is_floor=st.booleans(),
    is_busy=st.booleans(),
    asked_s=st.none() | st.floats(0, 100),
    is_due=st.booleans(),
    worth=st.floats(0, 10),
)


@given(st.lists(_SEEN, max_size=12, unique_by=lambda seen: seen.key), st.integers(0, 40))
def test_a_plan_keeps_to_the_budget_and_moves_only_what_may_be_moved(models: list[Seen[object]], budget: int) -> None:
    by_key = {model.key: model for model in models}
    before = sum(m.nbytes for m in models if m.phase in (Phase.LOADING, Phase.WARM, Phase.UNLOADING))

    decided = plan(models, budget)

    added = sum(by_key[key].nbytes for key in decided.load)
    assert added == 0 or before + added <= budget
    for key in decided.load:
        assert by_key[key].phase is Phase.COLD
    for key in decided.unload:
        assert by_key[key].phase is Phase.WARM
        assert not by_key[key].is_busy
        assert not by_key[key].is_floor
