import math
from collections.abc import Callable, Sequence
from itertools import accumulate, combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.latency import Kinds
from batching.policy import ByDeadline, Policy
from batching.simulation.arrivals import Bursts, Trace, bursts, diurnal, mean_rate_per_s, poisson, replayed, stretched
from batching.simulation.baselines import Aimd, Cork, Deferred, Eager, EarlyDrop, TritonRule
from batching.simulation.clairvoyant import most_in_time
from batching.simulation.services import ByKind, Curve, Noisy, Slowed
from batching.simulation.simulator import Request, Result, simulate

GPU = Curve.line(0.010, 0.0005)


def known(curve: Curve, *sizes: int) -> Kinds:
    kinds = Kinds(has_buckets=False)
    for size in sizes or (1, 2, 4, 8, 16, 32, 64):
        kinds.latency.observe(size, curve.at(size), 0.0)
    return kinds


def run(policy: Policy, *at_ms: float, within_ms: float = 1000, slots: int = 1, curve: Curve = GPU) -> Result:
    """*policy* on requests at these moments, with a batch that takes what *curve* says."""
    requests = tuple(Request(at / 1e3, within_ms / 1e3) for at in at_ms)
    return simulate(
        requests, policy, Noisy(curve, 0.0, 0), slots=slots, kinds=known(curve), told=getattr(policy, "told", None)
    )


# The simulator.


def test_requests_wait_for_the_slot_and_go_together() -> None:
    result = run(Eager(64), 0, 1, 2, 3)

    assert result.batches == (1, 3)
    assert (result.offered, result.in_time, result.late, result.refused) == (4, 4, 0, 0)
    assert result.busy_s == pytest.approx(GPU.at(1) + GPU.at(3))
    assert result.span_s == pytest.approx(0.003)


def test_every_slot_runs_a_batch_of_its_own() -> None:
    assert run(Eager(64), 0, 1, 2, 3, slots=2).batches == (1, 1, 2)


def test_an_answer_after_the_deadline_is_late() -> None:
    result = run(Eager(64), 0, 1, within_ms=15)

    assert (result.in_time, result.late) == (1, 1)


def test_kinds_never_share_a_batch_and_each_takes_its_own_time() -> None:
    requests = tuple(Request(0.0, 1.0, kind=kind) for kind in ("short", "long", "short"))
    service = ByKind({"short": Noisy(Curve.line(0.01, 0.0), 0.0, 0), "long": Noisy(Curve.line(1.0, 0.0), 0.0, 0)})

    result = simulate(requests, Eager(64), service)

    assert sorted(result.batches) == [1, 2]
    assert result.busy_s == pytest.approx(1.01)


def test_what_cannot_make_it_is_refused_when_it_comes_where_that_is_asked_for() -> None:
    requests = (Request(0.0, 0.02), Request(0.001, 0.015))

    result = simulate(requests, ByDeadline(64), Noisy(GPU, 0.0, 0), kinds=known(GPU), admits=True)

    assert (result.in_time, result.refused, result.batches) == (1, 1, (1,))


def test_requests_that_are_not_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not in order of at_s; sort them first"):
        simulate((Request(1.0, 1.0), Request(0.0, 1.0)), Eager(64), Noisy(GPU, 0.0, 0))


POLICIES: dict[str, Callable[[], Policy]] = {
    "eager": lambda: Eager(8),
    "triton": lambda: TritonRule(8, 0.003, (4,), 0.020),
    "aimd": lambda: Aimd(8, 0.030),
    "cork": lambda: Cork(8, 0.030),
    "early drop": lambda: EarlyDrop(8, 0.030),
    "deferred": lambda: Deferred(8, 0.030),
    "by deadline": lambda: ByDeadline(8, 2),
}


@pytest.mark.parametrize("name", POLICIES)
@given(
    gaps_ms=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 7.0, 100.0]), st.integers(1, 8)), max_size=40),
    slots=st.integers(1, 3),
    admits=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_every_request_ends_exactly_once(name: str, gaps_ms: list[tuple[float, int]], slots: int, admits: bool) -> None:
    now, requests = 0.0, []
    for gap_ms, size in gaps_ms:
        now += gap_ms / 1e3
        requests.append(Request(now, 0.030, size))
    policy = POLICIES[name]()

    result = simulate(
        requests,
        policy,
        Noisy(GPU, 0.05, 0),
        slots=slots,
        max_batch=8,
        admits=admits,
        told=getattr(policy, "told", None),
    )

    assert result.in_time + result.late + result.refused == result.offered == len(requests)
    assert all(1 <= size <= 8 for size in result.batches)


