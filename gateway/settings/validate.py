"""Sections as data into sections as objects; whatever does not fit becomes a fault at its place.

Values are checked as JSON, strictly: pydantic then takes a list for a tuple and text for a path or an enumeration, as
a file must write them, and yet no number for a text, nor `true` for 1.

Unknown keys are found here, not by pydantic: the options of backends are plain dataclasses, in which it would overlook
them, and only here is it known what a misspelt key was close to.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from gateway.settings.document import Document, Place

_T = TypeVar("_T")


def validated(
    document: Document,
    wanted: type[_T],
    place: Place,
    data: object,
    *,
    beside: Iterable[str] = (),
    secret: bool = False,
) -> _T | None:
    """*data*, found at *place*, as a *wanted*; None where it is none, and then *document* has the faults.

    Args:
        beside: further keys that the mapping at *place* knows, for remedies.
        secret: no message may repeat a value.
    """
    count = len(document.faults)
    for inner, message in _unknown_keys(wanted, data, place, tuple(beside)):
        document.add_fault(inner, message, at_key=True)
    try:
        result: _T = _adapter(cast(Any, wanted)).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] != "extra_forbidden":
                _add(document, place, details, secret)
        return None
    return result if len(document.faults) == count else None


@cache
def _adapter(wanted: Any) -> TypeAdapter[Any]:  # Any: a cache's arguments lose their types
    return TypeAdapter(wanted)


def _add(document: Document, place: Place, details: ErrorDetails, secret: bool) -> None:
    kind = details["type"]
    if not secret:
        message = _WORDS.get(kind, _in_pydantics_words)(details)
    elif kind == "missing":
        message = "is missing; add it"
    else:
        pattern = details.get("ctx", {}).get("pattern")
        what = f"does not match {pattern}" if pattern else "is not what belongs here"
        message = f"{what} (its value is not shown); correct it"
    document.add_fault((*place, *details["loc"]), message, at_key=kind == "missing")


def _expects(what: str, remedy: str = "") -> Callable[[ErrorDetails], str]:
    return lambda details: f"is {_shown(details['input'])}, which is not {what}; {remedy or f'write {what}'}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _out_of_range(bound: str, words: str) -> Callable[[ErrorDetails], str]:
    return lambda details: f"is {_shown(details['input'])}; use {words} {details.get('ctx', {}).get(bound)}"


def _own_words(details: ErrorDetails) -> str:
    return str(details.get("ctx", {})["error"])


def _choices(details: ErrorDetails) -> str:
    expected = str(details.get("ctx", {}).get("expected"))
    return f"is {_shown(details['input'])}; use {expected}"


def _in_pydantics_words(details: ErrorDetails) -> str:
    return f"is {_shown(details['input'])}: {details['msg']}; correct it"


_WORDS: Mapping[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda _: "is missing; add it",
    "value_error": _own_words,
    "enum": _choices,
    "literal_error": _choices,
    "string_type": _expects("text", "put it in quotes"),
    "int_type": _expects("a whole number"),
    "int_from_float": _expects("a whole number"),
    "float_type": _expects("a number"),
    "bool_type": _expects("true or false"),
    "list_type": _expects("a list"),
    "tuple_type": _expects("a list"),
    "dict_type": _expects("a mapping"),
    "model_type": _expects("a mapping"),
    "dataclass_type": _expects("a mapping"),
    "path_type": _expects("a path", "put it in quotes"),
    "too_short": lambda _: "is empty; it needs at least one entry",
    "greater_than_equal": _out_of_range("ge", "at least"),
    "less_than_equal": _out_of_range("le", "at most"),
    "string_pattern_mismatch": lambda details: (
        f"is {_shown(details['input'])}, which does not match {details.get('ctx', {}).get('pattern')}; correct it"
    ),
}


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key that is none of *known*."""
    return f"is an unknown key; {_nearest(key, known)}"


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """What to say of a reference to a *what* that is none of *known*."""
    return f"there is no {what} {name!r}; {_nearest(name, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names) or 'none'}"


def _unknown_keys(wanted: Any, data: object, place: Place, beside: tuple[str, ...] = ()) -> Iterator[tuple[Place, str]]:
    """Every key in *data* that the type *wanted* does not have. Any: annotations are of many kinds."""
    arguments = get_args(wanted)
    if get_origin(wanted) in (Annotated, Union, types.UnionType):
        for argument in arguments[:1] if get_origin(wanted) is Annotated else arguments:
            yield from _unknown_keys(argument, data, place)
    elif isinstance(data, list) and arguments:
        for index, value in enumerate(data):
            yield from _unknown_keys(arguments[0], value, (*place, index))
    elif isinstance(data, dict) and arguments:
        for key, value in data.items():
            yield from _unknown_keys(arguments[-1], value, (*place, key))
    elif isinstance(data, dict) and (hints := keys_of(wanted)):
        for key, value in data.items():
            if key in hints:
                yield from _unknown_keys(hints[key], value, (*place, key))
            else:
                yield (*place, key), unknown_key(key, (*hints, *beside))


@cache
def keys_of(wanted: Any) -> Mapping[str, Any]:
    """The keys of a section or of a backend's options, with their types; none for any other type."""
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return {name: field.annotation for name, field in wanted.model_fields.items()}
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        hints = get_type_hints(wanted)
        return {field.name: hints[field.name] for field in dataclasses.fields(wanted) if field.init}
    return {}
