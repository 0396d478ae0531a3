"""How a decision reads to a client of the Open Inference Protocol, over HTTP and gRPC alike.

The protocol knows outputs and parameters; a two-phase answer is put into these. Outputs are the rows' outputs in order.
The parameters `pointsman_*` say how far the answer is, and for a batch `pointsman_items` has every row's, as JSON text.
Over a batch, the status is the worst one, the confidence the least one (absent where a row has none: nothing is known
of the least then), the stage is given where all rows share it, the reason is that of the first row that has the worst
status.

What cannot be told in one reply is an error that names the answer: rows that no model answered, and, where the client
asked for `error`, rows that wait for a person. A row that a person has decided without any model's output is final, and
a retry would never find more: it is answered with its label and without outputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ParamSpec, TypeVar

import numpy as np
import orjson

from backends.contract import Datatype, ParameterValue, Ragged, SharedMemoryWindow, Tensor, fit_in, record
from backends.errors import Conflict, InvalidInput, Unavailable
from backends.quoting import shorten
from gateway.answer import GIVEN_UP, Answer, ItemAnswer, Status
from gateway.keys import SUBJECT, SUBJECT_HEADER, parse_subject
from gateway.oip.classification import classified
from gateway.status import AwaitsPerson
from router.contract import OnDefer

ON_DEFER = "pointsman_on_defer"
"""The request parameter that says what this client gets for what waits for a person."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PREFIX = "pointsman_"
_QUICK_ROWS = 256
_QUICK_ELEMENTS = 16 * 1024
_QUICK_BYTES = 256 * 1024
_QUICK_COPY_BYTES = 4 * 1024 * 1024


@record(eq=False)
class Rendered:
    """An answer in the protocol's terms.

    Attributes:
        outputs: by name, in the order asked for; none where a row has none.
        parameters: `pointsman_*`.
    """

    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, ParameterValue]


@record
class Summary:
    """An answer's rows in one line.

    Attributes:
        status: the worst.
        stage, label, decided_by: those that all rows share; None where they differ.
        confidence: the least; None where a row has none.
        reason: of the first row that has the worst status.
    """

    status: Status
    stage: str | None
    label: str | None
    confidence: float | None
    decided_by: str | None
    reason: str | None


def render(
    answer: Answer,
    wanted: Sequence[str] = (),
    classes: Mapping[str, int] = MappingProxyType({}),
    labels: Sequence[str] = (),
) -> Rendered:
    """*answer* with the outputs *wanted* (all where that is empty).

    Args:
        classes: of the outputs that are wanted as their greatest elements, how many of these.
        labels: of the route's classes, by index.

    Raises:
        AwaitsPerson: it waits for a person, and this client cannot be told so in a reply.
        Unavailable: no model was sure enough, there is no person to ask, and the client wants no uncertain answer.
        Conflict: it was given up before a person decided it, and this client wants no uncertain answer, or has none.
        InvalidInput: an output that is wanted does not exist, or the rows' outputs do not fit into one tensor.
    """
    if answer.status is not Status.FINAL:
        _check_tellable(answer)
    outputs = _outputs(answer, wanted)
    if classes:
        for name in classes.keys() & outputs.keys():
            outputs[name] = classified(name, outputs[name], classes[name], labels)
    return Rendered(outputs, _parameters(answer))


def _check_tellable(answer: Answer) -> None:
    """Refuse to tell of an answer that is not final where nothing can be told yet, or its client wants to hear none."""
    is_told = all(item.outputs is not None or item.status is Status.FINAL for item in answer.items)
    if answer.status in GIVEN_UP and (not is_told or answer.on_defer is OnDefer.ERROR):
        raise Conflict(f"answer {answer.id} is {answer.status}: no person decided it; ask anew, with a new key")
    if not is_told:
        raise AwaitsPerson(answer.id, "no model answered this request", answer.predicted_wait_s)
    if answer.on_defer is OnDefer.ERROR:
        if not answer.open_items:
            raise Unavailable(
                f"no model was sure enough of this request, and route {answer.route!r} has no person to ask now"
            )
        raise AwaitsPerson(answer.id, "no model was sure enough of this request", answer.predicted_wait_s)