# Arrivals and services.


@pytest.mark.parametrize(
    "made",
    [
        lambda seed: poisson(100.0, 20_000, 1.0, seed),
        lambda seed: bursts(100.0, 20_000, 1.0, seed),
        lambda seed: diurnal(100.0, 20_000, 1.0, seed),
    ],
    ids=["poisson", "bursts", "diurnal"],
)
def test_a_trace_has_the_rate_that_is_asked_for_and_is_the_same_for_a_seed(
    made: Callable[[int], Trace],
) -> None:
    trace = made(1)

    assert made(1) == trace != made(2)
    assert list(trace) == sorted(trace, key=lambda request: request.at_s)
    assert mean_rate_per_s(trace) == pytest.approx(100.0, rel=0.1)


def spread(trace: Trace, window_s: float) -> float:
    """Variance over mean of the arrivals in windows: 1 for a Poisson process."""
    counts = [0] * (int(trace[-1].at_s / window_s) + 1)
    for request in trace:
        counts[int(request.at_s / window_s)] += 1
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts) / len(counts) / mean


def test_bursts_come_in_bursts() -> None:
    assert spread(poisson(1000.0, 20_000, 1.0, 1), 0.1) < 1.5
    assert spread(bursts(1000.0, 20_000, 1.0, 1), 0.1) > 20


def test_a_day_has_a_busy_half_and_a_calm_one() -> None:
    trace = diurnal(1000.0, 20_000, 1.0, 1)
    half_s = trace[-1].at_s / 2

    assert sum(request.at_s < half_s for request in trace) > 2.5 * sum(request.at_s >= half_s for request in trace)


def test_bursts_that_would_exceed_the_mean_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bursts of 5.0 times the mean rate for 0.5 of the time are no mixture"):
        Bursts(peak=5.0, duty=0.5)


def test_a_trace_is_replayed_as_it_was_or_stretched(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("12.5\n10.0\n\n11.0\n")

    assert [request.at_s for request in replayed(file, 1.0)] == [0.0, 1.0, 2.5]
    assert [request.at_s for request in replayed(file, 1.0, rate_per_s=8.0)] == pytest.approx([0.0, 0.1, 0.25])


def test_a_stretched_trace_has_exactly_the_rate_that_is_stated() -> None:
    trace = bursts(100.0, 200, 1.0, 1)

    assert mean_rate_per_s(stretched(trace, 100.0)) == pytest.approx(100.0, rel=1e-9)
    assert {request.within_s for request in stretched(trace, 50.0)} == {1.0}
    assert mean_rate_per_s(trace) != pytest.approx(100.0, rel=0.01), "or there would be nothing to stretch"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0\nx\n", r"trace.txt:2: 'x' is no number of seconds"),
        ("1.0\nnan\n", r"trace.txt:2: 'nan' is no finite number of seconds"),
        ("1.0\n", r"a trace needs at least two requests at different moments"),
        ("1.0\n1.0\n", r"a trace needs at least two requests at different moments"),
    ],
)
def test_a_trace_that_cannot_be_replayed_says_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(text)

    with pytest.raises(ValueError, match=message):
        replayed(file, 1.0)


def test_a_curve_goes_through_its_points_and_on() -> None:
    curve = Curve([(1, 1.0), (2, 1.5), (4, 3.5)])

    assert [curve.at(size) for size in (1, 2, 3, 4, 5)] == pytest.approx([1.0, 1.5, 2.5, 3.5, 4.5])
    assert curve.capacity_per_s(4) == pytest.approx(2 / 1.5)
    assert Curve.line(0.010, 0.001).at(64) == pytest.approx(0.074)
    with pytest.raises(ValueError, match=r"a curve needs two sizes at least, ascending; got \[1\]"):
        Curve([(1, 1.0)])


def test_a_service_slows_down_at_its_moment() -> None:
    service = Slowed(Noisy(GPU, 0.0, 0), 2.0, 1.0)

    assert service.takes_s("", 1, 0.999) * 2 == service.takes_s("", 1, 1.0)


# The other policies.


def test_eager_batches_are_what_came_meanwhile() -> None:
    assert run(Eager(3), 0, 1, 2, 3, 4, 5).batches == (1, 3, 2)


def test_tritons_rule_waits_for_the_delay_and_not_for_a_full_or_preferred_batch() -> None:
    assert run(TritonRule(8, 0.005), 0, 4, 6).batches == (2, 1)
    assert run(TritonRule(2, 0.005), 0, 1).batches == (2,)
    assert run(TritonRule(8, 1.0, preferred=(2,)), 0, 1, 2).batches == (2, 1)


