"""HTML pages: templates that escape everything, headers that let nothing else in, and numbers as people say them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from gateway.moments import rfc3339
from router.contract import Reason

HEADERS = {
    # No inline script or style, nothing from elsewhere, no frames: a payload that slipped through could do nothing.
    "content-security-policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; style-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # `no-referrer` would make browsers send `Origin: null` with our own forms, which the origin check refuses.
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",
}
"""On every response of the control plane that does not say otherwise."""

REASONS: Mapping[Reason, str] = {
    Reason.LOW_CONFIDENCE: "no model was sure enough",
    Reason.NO_CONFIDENCE: "the model could not say how sure it is",
    Reason.STAGE_FAILED: "a model failed on it",
    Reason.STAGE_UNAVAILABLE: "a model was not available",
    Reason.OVERLOADED: "too much was waiting for a model",
    Reason.OUT_OF_TIME: "there was no time left to ask the next model",
    Reason.NO_RULE_MATCHED: "no rule said which route it belongs to",
    Reason.ROUTED_TO_PERSON: "a rule sends such requests to a person",
    Reason.UNCLEAR_CLASSIFICATION: "it is not clear what it is",
    Reason.CONTRADICTORY_CLASSIFICATION: "it is not what it is said to be",
    Reason.NO_CERTIFICATE: "nothing proves yet how sure a model must be",
    Reason.UNCERTIFIED_PATH: "a model was skipped that the certificate counts on",
    Reason.OBSERVED: "the route gathers labels",
    Reason.PEOPLE_OVERLOADED: "people had no time for it",
}
"""Why an item is here, after "Here because"."""

_UNITS = ((86_400, "day"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """*seconds* in its largest unit: `3 min`, `2 h`, `1 day`; `under 1 min` below that."""
    for size_s, unit in _UNITS:
        count = int(seconds // size_s)
        if count >= 1:
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return "under 1 min"


def age(since_s: float) -> str:
    """How long ago *since_s* (Unix time) is."""
    return duration(max(0.0, time.time() - since_s))


def due(at_s: float) -> str:
    """When *at_s* (Unix time) is, as a deadline."""
    left_s = at_s - time.time()
    return f"due in {duration(left_s)}" if left_s >= 0 else f"overdue by {duration(-left_s)}"


def is_overdue(at_s: float) -> bool:
    """Whether *at_s* (Unix time) has passed."""
    return at_s < time.time()


def moment(at_s: float) -> str:
    """*at_s* (Unix time) in UTC, to the second, for readers whose browser does not tell it in their own zone."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def percent(share: float) -> str:
    """*share* of 1: `87 %`, from 95 with a decimal, where it decides (`99.4 %`), and never rounded up to 100."""
    if 0.95 <= share < 1:
        return f"{int(share * 1000) / 10:.1f} %"
    return f"{share * 100:.0f} %"


def milliseconds(seconds: float) -> str:
    """*seconds* as milliseconds."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def rate(per_s: float) -> str:
    """*per_s* with as many digits as one can take in."""
    return f"{per_s:.0f}" if per_s >= 10 or per_s == 0 else f"{per_s:.1f}"


def size(count: float) -> str:
    """*count* bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "skip": ("s", "ArrowRight"),
    "leave": ("Escape",),
    "undo": ("u", "Backspace"),
    "zoom_in": ("z", "+"),
    "zoom_out": ("Z", "-"),
    "fit": ("f", "="),
    "turn_right": ("r", "]"),
    "turn_left": ("R", "["),
    "alike": ("b", "&"),
    "history": ("h", "!"),
    "help": ("?",),
}
_LETTERS_OF_COMMANDS = {key.lower() for keys in _COMMANDS.values() for key in keys if key.isalpha() and len(key) == 1}
_KEYCAPS = {"ArrowRight": "→", "Escape": "Esc", "Backspace": "⌫", "Z": "⇧ z", "R": "⇧ r"}


def commands(taken: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """The keys of every command, the best first, without those that are *taken* by labels."""
    return {name: tuple(key for key in keys if key.lower() not in taken) for name, keys in _COMMANDS.items()}


def keycap(key: str) -> str:
    """*key*, which is named as browsers name it, as it stands on a keyboard."""
    return _KEYCAPS.get(key, key)


def shortcuts(labels: Sequence[str]) -> tuple[str, ...]:
    """The key that decides for each of *labels*; "" where there are more labels than keys.

    Labels that are single characters (digits, letters) are their own keys: to press 1 for the label 0 would be a trap.
    Otherwise 1 to 9, then 0, then the letters that are no command's.
    """
    if all(len(label) == 1 and label.isprintable() and not label.isspace() for label in labels):
        keys = [label.lower() for label in labels]
        if len(set(keys)) == len(keys):
            return tuple(keys)
    supply = "1234567890" + "".join(sorted(set("abcdefghijklmnopqrstuvwxyz") - _LETTERS_OF_COMMANDS))
    return tuple(supply[i] if i < len(supply) else "" for i in range(len(labels)))


def segment(text: str) -> str:
    """*text* as one segment of a path."""
    return quote(text, safe="")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gateway.control"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        age=age,
        due=due,
        duration=duration,
        is_overdue=is_overdue,
        keycap=keycap,
        milliseconds=milliseconds,
        moment=moment,
        percent=percent,
        rate=rate,
        rfc3339=rfc3339,
        segment=segment,
        size=size,
    )
    return environment


_TEMPLATES = _environment()


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """*template* with *values* (Any: whatever it shows)."""
    headers = {**HEADERS, "cache-control": "no-store"}
    return HTMLResponse(_TEMPLATES.get_template(template).render(values), status, headers)
