"""Which route a request takes: an ordered list of rules, of which the first that matches decides.

Decisions
- **Naming a route picks it.** Rules apply to requests for `auto`, unless a rule says otherwise in `when.route`: a rule
  for `digits` (or `digit*`, or `*`) refines requests that name such a route. A request for a name that is neither a
  route nor `auto` is unknown before any rule is considered: rules are no aliases, so that a typing error stays one.
- **Rules are considered once.** What a rule picks is final, never looked up again, so there are no cycles to follow;
  a rule that picks `auto` is a fault.
- **People answer within a route.** A rule may send a request straight to the people of the route it picks
  (`to_person`). It names a route all the same: the route gives the answer its labels, queue and due time.
- **The default is for `auto` alone**, and is considered last. Without one, `auto` refuses what no rule matched.
- Globs know `*` and `?` only; character classes would make a condition such as `[urgent]` surprising.

Rejected: scoring rules by specificity (nobody can predict the winner), and a rule language with `or` and `not` (two
rules in order say the same and each can be explained).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from backends.contract import ParameterValue
from router.contract import AUTO, Reason, Traits


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern over a whole text, case-sensitive: `*` is any run of characters, `?` any one."""

    pattern: str

    def matches(self, text: str) -> bool:
        """Whether *text* as a whole fits the pattern; linear in its length, whatever the pattern."""
        return _compiled(self.pattern).match(text) is not None

    @property
    def is_literal(self) -> bool:
        """Whether it matches one text only."""
        return "*" not in self.pattern and "?" not in self.pattern

    def __str__(self) -> str:
        return self.pattern


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    # fnmatch's translation never backtracks over an earlier `*`: callers choose the texts, and may choose long ones.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from *low* to *high*; each end belongs to the range unless it says open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def contains(self, value: float) -> bool:
        """Whether *value* lies in the range; NaN never does."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    @property
    def is_empty(self) -> bool:
        """Whether no number lies in it."""
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'>' if self.low_open else '>='} {self.low:g}"
        high = "" if self.high == math.inf else f"{'<' if self.high_open else '<='} {self.high:g}"
        return ", ".join(end for end in (low, high) if end) or "any number"


Accepted: TypeAlias = ParameterValue | Glob | Range
"""What a parameter may be: one value, a pattern (of texts), or a range (of numbers)."""


@dataclass(frozen=True, slots=True)
class ParameterTest:
    """The caller's parameter *name* must be given, and be one of *accepted*."""

    name: str
    accepted: tuple[Accepted, ...]

    def admits(self, value: ParameterValue | None) -> bool:
        """Whether *value* passes; None stands for a parameter that was not given."""
        return value is not None and any(_accepts(accepted, value) for accepted in self.accepted)

    def __str__(self) -> str:
        return f"{self.name} is {_or(self.accepted)}"


def _accepts(accepted: Accepted, value: ParameterValue) -> bool:
    match accepted:
        case Glob():
            return isinstance(value, str) and accepted.matches(value)
        case Range():
            return isinstance(value, int | float) and not isinstance(value, bool) and accepted.contains(value)
        case _:
            # Python has True == 1; the Open Inference Protocol keeps bool_param and int64_param apart.
            return isinstance(accepted, bool) == isinstance(value, bool) and accepted == value


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request must be for a rule to apply; all of it, and an empty condition admits everything.

    Attributes:
        routes: what the request may name.
        content_types: its media type, lower-case; for tensors what their sender states, or "".
        size: bytes of its inputs.
        tenants: who may ask.
        parameters: the caller's own parameters.
    """

    routes: tuple[Glob, ...] = (Glob(AUTO),)
    content_types: tuple[Glob, ...] = ()
    size: Range | None = None
    tenants: tuple[Glob, ...] = ()
    parameters: tuple[ParameterTest, ...] = ()

    @property
    def admit_all(self) -> bool:
        """Whether every request for `auto` meets them."""
        return self == Conditions()


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests that meet *when* take *route*; straight to its people where *to_person* says so."""

    when: Conditions
    route: str
    to_person: bool = False


