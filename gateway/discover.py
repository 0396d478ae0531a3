"""The configuration that puts the gateway in front of servers that run already: `pointsman discover`.

Every model is opened once, by the backend that will serve it, so that what is written down is what will work; of a
model that cannot be served here, the configuration says why, as a comment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import yaml

from backends.contract import Deadline
from backends.errors import NotFound, PointsmanError
from backends.oip.model import OIPOptions, open_oip
from backends.oip.options import ServerOptions, remote_of
from backends.oip.remote import Server
from backends.triton.model import TritonOptions, open_triton, sequence_idle_s

_ASK_S = 10.0
_CONFIGURATION = "model_configuration"  # the extension by which another Pointsman says that a model keeps state
_STORE = {"path": "pointsman.db", "retention": "30d", "limit": "2GiB"}


async def configuration_of(urls: Sequence[str], models: Sequence[str], *, shared_memory: bool) -> str:
    """The configuration, as YAML, that serves *models* of the servers at *urls* under their own names.

    Args:
        urls: of servers that serve the same models.
        models: their names; empty: every model that the first server says it is ready to serve.
        shared_memory: whether tensors are to pass through system shared memory.

    Raises:
        PointsmanError: the first server cannot be asked, or not one of the models can be served.
    """
    server, names = await _asked(urls[0], models)
    is_triton = server.name == "triton"
    kept: dict[str, Mapping[str, object]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        url = urls[0] if len(urls) == 1 else list(urls)  # a list of its own: YAML would refer to one that is shared
        written: dict[str, object] = {"backend": "triton" if is_triton else "oip", "url": url}
        if is_triton and shared_memory:
            written["shared_memory"] = True
        try:
            if not is_triton and (idle_s := await _sequence_idle_s(urls[0], name, server)) is not None:
                written["sequence_idle_s"] = idle_s
            await _open(name, urls, is_triton=is_triton, shared_memory=shared_memory)
        except PointsmanError as error:
            left_out[name] = str(error)
        else:
            kept[name] = {**written, "expose": True}
    if not kept:
        raise NotFound(f"no model of {urls[0]} can be served: {'; '.join(left_out.values()) or 'it serves none'}")
    lines = [f"# left out: {name}: {why}" for name, why in left_out.items()]
    text = yaml.safe_dump({"models": kept, "store": _STORE}, sort_keys=False)
    return "\n".join([*lines, text]) if lines else text


async def _asked(url: str, models: Sequence[str]) -> tuple[Server, Sequence[str]]:
    """What the server at *url* says of itself, and the names of *models*, or else of all that it serves."""
    remote = remote_of("any", url, ServerOptions(url))
    try:
        deadline = Deadline(time.monotonic() + _ASK_S)
        server = await remote.about(deadline)
        return server, models or await remote.models(deadline)
    except PointsmanError as error:
        why = error if isinstance(error, NotFound) else error.__cause__ or error
        raise NotFound(f"{url} does not say what it serves: {why}; is it up? else name --model") from error
    finally:
        await remote.aclose()


async def _sequence_idle_s(url: str, name: str, server: Server) -> float | None:
    """How long *server*, no Triton, keeps states of the model *name*; None where it says nothing of that.

    Raises:
        PointsmanError: it cannot be asked.
    """
    if _CONFIGURATION not in server.extensions:
        return None
    remote = remote_of(name, url, ServerOptions(url))
    try:
        return sequence_idle_s(await remote.config(name, "", Deadline(time.monotonic() + _ASK_S)))
    finally:
        await remote.aclose()


async def _open(name: str, urls: Sequence[str], *, is_triton: bool, shared_memory: bool) -> None:
    """Open the model once, and close it again.

    Raises:
        PointsmanError: it cannot be served.
    """
    if is_triton:
        backend = await open_triton(name, TritonOptions(tuple(urls), shared_memory=shared_memory))
    else:
        backend = await open_oip(name, OIPOptions(tuple(urls)))
    await backend.aclose()
