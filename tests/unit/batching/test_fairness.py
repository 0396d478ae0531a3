from hypothesis import given
from hypothesis import strategies as st

from batching.fairness import FairShare


def served_by_turn(shares: FairShare, waiting: list[tuple[float, str]], count: int) -> list[str]:
    """The tenants of the *count* items whose turn comes first, each of which is served."""
    served = []
    for _ in range(count):
        turn, tenant = min(waiting)
        waiting.remove((turn, tenant))
        shares.serve(tenant, 1)
        served.append(tenant)
    return served


@given(st.integers(10, 100), st.integers(5, 20))
def test_who_floods_and_who_does_not_get_the_same(flood: int, modest: int) -> None:
    shares = FairShare()
    waiting = [(shares.come("greedy", 1), "greedy") for _ in range(flood + modest)]
    waiting += [(shares.come("modest", 1), "modest") for _ in range(modest)]

    served = served_by_turn(shares, waiting, 2 * modest)

    assert abs(served.count("greedy") - served.count("modest")) <= 1


@given(st.lists(st.integers(1, 8), min_size=40), st.lists(st.integers(1, 8), min_size=40))
def test_of_two_that_always_wait_neither_gets_ahead_by_more_than_an_entry_of_each(a: list[int], b: list[int]) -> None:
    """The bound of start-time fair queuing; all of the entries have come before the first is served."""
    shares = FairShare()
    waiting = [(shares.come("a", size), "a", size) for size in a] + [(shares.come("b", size), "b", size) for size in b]
    served = {"a": 0, "b": 0}

    for _, tenant, size in sorted(waiting):
        shares.serve(tenant, size)
        served[tenant] += size
        if served["a"] == sum(a) or served["b"] == sum(b):
            break
        assert abs(served["a"] - served["b"]) <= max(a) + max(b)


def test_what_is_served_out_of_turn_pushes_nobody_behind_the_flood_it_came_with() -> None:
    shares = FairShare()
    flood = [(shares.come("greedy", 1), "greedy") for _ in range(100)]
    shares.serve("greedy", 1)  # the last of them, for its deadline's sake
    del flood[-1]

    modest = [(shares.come("modest", 1), "modest") for _ in range(10)]

    assert served_by_turn(shares, flood + modest, 20).count("modest") >= 9


def test_nobody_saves_up_turns_while_it_sends_nothing() -> None:
    shares = FairShare()
    shares.come("idle", 1)
    shares.serve("idle", 1)
    waiting = [(shares.come("busy", 1), "busy") for _ in range(100)]
    served_by_turn(shares, waiting, 100)

    waiting = [(shares.come("busy", 1), "busy") for _ in range(10)] + [
        (shares.come("idle", 1), "idle") for _ in range(10)
    ]

    assert 4 <= served_by_turn(shares, waiting, 10).count("idle") <= 6


def test_what_was_never_served_is_not_counted_against_its_tenant() -> None:
    shares = FairShare()
    for _ in range(1000):
        shares.come("once-greedy", 1)
    shares.refund("once-greedy", 1000)

    assert shares.come("once-greedy", 1) == shares.come("other", 1)


def test_an_entry_of_many_items_costs_as_many_turns() -> None:
    shares = FairShare()
    waiting = [(shares.come("large", 8), "large") for _ in range(2)]
    waiting += [(shares.come("small", 1), "small") for _ in range(8)]

    assert [tenant for _, tenant in sorted(waiting)][:9].count("small") == 8


def test_a_tenant_is_within_its_share_that_has_no_more_than_the_others_have_on_average() -> None:
    shares = FairShare()
    assert not shares.is_within_share("a", 1), "alone there is nothing to share"

    shares.come("a", 4)
    shares.come("b", 2)

    assert shares.is_within_share("c", 3)
    assert not shares.is_within_share("c", 4)
    assert shares.is_within_share("b", 2)
    assert not shares.is_within_share("b", 3)
    assert not shares.is_within_share("a", 1)


def test_the_greediest_is_who_has_most_waiting() -> None:
    shares = FairShare()
    for tenant, size in (("a", 3), ("b", 2), ("b", 2)):
        shares.come(tenant, size)
    assert shares.greediest() == "b"

    shares.serve("b", 2)

    assert shares.greediest() == "a"


def test_tenants_that_come_once_are_not_remembered_for_ever() -> None:
    shares = FairShare()
    for i in range(10_000):
        shares.come(str(i), 1)
        shares.serve(str(i), 1)

    assert len(shares._finish) < 2000