@dataclass(frozen=True, slots=True)
class Default:
    """The route of requests for `auto` that no rule matched."""

    route: str
    to_person: bool = False


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The names that callers can use, and the rules behind `auto`. `faults` tells whether it can be used."""

    routes: frozenset[str]
    rules: tuple[Rule, ...] = ()
    default: Default | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """The request takes *route*.

    Attributes:
        to_person: it goes straight to the route's people; no model is asked.
        rule: index of the rule that decided; None where the caller's name or the default did.
    """

    route: str
    to_person: bool = False
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request names a route that does not exist."""

    name: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request asked for `auto`, and the table has no route for it."""

    reason: Reason = Reason.NO_RULE_MATCHED


Choice: TypeAlias = Picked | Unknown | Refused


def route(table: RouteTable, traits: Traits) -> Choice:
    """The route that *traits* take: the first rule that matches, else the route they name, else the default."""
    if traits.route != AUTO and traits.route not in table.routes:
        return Unknown(traits.route)
    for index, rule in enumerate(table.rules):
        if _failing(rule.when, traits) is None:
            return Picked(rule.route, rule.to_person, index)
    if traits.route != AUTO:
        return Picked(traits.route)
    return Picked(table.default.route, table.default.to_person) if table.default else Refused()


@dataclass(frozen=True, slots=True)
class Considered:
    """A rule that was looked at; *why_not* says which of its conditions failed, None where it matched."""

    rule: int
    route: str
    why_not: str | None


def explain(table: RouteTable, traits: Traits) -> tuple[Considered, ...]:
    """The rules that `route` considers for *traits*, in order, up to the one that matches."""
    considered = []
    for index, rule in enumerate(table.rules):
        failing = _failing(rule.when, traits)
        why_not = None if failing is None else _why_not(failing, traits)
        considered.append(Considered(index, rule.route, why_not))
        if failing is None:
            break
    return tuple(considered)


_Failing: TypeAlias = tuple[str, object]
"""The name of a condition, and the condition."""


def _failing(when: Conditions, traits: Traits) -> _Failing | None:
    """The first condition that *traits* do not meet; None where they meet all. The cheapest are tried first."""
    if not _any(when.routes, traits.route):
        return "route", when.routes
    if when.size is not None and not when.size.contains(traits.size_bytes):
        return "size", when.size
    if when.content_types and not _any(when.content_types, traits.content_type):
        return "content_type", when.content_types
    if when.tenants and not _any(when.tenants, traits.tenant):
        return "tenant", when.tenants
    for test in when.parameters:
        if not test.admits(traits.parameters.get(test.name)):
            return "parameters", test
    return None


def _any(globs: tuple[Glob, ...], text: str) -> bool:
    return any(glob.pattern == text or glob.matches(text) for glob in globs)


def _why_not(failing: _Failing, traits: Traits) -> str:
    match failing:
        case "size", wanted:
            return f"size {traits.size_bytes} is not {wanted}"
        case "parameters", ParameterTest() as test if test.name not in traits.parameters:
            return f"parameter {test.name!r} was not given; expected {_or(test.accepted)}"
        case "parameters", ParameterTest() as test:
            return f"parameter {test.name!r} is {traits.parameters[test.name]!r}, not {_or(test.accepted)}"
        case name, tuple() as wanted:
            return f"{name} is {getattr(traits, name)!r}, not {_or(wanted)}"
        case _:
            raise AssertionError(f"no words for {failing}. This is a bug.")


def _or(accepted: tuple[object, ...]) -> str:
    return " or ".join(repr(one) if isinstance(one, str) else str(one) for one in accepted)


@dataclass(frozen=True, slots=True)
class TableFault:
    """Something in a table that cannot be meant.

    Attributes:
        rule: index of the rule at fault; None: the default.
        field: `when`, `when.route`, `when.size` or `route`.
        message: what is wrong, and the remedy.
    """

    rule: int | None
    field: str
    message: str


def faults(table: RouteTable) -> tuple[TableFault, ...]:
    """Everything in *table* that cannot be meant: unknown names, rules never reached, ranges that hold nothing."""
    return (*_target_faults(table), *_condition_faults(table), *_reach_faults(table))


def _target_faults(table: RouteTable) -> Iterator[TableFault]:
    targets = [(index, rule.route) for index, rule in enumerate(table.rules)]
    for index, name in [*targets, *([(None, table.default.route)] if table.default else [])]:
        if name == AUTO:
            yield TableFault(index, "route", f"{AUTO!r} would ask these rules again; name a route")
        elif name not in table.routes:
            yield TableFault(index, "route", f"there is no route {name!r}; known: {_known(table)}")


def _condition_faults(table: RouteTable) -> Iterator[TableFault]:
    for index, rule in enumerate(table.rules):
        for glob in rule.when.routes:
            if not any(glob.matches(name) for name in (AUTO, *table.routes)):
                yield TableFault(index, "when.route", f"no route matches {glob.pattern!r}; known: {_known(table)}")
        if rule.when.size is not None and rule.when.size.is_empty:
            yield TableFault(index, "when.size", f"no size is {rule.when.size}; swap or widen the ends")


def _reach_faults(table: RouteTable) -> Iterator[TableFault]:
    for index, rule in enumerate(table.rules):
        for earlier, other in enumerate(table.rules[:index]):
            hides_auto = other.when.admit_all and rule.when.routes == (Glob(AUTO),)
            if hides_auto or other.when == rule.when:
                yield TableFault(index, "when", f"rule {earlier} takes every such request first; reorder or remove it")
                break


def _known(table: RouteTable) -> str:
    return ", ".join(sorted(table.routes)) or "none"
