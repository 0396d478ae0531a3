"""JSON read strictly, at orjson's speed.

orjson refuses what is not JSON (NaN, infinities, lone surrogates, bad UTF-8), but it keeps the last of two equal keys,
nests 1,024 deep, and turns an integer beyond 64 bits into a float. Two readers of one request must never see different
requests, so equal keys and absurd nesting are refused here; integers are the business of whoever knows the type that is
wanted (`backends.oip.json_data` and `scalar` take no float for an integer).

Equal keys are found by arithmetic. Every key brings one colon, and the only other colons are inside strings. If all
colons of the text are accounted for by the keys and strings of what orjson made of it, no key was dropped. Counting
stops at the first element of a list of numbers, so it costs next to nothing; what it misses makes the sum come out
short, never even. A sum that is short, or an escape that may hide a colon, sends the text through Python's own reader,
which sees every pair: about ten times slower, for about none of the honest requests.

Measured (orjson alone; this; Python's reader with a hook): 160 bytes 1.2, 6 and 8 µs; 1.4 MB of flat numbers 2.3, 4.9
and 25 ms; the same in rows of three 7, 12 and 29 ms.

Rejected: Python's reader throughout (the factor above); a scan by regular expression (it must know strings, and then
costs as much as a reader).
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import Any

import orjson

from backends.contract import ParameterValue
from backends.errors import InvalidInput
from backends.quoting import shorten
from gateway.oip.parameters import MAX_PARAMETERS

MAX_DEPTH = 100
"""Deepest nesting of lists and objects."""

MAX_NODES = 200_000
"""Most opening brackets and colons together, those inside of strings included.

Every list, object and key that orjson makes costs 0.2 to 0.3 µs, while no other thread runs; numbers and texts cost a
tenth of that. So a text of `[],[],...` would stop the process for ten times as long as others of its size. An image of
224 by 224 as nested lists has 50,000.
"""


def loads(text: bytes) -> Any:
    """The value that *text* is (Any: JSON).

    Raises:
        InvalidInput: it is not JSON, nests deeper than `MAX_DEPTH`, has more than `MAX_NODES` lists, objects and keys,
            or has two equal keys in one object.
    """
    brackets, colons = text.count(b"[") + text.count(b"{"), text.count(b":")
    if brackets + colons > MAX_NODES:
        raise InvalidInput(
            f"the JSON has {brackets + colons} lists, objects and keys; at most {MAX_NODES} are read: write numbers "
            "as one flat list, or send tensors as binary tensor data"
        )
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if brackets > MAX_DEPTH and _is_deeper_than(value, MAX_DEPTH):
        raise InvalidInput(f"the JSON nests deeper than {MAX_DEPTH} levels")
    if colons != _colons(value) or (b"\\" in text and b"\\u003" in text):
        _refuse_equal_keys(text)
    return value


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects nest deeper than *depth*; breadth first, a level of lists alone at the speed of C."""
    level = [value]
    for _ in range(depth + 1):
        kinds = set(map(type, level))
        if kinds == {list}:
            level = list(chain.from_iterable(level))
        elif list in kinds or dict in kinds:
            lists = [element for element in level if type(element) is list]
            objects = [element.values() for element in level if type(element) is dict]
            level = [*chain.from_iterable(lists), *chain.from_iterable(objects)]
        else:
            return False
    return True


def _colons(value: Any) -> int:
    """How many colons the keys and strings of *value* account for; a list is judged by its first element."""
    total = 0
    todo = [value]
    for part in todo:
        if type(part) is dict:
            total += len(part) + "".join(part).count(":")
            for member in part.values():
                if type(member) is str:
                    total += member.count(":")
                elif type(member) is dict or type(member) is list:
                    todo.append(member)
        elif type(part) is list and part:
            first = part[0]
            while type(first) is list and first:
                first = first[0]
            if type(first) is dict or type(first) is str:
                todo += part
        elif type(part) is str:
            total += part.count(":")
    return total


def _refuse_equal_keys(text: bytes) -> None:
    # Numbers are not wanted, and a function of Python's for them lets other threads have turns in a long list of them.
    json.loads(text, object_pairs_hook=_unique_keys, parse_int=_nothing, parse_float=_nothing)


def _nothing(_: str) -> None:
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InvalidInput(f"the JSON has the key {shorten(twice)} twice in one object")
    return found


def members(value: Any, what: str, known: frozenset[str]) -> dict[str, Any]:
    """*value* as an object that has no other members than *known*.

    Raises:
        InvalidInput: it is no object, or has a member that nobody would read.
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object, not {shorten(value)}")
    for key in value:
        if key not in known:
            raise InvalidInput(f"{what} has a member {shorten(key)}; known members: {', '.join(sorted(known))}")
    return value


def parameters(value: Any, what: str = "parameters") -> dict[str, ParameterValue]:
    """*value* as the parameters of a request.

    Raises:
        InvalidInput: it is no object of texts, numbers and booleans, or a number has no exact meaning in 64 bits.
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object, not {shorten(value)}")
    if len(value) > MAX_PARAMETERS:
        raise InvalidInput(f"{what} has {len(value)} members; at most {MAX_PARAMETERS} are allowed")
    return {
        key: member if type(member) in _AS_IT_IS else scalar(member, f"parameter {shorten(key)}")
        for key, member in value.items()
    }


_AS_IT_IS = frozenset({bool, int, str})


def scalar(value: Any, what: str) -> ParameterValue:
    """*value* as one parameter.

    Raises:
        InvalidInput: it is a list, an object or null, or an integer beyond 64 bits, which arrives as a float.
    """
    if not isinstance(value, bool | int | float | str):
        raise InvalidInput(f"{what} is {shorten(value)}; a text, a number or a boolean is needed")
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2**63:
        raise InvalidInput(f"{what} is {value}; numbers beyond 64 bits have no exact meaning here")
    return value
