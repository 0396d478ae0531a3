"""The nouns of routing: what is known of a request, what a route is, and what was decided.

Everything here is immutable and knows neither clock nor I/O: `now` and randomness are passed in, models are seen as
`ModelState` snapshots. `router.table` picks a route, `router.cascade` picks stages and judges their outputs.

A route is a graph in the making: today's only form is a cascade, a line of stages from cheap to strong. Nothing
outside `router.cascade` may assume that; the pipeline asks `next_stage` and obeys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from backends.contract import ParameterValue, Signature, record

AUTO = "auto"
"""The reserved route: `router.table` picks the real one."""


class Reason(StrEnum):
    """Why an item was not simply accepted; part of the API, so names never change."""

    LOW_CONFIDENCE = "low_confidence"
    NO_CONFIDENCE = "no_confidence"  # NaN, missing or malformed
    STAGE_FAILED = "stage_failed"
    STAGE_UNAVAILABLE = "stage_unavailable"
    OUT_OF_TIME = "out_of_time"
    OVERLOADED = "overloaded"  # too much waits for the model
    NO_RULE_MATCHED = "no_rule_matched"
    ROUTED_TO_PERSON = "routed_to_person"  # a rule of `classify` says so
    UNCLEAR_CLASSIFICATION = "unclear_classification"  # a detector was not sure, or did not answer
    CONTRADICTORY_CLASSIFICATION = "contradictory_classification"  # what was stated and what was detected differ
    NO_CERTIFICATE = "no_certificate"  # the route has an error budget, and nothing that proves a threshold
    UNCERTIFIED_PATH = "uncertified_path"  # a stage that the certificate is about was skipped
    OBSERVED = "observed"  # answered by the strongest stage, all were scored: the route gathers labels
    PEOPLE_OVERLOADED = "people_overloaded"  # people were not asked; only in trails, beside the reason to ask them


FAILURES = (Reason.STAGE_FAILED, Reason.STAGE_UNAVAILABLE)
"""Reasons that a stage gave no answer by fault of its own, and not of the time that there was."""


@dataclass(frozen=True, slots=True)
class Trait:
    """Something that was detected about a request, such as its language.

    Attributes:
        value: what it is; None where nothing is known.
        confidence: in [0, 1]; None where there is none: the caller stated it, or nobody knows.
        doubt: why it must not be relied on (`UNCLEAR_` or `CONTRADICTORY_CLASSIFICATION`); None where it can be.
        detail: what an operator wants to know of a doubt, or of a value that is missing, in words.
    """

    value: str | None
    confidence: float | None = None
    doubt: Reason | None = None
    detail: str = ""


@record
class Traits:
    """What is known of a request before any stage has seen it.

    Attributes:
        route: the route the caller named, or `auto`.
        content_type: stated media type without parameters, lower-case; "" where the caller sent tensors and
            does not say what they were made of.
        size_bytes: size of the inputs.
        tenant: who asks.
        parameters: the caller's own.
        detected: what detectors found, by the trait's name; only of those that were asked.
    """

    route: str
    content_type: str = ""
    size_bytes: int = 0
    tenant: str = "default"
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    detected: Mapping[str, Trait] = field(default_factory=dict)


class Decision(StrEnum):
    """What `judge` makes of one stage's output for one item."""

    ACCEPT = "accept"
    ESCALATE = "escalate"
    DEFER = "defer"


@record
class Verdict:
    """One item's judgement after one stage.

    Attributes:
        confidence: the calibrated estimate that the stage is right, in [0, 1]; None where there is none.
        reason: why it was not accepted; None where it was.
    """

    decision: Decision
    confidence: float | None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class MinConfidence:
    """Accept at the first stage whose calibrated confidence is at least *value*, in [0, 1]."""

    value: float


@dataclass(frozen=True, slots=True)
class AcceptAny:
    """Accept whatever the first stage answers: a physical model that is exposed under its own name."""


@dataclass(frozen=True, slots=True)
class Certified:
    """Accept at the first stage whose calibrated confidence is at least *threshold*, if all before it ran.

    Attributes:
        threshold: in [0, 1].
        certificate: id of the certificate that proves the route's error budget at this threshold.
        valid_until_s: Unix time from which on it proves nothing, in seconds.
    """

    threshold: float
    certificate: str
    valid_until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Uncertified:
    """Accept nothing: the route has an error budget, and no certificate. All stages are asked, and a person decides.

    Attributes:
        why: in words, for the operator.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Observe:
    """Accept what the last stage answers, after all were asked: so a route gathers its first labelled scores."""


AcceptRule: TypeAlias = MinConfidence | AcceptAny | Certified | Uncertified | Observe
"""How a route decides that a stage is sure enough."""


class OnDefer(StrEnum):
    """What a client without two-phase answers gets when its item waits for a person."""

    PROVISIONAL = "provisional"
    ERROR = "error"


class WhenOverloaded(StrEnum):
    """What becomes of an uncertain item where people would take too long."""

    WAIT = "wait"
    """It waits for them all the same."""

    PROVISIONAL = "provisional"
    """The model's answer stands, as an uncertain one, and nobody is asked."""

    STRONGER = "stronger"
    """Stages that would be passed over as too slow or too busy are asked, then people."""

    REFUSE = "refuse"
    """The request is refused."""


