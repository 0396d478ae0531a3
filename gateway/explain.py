"""What would become of a request, and why: told to an operator, without answering it.

The rules are the pipeline's own, and detectors are really asked; no stage is, nothing is kept, and no one is handed
anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gateway.settings import CertifiedSettings, RouteSettings
from router.cascade import next_stage
from router.classify import Signals, Silence
from router.contract import (
    AcceptAny,
    AcceptRule,
    Certified,
    MinConfidence,
    ModelState,
    Observe,
    Route,
    Traits,
    Uncertified,
)
from router.table import Choice, Picked, Refused, RouteTable, Unknown, explain


@dataclass(frozen=True, slots=True, eq=False)
class Classified:
    """A request after the rules: what they chose, the traits that they needed for it, and where those come from.

    Attributes:
        signals: what the detectors said that were asked, by trait.
    """

    choice: Choice
    traits: Traits
    signals: Mapping[str, Signals]


_NOBODY_LOOKED: Mapping[str, Mapping[str, str]] = {}


def straight_to_people(choice: Choice, has_people_alone: Callable[[str], bool]) -> Choice:
    """*choice*, which goes straight to people where the route that it picks has nobody else."""
    if not isinstance(choice, Picked) or not has_people_alone(choice.route):
        return choice
    return replace(choice, to_person=True, detail=choice.detail or "people decide everything on this route")


@dataclass(frozen=True, slots=True)
class StagePreview:
    """A stage of the route.

    Attributes:
        runs: it would be asked, where those before it are not sure; None where nobody looked at the models.
        why: why not, or when.
        steps: what an item takes in the steps around the model, by `preprocess` and `postprocess`, in words; none where
            nobody looked.
    """

    model: str
    runs: bool | None
    why: str
    steps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionPreview:
    """A version of the route.

    Attributes:
        share: of the route's requests, in [0, 1].
        why: why it is the one whose stages are told; None where it is not.
        shadows: whether it is shown what others answer.
    """

    version: str
    share: float
    why: str | None
    shadows: bool


@dataclass(frozen=True, slots=True)
class RoutePreview:
    """A route as far as it is known before any stage has answered.

    Attributes:
        accept: when a stage's answer is good enough, in words.
        queue: of the people behind it; None where there are none.
        versions: none where it has only one.
    """

    stages: tuple[StagePreview, ...]
    accept: str
    queue: str | None
    versions: tuple[VersionPreview, ...] = ()


def preview(
    route: Route,
    states: Mapping[str, ModelState],
    *,
    to_person: bool,
    versions: tuple[VersionPreview, ...] = (),
    steps: Mapping[str, Mapping[str, str]] = _NOBODY_LOOKED,
) -> RoutePreview:
    """The stages of *route* that would run now, given *states* of its models and what the *steps* around them take."""
    stages = _stages(route, states, to_person=to_person)
    return RoutePreview(
        stages=tuple(replace(stage, steps=steps.get(stage.model, {})) for stage in stages),
        accept=accept_text(route.accept),
        queue=route.human.queue if route.human else None,
        versions=versions,
    )


def _stages(route: Route, states: Mapping[str, ModelState], *, to_person: bool) -> tuple[StagePreview, ...]:
    if to_person:
        return tuple(StagePreview(stage.model, False, "it goes straight to a person") for stage in route.cascade)
    found: list[StagePreview] = []
    after: int | None = None
    while len(found) < len(route.cascade):
        step = next_stage(route, after, states, route.deadline_s)
        found += [StagePreview(skipped.model, False, skipped.detail) for skipped in step.skipped]
        if step.stage is None:
            break
        when = "asked first" if after is None else "asked where no stage before it is accepted"
        found.append(StagePreview(route.cascade[step.stage].model, True, when))
        after = step.stage
    return tuple(found)


def configured(route: RouteSettings, *, to_person: bool, versions: tuple[VersionPreview, ...] = ()) -> RoutePreview:
    """*route* as it is configured; nobody looks at its models."""
    why = "it goes straight to a person" if to_person else "its model was not looked at"
    runs = False if to_person else None
    accept = route.accept
    return RoutePreview(
        stages=tuple(StagePreview(model, runs, why) for model in route.cascade),
        accept="what a certificate proves" if isinstance(accept, CertifiedSettings) else accept_text(accept),
        queue=route.human.queue if route.human else None,
        versions=versions,
    )


def accept_text(rule: AcceptRule) -> str:
    """*rule* in words."""
    match rule:
        case MinConfidence(value):
            return f"from confidence {value:.4g} on"
        case Certified(threshold, certificate):
            return f"from confidence {threshold:.4g} on, certified by {certificate[:12]}"
        case Uncertified(why):
            return f"nothing, people decide: {why}"
        case Observe():
            return "what the last stage says, after all were asked"
        case AcceptAny():
            return "anything"


def explanation(table: RouteTable, found: Classified, route: RoutePreview | None) -> dict[str, Any]:
    """What `pointsman explain` and `POST /v1/explain` tell, as JSON has it (Any).

    Args:
        route: of the route that was picked; None where none was.
    """
    traits = found.traits
    rules = [
        {
            "rule": considered.rule + 1,
            "name": table.rules[considered.rule].name or None,
            "route": considered.route,
            "matched": considered.why_not is None,
            "why_not": considered.why_not,
        }
        for considered in explain(table, traits)
    ]
    return {
        "request": {
            "route": traits.route,
            "content_type": traits.content_type or None,
            "size_bytes": traits.size_bytes,
            "tenant": traits.tenant,
            "parameters": dict(traits.parameters),
        },
        "signals": {trait: _signals(signals) for trait, signals in found.signals.items()},
        "traits": {name: asdict(trait) for name, trait in traits.detected.items()},
        "rules": rules,
        **_chosen(found.choice),
        "versions": [asdict(version) for version in route.versions] if route else [],
        "stages": [asdict(stage) for stage in route.stages] if route else [],
        "accepts": route.accept if route and route.stages else None,
        "queue": route.queue if route else None,
    }


def _signals(signals: Signals) -> Sequence[Mapping[str, Any]] | Mapping[str, Any]:
    if isinstance(signals, Silence):
        return {"silent": signals.why, "failed": signals.failed}
    return [
        {"value": signal.value, "confidence": signal.confidence if signal.confidence == signal.confidence else None}
        for signal in signals
    ]


def _chosen(choice: Choice) -> Mapping[str, Any]:
    match choice:
        case Picked() as picked:
            return {
                "route": picked.route,
                "to_person": picked.to_person,
                "reason": picked.reason,
                "detail": picked.detail or None,
            }
        case Refused(reason, detail):
            return {"route": None, "to_person": False, "reason": reason, "detail": detail or "no rule matched"}
        case Unknown(name):
            return {"route": None, "to_person": False, "reason": None, "detail": f"there is no route {name!r}"}
        case _:
            raise AssertionError(f"{choice} is no end of routing. This is a bug.")


def told(explained: Mapping[str, Any]) -> str:
    """An explanation for a terminal."""
    request = explained["request"]
    size = f"{request['size_bytes']} bytes"
    return "\n".join(
        [
            f"request  {request['route']}, {request['content_type'] or 'no content type'}, {size}",
            *(f"signal   {trait}: {_signal_text(signals)}" for trait, signals in explained["signals"].items()),
            *(f"trait    {name}: {_trait_text(trait)}" for name, trait in explained["traits"].items()),
            *(f"rule     {_rule_text(rule)}" for rule in explained["rules"]),
            f"route    {_route_text(explained)}",
            *(f"version  {_version_text(version)}" for version in explained["versions"]),
            *(f"stage    {_stage_text(stage)}" for stage in explained["stages"]),
            *([f"accepts  {explained['accepts']}"] if explained["accepts"] else []),
            *([f"people   queue {explained['queue']}"] if explained["queue"] else []),
        ]
    )


def _signal_text(signals: Any) -> str:
    if isinstance(signals, Mapping):
        return f"silent, {signals['silent']}"
    return ", ".join(
        signal["value"] + (" (no confidence)" if signal["confidence"] is None else f" {signal['confidence']:.2f}")
        for signal in signals
    )


def _trait_text(trait: Mapping[str, Any]) -> str:
    doubt = f" ({trait['doubt']}: {trait['detail']})" if trait["doubt"] else ""
    return (trait["value"] or "unknown") + doubt


def _rule_text(rule: Mapping[str, Any]) -> str:
    name = f"{rule['rule']} {rule['name']}" if rule["name"] else str(rule["rule"])
    return f"{name}: " + (f"matches, to {rule['route']}" if rule["matched"] else rule["why_not"])


def _stage_text(stage: Mapping[str, Any]) -> str:
    steps = "".join(f"; {name} takes {takes}" for name, takes in stage["steps"].items())
    return f"{stage['model']}: {stage['why']}{steps}"


def _version_text(version: Mapping[str, Any]) -> str:
    share = f"{version['version']}: {version['share']:.4g} of the requests"
    shadows = ", and is shown what others answer" if version["shadows"] else ""
    return share + shadows + (f" (told here: {version['why']})" if version["why"] else "")


def _route_text(explained: Mapping[str, Any]) -> str:
    person = ", straight to a person" if explained["to_person"] else ""
    reason = f" ({explained['reason']}: {explained['detail']})" if explained["reason"] else ""
    return (explained["route"] or "none") + person + reason