def test_tritons_rule_sends_all_that_waits_once_the_oldest_has_waited_the_delay() -> None:
    """A preferred size is for a queue that is not overdue yet, or that has no delay at all."""
    assert run(TritonRule(8, 0.005, preferred=(2,)), 0, 0, 1, 2, 3).batches == (2, 3)
    assert run(TritonRule(8, 0.050, preferred=(2,)), 0, 0, 1, 2, 3).batches == (2, 2, 1)
    assert run(TritonRule(8, 0.0, preferred=(2,)), 0, 1, 2, 3).batches == (1, 2, 1)


def test_tritons_rule_rejects_what_waited_longer_than_its_timeout() -> None:
    result = run(TritonRule(8, 0.0, timeout_s=0.005), 0, 1, 9)

    assert (result.batches, result.refused) == ((1, 1), 1)


def test_aimd_grows_by_two_and_shrinks_by_a_tenth() -> None:
    policy = Aimd(64, 0.030)
    for size in (1, 3, 5):
        policy.told(size, 0.010, 0.0)
    assert policy.limit == 7

    policy.told(3, 0.010, 0.0)
    assert policy.limit == 7, "a batch that was not full says nothing"
    policy.told(7, 0.028, 0.0)
    assert policy.limit == 7, "neither fast nor slow"
    policy.told(7, 0.030, 0.0)
    assert policy.limit == 6


def test_cork_drops_heads_that_would_be_late_by_its_own_estimate() -> None:
    result = run(Cork(64, 0.015), 0, 1, 10, within_ms=15)

    assert result.refused == 1
    assert result.batches == (1, 1)


def test_cork_does_not_send_a_last_one_that_is_past_its_objective() -> None:
    result = run(Cork(64, 0.012), 0, 1, within_ms=12, curve=Curve.line(0.030, 0.0))

    assert (result.batches, result.refused) == ((1,), 1)


@pytest.mark.parametrize("policy", [Aimd(1, 0.1), EarlyDrop(1, 0.1)])
def test_clipper_and_nexus_serve_the_earliest_deadline_first(policy: Policy) -> None:
    requests = (Request(0.0, 1.0), Request(0.001, 1.0), Request(0.002, 0.020))

    result = simulate(requests, policy, Noisy(GPU, 0.0, 0), kinds=known(GPU))

    assert result.in_time == 3


def test_early_drop_keeps_batches_at_their_target() -> None:
    """Half of 25 ms allows four items; of five that wait when the slot is free, the first is too late for that."""
    result = run(EarlyDrop(64, 0.0248), 0, 0.2, 2, 3, 4, 5, within_ms=22)

    assert result.batches[1] == 4
    assert result.refused == 1


def test_deferred_batches_go_at_the_last_moment() -> None:
    """Two of them can start until 18.5 ms and leave room for a third, four of them until 17.5."""
    result = run(Deferred(64, 0.030), 0, 3, 6, 9, within_ms=30)

    assert result.batches == (4,)
    assert result.in_time == 4
    assert run(Deferred(64, 0.030), 0, 19, within_ms=30).batches == (1, 1)


def test_a_deferred_window_slides_past_a_head_that_would_keep_it_small() -> None:
    """When the slot is free the third could be answered, in a batch of nine; the twenty behind it could not then."""
    crowd = [40.0 + number / 100 for number in range(20)]

    result = run(Deferred(64, 0.045), 0, 1, 24, *crowd, within_ms=45, curve=Curve.line(0.020, 0.0005))

    assert result.batches == (2, 20)
    assert (result.in_time, result.refused) == (22, 1)


def test_a_deferred_batch_grows_beyond_its_target_where_that_is_free() -> None:
    requests = [0.0] * 30

    assert run(Deferred(64, 0.030), *requests, within_ms=30).batches == (30,)
    assert run(Deferred(64, 0.030), *requests, within_ms=20.1).batches == (20,)


# The bound.


def brute_force(requests: list[Request], takes_s: list[float]) -> int:
    """The most in time, over every subset and every way to cut it into batches."""
    best = 0
    for count in range(len(requests), 0, -1):
        for chosen in combinations(requests, count):
            if count > best and feasible(list(chosen), takes_s, 0.0):
                best = count
    return best


