"""Whether a request can make it at all: asked when it comes, before anything is queued for it.

Whoever goes before it is counted as the policy would have it: what has an earlier deadline, and at the time a slot is
free still enough time for a batch as large as the request's own deadline allows. Who has less is passed over for the
larger batch, if not all can make it; to count them refused the very requests of which that batch would have been made,
and halved it (`loadtests/results/goodput.json`, Poisson arrivals at twice the capacity). Before one without a deadline
all go that have a chance at all. A tenant that has less waiting than the others does not stand behind their flood: its
turn comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.contract import NO_DEADLINE
from batching.lanes import Lanes, Q
from batching.latency import Forecast, Latency


def outlook(
    lanes: Lanes[Q],
    latency: Latency,
    free_at_s: Sequence[float],
    max_batch: int,
    deadline: float,
    tenant: str,
    now: float,
) -> Forecast:
    """What a new item of *tenant* has to expect, if every batch takes what is typical.

    A wait for company is no part of it, since it ends when a deadline presses; nor is who else will be in its batch,
    since the policy sees to it that they do not cost it the deadline.

    Args:
        latency: of the batches that it could be in.
        free_at_s: (slots,) when each slot should be free; the past where it is.
        max_batch: most items in a batch.
        deadline: the item's.
    """
    alone_s = latency.typical_s(1, now)
    wait_s = max(0.0, (min(free_at_s) if len(free_at_s) > 1 else free_at_s[0]) - now)
    if lanes.items < max_batch or lanes.shares.is_within_share(tenant, 1):
        return Forecast(wait_s, alone_s)
    largest = max(1, latency.largest_within(deadline - now - wait_s, max_batch, now))
    takes_s = latency.typical_s(largest, now)
    before = lanes.due(now + wait_s + (takes_s if deadline < NO_DEADLINE else alone_s), deadline)
    rounds, turn = divmod(before // largest, len(free_at_s))
    if rounds or turn:
        wait_s = max(0.0, sorted(free_at_s)[turn] - now) + rounds * takes_s
    return Forecast(wait_s, alone_s)
