"""Models that are loaded when they are opened, and unloaded when they are closed: `model_control: explicit`.

For a Triton that runs with `--model-control-mode=explicit`. With `warm: {keep: 0}` a model is then in that server's
memory only while a pool has it; without, from the gateway's start to its end.

**Loading** asks for nothing where the model is READY already. Otherwise it is loaded, with the warm-up that its own
configuration has, and is there when the server's index says READY; until then another replica gets the calls.

**Unloading** takes only what somebody on this machine had loaded, and only when nobody on this machine uses it any more
(`claims`). What was READY before stays: an operator, `--load-model`, or a gateway elsewhere wants it. A gateway
elsewhere that shares a model which was loaded from here loses it when it is unloaded here; it notices by its probes,
says so in its log, and loads it anew.

**Ensembles.** Loading one has its composing models loaded, and unloading one leaves them there. Those that came with it
are unloaded after it, unless they are claimed or a READY ensemble has them. Triton's own `unload_dependents` asks
neither. What a model calls by itself (business logic scripting) the server does not tell: load such models yourself.

**A server without explicit control** says so when it is told to unload a model that no server has, which elsewhere does
nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from backends.contract import Deadline
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, PointsmanError, ReplicaFailed
from backends.oip.remote import Indexed, Remote
from backends.told import Loaded
from backends.triton.claims import Claim, default_folder

_NOBODYS: Final = "pointsman-asks-whether-models-are-controlled"
_NOT_ALLOWED: Final = "explicit model load / unload is not allowed"
_LOOK_EVERY_S: Final = 0.05
_END_S: Final = 30.0
_MOVING: Final = frozenset({"LOADING", "UNLOADING"})

log = logging.getLogger("pointsman.triton")


class Residence:
    """A model that is loaded on one server, and what it is composed of; `open_residence` makes it."""

    def __init__(self, name: str, server: str, claims: Mapping[str, Claim], loaded: Loaded) -> None:
        """Args:
        name: the model's, on the server.
        server: its URL.
        claims: by name: the model's, and those of the models that it is composed of, each before what it needs.
        loaded: what it takes there.
        """
        self._name = name
        self._server = server
        self._claims = claims
        self._loaded = loaded

    def __repr__(self) -> str:
        return f"<Residence of {', '.join(self._claims)} at {self._server}>"

    @property
    def loaded(self) -> Loaded:
        """What it takes there."""
        return self._loaded

    async def is_over(self, remote: Remote, deadline: Deadline) -> bool:
        """Whether the server has unloaded it, and nobody loads it at this moment."""
        try:
            states = _states(await remote.index(deadline), self._name)
        except PointsmanError:
            return False
        if is_over := not states & {"READY", *_MOVING}:
            log.warning("model %r is unloaded at %s, and not by this gateway; it is loaded anew", *self._who)
        return is_over

    async def end(self, remote: Remote) -> None:
        """Unload what came with it and nobody else needs; what goes wrong is logged."""
        deadline = Deadline(time.monotonic() + _END_S)
        for name, claim in self._claims.items():
            try:
                async with claim.turn(deadline):
                    if claim.is_alone() and claim.is_ours and not await _is_composed(remote, name, deadline):
                        await remote.unload(name, deadline)
                        claim.is_ours = False
                        await _gone(remote, name, deadline)
            except PointsmanError as error:
                log.warning("model %r was not unloaded at %s: %s", name, self._server, _said(error))
            finally:
                claim.close()

    @property
    def _who(self) -> tuple[str, str]:
        return self._name, self._server


async def open_residence(name: str, server: str, remote: Remote, deadline: Deadline) -> Residence:
    """Have the model *name* loaded on the server at the URL *server*, if it is not, and stay there.

    Raises:
        InvalidInput: the server does not let models be controlled, or claims cannot be written.
        NotFound: it has no such model.
        BackendFailed: it cannot load it; says why in its words.
        DeadlineExceeded: it took longer.
        ReplicaFailed: the server cannot be asked.
    """
    await _check_controlled(remote, server, deadline)
    folder = default_folder()
    claims: dict[str, Claim] = {}
    try:
        claim = claims[name] = await asyncio.to_thread(Claim.opened, folder, server, name)
        async with claim.turn(deadline):
            before = await _settled(remote, name, deadline)
            claim.hold()
            if not _is_ready(before, name):
                await _load(remote, name, claim, deadline)
            for part in await _composing(remote, name, deadline):
                claims[part] = await asyncio.to_thread(Claim.opened, folder, server, part)
                await _claim_part(claims[part], is_new=not _is_ready(before, part), deadline=deadline)
        return Residence(name, server, claims, Loaded(await _memory_bytes(remote, claims, deadline)))
    except BaseException:
        for claim in claims.values():
            claim.close()
        raise


async def _check_controlled(remote: Remote, server: str, deadline: Deadline) -> None:
    try:
        await remote.unload(_NOBODYS, deadline)
    except PointsmanError as error:
        if _NOT_ALLOWED not in _said(error):
            raise
        raise InvalidInput(
            f"the server at {server} does not let models be loaded and unloaded; start it with "
            "--model-control-mode=explicit, or take `model_control: explicit` out"
        ) from error.__cause__


async def _settled(remote: Remote, name: str, deadline: Deadline) -> Sequence[Indexed]:
    """The index, once the model is neither on its way in nor out."""
    while True:
        index = await remote.index(deadline)
        states = _states(index, name)
        if "READY" in states or not states & _MOVING:
            return index
        await _pause(name, deadline)


async def _load(remote: Remote, name: str, claim: Claim, deadline: Deadline) -> None:
    claim.is_ours = True  # before: whoever gives up waiting does not stop the server
    try:
        await remote.load(name, deadline)
        index = await _settled(remote, name, deadline)
    except (ReplicaFailed, DeadlineExceeded):
        raise
    except PointsmanError as error:
        claim.is_ours = False
        raise _not_loaded(name, _said(error)) from error.__cause__
    if not _is_ready(index, name):
        claim.is_ours = False
        raise _not_loaded(name, "; ".join(one.reason for one in index if one.name == name and one.reason))


def _not_loaded(name: str, said: str) -> PointsmanError:
    if "failed to poll from model repository" in said:
        return NotFound(f"the server's repository has no model {name!r} that it can read: {said}")
    return BackendFailed(f"the server cannot load model {name!r}: {said or 'it does not say why'}")


async def _claim_part(claim: Claim, *, is_new: bool, deadline: Deadline) -> None:
    async with claim.turn(deadline):
        claim.hold()
        if is_new:
            claim.is_ours = True


async def _composing(remote: Remote, name: str, deadline: Deadline) -> Sequence[str]:
    """The models that the ensemble *name* is composed of, and those that these are; none of any other model."""
    found: dict[str, None] = {}
    for part in _parts(await remote.config(name, "", deadline)):
        found |= dict.fromkeys((part, *await _composing(remote, part, deadline)))
    return tuple(found)


def _parts(config: Mapping[str, Any]) -> Iterator[str]:
    for step in config.get("ensemble_scheduling", {}).get("step", ()):
        yield str(step["model_name"])


async def _is_composed(remote: Remote, name: str, deadline: Deadline) -> bool:
    """Whether a READY ensemble has *name* as a part of it."""
    for other in {one.name for one in await remote.index(deadline) if one.state == "READY"} - {name}:
        if name in _parts(await remote.config(other, "", deadline)):
            return True
    return False


async def _gone(remote: Remote, name: str, deadline: Deadline) -> None:
    """Returns when the model's memory is free."""
    while _states(await remote.index(deadline), name) & {"READY", *_MOVING}:
        await _pause(name, deadline)


async def _memory_bytes(remote: Remote, names: Mapping[str, Claim], deadline: Deadline) -> int | None:
    """Of the model and its parts; None where the server keeps no account of one."""
    told = [await remote.memory_bytes(name, deadline) for name in names]
    known = [nbytes for nbytes in told if nbytes is not None]
    return sum(known) if len(known) == len(told) else None


async def _pause(name: str, deadline: Deadline) -> None:
    if time.monotonic() + _LOOK_EVERY_S >= deadline:
        raise DeadlineExceeded(f"model {name!r} was still on its way in or out at its server; raise load_timeout_s")
    await asyncio.sleep(_LOOK_EVERY_S)


def _states(index: Sequence[Indexed], name: str) -> set[str]:
    return {one.state for one in index if one.name == name}


def _is_ready(index: Sequence[Indexed], name: str) -> bool:
    return "READY" in _states(index, name)


def _said(error: PointsmanError) -> str:
    """What the server said, as far as it said anything."""
    return str(error.__cause__ or error)
