"""The most that any policy could answer in time, knowing every arrival beforehand: the bound that goodput is held to.

For one slot, items one by one, deadlines in the order of arrivals (one objective for all), and a latency that grows
with the size of a batch and is known for certain.

**Why batches are consecutive.** Take a best schedule, and an item x that came after the first item of a batch and
before its last, and is not in it. If x is served by nobody, put it in the place of the first: it has come by then and
is due later, so the batch is as good. If it is served by a later batch, let it change places with the last item of this
one: x has come, and the other is due later than x, so that both batches are as good. (By an earlier batch it cannot be
served alone among later ones without the same exchange there.) Repeating this ends with batches of consecutive items.

**The recursion.** f(i, m): the earliest moment at which the slot is free, the first i items considered and m of them
served in time. Item i is left out, or is the last of a batch of b:

    f(i, m) = min(f(i-1, m), min over b of g(i, m, b)),
    g = max(f(i-b, m-b), r_i) + l(b),  if that is at most d_(i-b+1), else infinite.

The answer is the largest m with f(n, m) finite.

**Which m matter.** Let M be the largest with f(i, M) finite, and K the most items of batches that start within the
longest time to a deadline: what is finished in that time at the best rate, and one batch more. A state with m of at
most M - K is worth nothing: f(i, M) is at most d_i, so that whoever continues from m can continue from M instead by
leaving out the batches that start before f(i, M), which hold K items at most. M grows by one an item at most. So a row
is a window of K + 2 counts, and n requests take about n * max_batch operations on such windows: 20,000 requests with
batches of 64 a few seconds.

With noise, give the least that a batch may take: the result bounds what is possible from above, and is the looser the
more noise there is: with 5 % by up to a tenth. What is typical gives no bound, but says what knowing the arrivals
alone is worth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from batching.simulation.simulator import Request


def most_in_time(requests: Sequence[Request], takes_s: Callable[[int], float], max_batch: int) -> int:
    """How many of *requests* can be answered by their deadlines.

    Args:
        requests: in order of arrival, and of deadlines, one item each.
        takes_s: seconds that a batch takes, at least, by its size.

    Raises:
        ValueError: a request has several items, or one that comes later is due earlier.
    """
    if any(request.size != 1 for request in requests):
        raise ValueError("the bound is for requests of one item each")
    comes_s = np.array([request.at_s for request in requests])
    due_s = np.array([request.at_s + request.within_s for request in requests])
    if np.any(np.diff(comes_s) < 0.0) or np.any(np.diff(due_s) < 0.0):
        raise ValueError("the bound is for requests that are due in the order in which they come")
    costs_s = [0.0, *(takes_s(size) for size in range(1, max_batch + 1))]
    row: NDArray[np.float64] = np.full(len(requests) + 1, np.inf)
    row[0] = 0.0
    rows = deque([row], maxlen=max_batch + 1)  # the latest is that of the items before this one
    longest_s = max([request.within_s for request in requests], default=0.0)
    window = math.floor(longest_s * max(size / costs_s[size] for size in range(1, max_batch + 1))) + max_batch
    most = 0
    for index in range(len(requests)):
        counts = slice(max(0, most - window), most + 2)
        rows.append(_row(rows, index, float(comes_s[index]), due_s, costs_s, counts))
        most = counts.start + int(np.flatnonzero(np.isfinite(rows[-1][counts]))[-1])
    return most


def _row(
    rows: Sequence[NDArray[np.float64]],
    index: int,
    comes_s: float,
    due_s: NDArray[np.float64],
    costs_s: Sequence[float],
    counts: slice,
) -> NDArray[np.float64]:
    """f(index + 1, ·) for *counts*, from those of up to `max_batch` items before."""
    best = rows[-1].copy()
    for size in range(1, min(len(rows), len(costs_s) - 1) + 1):
        latest_s = due_s[index - size + 1]
        if comes_s + costs_s[size] > latest_s:
            break  # so is every larger batch: it has an earlier deadline and takes longer
        served = slice(max(size, counts.start), counts.stop)
        ends_s = np.maximum(rows[-size][served.start - size : served.stop - size], comes_s) + costs_s[size]
        ends_s[ends_s > latest_s] = np.inf
        np.minimum(best[served], ends_s, out=best[served])
    return best
