"""Configurations by version: what is rolled out is kept in the store first, and can be gone back to.

    up CONFIG ──► draft: text and digests of files ──► the store gives it a number, and the rollout to this process
                                                           │   replicas replace each other, each with that number
                                        served, or called off, and why; what was served goes on

**One at a time.** Whoever rolls out holds a lease of the store for as long as that takes. Another `up` is refused
meanwhile, on whichever machine; where its holder was killed, until the lease has run out (`LEASE_S`).

**Atomic.** A replica has one version, from its start to its end. While they replace each other there are two versions,
and callers meet either, each whole; afterwards there is one: the next, or, where that cannot be served by all, the one
before (`launch` puts it back). A replica that is lost meanwhile is replaced by one of the version that is to be.

**Going back** serves a version's own document again. Files are not in the store: they are where the document says, and
must be what they were.

**Others who deploy.** With `serve deploy` and `serve run` nobody stays to see how it ends. There each replica keeps the
configuration that it was made of, which gives all of them the same number, as it is the same configuration; where a
node's files differ, it is another, and its number tells. A replica also tells the store when all serve its version, as
`up` itself may be gone by then (`follow`).
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from backends.errors import PointsmanError, Unavailable
from gateway.cluster.files import added, changed, digests
from gateway.cluster.rollout import ClusterFailed
from gateway.compose import Gateway
from gateway.settings import Settings, load_store, parse_settings
from gateway.store import SqlStore, open_store, read_configuration
from gateway.store.contract import Configuration, ConfigurationDraft
from gateway.store.options import StoreOptions

log = logging.getLogger("pointsman.cluster")

LEASE_S = 30.0
"""For which a rollout is nobody else's, unless it is said again that it goes on."""

_LOOK_AGAIN_S = 2.0

_T = TypeVar("_T")


def draft_of(settings: Settings) -> ConfigurationDraft:
    """*settings* as the store keeps them; reads the files that they name.

    Raises:
        OSError: one cannot be read.
    """
    return ConfigurationDraft(settings.text, digests(settings), author())


def author() -> str:
    """Whoever does what is done here: `user@host`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's, which has no name
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"


def settings_of(config: Path, version: int) -> Settings:
    """What *version* of the configuration in the file *config* says, as it was kept in the store that this names.

    Raises:
        SettingsError: it does not fit this release; or *config* does not say where the store is.
        PointsmanError: the store cannot be read, or has no such version; or files are not what they were.
        OSError: a file cannot be read.
    """
    store = load_store(config)
    kept = asyncio.run(read_configuration(store, version))
    base = config.absolute().parent
    said = changed(kept.files, base)
    if not said:
        settings = _parsed(config, kept)
        said = added(kept.files, settings)
        _check_same_store(settings, store, version)
    if said:
        raise ClusterFailed(
            f"files are no longer what they were in version {version}: {'; '.join(said)}. What there is now can be "
            "served as a version of its own: `up` without --version"
        )
    return settings


def _parsed(config: Path, kept: Configuration) -> Settings:
    """Raises:
    SettingsError: its faults are told with the version's name.
    """
    named = config.with_name(f"{config.name} (version {kept.version})")
    return replace(parse_settings(kept.document, named), file=config)


def _check_same_store(settings: Settings, store: StoreOptions, version: int) -> None:
    if settings.store.place != store.place:
        raise ClusterFailed(
            f"version {version} has its {settings.store.name}, and what it is read from is the {store.name}; "
            "write that into CONFIG whose versions are to be served"
        )


class Rollout:
    """A rollout that this process holds, with the store that says so; made by `rolling_out`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: SqlStore, version: int) -> None:
        self.version = version
        self._name = f"{version}-{secrets.token_hex(8)}"
        self._loop = loop
        self._store = store
        self._is_over = False
        self._renewing = asyncio.run_coroutine_threadsafe(self._renew(), loop)

    def applied(self, settings: Settings) -> Settings:
        """*settings* for its replicas."""
        return replace(settings, cluster=replace(settings.cluster, version=self.version, rollout=self._name))

    def served(self) -> None:
        """All replicas serve it.

        Raises:
            Conflict: another rollout was begun meanwhile, as this process was held up for too long.
        """
        try:
            self._end(None)
        except Unavailable as error:  # a replica tells it later
            log.warning("that version %d is served could not be kept: %s", self.version, error)

    def call_off(self, why: str) -> None:
        """It has failed; what cannot be kept of that is logged, and does not hide why."""
        try:
            self._end(why)
        except PointsmanError as error:
            log.warning("why version %d was called off could not be kept: %s", self.version, error)

    def _end(self, called_off: str | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._renewing.cancel()
        try:
            _done(self._loop, self._store.end_rollout(self.version, called_off))
        finally:
            _done(self._loop, self._store.aclose())  # whoever has rolled out may go on for long, with nothing to keep

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 4)
            with contextlib.suppress(Unavailable):  # the next may fare better
                await self._store.renew_rollout(LEASE_S)


@contextlib.contextmanager
def rolling_out(settings: Settings, version: int | None = None) -> Iterator[Rollout]:
    """Roll *settings* out inside: called off where that raises, unless it was said that they are `served` before.

    Args:
        settings: which are kept as a version.
        version: that they are of already.

    Raises:
        CannotOpenStore: nothing can be kept there.
        RolloutUnderWay: somebody else does.
        OSError: a file that they name cannot be read.
    """
    what = draft_of(settings) if version is None else version
    with _loop() as loop:
        store = _done(loop, open_store(settings.store))
        try:
            begun = _done(loop, store.begin_rollout(what, author(), LEASE_S))
            rollout = Rollout(loop, store, begun.version)
            try:
                yield rollout
            except BaseException as error:
                rollout.call_off(str(error) or repr(error))
                raise
            rollout.served()
        finally:
            _done(loop, store.aclose())


async def follow(settings: Settings, gateway: Gateway, is_whole: Callable[[], Awaitable[bool]]) -> None:
    """Find out which version a replica serves, where nobody has said, and tell the store once all replicas do.

    Args:
        is_whole: whether all replicas are of one version.
    """
    version = settings.cluster.version
    while True:
        try:
            if version is None:
                draft = await asyncio.to_thread(draft_of, settings)
                version = (await gateway.store.keep_configuration(draft)).version
                gateway.telemetry.serve_configuration(version)
            if await is_whole():
                await gateway.store.configuration_served(version)
                return
        except Exception as error:  # Ray's many, and the store's; both may be back at the next look
            log.warning("the version of the configuration was not looked after: %r", error)
        await asyncio.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, which goes on while this one waits for Serve."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rollout", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _done(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:  # Any: asyncio's own
    return asyncio.run_coroutine_threadsafe(work, loop).result()
