"""Certificates: what was proven, about what exactly, and until when.

A certificate names everything that its proof depends on (`Subject`): the stages in their order, each model's version,
what stands around the model, its calibrator, and the tenants and classes that were pooled. Where any of it differs, it
says nothing. It is never changed and never revoked: its id is the SHA-256 of its content, so what was altered does not
read back, and what no longer holds expires, stops covering what is loaded, or is replaced by a newer one.

**Labels are people's**, and the error is one against these labels. What is known of how far they can be relied on
stands beside the proof (`Disagreement`), and adds up with it: where an answer is wrong in truth, it differs from its
label, or its label is wrong; and where a label is wrong, another person's differs, unless both are wrong alike, which
no number of second opinions can show.

The id guards against accidents and quiet edits, not against somebody who forges a new certificate: it is no signature.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from router.certification import Budget, Selection

FORMAT = "pointsman-certificate/1"
FORMAT_WITH_DISAGREEMENT = "pointsman-certificate/2"
"""Of certificates that say how far people disagree; the others are as they always were, and so are their ids."""

ALL = ("*",)
"""Tenants or classes: all of them, pooled."""

_REMEDY = "certify the route again"


@dataclass(frozen=True, slots=True)
class StageSubject:
    """One stage, as it was certified.

    Attributes:
        model: its name.
        version: as the backend tells it.
        preprocessing: SHA-256 of what stands around the model, in hexadecimal; "" for nothing.
        calibration: SHA-256 of its calibrator, in hexadecimal; "" for none.
    """

    model: str
    version: str
    preprocessing: str
    calibration: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a certificate is about.

    Attributes:
        stages: those that run, from cheap to strong.
        tenants: whose items were pooled; a promise about a pool is none about each of its members.
        classes: of items, likewise.
    """

    route: str
    stages: tuple[StageSubject, ...]
    tenants: tuple[str, ...] = ALL
    classes: tuple[str, ...] = ALL


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How far people disagree about the items that prove a certificate, as blind second opinions tell.

    Attributes:
        items: accepted ones that two people have labelled.
        differing: of those, labelled differently by the two.
        limit: upper limit on the share of accepted items that two people label differently (one-sided
            Clopper-Pearson at the certificate's confidence, the threshold taken as given). Where two who agree are
            right, no more labels are wrong than that.
        is_proven: all items that prove the certificate were to be labelled twice, and one is wrong where the two
            differ, unless a third has upheld its label: the disagreement is within the bound.
    """

    items: int
    differing: int
    limit: float
    is_proven: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", float(self.limit))
        _check(self.items > 0, "disagreement.items", self.items, "at least 1")
        _check(0 <= self.differing <= self.items, "disagreement.differing", self.differing, f"from 0 to {self.items}")
        _check(0.0 <= self.limit <= 1.0, "disagreement.limit", self.limit, "in [0, 1]")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof that *subject*, accepting from *threshold* on, keeps an error budget; see `router.certification`.

    Attributes:
        max_error: the share of accepted answers that may be wrong.
        confidence: the probability of at least which the choice of the threshold keeps it.
        threshold: least calibrated confidence to accept, in [0, 1].
        items: labelled items that proved it.
        accepted: of those, at the threshold.
        wrong: of the accepted ones.
        bound: upper limit on the error that these counts give at this threshold alone.
        created_s: Unix time, in seconds.
        valid_until_s: Unix time, in seconds; from then on it covers nothing.
        evidence: what the labels were, in words: a file's name and SHA-256, or the store.
        disagreement: of the people who gave them; None where no accepted item was labelled twice.

    Raises:
        ValueError: a value cannot be meant; names the field and the remedy.
    """

    subject: Subject
    max_error: float
    confidence: float
    threshold: float
    items: int
    accepted: int
    wrong: int
    bound: float
    created_s: float
    valid_until_s: float
    evidence: str
    disagreement: Disagreement | None = None

    def __post_init__(self) -> None:
        for name in ("max_error", "confidence", "threshold", "bound", "created_s", "valid_until_s"):
            # A whole number would be another text than the float that reads back, and so give another id.
            object.__setattr__(self, name, float(getattr(self, name)))
        _check(0.0 < self.max_error < 1.0, "max_error", self.max_error, "between 0 and 1")
        _check(0.0 < self.confidence < 1.0, "confidence", self.confidence, "between 0 and 1")
        _check(0.0 <= self.threshold <= 1.0, "threshold", self.threshold, "in [0, 1]")
        _check(0.0 <= self.bound <= 1.0, "bound", self.bound, "in [0, 1]")
        _check(0 < self.accepted <= self.items, "accepted", self.accepted, f"from 1 to {self.items}, its items")
        _check(0 <= self.wrong <= self.accepted, "wrong", self.wrong, f"from 0 to {self.accepted}, its accepted")
        _check(self.created_s >= 0.0, "created_s", self.created_s, "a time since 1970")
        later = self.created_s < self.valid_until_s <= sys.float_info.max
        _check(later, "valid_until_s", self.valid_until_s, f"later than {self.created_s}, its created_s")
        _check(bool(self.subject.stages), "stages", self.subject.stages, "at least one stage")

    @property
    def bound_with_labels(self) -> float | None:
        """`bound`, and what the labels may be wrong by, where two who agree are right; None where nobody knows."""
        if self.disagreement is None:
            return None
        return self.bound if self.disagreement.is_proven else min(1.0, self.bound + self.disagreement.limit)

    @property
    def id(self) -> str:
        """SHA-256 of its content, in hexadecimal: of JSON with sorted keys and no spaces."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """A form that JSON can hold, and `from_dict` reads back without loss."""
        return {**self._content(), "id": self.id}

    def _content(self) -> dict[str, Any]:
        content = asdict(self)
        if self.disagreement is None:
            del content["disagreement"]
            return {"format": FORMAT, **content}
        return {"format": FORMAT_WITH_DISAGREEMENT, **content}

    @classmethod
    def from_dict(cls, data: object) -> Certificate:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: names the field that is missing, unknown, malformed or altered, and the remedy.
        """
        if not isinstance(data, Mapping) or data.get("format") not in (FORMAT, FORMAT_WITH_DISAGREEMENT):
            raise ValueError(f"not a certificate (no format {FORMAT!r} or {FORMAT_WITH_DISAGREEMENT!r}); {_REMEDY}")
        names = {"format", "id", *(field.name for field in fields(cls))}
        has_disagreement = data["format"] == FORMAT_WITH_DISAGREEMENT
        _check_names(data, names if has_disagreement else names - {"disagreement"}, "")
        certificate = cls(
            subject=_subject(data["subject"]),
            max_error=_number(data, "max_error"),
            confidence=_number(data, "confidence"),
            threshold=_number(data, "threshold"),
            items=_integer(data, "items"),
            accepted=_integer(data, "accepted"),
            wrong=_integer(data, "wrong"),
            bound=_number(data, "bound"),
            created_s=_number(data, "created_s"),
            valid_until_s=_number(data, "valid_until_s"),
            evidence=_text(data, "evidence"),
            disagreement=_disagreement(data["disagreement"]) if has_disagreement else None,
        )
        if certificate.id != data["id"]:
            raise ValueError(
                f"certificate id {data['id']!r} is not that of its content, which was altered; take the original, "
                f"or {_REMEDY}"
            )
        return certificate

    def proves(self, budget: Budget) -> bool:
        """Whether it proves as much as *budget* asks."""
        return self.max_error <= budget.max_error and self.confidence >= budget.confidence

    def covers(self, subject: Subject, now_s: float) -> str | None:
        """None where it is about *subject* and holds at *now_s*; otherwise the first reason why not, in words.

        Args:
            subject: what is loaded.
            now_s: Unix time, in seconds.
        """
        if not now_s < self.valid_until_s:
            until = datetime.fromtimestamp(self.valid_until_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
            return f"the certificate expired on {until}; {_REMEDY}"
        return _difference(self.subject, subject)


def issue(
    selection: Selection,
    subject: Subject,
    budget: Budget,
    now_s: float,
    lifetime_s: float,
    evidence: str,
    disagreement: Disagreement | None = None,
) -> Certificate:
    """The certificate of a threshold that was selected for *subject* under *budget*.

    Args:
        now_s: Unix time, in seconds.
        lifetime_s: how long it covers anything, in seconds.
        evidence: what the labels were, in words.
        disagreement: of who gave them; None where that is not known.

    Raises:
        ValueError: *selection* has no threshold, or a value cannot be meant.
    """
    if selection.threshold is None:
        raise ValueError(f"nothing is proven ({selection.reason}), so there is nothing to certify; gather more labels")
    return Certificate(
        subject=subject,
        max_error=budget.max_error,
        confidence=budget.confidence,
        threshold=selection.threshold,
        items=selection.items,
        accepted=selection.accepted,
        wrong=selection.wrong,
        bound=selection.bound,
        created_s=now_s,
        valid_until_s=now_s + lifetime_s,
        evidence=evidence,
        disagreement=disagreement,
    )


def _difference(certified: Subject, loaded: Subject) -> str | None:
    """The first thing in which two subjects differ, in words."""
    for what, one, other in (
        ("route", (certified.route,), (loaded.route,)),
        ("stages", _models(certified), _models(loaded)),
        ("tenants", tuple(sorted(certified.tenants)), tuple(sorted(loaded.tenants))),
        ("classes", tuple(sorted(certified.classes)), tuple(sorted(loaded.classes))),
    ):
        if one != other:
            return f"it certifies {what} {', '.join(one)}, and loaded is {', '.join(other)}; {_REMEDY}"
    for before, now in zip(certified.stages, loaded.stages, strict=True):
        for what in ("version", "preprocessing", "calibration"):
            one, other = getattr(before, what), getattr(now, what)
            if one != other:
                shown = f"certified {one or 'none'}, loaded {other or 'none'}"
                return f"{what} of model {before.model} differs: {shown}; {_REMEDY}"
    return None


def _models(subject: Subject) -> tuple[str, ...]:
    return tuple(stage.model for stage in subject.stages)


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"certificate {name} is {value!r}, not {wanted}; {_REMEDY}")


# --- reading JSON (Any) ---


def _subject(data: Any) -> Subject:
    _check_names(data, {field.name for field in fields(Subject)}, "subject")
    stages = tuple(_stage(stage) for stage in _sequence(data, "stages"))
    return Subject(_text(data, "route"), stages, _texts(data, "tenants"), _texts(data, "classes"))


def _disagreement(data: Any) -> Disagreement:
    _check_names(data, {field.name for field in fields(Disagreement)}, "disagreement")
    _check(isinstance(data["is_proven"], bool), "disagreement.is_proven", data["is_proven"], "true or false")
    return Disagreement(_integer(data, "items"), _integer(data, "differing"), _number(data, "limit"), data["is_proven"])


def _stage(data: Any) -> StageSubject:
    names = [field.name for field in fields(StageSubject)]
    _check_names(data, set(names), "stages")
    return StageSubject(*(_text(data, name) for name in names))


def _check_names(data: Any, names: set[str], where: str) -> None:
    """Every one of *names* is there, and nothing else: what is not understood might have mattered."""
    _check(isinstance(data, Mapping), where, data, "an object")
    for name in sorted(names ^ set(data)):
        fault = "missing" if name in names else "unknown"
        raise ValueError(f"certificate field {f'{where}.{name}' if where else name} is {fault}; {_REMEDY}")


def _texts(data: Any, name: str) -> tuple[str, ...]:
    values = _sequence(data, name)
    _check(all(isinstance(value, str) for value in values), name, values, "texts")
    return tuple(values)


def _sequence(data: Any, name: str) -> list[Any] | tuple[Any, ...]:
    value: list[Any] | tuple[Any, ...] = data[name]
    _check(isinstance(value, list | tuple), name, value, "a list")
    return value


def _text(data: Any, name: str) -> str:
    value: str = data[name]
    _check(isinstance(value, str), name, value, "a text")
    return value


def _integer(data: Any, name: str) -> int:
    value: int = data[name]
    _check(isinstance(value, int) and not isinstance(value, bool), name, value, "a whole number")
    return value


def _number(data: Any, name: str) -> float:
    value: float = data[name]
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    _check(finite, name, value, "a number")
    return float(value)
