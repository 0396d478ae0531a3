"""Classifying a request: rules are tried, and detectors asked for what the rules need to know.

A request's content goes to a detector's model as any item goes to a stage.

A detector looks at the one BYTES input that a request has, whatever it came in. A request that has none (numbers,
several inputs) has nothing to look at, and that is no doubt: rules on such traits are simply not met. A detector that
is late, overloaded or broken, or is given more items than it can look at, is a doubt, and never an error: the request
goes where the table sends doubts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backends.contract import Batch, Datatype, Deadline, Signature, TensorSpec
from backends.errors import InvalidInput, PointsmanError
from backends.trace_context import TraceContext
from gateway.answer import labels_of
from gateway.binding import bind
from gateway.catalog import Catalog, Detector
from gateway.decoding import Workshop, decode_batch
from gateway.explain import Classified
from gateway.masking import Mask
from gateway.observe import DetectorReport, PipelineObserver, part_of
from gateway.request import JsonInputs, Payload, Request, TensorInputs
from router.classify import Signal, Signals, Silence, classify
from router.contract import Traits
from router.table import Needs, Picked, RouteTable, route

MOST_ITEMS = 64
"""Most items of one request that a detector is asked about: some take milliseconds for each, and others wait."""

_NOTHING = "the request has no single BYTES input"


class Detection:
    """Asks the detectors of a catalog. Single event loop."""

    def __init__(self, workshop: Workshop, observer: PipelineObserver, clock: Callable[[], float]) -> None:
        self._workshop = workshop
        self._observer = observer
        self._clock = clock

    async def classified(self, catalog: Catalog, request: Request, deadline: Deadline) -> Classified:
        """What the rules of *catalog* make of *request*; detectors are asked only where the rules need them."""
        traits = _stated(request)
        signals: dict[str, Signals] = {}
        while isinstance(choice := route(catalog.table, traits), Needs):
            detector = catalog.detectors[choice.trait]
            found = {detector.trait: await self._ask(detector, request, deadline)}
            signals |= found
            traits = classify(traits, found, {detector.trait: detector.floor})
        return Classified(choice, traits, signals)

    async def _ask(self, detector: Detector, request: Request, deadline: Deadline) -> Signals:
        started = self._clock()
        span = part_of(request.trace)
        within = Deadline(min(deadline, started + detector.timeout_s))
        trace = request.trace if span is None else span.context
        signals = await self._answered(detector, request.payload, within, trace)
        failed = isinstance(signals, Silence) and signals.failed
        self._observer.on_detector(DetectorReport(detector.trait, self._clock() - started, failed, span))
        return signals

    async def _answered(
        self, detector: Detector, payload: Payload, deadline: Deadline, trace: TraceContext | None
    ) -> Signals:
        try:
            content = await self._content(payload, deadline)
            items = await decode_batch(detector.decode, content, self._workshop, deadline - self._clock())
        except InvalidInput as error:
            return Silence(str(error), failed=False)
        except PointsmanError as error:
            return Silence(str(error), failed=True)
        model = detector.model
        if not model.loaded:
            return Silence(f"model {model.name!r} is not loaded", failed=True)
        if model.is_absent:
            return Silence(f"model {model.name!r} could not be opened yet", failed=True)
        (tensor,) = items.inputs.values()
        if items.size > MOST_ITEMS:
            return Silence(
                f"the request has {items.size} items; at most {MOST_ITEMS} are classified at once", failed=True
            )
        try:
            name = model.backend.signature.inputs[0].name
            outputs, sure = await model.run(Batch({name: tensor}, items.size), deadline, trace=trace)
        except PointsmanError as error:
            return Silence(f"model {model.name!r} did not answer: {error}", failed=True)
        labels = labels_of(outputs)
        found = [Signal(label, p) for label, p in zip(labels, sure.tolist(), strict=True) if label is not None]
        return found if len(found) == len(labels) else Silence(f"model {model.name!r} gave no label", failed=True)

    async def _content(self, payload: Payload, deadline: Deadline) -> Batch:
        """The one BYTES input, an item a row.

        Raises:
            InvalidInput: there is none.
        """
        spec = TensorSpec(_only_input(payload), Datatype.BYTES, (1,))
        signature = Signature((spec,), ())
        if not isinstance(payload, JsonInputs):
            return bind(signature, payload)
        left_s = deadline - self._clock()
        return await self._workshop.run(lambda: bind(signature, payload), payload.size_bytes, left_s, inline=True)


def _stated(request: Request) -> Traits:
    payload = request.payload
    return Traits(
        route=request.route,
        content_type=payload.content_type,
        size_bytes=payload.size_bytes,
        tenant=request.caller.tenant,
        parameters=request.parameters,
    )


def traits_told(table: RouteTable, picked: Picked, traits: Traits, mask: Mask | None) -> dict[str, Any]:
    """What was known of a request that rules picked the route of, for the decision log (Any: JSON).

    Of the caller's parameters only those that rules ask for are told: no other one has decided anything.
    """
    told: dict[str, Any] = {"content_type": traits.content_type, "size_bytes": traits.size_bytes}
    if picked.rule is not None:
        told["rule"] = table.rules[picked.rule].name or picked.rule
    if traits.detected:
        told["detected"] = {
            name: {"value": trait.value, "confidence": trait.confidence} for name, trait in traits.detected.items()
        }
    tested = {test.name for rule in table.rules for test in rule.when.parameters}
    if parameters := {name: value for name, value in traits.parameters.items() if name in tested}:
        told["parameters"] = parameters if mask is None else mask.parameters(parameters)
    return told


def _only_input(payload: Payload) -> str:
    names: Sequence[str]
    match payload:
        case TensorInputs(tensors=tensors):
            names = [name for name, tensor in tensors.items() if tensor.datatype is Datatype.BYTES]
            count = len(tensors)
        case JsonInputs(values=values):
            names, count = list(values), len(values)
        case _:
            return "content"
    if len(names) != 1 or count != 1:
        raise InvalidInput(_NOTHING)
    return names[0]
