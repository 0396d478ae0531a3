"""Triton's model repository extension, as far as it makes sense here: what is served can be listed, and not changed.

What a route's models are is part of what its certificate proves, so they come from the configuration alone: a client
that could load another model under the same name could void every promise with one call. Load and unload are therefore
refused as not implemented, with what to do instead.
"""

from __future__ import annotations

from typing import Any, NoReturn

from backends.contract import ParameterValue
from backends.errors import InvalidInput, Unimplemented
from gateway.oip.shapes import shorten
from gateway.service import Service

_WHY = "no model of it is ready, or the gateway is shutting down"


def index(service: Service, *, ready_only: bool) -> list[dict[str, Any]]:
    """`inference.RepositoryIndexResponse.models` in JSON (hence Any): every route and exposed model."""
    return [
        {
            "name": name,
            "version": version,
            **({"state": "READY"} if ready else {"state": "UNAVAILABLE", "reason": _WHY}),
        }
        for name in service.names()
        if (ready := service.is_model_ready(name)) or not ready_only
        for version in service.metadata(name).versions
    ]


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
        f"models are not {verb}ed by clients here: the configuration says which are served; change it, and restart"
    )