async def told(answer: Answer, tell: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What *tell* returns, which renders or writes *answer*; runs it in a thread unless `is_told_quickly`."""
    if is_told_quickly(answer):
        return tell(*args, **kwargs)
    return await asyncio.to_thread(tell, *args, **kwargs)


def is_told_quickly(answer: Answer) -> bool:
    """Whether to tell *answer*, its outputs in JSON, takes a millisecond or so; else use a thread."""
    return _are_quick(len(answer.items), _tensors(answer), copied=False)


def is_rendered_quickly(answer: Answer) -> bool:
    """Whether to `render` *answer*, without classes, takes a millisecond or so; else use a thread."""
    return _are_quick(len(answer.items), _tensors(answer), copied=True)


def is_written_quickly(answer: Answer, rendered: Rendered, *, copied: bool) -> bool:
    """Whether to write *answer*, as it is *rendered*, takes a millisecond or so; else use a thread.

    Args:
        copied: numbers go into the message as they are, and not as JSON.
    """
    return _are_quick(len(answer.items), rendered.outputs.values(), copied=copied)


def _tensors(answer: Answer) -> Iterable[Tensor]:
    return (tensor for item in answer.items if item.outputs for tensor in item.outputs.values())


def _are_quick(rows: int, tensors: Iterable[Tensor], *, copied: bool) -> bool:
    """Many rows take longer, and so do *tensors* of many elements, unless their numbers are only *copied*."""
    if rows > _QUICK_ROWS:
        return False
    elements = nbytes = 0
    texts: list[Tensor] = []
    for tensor in tensors:
        is_text = tensor.datatype is Datatype.BYTES
        if is_text:
            texts.append(tensor)
        if copied and not is_text and isinstance(tensor.data, np.ndarray):
            nbytes += tensor.data.nbytes
        else:
            elements += tensor.data.size if isinstance(tensor.data, np.ndarray) else _elements(tensor)
    return elements <= _QUICK_ELEMENTS and nbytes <= _QUICK_COPY_BYTES and fit_in(_QUICK_BYTES, texts)


def _elements(tensor: Tensor) -> int:
    if isinstance(tensor.data, Ragged):
        return sum(row.size for row in tensor.data.rows)
    return 0 if isinstance(tensor.data, SharedMemoryWindow) else tensor.numpy().size


def summarise(answer: Answer) -> Summary:
    """The rows of *answer* in one line."""
    items, status = answer.items, answer.status
    if len(items) == 1:
        (item,) = items
        return Summary(status, item.stage, item.label, item.confidence, item.decided_by, item.reason)
    worst = next(item for item in items if item.status is status)
    confidences = [item.confidence for item in items if item.confidence is not None]
    return Summary(
        status=status,
        stage=_shared([item.stage for item in items]),
        label=_shared([item.label for item in items]),
        confidence=min(confidences) if len(confidences) == len(items) else None,
        decided_by=_shared([item.decided_by for item in items]),
        reason=worst.reason,
    )


def _shared(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def row(item: ItemAnswer) -> dict[str, str | float | None]:
    """One row, as JSON tells it; without its outputs."""
    return {
        "status": item.status,
        "stage": item.stage,
        "label": item.label,
        "confidence": item.confidence,
        "decided_by": item.decided_by,
        "reason": item.reason,
    }


def _parameters(answer: Answer) -> dict[str, ParameterValue]:
    summary = summarise(answer)
    found: dict[str, ParameterValue] = {"pointsman_status": str(summary.status), "pointsman_answer_id": answer.id}
    if summary.stage is not None:
        found["pointsman_stage"] = summary.stage
    if summary.label is not None:
        found["pointsman_label"] = summary.label
    if summary.confidence is not None:
        found["pointsman_confidence"] = summary.confidence
    if summary.decided_by is not None:
        found["pointsman_decided_by"] = summary.decided_by
    if summary.reason is not None:
        found["pointsman_reason"] = str(summary.reason)
    if answer.predicted_wait_s is not None:
        found["pointsman_predicted_wait_s"] = answer.predicted_wait_s
    if len(answer.items) > 1:
        found["pointsman_items"] = orjson.dumps([row(item) for item in answer.items]).decode()
    return found


def _outputs(answer: Answer, wanted: Sequence[str]) -> dict[str, Tensor]:
    rows = [item.outputs for item in answer.items if item.outputs is not None]
    if len(rows) < len(answer.items):
        return {}
    names = wanted or tuple(rows[0])
    for name in names:
        for outputs in rows:
            if name not in outputs:
                raise unknown_output(name, rows[0])
    return {name: _joined(name, [outputs[name] for outputs in rows]) for name in names}


def unknown_output(name: str, known: Sequence[str] | Mapping[str, Tensor]) -> InvalidInput:
    """The error of a request that wants output *name*."""
    return InvalidInput(f"output {name!r} is unknown; known outputs: {', '.join(sorted(known))}")


def _joined(name: str, rows: Sequence[Tensor]) -> Tensor:
    """The rows' tensors, (1, ...) each, as one of (n, ...); a single row as it is."""
    first = rows[0]
    if len(rows) == 1 and not isinstance(first.data, Ragged):
        return first
    if isinstance(first.data, SharedMemoryWindow):  # rows of what a model's server wrote there as one
        size = first.data.byte_size * len(rows)
        return Tensor(first.datatype, (len(rows), *first.shape[1:]), replace(first.data, byte_size=size))
    arrays = [part for tensor in rows for part in _parts(tensor)]
    if len({array.shape[1:] for array in arrays}) != 1:
        raise InvalidInput(f"output {name!r} has rows of several shapes; send the items one by one")
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Tensor(first.datatype, joined.shape, joined)


def _parts(tensor: Tensor) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    if isinstance(tensor.data, Ragged):
        return [one[np.newaxis] for one in tensor.data.rows]
    return [tensor.numpy()]


def take_on_defer(parameters: Mapping[str, ParameterValue]) -> tuple[OnDefer | None, dict[str, ParameterValue]]:
    """Separate our own parameters from the caller's; `subject_in` reads the other one.

    Raises:
        InvalidInput: an unknown `pointsman_*` parameter, or a value that `pointsman_on_defer` does not have.
    """
    others = {name: value for name, value in parameters.items() if not name.startswith(_PREFIX)}
    for name in parameters.keys() - others.keys() - {ON_DEFER, SUBJECT}:
        known = f"{ON_DEFER} and {SUBJECT}"
        raise InvalidInput(f"parameter {shorten(name)} is unknown; of {_PREFIX}* a request can have {known}")
    value = parameters.get(ON_DEFER)
    if value is None:
        return None, others
    if value not in tuple(OnDefer):
        raise InvalidInput(f"{ON_DEFER} is {shorten(value)}; it can be {' or '.join(map(repr, map(str, OnDefer)))}")
    return OnDefer(value), others


def subject_in(parameters: Mapping[str, ParameterValue], sent: Mapping[str, str]) -> str:
    """Whom a request is about, by its *parameters*, else by its headers or metadata *sent*; "" where neither says.

    Raises:
        InvalidInput: it is no name of a subject.
    """
    return parse_subject(parameters.get(SUBJECT, sent.get(SUBJECT_HEADER)))
