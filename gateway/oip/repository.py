"""Triton's model repository extension: what is served can be listed and, where the operator says so, loaded anew.

What a route's models are is part of what its certificate proves, so they come from the configuration alone: a client
that could load another model under the same name could void every promise with one call. By default load and unload are
therefore refused as not implemented, with what to do instead (Triton says UNAVAILABLE, which clients would repeat).

With `server: {model_control: explicit}` operators may load and unload what is configured (`gateway.loading`). What a
load brings along to be loaded instead (`config`, `file:...`) is refused always, and never looked at.

Listed are routes and exposed models, which are what callers can name. A model that is neither can be loaded by its
name, and is not listed, since callers have no business with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from backends.contract import ParameterValue
from backends.errors import InvalidInput, Unavailable, Unimplemented
from backends.quoting import shorten
from gateway.service import DataPlane

_DEPENDENTS = "unload_dependents"


def index(service: DataPlane, *, ready_only: bool) -> list[dict[str, Any]]:
    """`inference.RepositoryIndexResponse.models` in JSON (hence Any): each version of each route and exposed model."""
    return [
        {
            "name": name,
            "version": version,
            **({"state": "READY"} if why is None else {"state": "UNAVAILABLE", "reason": why}),
        }
        for name in service.names()
        for version in _versions(service, name)
        if (why := service.why_not_ready(name, version)) is None or not ready_only
    ]


def _versions(service: DataPlane, name: str) -> Sequence[str]:
    try:
        return service.metadata(name).versions
    except Unavailable:  # nothing is known of it yet; Triton too lists such a model without a version
        return ("",)


def wants_ready(value: ParameterValue | None) -> bool:
    """The member `ready` of an index request.

    Raises:
        InvalidInput: it is neither true nor false.
    """
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInput(f"ready is {shorten(value)}; it can be true or false")
    return value


def refuse_repository(name: str) -> None:
    """Refuse a repository that is named.

    Raises:
        Unimplemented: there is one only, and it has no name.
    """
    if name:
        raise Unimplemented(f"repository {shorten(name)}: repositories are not told apart here; leave the name out")


def refuse_change(verb: str) -> NoReturn:
    """Refuse to load or to unload (*verb*) a model.

    Raises:
        Unimplemented: always.
    """
    raise Unimplemented(
        f"models are not {verb}ed by clients here: the configuration says which are served; change it and restart, or "
        "let operators do it with `server: {model_control: explicit}`"
    )


def refuse_overrides(parameters: Iterable[str]) -> None:
    """Refuse what a load would have opened instead of what is configured: *parameters* by their names.

    Raises:
        InvalidInput: there is one.
    """
    for name in parameters:
        raise InvalidInput(
            f"load parameter {shorten(name)}: a model is loaded as it is configured, and from the files that the "
            "configuration names; change these, and load without parameters"
        )


def with_dependents(parameters: Mapping[str, ParameterValue]) -> bool:
    """What the *parameters* of an unload say.

    Raises:
        InvalidInput: there is an unknown one, or a value that it cannot have.
    """
    for name in parameters:
        if name != _DEPENDENTS:
            raise InvalidInput(f"unload parameter {shorten(name)} is unknown; there is {_DEPENDENTS}")
    value = parameters.get(_DEPENDENTS, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{_DEPENDENTS} is {shorten(value)}; it can be true or false")
    return value