USUAL_PRIORITY = 5
"""Of items of which nobody says how urgent they are."""

LEAST_PRIORITY = 9
"""1 is the greatest."""


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """How far people are checked by people.

    Attributes:
        needed: how many must give the same label for it to be final.
        of: how many are asked at most; where not enough of them agree, one more decides.
        adjudicate: the queue where that one is found; None: the item's own.
        second_opinion: share, in [0, 1], of what one person has decided that another is asked about too, blindly.
        gold: items with a known answer that are put beside real ones, as a share of these, in [0, 1].
    """

    needed: int = 1
    of: int = 1
    adjudicate: str | None = None
    second_opinion: float = 0.0
    gold: float = 0.0


ONE_PERSON = LabelQuality()
"""One decides, and nobody is checked."""


@dataclass(frozen=True, slots=True)
class HumanPolicy:
    """Where a route's uncertain items go.

    Attributes:
        queue: the review queue.
        due_s: seconds from deferral until a person should have decided.
        labels: what a person can choose from, in order; empty for free text.
        expires_s: seconds from deferral until nobody is asked any more; None: it waits for ever.
        priority: of its reviews in the queue; 1 goes first.
        callers_priority: a request that names a priority of its own has that.
        skills: what whoever decides must have.
        when_overloaded: what becomes of an item where people would take longer than `max_wait_s`.
        max_wait_s: None: `due_s`.
        quality: how far people are checked by people.
    """

    queue: str
    due_s: float
    labels: tuple[str, ...] = ()
    expires_s: float | None = None
    priority: int = USUAL_PRIORITY
    callers_priority: bool = False
    skills: tuple[str, ...] = ()
    when_overloaded: WhenOverloaded = WhenOverloaded.WAIT
    max_wait_s: float | None = None
    quality: LabelQuality = ONE_PERSON

    @property
    def longest_s(self) -> float:
        """What people may take before they count as overloaded."""
        return self.due_s if self.max_wait_s is None else self.max_wait_s


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a cascade, as the router needs it.

    Attributes:
        model: the model's name, and the stage's.
        cost: relative cost of an item; only ratios matter.
    """

    model: str
    cost: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """What callers address as a model.

    Attributes:
        name: as callers write it.
        signature: inputs before decoding, and the outputs that all its stages share.
        decode: name of the decoder of the one BYTES input (see `kernels.decode`), or None.
        cascade: stages from cheap to strong; at least one.
        accept: when a stage is sure enough.
        human: who decides what no stage is sure of; None: `on_defer` and the refusal rules apply.
        on_defer: what plain clients get for a deferred item.
        deadline_s: seconds a request may take when its caller says nothing, and at most.
        max_error: the error rate the operator wants among accepted answers; None where none is stated.
        subject: digest of all that a certificate of this route is about; "" where nobody asks for one.
        version: which of the versions of `name` this is (`router.versions`); "" where there is only one.
        id_as_key: the `id` of a request is its idempotency key, where it has no other.
    """

    name: str
    signature: Signature
    decode: str | None
    cascade: tuple[Stage, ...]
    accept: AcceptRule
    human: HumanPolicy | None
    on_defer: OnDefer
    deadline_s: float
    max_error: float | None = None
    subject: str = ""
    version: str = ""
    id_as_key: bool = False

    @property
    def id(self) -> str:
        """What tells it from every other route: `name`, or `name@version`."""
        return route_id(self.name, self.version)


def route_id(name: str, version: str) -> str:
    """What the *version* of the route *name* is known by; the name itself where *version* is ""."""
    return f"{name}@{version}" if version else name


class Residency(StrEnum):
    """How warm a model is: it has to be loaded, it is being loaded, or it answers at once."""

    COLD = "cold"
    WARMING = "warming"
    HOT = "hot"


@record
class ModelState:
    """A snapshot of one model, taken when a request is routed.

    Attributes:
        ready: it can take a batch now, or once it is loaded.
        residency: whether it has to be loaded first.
        predicted_wait_s: seconds a new item would queue.
        latency_s: seconds a batch is expected to take now (a median of recent ones); 0.0 where nothing is known.
        expected_load_s: seconds until it is loaded and warmed up, if it were asked for now; 0.0 where it is.
    """

    ready: bool
    version: str
    residency: Residency = Residency.HOT
    predicted_wait_s: float = 0.0
    latency_s: float = 0.0
    expected_load_s: float = 0.0
