"""Masks: what callers send and nobody is to keep or see, replaced before anything is stored, logged or shown.

    caller ──► model                     the original
          └──► store, people, logs       with masks on: payloads, proposals, labels, outputs, traits, messages

    person, or caller's feedback ──► store    with masks on: labels in their own words, and why they were corrected

A mask names a parameter, a place in JSON (a document that is an input, or the inputs by name), or a pattern of text.
Models see what was sent, and so does their caller, in the first reply. What is read from the store later, as by a retry
under the same key, has the masks on.

**Closed rather than open.** What looks like JSON and cannot be read has no places, so where masks name some, it is
withheld whole. A refusal that is kept for retries quotes what was wrong with a request; where there are masks it is
kept without its words. Pictures and numbers are not text: no mask is on them.

**Digests** in the decision log are of the original, under a key (`gateway.store.key`): they show, to who has key and
input, that this was the input; the digest of what is left would show no such thing.

Rejected: masking before the model (it is asked about the whole), and encryption in place of masks (whoever can read the
store can usually read its keys; and a person would see everything).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, TypeAlias

import numpy as np
import orjson

from backends.contract import Datatype, ParameterValue, Ragged, Tensor, Tensors
from gateway.answer import CLASSIFY, Answer, ItemAnswer, StageRecord
from gateway.review import is_image
from gateway.store.contract import Proposal, ReviewTask

MASKED = "[masked]"
"""What stands in the place of what is masked, where nothing else is said."""

_WITHHELD = "[withheld: not readable as JSON]"
_DOCUMENT = re.compile(r"""\s*(?:\{\s*["'}]|\[\s*[\[{"'])""")
"""How documents begin; `[urgent]` is none."""
_STEP = re.compile(
    r"""\.\.(?P<deep>[^.\[\]'"*\s]+) | \.(?P<name>[^.\[\]'"*\s]+) | \['(?P<quoted>[^']+)'\]
    | \[(?P<index>[0-9]{1,9})\] | (?P<all>\[\*\]|\.\*)""",
    re.VERBOSE,
)

# Any: JSON, here and below.
_Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class _Deep:
    """A name at any depth."""

    name: str


class _All(Enum):
    """Every member."""

    ALL = "*"


_Step: TypeAlias = _Deep | _All | str | int


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A place in JSON, or several: a small part of RFC 9535, with names, indices, `*` and `..name`."""

    text: str
    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> JsonPath:
        """The path that *text* writes.

        Raises:
            ValueError: it is none; says how to write one.
        """
        steps: list[_Step] = []
        at = 1
        while text.startswith("$") and at < len(text) and (found := _STEP.match(text, at)):
            at = found.end()
            if found["index"] is not None:
                steps.append(int(found["index"]))
            elif found["all"]:
                steps.append(_All.ALL)
            else:
                steps.append(_Deep(found["deep"]) if found["deep"] else found["name"] or found["quoted"])
        if not steps or at < len(text):
            raise ValueError(f"is {text!r}, which is no place in JSON; write it like $.customer.name, $.lines[*].iban"
                             " or $..email")  # fmt: skip
        return cls(text, tuple(steps))

    def replaced(self, value: _Json, by: str) -> _Json:
        """*value* with *by* in every such place."""
        return _replaced(value, self.steps, by)


def _replaced(value: _Json, steps: Sequence[_Step], by: str) -> _Json:
    if not steps:
        return by
    step, rest = steps[0], steps[1:]
    if isinstance(step, _Deep):
        if isinstance(value, dict):
            return {key: _replaced(inner, rest if key == step.name else steps, by) for key, inner in value.items()}
        return [_replaced(inner, steps, by) for inner in value] if isinstance(value, list) else value
    if isinstance(value, dict):
        return {
            key: _replaced(inner, rest, by) if step is _All.ALL or key == step else inner
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_replaced(inner, rest, by) if step is _All.ALL or i == step else inner for i, inner in enumerate(value)]
    return value


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """One mask: exactly one of the first three.

    Attributes:
        parameter: a parameter of the caller's, by its name.
        path: places in JSON.
        pattern: of text.
        by: what stands in the place of it.
        routes: of which routes; empty: of all.
    """

    parameter: str | None = None
    path: JsonPath | None = None
    pattern: re.Pattern[str] | None = None
    by: str = MASKED
    routes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Mask:
    """All masks of one route."""

    options: tuple[MaskOptions, ...]

    def text(self, text: str) -> str:
        """*text* with its patterns replaced."""
        for mask in self.options:
            if mask.pattern is not None:
                text = mask.pattern.sub(lambda _, by=mask.by: by, text)  # type: ignore[misc]
        return text

    def parameters(self, parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
        """*parameters* with those replaced that are named, and patterns in all of them."""
        by_name = {mask.parameter: mask.by for mask in self.options if mask.parameter is not None}
        return {
            name: by_name[name] if name in by_name else self.text(value) if isinstance(value, str) else value
            for name, value in parameters.items()
        }

    def payload(self, payload: bytes, content_type: str) -> bytes:
        """What a person is shown of an input."""
        if is_image(payload):
            return payload
        if content_type.startswith("application/json"):
            return orjson.dumps(self._inputs(orjson.loads(payload)))
        try:
            return self._document(payload.decode()).encode()
        except UnicodeDecodeError:
            return self.text(payload.decode("latin-1")).encode("latin-1", "replace")

    def task(self, task: ReviewTask) -> ReviewTask:
        """*task* as people get it."""
        proposals = tuple(Proposal(p.stage, self._label(p.label), p.confidence) for p in task.proposals)
        return replace(task, payload=self.payload(task.payload, task.content_type), proposals=proposals)

    def answer(self, answer: Answer) -> Answer:
        """*answer* as it is kept."""
        return replace(answer, items=tuple(self._item(item) for item in answer.items))

    def _inputs(self, inputs: _Json) -> _Json:
        """Inputs by name; texts among them may be documents of their own."""
        for mask in self.options:
            if mask.path is not None:
                inputs = mask.path.replaced(inputs, mask.by)
        return _texts(inputs, self._document)

    def _document(self, text: str) -> str:
        """A text, which may be a document in JSON."""
        paths = [(mask.path, mask.by) for mask in self.options if mask.path is not None]
        if not text.lstrip().startswith(("{", "[")):
            return self.text(text)
        try:
            found = orjson.loads(text)
            for path, by in paths:
                found = path.replaced(found, by)
            return orjson.dumps(_texts(found, self.text)).decode()
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
            return _WITHHELD if paths and _DOCUMENT.match(text) else self.text(text)

    def _label(self, label: str | None) -> str | None:
        return None if label is None else self.text(label)

    def _item(self, item: ItemAnswer) -> ItemAnswer:
        trail = tuple(self._record(record) for record in item.trail)
        outputs = None if item.outputs is None else self._outputs(item.outputs)
        return replace(item, label=self._label(item.label), outputs=outputs, trail=trail)

    def _record(self, record: StageRecord) -> StageRecord:
        quotes = record.stage == CLASSIFY and any(mask.path is not None for mask in self.options)
        detail = "" if quotes else self.text(record.detail)
        return replace(record, label=self._label(record.label), detail=detail)

    def _outputs(self, outputs: Tensors) -> dict[str, Tensor]:
        return {name: self._tensor(tensor) for name, tensor in outputs.items()}

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.datatype is not Datatype.BYTES:
            return tensor
        if isinstance(tensor.data, Ragged):
            return Tensor.ragged(Datatype.BYTES, tuple(self._elements(row) for row in tensor.data.rows))
        array = self._elements(tensor.numpy())
        return Tensor(Datatype.BYTES, array.shape, array)

    def _elements(self, array: Any) -> Any:  # Any: NumPy's, of objects
        masked = np.empty(array.size, object)
        masked[:] = [self._element(element) for element in array.reshape(-1)]
        return masked.reshape(array.shape)

    def _element(self, element: bytes | str) -> bytes:
        data = element.encode() if isinstance(element, str) else bytes(element)
        return self.payload(data, "text/plain")


def _texts(value: _Json, change: Callable[[str], str]) -> _Json:
    """*value* with every text in it, names included, as *change* has it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _texts(inner, change) for key, inner in value.items()}
    return [_texts(inner, change) for inner in value] if isinstance(value, list) else value


class Masks:
    """The masks of a configuration."""

    def __init__(self, options: Collection[MaskOptions] = ()) -> None:
        self._options = tuple(options)
        self._known: dict[str, Mask | None] = {}

    def __bool__(self) -> bool:
        return bool(self._options)

    def of(self, route: str) -> Mask | None:
        """Those of *route*, by its name; None where it has none."""
        if not self._options:
            return None
        if route not in self._known:
            own = tuple(mask for mask in self._options if not mask.routes or route in mask.routes)
            self._known[route] = Mask(own) if own else None
        return self._known[route]

    @property
    def hiding(self) -> Callable[[str, str], str] | None:
        """`words`, for a store; None where there are no masks, so that it need not look for routes."""
        return self.words if self else None

    def words(self, route: str, words: str) -> str:
        """What is kept of *words* that somebody writes about *route*, by its name."""
        mask = self.of(route)
        return words if mask is None else mask.text(words) or MASKED

    def text(self, text: str) -> str:
        """*text*, of which nobody knows what route it is about, with every pattern replaced."""
        return Mask(self._options).text(text)


NO_MASKS: Final = Masks()
"""Everything is kept as it was sent."""
