"""Which version of a route answers a request, and when a new one has shown that it is worse.

**Shares.** `shares` says how much of the traffic each version gets now: fixed weights, or a canary whose share grows by
the clock. `drawn` picks one by a random number; `assigned` by a key, such as a customer, always the same one.

**A key stays where it is**, as far as shares allow, by weighted rendezvous hashing: each version has a score for the
key, its share over an exponential variate that is the hash of key and version, and the highest wins. Where a version's
share grows, its score alone does (the others' shrink by a common factor), so that keys move to it and never between
others. Nothing is kept: all processes agree, and agree after a restart. Rejected: the key's hash against cumulated
shares, which moves keys between versions whose shares did not change, as soon as there are three.

**A canary that is worse** is found by comparing its rate of troubles with the stable version's, over the same
time: bounds that hold at every look (`router.binomial.at_any_time`), and that do not overlap. Each step of the ramp is
judged by itself, as within one the shares stay as they are: over several, a bad hour that hit both alike would count
more against the version that got more of that hour's traffic. Rejected: bounds for one look, as Clopper's and
Pearson's, after every request, which halt many a good canary in the end. Requests are taken for independent; where they
are not, as when one caller sends nothing but what fails and sticks to the canary, a halt may be that caller's doing.

Sources: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking 6, 1998 (rendezvous hashing); C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables", SPAA
2005 (the logarithmic method).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import TypeAlias

from router.binomial import at_any_time

HALT_CONFIDENCE = 0.999
"""How sure it must be that a canary is worse than the stable version: over its whole ramp, and all looks at it."""

LEAST_BAD = 10
"""How many requests of the canary must have had the trouble, whatever their rate: a batch that fails is several at
once, and no more evidence than one."""

_TROUBLES = 2
"""Kinds of trouble that are compared, stage failures and deadline misses: each gets its part of what is left."""


@dataclass(frozen=True, slots=True)
class Split:
    """Fixed shares, in proportion to *weights* by version: none below 0, one above. One alone has it all."""

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Canary:
    """A version whose share grows step by step; the stable one has the rest.

    Attributes:
        ramp: its shares, in (0, 1], rising; the last one stays.
        every_s: seconds that each of them lasts.
        starts_s: Unix time of the first, in seconds; before, it has none.
        is_dated: somebody has set *starts_s*; if not, it is when the configuration was read.
    """

    version: str
    stable: str
    ramp: tuple[float, ...]
    every_s: float
    starts_s: float
    is_dated: bool = True

    def step(self, now_s: float) -> int:
        """Index of the share that holds at *now_s* (Unix time, seconds); -1 before the first."""
        return max(-1, min(math.floor((now_s - self.starts_s) / self.every_s), len(self.ramp) - 1))

    def share(self, now_s: float) -> float:
        """The canary's share at *now_s*."""
        step = self.step(now_s)
        return self.ramp[step] if step >= 0 else 0.0


class StickBy(StrEnum):
    """Whose requests all go to one version."""

    TENANT = "tenant"
    CALLER = "caller"
    PARAMETER = "parameter"


@dataclass(frozen=True, slots=True)
class Sticky:
    """What of a request is the key by which its version is found.

    Attributes:
        parameter: name of the request parameter, where it is one.
    """

    by: StickBy
    parameter: str = ""

    def __str__(self) -> str:
        return f"{self.by}:{self.parameter}" if self.by is StickBy.PARAMETER else str(self.by)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that is shown what others answer, and whose answers nobody gets.

    Attributes:
        share: of the requests, in (0, 1].
        max_running: how many it works on at a time; what comes beyond is not shown to it.
    """

    version: str
    share: float
    max_running: int


Rule: TypeAlias = Split | Canary


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the versions of one route get.

    Attributes:
        versions: all there are, in the order of the configuration; at least one.
        sticky: None: a version is drawn for every request.
    """

    versions: tuple[str, ...]
    rule: Rule
    sticky: Sticky | None = None
    shadow: Shadow | None = None


def shares(traffic: Traffic, now_s: float, *, is_halted: bool = False) -> Mapping[str, float]:
    """The share of every version that has one, by version, newest first; they sum to 1.

    Args:
        now_s: Unix time, in seconds.
        is_halted: its canary gets nothing any more.
    """
    match traffic.rule:
        case Split(weights):
            total = math.fsum(weights.values())
            found = {version: weights.get(version, 0.0) / total for version in reversed(traffic.versions)}
        case Canary() as canary:
            share = 0.0 if is_halted else canary.share(now_s)
            found = {canary.version: share, canary.stable: 1.0 - share}
    return {version: share for version, share in found.items() if share > 0.0}


def drawn(shares: Mapping[str, float], point: float) -> str:
    """The version at *point*, in [0, 1), of shares that are laid side by side."""
    for version, share in shares.items():
        point -= share
        if point < 0.0:
            return version
    return version  # rounding: they sum to a little less than 1


def assigned(shares: Mapping[str, float], route: str, key: str) -> str:
    """The version of *route* that everything with *key* gets."""
    if len(shares) == 1:
        return next(iter(shares))
    return max(shares, key=lambda version: shares[version] / _exponential(route, version, key))


def _exponential(route: str, version: str, key: str) -> float:
    """An exponential variate of rate 1, always the same one for the same names; above 0."""
    digest = blake2b("\0".join((route, version, key)).encode(errors="replace"), digest_size=8).digest()
    uniform = ((int.from_bytes(digest) >> 12) + 0.5) / 2.0**52  # 52 bits: with the half, a float holds them
    return -math.log(uniform)


@dataclass(frozen=True, slots=True)
class Trials:
    """Requests of one version, and how many of them had a trouble of one kind."""

    count: int = 0
    bad: int = 0

    def and_one(self, *, bad: bool) -> Trials:
        """These, and one more."""
        return Trials(self.count + 1, self.bad + bad)

    def __str__(self) -> str:
        return f"{self.bad} of {self.count}"


def is_worse(canary: Trials, stable: Trials, steps: int) -> bool:
    """Whether *canary* has the trouble more often than *stable*, beyond doubt (`HALT_CONFIDENCE`).

    Args:
        steps: how many steps the ramp has: each is judged anew.
    """
    if canary.bad < LEAST_BAD or canary.bad * stable.count <= stable.bad * canary.count:
        return False
    # Both bounds hold at every look, of both kinds of trouble and in every step, with `HALT_CONFIDENCE`.
    level = 1.0 - (1.0 - HALT_CONFIDENCE) / (2 * _TROUBLES * steps)
    least, _ = at_any_time(canary.bad, canary.count, level)
    _, most = at_any_time(stable.bad, stable.count, level)
    return least > most
