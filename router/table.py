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
- **Detectors are asked late.** When a condition is looked at that only a detector can tell (`Conditions.traits`, and
  `content_types` where content types are detected), `route` says which one it `Needs`; whoever asks it comes back with
  one more trait. A request that an earlier rule takes, or whose rules need none, costs none.
- **Conditions are looked at in order**: what the request states, then the content type, then traits as they are
  written. The first that is not met decides about the rule, and what stands behind it is not looked at.
- **Doubt stops.** Where the condition that is looked at needs a trait in doubt, neither this rule nor any later one may
  take the request: it goes where the table sends what is in doubt, or stays on the route that it names. A condition
  with a confidence floor of its own decides by itself instead: below its floor it is not met.
- Globs know `*` and `?` only; character classes would make a condition such as `[urgent]` surprising.

Rejected: scoring rules by specificity (nobody can predict the winner), and a rule language with `or` and `not` (two
rules in order say the same and each can be explained).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TypeAlias

from backends.contract import ParameterValue, record
from router.classify import CONTENT_TYPE, confidence_text
from router.contract import AUTO, Reason, Trait, Traits


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
class TraitTest:
    """The detected trait *name* must be one of *accepted* (any, where that is empty) and none of *excluded*.

    Attributes:
        floor: least confidence for it to be met; None: whatever the detector counts as sure.
    """

    name: str
    accepted: tuple[Glob, ...] = ()
    excluded: tuple[Glob, ...] = ()
    floor: float | None = None

    def in_doubt(self, trait: Trait) -> bool:
        """Whether *trait* cannot be relied on here; a floor of one's own settles how sure is sure enough."""
        unsure_only = trait.doubt is Reason.UNCLEAR_CLASSIFICATION and trait.value is not None
        return trait.doubt is not None and not (unsure_only and self.floor is not None)

    def admits(self, trait: Trait) -> bool:
        """Whether *trait*, which is not in doubt here, passes. What the caller states passes any floor."""
        if trait.value is None:
            return False
        if self.floor is not None and not self._is_sure(trait):
            return False
        return (not self.accepted or _any(self.accepted, trait.value)) and not _any(self.excluded, trait.value)

    def _is_sure(self, trait: Trait) -> bool:
        assert self.floor is not None
        return trait.doubt is None if trait.confidence is None else trait.confidence >= self.floor

    def __str__(self) -> str:
        wanted = _or(self.accepted) if self.accepted else "anything"
        excluded = f" except {_or(self.excluded)}" if self.excluded else ""
        return wanted + excluded + ("" if self.floor is None else f" at {self.floor:.2f} or more")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request must be for a rule to apply; all of it, and an empty condition admits everything.

    Attributes:
        routes: what the request may name.
        content_types: its media type, lower-case: as detected, where the table has a detector of that trait; else as
            stated (for tensors what their sender says, or "").
        size: bytes of its inputs.
        tenants: who may ask.
        parameters: the caller's own parameters.
        traits: what detectors find.
    """

    routes: tuple[Glob, ...] = (Glob(AUTO),)
    content_types: tuple[Glob, ...] = ()
    size: Range | None = None
    tenants: tuple[Glob, ...] = ()
    parameters: tuple[ParameterTest, ...] = ()
    traits: tuple[TraitTest, ...] = ()

    @property
    def admit_all(self) -> bool:
        """Whether every request for `auto` meets them."""
        return self == Conditions()


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests that meet *when* take *route*; straight to its people where *to_person* says so.

    Attributes:
        name: for people: what kind of request this is.
    """

    when: Conditions
    route: str
    to_person: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A route that is taken where no rule decides."""

    route: str
    to_person: bool = False


@dataclass(frozen=True)  # no slots: `unruled` is kept once it is known
class RouteTable:
    """The names that callers can use, and the rules behind `auto`. `faults` tells whether it can be used.

    Attributes:
        default: for requests for `auto` that no rule took; None: they are refused.
        unsure: for requests for `auto` whose traits are in doubt; None: they take the default.
        detectors: the traits that can be detected.
    """

    routes: frozenset[str]
    rules: tuple[Rule, ...] = ()
    default: Target | None = None
    unsure: Target | None = None
    detectors: frozenset[str] = frozenset()

    @cached_property
    def unruled(self) -> frozenset[str]:
        """The routes of which no rule speaks: a request that names one takes it, whatever else it is."""
        globs = [glob for rule in self.rules for glob in rule.when.routes]
        return frozenset(name for name in self.routes if not any(glob.matches(name) for glob in globs))


@record
class Picked:
    """The request takes *route*.

    Attributes:
        to_person: it goes straight to the route's people; no model is asked.
        rule: index of the rule that decided; None where the caller's name, the default or a doubt did.
        doubt: what was in doubt; None where nothing was.
        detail: why it goes to a person, or what is in doubt, in words.
    """

    route: str
    to_person: bool = False
    rule: int | None = None
    doubt: Reason | None = None
    detail: str = field(default="", compare=False)

    @property
    def reason(self) -> Reason | None:
        """What the answer gives as the reason; None where routing gives none."""
        return self.doubt or (Reason.ROUTED_TO_PERSON if self.to_person else None)


@dataclass(frozen=True, slots=True)
class Needs:
    """The table cannot decide before a detector has told *trait*, which it has not been told yet."""

    trait: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request names a route that does not exist."""

    name: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request asked for `auto`, and the table has no route for it.

    Attributes:
        detail: what was in doubt, in words; "" where no rule matched.
    """

    reason: Reason = Reason.NO_RULE_MATCHED
    detail: str = ""


Choice: TypeAlias = Picked | Needs | Unknown | Refused


def route(table: RouteTable, traits: Traits) -> Choice:
    """The route that *traits* take: the first rule that matches, else the route they name, else the default."""
    if traits.route != AUTO and traits.route not in table.routes:
        return Unknown(traits.route)
    for index, rule in enumerate(table.rules):
        match _tried(table, rule, traits):
            case None:
                detail = _because(index, rule, traits) if rule.to_person else ""
                return Picked(rule.route, rule.to_person, index, detail=detail)
            case Needs() as needs:
                return needs
            case _Doubt(trait):
                return _unsure(table, traits, trait)
            case _:
                pass
    if traits.route != AUTO:
        return Picked(traits.route)
    if table.default is None:
        return Refused()
    detail = _with_facts("no rule of `classify` matched", traits.detected) if table.default.to_person else ""
    return Picked(table.default.route, table.default.to_person, detail=detail)


def _unsure(table: RouteTable, traits: Traits, trait: Trait) -> Choice:
    assert trait.doubt is not None
    if traits.route != AUTO:
        return Picked(traits.route, doubt=trait.doubt, detail=trait.detail)
    target = table.unsure or table.default
    if target is None:
        return Refused(trait.doubt, trait.detail)
    return Picked(target.route, target.to_person, doubt=trait.doubt, detail=trait.detail)


def _because(index: int, rule: Rule, traits: Traits) -> str:
    found = {test.name: traits.detected[test.name] for test in rule.when.traits}
    return _with_facts(rule.name or f"rule {index + 1} of `classify`", found)


def _with_facts(why: str, found: Mapping[str, Trait]) -> str:
    facts = (
        f"{name} is {trait.value!r} ({confidence_text(trait.confidence)})"
        for name, trait in found.items()
        if trait.value is not None
    )
    return ": ".join(filter(None, (why, "; ".join(facts))))


@dataclass(frozen=True, slots=True)
class Considered:
    """A rule that was looked at; *why_not* says what kept it from matching, None where it matched."""

    rule: int
    route: str
    why_not: str | None


def explain(table: RouteTable, traits: Traits) -> tuple[Considered, ...]:
    """The rules that `route` considers for *traits*, in order, up to the one that decides."""
    considered = []
    for index, rule in enumerate(table.rules):
        outcome = _tried(table, rule, traits)
        considered.append(Considered(index, rule.route, None if outcome is None else _why_not(outcome, traits)))
        if not isinstance(outcome, _Failing):
            break
    return tuple(considered)


@dataclass(frozen=True, slots=True)
class _Failing:
    """The first condition that is not met: its name, and what it wants."""

    name: str
    wanted: object


@dataclass(frozen=True, slots=True)
class _Doubt:
    """The first condition that is not met cannot be: its trait is in doubt."""

    trait: Trait


_Outcome: TypeAlias = _Failing | _Doubt | Needs | None
"""What became of a rule; None: it matches."""


def _tried(table: RouteTable, rule: Rule, traits: Traits) -> _Outcome:
    """The cheapest conditions are tried first, and what a detector must tell last."""
    when = rule.when
    if not _any(when.routes, traits.route):
        return _Failing("route", when.routes)
    if when.size is not None and not when.size.contains(traits.size_bytes):
        return _Failing("size", when.size)
    if when.tenants and not _any(when.tenants, traits.tenant):
        return _Failing("tenant", when.tenants)
    for test in when.parameters:
        if not test.admits(traits.parameters.get(test.name)):
            return _Failing("parameters", test)
    detects_content = CONTENT_TYPE in table.detectors
    if when.content_types and not detects_content and not _any(when.content_types, traits.content_type):
        return _Failing(CONTENT_TYPE, when.content_types)
    stated = (TraitTest(CONTENT_TYPE, when.content_types),) if when.content_types and detects_content else ()
    return _detected((*stated, *when.traits), traits)


def _detected(tests: tuple[TraitTest, ...], traits: Traits) -> _Outcome:
    for test in tests:
        trait = traits.detected.get(test.name)
        if trait is None:
            return Needs(test.name)
        if test.in_doubt(trait):
            return _Doubt(trait)
        if not test.admits(trait):
            return _Failing("traits", test)
    return None


def _any(globs: tuple[Glob, ...], text: str) -> bool:
    for glob in globs:  # noqa: SIM110 (a generator costs more than what it compares)
        if glob.pattern == text or (not glob.is_literal and glob.matches(text)):
            return True
    return False


def _why_not(outcome: _Failing | _Doubt | Needs, traits: Traits) -> str:
    match outcome:
        case Needs(name):
            return f"needs a detector of {name}"
        case _Doubt(trait):
            return f"in doubt: {trait.detail}"
        case _Failing("size", wanted):
            return f"size {traits.size_bytes} is not {wanted}"
        case _Failing("parameters", ParameterTest() as test) if test.name not in traits.parameters:
            return f"parameter {test.name!r} was not given; expected {_or(test.accepted)}"
        case _Failing("parameters", ParameterTest() as test):
            return f"parameter {test.name!r} is {traits.parameters[test.name]!r}, not {_or(test.accepted)}"
        case _Failing("traits", TraitTest() as test):
            return _why_not_trait(test, traits.detected[test.name])
        case _Failing(name, tuple() as wanted):
            return f"{name} is {getattr(traits, name)!r}, not {_or(wanted)}"
        case _:
            raise AssertionError(f"no words for {outcome}. This is a bug.")


def _why_not_trait(test: TraitTest, trait: Trait) -> str:
    if trait.value is None:
        return trait.detail
    return f"{test.name} is {trait.value!r} ({confidence_text(trait.confidence)}), not {test}"


def _or(accepted: tuple[object, ...]) -> str:
    return " or ".join(repr(one) if isinstance(one, str) else str(one) for one in accepted)


@dataclass(frozen=True, slots=True)
class TableFault:
    """Something in a table that cannot be meant.

    Attributes:
        rule: index of the rule at fault; None: a target where no rule decides.
        field: `when`, `when.route`, `when.size`, `when.traits.NAME` or `route`; of a target `otherwise` or `unsure`.
        message: what is wrong, and the remedy.
    """

    rule: int | None
    field: str
    message: str


def faults(table: RouteTable) -> tuple[TableFault, ...]:
    """Everything in *table* that cannot be meant: unknown names, rules never reached, ranges that hold nothing."""
    return (*_target_faults(table), *_condition_faults(table), *_reach_faults(table))


def _target_faults(table: RouteTable) -> Iterator[TableFault]:
    targets: list[tuple[int | None, str, str]] = [(i, "route", rule.route) for i, rule in enumerate(table.rules)]
    for key, target in (("otherwise", table.default), ("unsure", table.unsure)):
        if target is not None:
            targets.append((None, key, target.route))
    for index, key, name in targets:
        if name == AUTO:
            yield TableFault(index, key, f"{AUTO!r} would ask these rules again; name a route")
        elif name not in table.routes:
            yield TableFault(index, key, f"there is no route {name!r}; known: {_known(table.routes)}")


def _condition_faults(table: RouteTable) -> Iterator[TableFault]:
    for index, rule in enumerate(table.rules):
        for glob in rule.when.routes:
            if not any(glob.matches(name) for name in (AUTO, *table.routes)):
                message = f"no route matches {glob.pattern!r}; known: {_known(table.routes)}"
                yield TableFault(index, "when.route", message)
        if rule.when.size is not None and rule.when.size.is_empty:
            yield TableFault(index, "when.size", f"no size is {rule.when.size}; swap or widen the ends")
        for test in rule.when.traits:
            if test.name not in table.detectors:
                message = f"nothing detects {test.name!r}; known: {_known(table.detectors)}; add it to `detectors`"
                yield TableFault(index, f"when.traits.{test.name}", message)


def _reach_faults(table: RouteTable) -> Iterator[TableFault]:
    for index, rule in enumerate(table.rules):
        for earlier, other in enumerate(table.rules[:index]):
            hides_auto = other.when.admit_all and rule.when.routes == (Glob(AUTO),)
            if hides_auto or other.when == rule.when:
                yield TableFault(index, "when", f"rule {earlier} takes every such request first; reorder or remove it")
                break


def _known(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
