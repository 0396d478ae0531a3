"""Which version of a route answers a request, and what became of those that did.

The rules are `router.versions`'; here they meet the clock, requests, and the memory of what went wrong: a canary that
is worse than the stable version beyond doubt gets nothing more. Every worker judges by what it has seen itself; the
others hear of it by way of the supervisor, those that are started again too, and the store keeps it (`gateway.halts`).

**Sequences** of models that keep state stay with the version that has the state, whatever the shares become; where it
is over, the one that lost it says so. A new one goes where its id, or what the route sticks by, belongs, so that a step
which overtakes the first goes there too. One that is begun anew while it lives stays where it is.

**What counts against a version**, once a request: a stage that was asked and failed, or that could not be asked
because its model was not ready; apart from that, a stage for which there was no time, or no room. A model that is
loaded when it is wanted, and was not in memory, counts for nothing. Requests that name their version are no part of
the comparison, as they are chosen, and not drawn.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from batching.sequences import Step
from gateway.answer import StageRecord
from gateway.catalog import Catalog
from gateway.explain import VersionPreview
from gateway.request import Request
from gateway.sequences import step_of
from router.contract import FAILURES, Reason, Route, route_id
from router.versions import Canary, StickBy, Sticky, Traffic, Trials, assigned, drawn, is_worse, shares

log = logging.getLogger("pointsman.traffic")

_LATE = (Reason.OUT_OF_TIME, Reason.OVERLOADED)


@dataclass(frozen=True, slots=True)
class VersionShare:
    """A version of a route, and what it gets.

    Attributes:
        share: of the route's requests, in [0, 1]; more go to it where callers name it.
        halted: why it gets nothing more, in words; None where nothing is wrong.
        requests: that it took, since the gateway started.
        failures: of these, where a stage failed.
        misses: of these, where a stage came too late or had no room.
        shadows: whether it is shown what others answer.
    """

    route: str
    version: str
    share: float
    halted: str | None
    requests: int
    failures: int
    misses: int
    shadows: bool


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    failures: int = 0
    misses: int = 0


@dataclass(slots=True)
class _Comparison:
    """A canary and its stable version, since the present step of the ramp began."""

    step: int = -1
    failures: dict[str, Trials] = field(default_factory=dict)
    misses: dict[str, Trials] = field(default_factory=dict)


class VersionTraffic:
    """Chooses versions, and keeps what they did. Single event loop."""

    def __init__(self, clock: Callable[[], float] = time.time, rng: Callable[[], float] = random.random) -> None:
        """Args:
        clock: Unix time, in seconds.
        rng: numbers in [0, 1).
        """
        self._clock = clock
        self._rng = rng
        self._counts: dict[str, _Counts] = {}
        self._comparisons: dict[str, _Comparison] = {}
        self._halted: dict[str, str] = {}

    def pick(self, catalog: Catalog, name: str, request: Request) -> Route:
        """The version of the route *name*, which has several, that answers *request*."""
        if request.version and request.route == name:
            return catalog.routes[route_id(name, request.version)]
        sticky, step = catalog.traffic[name].sticky, _step(catalog, name, request)
        if step is not None and (there := _with_state(catalog, name, step)) is not None:
            return there
        found = self.shares(catalog, name)
        key = None if sticky is None else _key(sticky, request)
        if key is None and step is not None:
            key = f"{step.tenant}\0{step.id!r}"
        version = drawn(found, self._rng()) if key is None else assigned(found, name, key)
        return catalog.routes[route_id(name, version)]

    def chosen(self, catalog: Catalog, name: str) -> Route:
        """The version of the route *name* that gets most now; the route itself, where it has none."""
        if name not in catalog.traffic:
            return catalog.routes[name]
        found = self.shares(catalog, name)
        return catalog.routes[route_id(name, max(found, key=found.__getitem__))]

    def outlook(self, catalog: Catalog, name: str, request: Request) -> tuple[Route, tuple[VersionPreview, ...]]:
        """The version of the route *name* that would answer *request*, or likeliest would, among all with a share."""
        if name not in catalog.traffic:
            return catalog.routes[name], ()
        version, previews = outlook(catalog.traffic[name], self.shares(catalog, name), name, request)
        return catalog.routes[route_id(name, version)], previews

    def shares(self, catalog: Catalog, name: str) -> Mapping[str, float]:
        """What the versions of the route *name* get now, those that get something."""
        return shares(catalog.traffic[name], self._clock(), is_halted=name in self._halted)

    def ended(self, catalog: Catalog, route: Route, troubles: Sequence[StageRecord], *, is_pinned: bool) -> None:
        """The stages of *route*, a version, were asked; *troubles* are of those that gave no answer.

        Args:
            is_pinned: its caller named the version.
        """
        failed = any(_is_failure(catalog, trouble) for trouble in troubles)
        missed = any(trouble.reason in _LATE for trouble in troubles)
        counts = self._counts.setdefault(route.id, _Counts())
        counts.requests += 1
        counts.failures += failed
        counts.misses += missed
        rule = catalog.traffic[route.name].rule
        if not is_pinned and isinstance(rule, Canary) and route.name not in self._halted:
            self._compare(rule, route, failed=failed, missed=missed)

    def _compare(self, canary: Canary, route: Route, *, failed: bool, missed: bool) -> None:
        step = canary.step(self._clock())
        found = self._comparisons.get(route.name)
        if found is None or found.step != step:
            found = self._comparisons[route.name] = _Comparison(step)
        for what, trials, bad in (("failures", found.failures, failed), ("late", found.misses, missed)):
            mine = trials[route.version] = trials.get(route.version, Trials()).and_one(bad=bad)
            if not bad or route.version != canary.version:
                continue  # only this could have made it worse
            stable = trials.get(canary.stable, Trials())
            if is_worse(mine, stable, len(canary.ramp)):
                self.halt({route.name: _why(what, mine, stable, canary)})
                return

    @property
    def halted(self) -> Mapping[str, str]:
        """Why canaries get nothing more, in words, by route."""
        return dict(self._halted)

    def halt(self, canaries: Mapping[str, str]) -> None:
        """Give *canaries* (by route, and why, in words) nothing more; those that are halted already stay so."""
        for name in canaries.keys() - self._halted.keys():
            self._halted[name] = canaries[name]
            log.error(
                "the canary of route %s is halted: %s; the stable version gets all requests until the canary is given "
                "a later `starts`",
                name,
                canaries[name],
            )

    def statistics(self, catalog: Catalog) -> tuple[VersionShare, ...]:
        """Every version of every route that has several."""
        return tuple(
            self._version(name, version, traffic, self.shares(catalog, name))
            for name, traffic in catalog.traffic.items()
            for version in traffic.versions
        )

    def _version(self, name: str, version: str, traffic: Traffic, found: Mapping[str, float]) -> VersionShare:
        counts = self._counts.get(route_id(name, version), _Counts())
        is_canary = isinstance(traffic.rule, Canary) and traffic.rule.version == version
        return VersionShare(
            route=name,
            version=version,
            share=found.get(version, 0.0),
            halted=self._halted.get(name) if is_canary else None,
            requests=counts.requests,
            failures=counts.failures,
            misses=counts.misses,
            shadows=traffic.shadow is not None and traffic.shadow.version == version,
        )


def outlook(
    traffic: Traffic, found: Mapping[str, float], name: str, request: Request
) -> tuple[str, tuple[VersionPreview, ...]]:
    """The version of the route *name* that would answer *request*, or likeliest would, and all with a share or a part.

    Args:
        found: shares by version.
    """
    key = None if traffic.sticky is None else _key(traffic.sticky, request)
    if request.version and request.route == name:
        version, why = request.version, "the request names it"
    elif len(found) == 1:
        version, why = next(iter(found)), "it answers all"
    elif key is not None:
        version, why = assigned(found, name, key), f"found by {traffic.sticky}, the same for every such request"
    else:
        version, why = max(found, key=found.__getitem__), "the likeliest: one is drawn for every request"
    shadow = traffic.shadow.version if traffic.shadow is not None else None
    return version, tuple(
        VersionPreview(one, found.get(one, 0.0), why if one == version else None, one == shadow)
        for one in traffic.versions
    )


def _step(catalog: Catalog, name: str, request: Request) -> Step | None:
    """What *request* is to the route *name*, if that keeps state and it is one of a sequence."""
    if request.sequence is None:
        return None
    stages = (stage.model for route in catalog.each_version(name) for stage in route.cascade)
    return step_of(request, name) if any(catalog.models[model].keeps_state for model in stages) else None


def _with_state(catalog: Catalog, name: str, step: Step) -> Route | None:
    """The version of the route *name* in which the sequence of *step* lives, or else was lost; None: there is none."""
    routes = catalog.each_version(name)
    for route in routes:
        if any(catalog.models[stage.model].has_sequence(step) for stage in route.cascade):
            return route
    if not step.starts:
        for route in routes:
            if any(catalog.models[stage.model].has_lost(step) for stage in route.cascade):
                return route
    return None


def _why(what: str, canary: Trials, stable: Trials, rule: Canary) -> str:
    words = {"failures": "stages failed on", "late": "stages came too late, or had no room, for"}[what]
    return f"{words} {canary} of its requests, and on {stable} of version {rule.stable}'s"


def _is_failure(catalog: Catalog, trouble: StageRecord) -> bool:
    if trouble.reason not in FAILURES:
        return False
    if trouble.version:  # it was asked
        return True
    return not catalog.models[trouble.stage].is_cold


def _key(sticky: Sticky, request: Request) -> str | None:
    """What *request* sticks by; None where it has nothing of the kind."""
    caller = request.caller
    match sticky.by:
        case StickBy.TENANT:
            return caller.tenant
        case StickBy.CALLER:
            return f"{caller.tenant}\0{caller.name}"
        case StickBy.PARAMETER:
            value = request.parameters.get(sticky.parameter)
            return None if value is None else f"{caller.tenant}\0{value}"
