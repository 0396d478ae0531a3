"""What became of the demo's requests: the arithmetic, the table, and the summary for programs.

Every request ends in one of four ways: a model's answer was accepted, a person decided, the gateway refused it, or
something failed. Whether a request was escalated, that is answered or handed over behind the first stage, is told
beside that and adds nothing.

A route kept its promise unless the errors among its accepted answers reject it, in the exact binomial test at 1 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from rich.table import Table

from gateway.demo.items import Item
from router.binomial import is_rejected


class Ended(StrEnum):
    """How a request ended."""

    ACCEPTED = "accepted"
    HUMAN = "human"
    REFUSED = "refused"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Result:
    """One request that ended.

    Attributes:
        latency_s: until the first reply, which for an item that a person decided was provisional.
        stage: the last model that answered; None where none did.
        label: the final one; None where there is none.
        certified: the gateway says that it holds a certificate for the route's error rate; None where it did not say.
        detail: what a refusal or an error said.
    """

    item: Item
    ended: Ended
    latency_s: float
    stage: str | None = None
    label: str | None = None
    certified: bool | None = None
    detail: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the final label is the true one."""
        return self.label == self.item.truth


@dataclass(frozen=True, slots=True)
class Promise:
    """What a route is made of, and what it promises of the answers that its models give.

    Attributes:
        max_error: None where people decide everything.
        bound: what the certificate's own labels say of the error, at most; None where there is none.
    """

    cascade: tuple[str, ...]
    max_error: float | None
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """The requests of one route.

    Attributes:
        requests: accepted + human + refused + errors.
        escalated: answered or handed over by a stage behind the first.
        by_stage: accepted answers, by model, in the order of the cascade.
        accuracy_accepted: share of accepted answers that were right; None where there were none.
        accuracy_human: likewise of people's decisions.
        bound: as the promise has it.
        certified: the gateway says that it holds a certificate.
        kept: the promise is not rejected by what was seen.
    """

    requests: int
    accepted: int
    escalated: int
    human: int
    refused: int
    errors: int
    by_stage: Mapping[str, int]
    accuracy_accepted: float | None
    accuracy_human: float | None
    max_error: float | None
    bound: float | None
    certified: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """All requests of a run.

    Attributes:
        p50_ms, p99_ms: of the first reply; None where there was none.
        requests_per_s: over the time from the first request to the last first reply.
        details: different messages of refusals and errors, at most three.
    """

    by_route: Mapping[str, RouteSummary]
    p50_ms: float | None
    p99_ms: float | None
    requests_per_s: float
    details: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Over all routes."""
        return sum(route.requests for route in self.by_route.values())

    @property
    def errors(self) -> int:
        """Over all routes."""
        return sum(route.errors for route in self.by_route.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it (Any)."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "by_route": {name: _route_dict(route) for name, route in self.by_route.items()},
            "p50_ms": _rounded(self.p50_ms, 2),
            "p99_ms": _rounded(self.p99_ms, 2),
            "requests_per_s": round(self.requests_per_s, 1),
        }


def _route_dict(route: RouteSummary) -> dict[str, Any]:
    return {
        "requests": route.requests,
        "accepted": route.accepted,
        "escalated": route.escalated,
        "human": route.human,
        "refused": route.refused,
        "errors": route.errors,
        "by_stage": dict(route.by_stage),
        "accuracy_accepted": _rounded(route.accuracy_accepted, 4),
        "accuracy_human": _rounded(route.accuracy_human, 4),
        "max_error": route.max_error,
        "bound": _rounded(route.bound, 4),
        "certified": route.certified,
        "kept": route.kept,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def summarise(results: Sequence[Result], promises: Mapping[str, Promise], duration_s: float) -> Summary:
    """The summary of *results*, which took *duration_s* seconds."""
    replied_ms = [result.latency_s * 1e3 for result in results if result.ended is not Ended.ERROR]
    details = dict.fromkeys(result.detail for result in results if result.detail)
    return Summary(
        by_route={
            name: _summarise_route([r for r in results if r.item.route == name], promise)
            for name, promise in promises.items()
        },
        p50_ms=float(np.percentile(replied_ms, 50)) if replied_ms else None,
        p99_ms=float(np.percentile(replied_ms, 99)) if replied_ms else None,
        requests_per_s=len(results) / duration_s if duration_s > 0 else 0.0,
        details=tuple(details)[:3],
    )


def _summarise_route(results: Sequence[Result], promise: Promise) -> RouteSummary:
    ended = Counter(result.ended for result in results)
    accepted = [result for result in results if result.ended is Ended.ACCEPTED]
    stages = Counter(result.stage for result in accepted)
    wrong = sum(not result.is_right for result in accepted)
    told = [result.certified for result in accepted if result.certified is not None]
    return RouteSummary(
        requests=len(results),
        accepted=len(accepted),
        escalated=sum(result.stage in promise.cascade[1:] for result in results),
        human=ended[Ended.HUMAN],
        refused=ended[Ended.REFUSED],
        errors=ended[Ended.ERROR],
        by_stage={stage: stages[stage] for stage in promise.cascade},
        accuracy_accepted=_accuracy(accepted),
        accuracy_human=_accuracy([result for result in results if result.ended is Ended.HUMAN]),
        max_error=promise.max_error,
        bound=promise.bound,
        certified=bool(told) and all(told),
        kept=promise.max_error is None or not is_rejected(wrong, len(accepted), promise.max_error),
    )


def _accuracy(results: Sequence[Result]) -> float | None:
    return sum(result.is_right for result in results) / len(results) if results else None


def table(summary: Summary) -> Table:
    """The one table: where each route's requests were answered, and how often wrongly."""
    drawn = Table(title="What became of the requests", title_justify="left", caption_justify="left")
    drawn.add_column("route")
    columns = ("requests", "fast model", "strong model", "people", "refused", "errors")
    for name in (*columns, "wrong", "bound", "promise", "people right"):
        drawn.add_column(name, justify="right")
    for name, route in summary.by_route.items():
        fast, *others = route.by_stage.values() or [0]
        drawn.add_row(
            name,
            str(route.requests),
            _count(fast, route.requests),
            _count(sum(others), route.requests),
            _count(route.human, route.requests),
            str(route.refused),
            str(route.errors),
            "-" if route.accuracy_accepted is None else f"{1 - route.accuracy_accepted:.1%}",
            f"≤ {route.bound:.1%}" if route.certified and route.bound is not None else "-",
            _promised(route),
            _percent(route.accuracy_human),
        )
    p50, p99 = (f"{value:.0f} ms" if value is not None else "-" for value in (summary.p50_ms, summary.p99_ms))
    drawn.caption = (
        f"first reply p50 {p50}, p99 {p99}; {summary.requests_per_s:.0f} requests/s\n"
        "wrong: of what models answered, on items that nothing was fitted or certified on\n"
        "bound: upper limit of that, by the certificate's own labels; what it proves is the promise\n"
        "kept: so many errors are no surprise where the promise holds (exact binomial test, 1 %)"
    )
    return drawn


def _promised(route: RouteSummary) -> str:
    if route.max_error is None:
        return "-"
    return f"≤ {route.max_error:.0%} {'kept' if route.kept else 'BROKEN'}"


def _count(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "0"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