def feasible(waiting: list[Request], takes_s: list[float], free_s: float) -> bool:
    """Whether all can be served, whatever the batches: any subset may be the next one."""
    if not waiting:
        return True
    for size in range(1, min(len(waiting), len(takes_s) - 1) + 1):
        for batch in combinations(waiting, size):
            ends_s = max(free_s, *(request.at_s for request in batch)) + takes_s[size]
            if ends_s <= min(request.at_s + request.within_s for request in batch):
                others = [request for request in waiting if request not in batch]
                if feasible(others, takes_s, ends_s):
                    return True
    return False


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.integers(2, 12),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=150)
def test_the_bound_is_what_trying_everything_finds(gaps: list[int], within: int, steps: list[int]) -> None:
    requests = [Request(float(sum(gaps[: i + 1])) / 4 + i * 1e-6, float(within)) for i in range(len(gaps))]
    takes_s = [0.0, 1.0, 1.0 + steps[0], 1.0 + steps[0] + steps[1]]

    assert most_in_time(requests, takes_s.__getitem__, 3) == brute_force(requests, takes_s)


def every_count(requests: Sequence[Request], takes_s: list[float]) -> int:
    """The same recursion over all counts, entry by entry."""
    rows = [{0: 0.0}]
    for index, request in enumerate(requests):
        row = dict(rows[-1])
        for size in range(1, min(index + 1, len(takes_s) - 1) + 1):
            first = requests[index - size + 1]
            for count, free_s in rows[index + 1 - size].items():
                ends_s = max(free_s, request.at_s) + takes_s[size]
                if ends_s <= first.at_s + first.within_s:
                    row[count + size] = min(ends_s, row.get(count + size, math.inf))
        rows.append(row)
    return max(rows[-1])


@given(
    st.lists(st.floats(0.0, 1.5), min_size=1, max_size=60),
    st.floats(0.5, 4.0),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_counts_that_the_bound_leaves_out_would_not_have_mattered(
    gaps: list[float], within_s: float, steps: list[float]
) -> None:
    requests = [Request(at_s, within_s) for at_s in accumulate(gaps)]
    takes_s = [0.0, *accumulate(steps)]

    assert most_in_time(requests, takes_s.__getitem__, len(steps)) == every_count(requests, takes_s)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("load", [0.5, 1.5])
def test_no_policy_beats_the_bound(name: str, load: float) -> None:
    trace = bursts(load * GPU.capacity_per_s(8), 600, 0.030, 3)
    policy = POLICIES[name]()

    result = simulate(trace, policy, Noisy(GPU, 0.05, 1), kinds=known(GPU), told=getattr(policy, "told", None))

    assert result.in_time <= most_in_time(trace, lambda size: 0.95 * GPU.at(size), 8)


def test_the_bound_refuses_what_it_is_not_for() -> None:
    with pytest.raises(ValueError, match="requests of one item each"):
        most_in_time([Request(0.0, 1.0, size=2)], GPU.at, 8)
    with pytest.raises(ValueError, match="due in the order in which they come"):
        most_in_time([Request(0.0, 1.0), Request(0.1, 0.5)], GPU.at, 8)


# Ours.


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
def test_where_it_is_tight_ours_answers_more_in_time_than_those_that_know_no_deadlines(load: float) -> None:
    trace = bursts(load * GPU.capacity_per_s(8), 2000, 3 * GPU.at(1), 5)

    def in_time(policy: Policy) -> int:
        told = getattr(policy, "told", None)
        return simulate(trace, policy, Noisy(GPU, 0.05, 1), kinds=known(GPU), told=told).in_time

    ours = in_time(ByDeadline(8))

    for other in (Eager(8), TritonRule(8, 0.005), Aimd(8, 3 * GPU.at(1))):
        assert ours > 1.05 * in_time(other), type(other).__name__
    assert ours >= 0.99 * in_time(Cork(8, 3 * GPU.at(1)))


def test_a_model_that_is_suddenly_twice_as_slow_is_learnt_within_50_batches() -> None:
    trace = poisson(0.5 * GPU.capacity_per_s(8), 4000, 5 * GPU.at(1), 5)
    kinds, ends = known(GPU), [0.0]
    service = Slowed(Noisy(GPU, 0.05, 1), 2.0, trace[2000].at_s)
    batches: list[tuple[float, float]] = []  # when, and what was predicted for four items

    def told(size: int, took_s: float, now: float) -> None:
        batches.append((now, kinds.latency.typical_s(4, now)))
        ends[0] = now

    simulate(trace, ByDeadline(8), service, kinds=kinds, told=told)

    after = [predicted for at_s, predicted in batches if at_s > trace[2000].at_s]
    assert after[50] == pytest.approx(2 * GPU.at(4), rel=0.1)
    assert math.isclose(batches[100][1], GPU.at(4), rel_tol=0.1)
