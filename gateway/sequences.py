"""Where a model that keeps state over sequences of requests can stand, and where not: checked when models are open.

**One stage, alone.** In a cascade, a model sees the requests that those before it were unsure of; of a sequence it
would see some steps. So such a model is the only stage of its route, and answers everything (`accept: {any: true}`):
what a person decides, the next step knows nothing of. Nor can a budget for errors be proven: the proof needs items that
do not depend on each other, and steps do.

**One version.** Versions of a route may keep state where all of them do. A sequence stays with the version that it
began with, whatever the shares become meanwhile (`gateway.traffic`). None of them is a shadow: it would see some steps.

**One process.** Which server has the state of a sequence, and whose turn it is, one process knows. With several workers
the requests of one sequence would reach any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from backends.errors import InvalidInput
from batching.options import SequenceOptions
from batching.sequences import Step
from gateway.catalog import Model
from gateway.request import Request
from gateway.settings import ModelSettings, RouteSettings, ServerOptions, Settings
from router.contract import AcceptAny


def check_sequences(settings: Settings, models: Mapping[str, Model]) -> None:
    """Refuse a configuration in which a model that keeps state would be asked wrongly.

    Raises:
        InvalidInput: says everything that is wrong, and the remedies.
    """
    stateful = {name for name, model in models.items() if model.keeps_state}
    faults = [
        *(
            fault
            for name, model in settings.models.items()
            if name in models and not models[name].is_absent  # of which nobody knows yet
            for fault in _model_faults(model, name in stateful)
        ),
        *(fault for route in settings.routes.values() for fault in _route_faults(route, stateful)),
        *(
            f"detector {one.trait!r}: model {one.model!r} keeps state over sequences, and a detector looks at each "
            "request alone; use another model"
            for one in settings.detectors.values()
            if one.model in stateful
        ),
        *(fault for name in settings.traffic for fault in _version_faults(settings, name, models)),
        *_table_faults(settings, stateful),
    ]
    if stateful and settings.server.has_siblings:
        faults.append(
            f"model {min(stateful)!r} keeps state over sequences, and requests of one would reach any of "
            f"{_siblings(settings.server)}"
        )
    if faults:
        raise InvalidInput("; ".join(faults))


def _siblings(server: ServerOptions) -> str:
    """Who else answers, and the remedy."""
    if server.is_replica:
        return "the gateway's replicas; serve it without a cluster"
    return f"the {server.workers} workers; set `server: {{workers: 1}}`"


def _model_faults(model: ModelSettings, keeps_state: bool) -> Iterator[str]:
    if not keeps_state:
        if model.sequences != SequenceOptions():
            yield f"model {model.name!r} keeps no state over sequences; remove `sequences`"
        return
    if unused := model.batching.only_for_batches():
        yield (
            f"model {model.name!r} keeps state over sequences, whose requests go one by one; remove "
            f"{', '.join(unused)} from its `batching`"
        )


def _route_faults(route: RouteSettings, stateful: set[str]) -> Iterator[str]:
    model = next((name for name in route.cascade if name in stateful), None)
    if model is None:
        return
    stands = f"route {route.id!r}: model {model!r} keeps state over sequences"
    if len(route.cascade) > 1:
        yield f"{stands}, of which a cascade would show it some steps; make it the only stage"
    if not isinstance(route.accept, AcceptAny):
        yield f"{stands}, whose steps cannot be left unanswered, nor prove a budget; write `accept: {{any: true}}`"
    if route.human is not None:
        yield f"{stands}, which learns nothing of what a person decides; set `human: none`"


def _version_faults(settings: Settings, name: str, models: Mapping[str, Model]) -> Iterator[str]:
    routes = settings.versions_of(name)
    keeping = [route for route in routes if any(models[model].keeps_state for model in route.cascade)]
    if not keeping:
        return
    known = [route for route in routes if not all(models[model].is_absent for model in route.cascade)]
    if other := next((route for route in known if route not in keeping), None):
        yield (
            f"route {name!r}: version {keeping[0].version!r} keeps state over sequences and version "
            f"{other.version!r} does not, so that it would forget them; give it a route of its own"
        )
    if settings.traffic[name].shadow is not None:
        yield f"route {name!r} keeps state over sequences, of which a shadow would see some steps; remove `shadow`"


def _table_faults(settings: Settings, stateful: set[str]) -> Iterator[str]:
    names = {route.name for route in settings.routes.values() if stateful.intersection(route.cascade)}
    names |= {name for name in stateful if settings.models[name].expose}
    targets = [rule.route for rule in settings.table.rules]
    targets += [target.route for target in (settings.table.default, settings.table.unsure) if target is not None]
    for name in sorted(names.intersection(targets)):
        yield (
            f"`classify` sends requests to {name!r}, whose model keeps state over sequences; each request is "
            "classified alone, so let clients name this route"
        )


def step_of(request: Request, name: str) -> Step:
    """What *request*, which is one of a sequence, is to the models of the route *name*."""
    place = request.sequence
    assert place is not None, "a request that stands alone was taken for a step. This is a bug."
    return Step(request.caller.tenant, name, place.id, place.starts, place.ends)
