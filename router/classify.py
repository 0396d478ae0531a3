"""What detectors say, and what a request says of itself, become traits: what rules can rely on, and what not.

A detector answers item by item; a request takes one route, so its items must agree. A trait is *in doubt* where its
detector failed or was not sure, where items differ, or where the content is plainly not what its sender states; a rule
that needs it then decides nothing, and the request goes where the table sends what is in doubt.

**Content type** is the one trait that callers state too. Two media types agree where they are of one family: of one
top-level type, or both text (source code, JSON and XML are, whatever their top-level type). Then the more telling one
counts: what was detected, except among texts, where a customer's message that happens to look like a Makefile is still
the `text/plain` that it was sent as. A sender that says nothing of the content (`application/octet-stream`, the JSON
around it, nothing at all) cannot be contradicted. Where the detector is not sure, a specific statement stands.

Rejected: multiplying confidences over detectors. They are not independent, and no rule could say what it meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from router.contract import Reason, Trait, Traits

CONTENT_TYPE = "content_type"
"""The trait that a caller states and a detector checks."""

_SHOWN = 64
"""Most characters of a stated type that are repeated."""

_SAYS_NOTHING = frozenset({"", "application/octet-stream", "application/json"})
_TEXT_SUFFIXES = ("+json", "+xml")
_TEXT_TYPES = frozenset({"message/rfc822", "text-ocaml"})
_TEXT_SUBTYPES = frozenset(
    {
        "ecmascript",
        "javascript",
        "json",
        "ld+json",
        "pgp-signature",
        "sgml",
        "sla",
        "sql",
        "toml",
        "typescript",
        "x-httpd-php",
        "x-java-jnlp-file",
        "x-javascript",
        "x-mimearchive",
        "x-mswinurl",
        "x-ndjson",
        "x-pem-file",
        "x-plist",
        "x-powershell",
        "x-ruby",
        "x-rust",
        "x-scala",
        "x-sh",
        "x-smali",
        "x-sql",
        "x-tcl",
        "x-tex",
        "x-yaml",
        "xml",
        "yaml",
    }
)


@dataclass(frozen=True, slots=True)
class Signal:
    """What a detector says of one item.

    Attributes:
        value: its best label.
        confidence: calibrated, in [0, 1]; NaN, or anything else, where there is none.
    """

    value: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Silence:
    """A detector that said nothing.

    Attributes:
        why: in words.
        failed: it should have answered; otherwise the request has nothing that it could look at.
    """

    why: str
    failed: bool


Signals: TypeAlias = "Sequence[Signal] | Silence"
"""What one detector says of a request: a signal an item, or nothing."""


def classify(stated: Traits, signals: Mapping[str, Signals], floors: Mapping[str, float]) -> Traits:
    """*stated* with one more trait for each entry of *signals*.

    Args:
        signals: by trait.
        floors: confidence below which a trait is in doubt, by trait; 0 where there is no entry.
    """
    detected = {name: _trait(name, found, floors.get(name, 0.0)) for name, found in signals.items()}
    if CONTENT_TYPE in detected:
        detected[CONTENT_TYPE] = _with_statement(stated.content_type, detected[CONTENT_TYPE])
    return replace(stated, detected={**stated.detected, **detected})


def _trait(name: str, signals: Signals, floor: float) -> Trait:
    """1. no answer: failed: doubt; nothing to look at: no value
    2. items differ: doubt
    3. no confidence, or less than the floor: the value, in doubt
    4. else the value, with the confidence of the item that has least
    """
    if isinstance(signals, Silence):
        doubt = Reason.UNCLEAR_CLASSIFICATION if signals.failed else None
        return Trait(None, None, doubt, f"{name}: {signals.why}")
    values = sorted({signal.value for signal in signals})
    if len(values) != 1:
        detail = f"{name} differs between items: {', '.join(values[:3])}; send them apart"
        return Trait(None, None, Reason.CONTRADICTORY_CLASSIFICATION, detail)
    confidence = _least(signal.confidence for signal in signals)
    if confidence is None:
        return Trait(values[0], None, Reason.UNCLEAR_CLASSIFICATION, f"{name} {values[0]!r} has no confidence")
    if confidence < floor:
        detail = f"{name} {values[0]!r} has confidence {confidence:.2f}; {floor:.2f} is needed"
        return Trait(values[0], confidence, Reason.UNCLEAR_CLASSIFICATION, detail)
    return Trait(values[0], confidence)


def _least(confidences: Iterable[float]) -> float | None:
    """The least of all; None where one is no confidence."""
    found = list(confidences)
    return min(found) if all(0.0 <= confidence <= 1.0 for confidence in found) else None


def _with_statement(stated: str, trait: Trait) -> Trait:
    """The content type that counts, where the sender states *stated* and the detector found *trait*.

    1. the detector had nothing to look at: what is stated
    2. the sender says nothing, items differ, or the detector failed: what was detected, doubts included
    3. the detector is not sure: what is stated
    4. both say the same family: the more telling of the two
    5. they contradict each other: doubt
    """
    if trait.value is None and trait.doubt is None:
        return Trait(stated) if stated else trait
    if stated in _SAYS_NOTHING or trait.value is None:
        return trait
    if trait.doubt is not None:
        return Trait(stated)
    family = _family(stated)
    if family == _family(trait.value):
        return Trait(stated, trait.confidence) if family == "text" else trait
    detail = f"the request says {CONTENT_TYPE} {stated[:_SHOWN]!r}, and its content is {trait.value!r}"
    return Trait(None, trait.confidence, Reason.CONTRADICTORY_CLASSIFICATION, detail)


def _family(media_type: str) -> str:
    top, _, subtype = media_type.partition("/")
    if top == "text" or media_type in _TEXT_TYPES:
        return "text"
    if top == "application" and (subtype in _TEXT_SUBTYPES or subtype.endswith(_TEXT_SUFFIXES)):
        return "text"
    return top


def confidence_text(confidence: float | None) -> str:
    """*confidence* for people: two digits, or that the caller said so."""
    return "stated" if confidence is None or math.isnan(confidence) else f"{confidence:.2f}"
