"""How many replicas a model should have, by how long batches wait for them and how many deadlines are missed.

**Signals**, which each replica sums up over the time between two of Serve's questions (`Load`):

- `queue_delay_s`: what a call had waited when it came, on average: in the gateway's batcher, and on its way.
- `misses`: deadlines that callers missed; they count as a share of the calls.
- `busy`: the share of the replica's slots that were at work.

**The policy** (`QueueDelay`), by means over the replicas that have been heard of. Something is amiss where more than
`_FEW` of the deadlines are missed, or the delay is above its target. That can have other causes than too few replicas:
a batch that waits for company, a deadline that no model could keep, a slow network. Replicas that are idle do not help.

1. Something is amiss, and replicas are busy for more than half of the time: as many more as the delay is over the
   target, twice as many at most. A queue grows until something is added, however little is missing, so the delay says
   that it is too little and not how much; doubling finds the number within a few rounds.
2. Nobody asked: none.
3. The delay is below half of the target, and nothing is amiss: as many as would be busy for `_BUSY` of the time. That
   is less than all of it, since a replica that is always busy has a queue.
4. Replicas are idle for half of the time or more, whatever is amiss: as many as would be busy for `_CALM` of the time,
   and thus would not come to the first case.
5. Otherwise as many as there are.

There are never less than half as many in one step.

Serve waits before it follows (`up_after_s`; `down_after_s`, before each step), keeps to the bounds, and starts one at
once where there is none and somebody asks.

Rejected: Serve's own policy, ongoing calls per replica: what a good number is depends on how long a batch takes, and a
gateway that keeps its queues to itself shows few; predicting the load from its history (an issue of its own).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

_BUSY, _HALF_BUSY, _CALM = 0.7, 0.5, 0.4
_FEW = 0.01
"""Of deadlines, which are always missed: a machine pauses, a caller asks for too much."""

DELAY, MISSES, BUSY, CALLS = "queue_delay_s", "misses", "busy", "calls"


class Load:
    """What one replica sums up. Belongs to one event loop."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        slots: calls that the replica overlaps.
        """
        self._slots = slots
        self._clock = clock
        self._since = clock()
        self._calls = self._misses = self._running = 0
        self._waited_s = self._busy_s = 0.0
        self._changed = self._since

    def began(self, waited_s: float, misses: int) -> None:
        """A call came that had waited so long, from somebody who has missed so many deadlines."""
        self._pass()
        self._calls += 1
        self._running += 1
        self._waited_s += waited_s
        self._misses += misses

    def ended(self) -> None:
        """A call is over."""
        self._pass()
        self._running -= 1

    def told(self) -> Mapping[str, float]:
        """The signals since this was last asked."""
        self._pass()
        now = self._clock()
        took_s = max(now - self._since, 1e-9)
        signals = {
            DELAY: self._waited_s / self._calls if self._calls else 0.0,
            MISSES: float(self._misses),
            BUSY: min(1.0, self._busy_s / took_s / self._slots),
            CALLS: float(self._calls + self._running),
        }
        self._since = now
        self._calls = self._misses = 0
        self._waited_s = self._busy_s = 0.0
        return signals

    def _pass(self) -> None:
        now = self._clock()
        self._busy_s += min(self._running, self._slots) * (now - self._changed)
        self._changed = now


def wanted_replicas(
    replicas: int, *, delay_s: float, target_s: float, missed: float, busy: float, calls: float
) -> float:
    """How many replicas there should be, where there are *replicas* (at least 1); see the module.

    Args:
        delay_s, busy: means over the replicas.
        missed: deadlines, as a share of the calls.
        calls: a sum over the replicas.
    """
    over = delay_s / target_s
    amiss = missed > _FEW or over > 1.0
    if amiss and busy > _HALF_BUSY:
        return replicas * min(2.0, max(over, (replicas + 1) / replicas))
    if calls == 0:
        return replicas / 2 if replicas > 1 else 0.0
    if over < 0.5 and not amiss:
        enough = replicas * busy / _BUSY
    elif busy <= _HALF_BUSY:
        enough = replicas * busy / _CALM
    else:
        return float(replicas)
    return min(float(replicas), max(1.0, replicas / 2, enough))


class QueueDelay:
    """The policy as Serve's controller has it: made once a deployment, asked every round."""

    def __init__(self, target_s: float) -> None:
        """Args:
        target_s: the delay that is not to be exceeded.
        """
        self._target_s = target_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Replicas wanted, and no state of ours. Any: Serve's `AutoscalingContext`, and a state of any kind."""
        found: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        replicas = context.current_num_replicas
        heard = found.get(CALLS, {})
        if not replicas or not heard:  # none, or none has told anything yet
            return float(context.target_num_replicas), {}

        def mean(signal: str) -> float:
            values = found.get(signal, {}).values()
            return math.fsum(values) / len(values) if values else 0.0

        calls = mean(CALLS)
        wanted = wanted_replicas(
            replicas,
            delay_s=mean(DELAY),
            target_s=self._target_s,
            missed=mean(MISSES) / calls if calls else 0.0,
            busy=mean(BUSY),
            calls=calls + context.total_num_requests,
        )
        return wanted, {}
