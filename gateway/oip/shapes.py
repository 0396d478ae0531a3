"""What a tensor claims to be, checked before anything is allocated for it.

A shape is believed only as far as the bytes or elements that came with it: whoever decodes compares `Claim.count` with
what is there first, so a claim of 2^60 elements costs nothing. Only a BYTES element costs more than the bytes it came
in, as it becomes an object: these are limited in number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from backends.contract import Datatype
from backends.errors import InvalidInput
from backends.oip.raw import Claim
from backends.quoting import shorten
from gateway.request import MAX_ITEMS

MAX_RANK = 32
"""Most axes of a tensor."""

MAX_TENSORS = 256
"""Most inputs, and most requested outputs, of one request."""

MAX_NAME = 255
"""Longest name, in characters."""

MAX_BYTES_ELEMENTS = 64 * MAX_ITEMS
"""Most elements of one BYTES tensor; reading that many takes about 60 ms."""

_MAX_COUNT = 2**48
_DATATYPES = dict(Datatype.__members__)
_ROUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def claim(name: Any, datatype: Any, shape: Any, what: str = "input") -> Claim:
    """Check what a sender (hence Any) says of a tensor.

    Args:
        what: what error messages call it.

    Raises:
        InvalidInput: says which part is missing, of the wrong type, or beyond a limit.
    """
    name = tensor_name(name, what)
    known = _DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if known is None:
        raise InvalidInput(
            f"{what} {name!r} has datatype {shorten(datatype)}; known datatypes: {', '.join(_DATATYPES)}"
        )
    if type(shape) is not list and (not isinstance(shape, Sequence) or isinstance(shape, str)):
        raise InvalidInput(f"{what} {name!r} has shape {shorten(shape)}; a list of integers is needed")
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"{what} {name!r} has {len(shape)} dimensions; at most {MAX_RANK} are served")
    for length in shape:
        if type(length) is not int or length < 0:
            raise InvalidInput(
                f"{what} {name!r} has {shorten(length)} in its shape; dimensions are integers from 0 upwards"
            )
    count = math.prod(shape)
    # Beside a length of 0 any other is no element more, and yet NumPy makes no array of such a shape.
    if count > _MAX_COUNT or (count == 0 and math.prod(filter(None, shape)) > _MAX_COUNT):
        raise InvalidInput(f"{what} {name!r} has shape {shorten(list(shape))}: more elements than any request can hold")
    if shape and shape[0] > MAX_ITEMS:
        raise InvalidInput(
            f"{what} {name!r} has {shape[0]} items; at most {MAX_ITEMS} fit in one request: send several"
        )
    if known is Datatype.BYTES and count > MAX_BYTES_ELEMENTS:
        raise InvalidInput(
            f"{what} {name!r} has {count} BYTES elements; at most {MAX_BYTES_ELEMENTS} fit in one request: send several"
        )
    return Claim(name, known, tuple(shape), count)


def tensor_name(name: Any, what: str) -> str:
    """*name*, if it can be a tensor's.

    Raises:
        InvalidInput: it is no text, or empty, or too long.
    """
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"an {what} has name {shorten(name)}; a non-empty text is needed")
    if len(name) > MAX_NAME:
        raise InvalidInput(f"an {what} has a name of {len(name)} characters; at most {MAX_NAME} are allowed")
    return name


def unique(names: Sequence[str], what: str) -> None:
    """Refuse too many tensors, and two of one name.

    Raises:
        InvalidInput: names the one that is there twice.
    """
    if len(names) > MAX_TENSORS:
        raise InvalidInput(f"the request has {len(names)} {what}s; at most {MAX_TENSORS} are served")
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidInput(f"{what} {shorten(twice)} is there twice; every {what} needs a name of its own")


@lru_cache(1024)
def route_name(name: str) -> str:
    """*name*, if a route or a model can be called so.

    Raises:
        InvalidInput: it is empty, too long, or has other characters than letters, digits, `.`, `_` and `-`.
    """
    if len(name) > MAX_NAME or not _ROUTE.fullmatch(name):
        raise InvalidInput(
            f"{shorten(name)} names no model: names have 1 to {MAX_NAME} letters, digits, '.', '_' or '-', "
            "and begin with a letter, a digit or '_'"
        )
    return name
