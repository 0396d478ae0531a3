"""Which replica gets a call: the better of two drawn at random.

The load of a replica is (attempts in flight + 1) x its latency. Two random choices come close to the least loaded
without everybody running to the same one, and a slow replica is passed over wherever the other drawn is not as busy.

1. A replica *on trial* (half-open) goes first: a call shows whether it is well, and one at a time is let through. A
   call that has failed once already is no guinea pig, and goes there only where nothing else is left.
2. A replica that was tried by this call is left out while there is another.
3. A *ramping* replica stands for choice as often as its share says, whatever its load: a share of calls, as a slow
   start should give. Dividing its load by its share instead gives it nothing at all in quiet times, when everybody
   else's load is small, and everything at once in a burst.
4. A replica of unknown latency that is idle is drawn as if it cost nothing, and as the very last once it has a call
   in flight: so it gets one, whose answer tells.

Sources: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); Finagle, `PeakEwma.scala`
(1e8497e), for the load and for case 4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from backends.contract import record

T = TypeVar("T")

_UNKNOWN: Final = 1e9  # seconds: more than anybody's load, and still counting calls


@record(eq=False)
class Candidate(Generic[T]):
    """A replica that can be chosen now.

    Attributes:
        who: the replica.
        load: see `load`.
        share: of its full share of calls, above 0 to 1.
        is_on_trial: half-open, with no call in flight.
        was_tried: by the call at hand.
    """

    who: T
    load: float
    share: float = 1.0
    is_on_trial: bool = False
    was_tried: bool = False


def load(latency_s: float | None, in_flight: int) -> float:
    """What one more call would cost on a replica with so much to do; the unit is seconds."""
    if latency_s is None:
        return _UNKNOWN + in_flight if in_flight else 0.0
    return latency_s * (in_flight + 1)


def choose(candidates: Sequence[Candidate[T]], rng: random.Random) -> T | None:
    """The replica that gets the call; None where there is no candidate."""
    fresh = [candidate for candidate in candidates if not candidate.was_tried]
    standing = fresh or candidates
    on_trial = [candidate for candidate in standing if candidate.is_on_trial]
    in_service = [candidate for candidate in standing if not candidate.is_on_trial]
    is_first_attempt = len(fresh) == len(candidates)
    if on_trial and (is_first_attempt or not in_service):
        return rng.choice(on_trial).who
    return _better_of_two(_elected(in_service, rng), rng)


def _elected(candidates: list[Candidate[T]], rng: random.Random) -> list[Candidate[T]]:
    if all(candidate.share >= 1.0 for candidate in candidates):
        return candidates
    return [candidate for candidate in candidates if rng.random() < candidate.share] or candidates


def _better_of_two(candidates: list[Candidate[T]], rng: random.Random) -> T | None:
    if not candidates:
        return None
    if len(candidates) == 1:
        return candidates[0].who
    one, other = rng.sample(candidates, 2)
    return one.who if one.load <= other.load else other.who
