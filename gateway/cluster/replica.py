"""A gateway as Ray Serve runs it: with listeners of its own, or behind Serve's; `gateway.cluster` tells how and why."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from backends.contract import Backend
from backends.ray_serve.backend import deployment_handle, open_deployment
from backends.ray_serve.kept import kept
from backends.ray_serve.loopback import stay_on_loopback
from backends.ray_serve.pooled import open_pooled
from backends.ray_serve.residence import residence_of
from gateway.cluster.apart import Apart, Models, delete, is_whole, left_over
from gateway.cluster.deployments import GATEWAY
from gateway.cluster.proxied import Message, ProxiedCalls
from gateway.cluster.targets import reached_at, told
from gateway.cluster.versions import follow
from gateway.compose import Gateway, compose, open_configured
from gateway.http.asgi import AsgiApp
from gateway.ports import address_of, bind_shared, claim, claim_first_free, port_of
from gateway.serve import (
    LAST_REPLIES_S,
    Addresses,
    Listener,
    Retiring,
    Stop,
    background,
    drain_without_listeners,
    maintaining,
    probing_lag,
    serve_data,
)
from gateway.settings import ModelSettings, ServerOptions, Settings
from gateway.telemetry import configure_logging

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("pointsman.cluster")

LAST_S = 1.0
"""For which connections of a replica that leaves may still ask, so that nobody asks into one that is just closed."""

_LOOK_S = 0.5
"""How often a replica looks whether the control port is free."""

_LOOK_AGAIN_S = 3.0
"""How often a replica looks whether all gateways are as it is."""

_OPEN_S = 600.0
"""What the first answer of a model's replica may take, with all that it takes to start one."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a replica was made of."""

    settings: Settings
    models: Models
    log_level: str
    unready_s: float


class GatewayReplica:
    """Serves *settings* with listeners of its own, from `__init__` to `__del__`, both of which Serve calls."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: Settings,
        models: Models,
        log_level: str = "INFO",
        unready_s: float = 0.0,
    ) -> None:
        """Return when everything answers.

        Args:
            models: that are apart.
            log_level: from which on it logs.
            unready_s: see `Retiring`.

        Raises:
            OSError: an address cannot be bound.
            PointsmanError: a model or the store cannot be opened.
        """
        stay_on_loopback()
        configure_logging(log_level)
        self._made = Made(settings, models, log_level, unready_s)
        self._handles: dict[str, DeploymentHandle[Any]] = {}  # by application
        self._handles_lock = asyncio.Lock()
        self._stop = Stop()
        self._ready: asyncio.Future[tuple[Gateway, Addresses]] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(), name="gateway")
        await asyncio.wait((self._ready, self._serving), return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            await self._serving  # raises why
            raise RuntimeError("the gateway ended before it was ready")

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises, or is not answered in time.

        Raises:
            RuntimeError: it does not serve any more.
        """
        if self._serving.done():
            raise RuntimeError("the gateway has ended")

    async def asks(self) -> frozenset[str]:
        """The applications of models that it asks."""
        return frozenset(place.app for place in self._made.models.places.values())

    async def made(self) -> Made:
        """What it was made of, for another to be made so again."""
        return self._made

    async def addresses(self) -> Addresses:
        """Where it listens."""
        return self._ready.result()[1]

    async def __del__(self) -> None:
        """Called by Serve: listeners close, then what was accepted finishes."""
        if not hasattr(self, "_serving"):  # not where it was not even made
            return
        self._stop.first.set()
        await asyncio.wait((self._serving,))

    async def _serve(self) -> None:
        server = self._made.settings.server
        with claim_first_free(server.host, server.control_port) as control:
            async with (
                compose(self._made.settings, open_model=self._open, apart=self._made.models.places.keys()) as gateway,
                background(
                    maintaining(gateway.maintain),
                    maintaining(gateway.keys.look),
                    gateway.loader.watch(),
                    gateway.deliver(),
                    probing_lag(gateway),
                    self._ending_left_over(),
                    follow(self._made.settings, gateway, _is_whole),
                ),
                Listener(gateway.control_app, control, LAST_REPLIES_S),
                _heir(gateway.control_app, server, port_of(control)),
            ):
                name, where = _replica_name(), address_of(control)
                reached = reached_at(where, _node_address())
                with told(self._made.settings.cluster.targets, name, reached, {"replica": name}):
                    await self._serve_data(gateway, where)

    async def _serve_data(self, gateway: Gateway, control: str) -> None:
        server = self._made.settings.server
        with bind_shared(server.host, server.http_port) as http:
            where = address_of(http)

            def ready(grpc: str) -> None:
                self._tell(gateway, where, grpc, control)

            await serve_data(gateway, server, http, self._stop, ready, Retiring(self._made.unready_s, LAST_S))

    def _tell(self, gateway: Gateway, http: str, grpc: str, control: str) -> None:
        self._ready.set_result((gateway, Addresses(http, grpc, control)))

    async def _open(self, model: ModelSettings) -> Backend:
        place = self._made.models.places.get(model.name)
        if place is None:
            return await open_configured(model)
        handle = await self._handle(model.name, place)
        may_sleep = place.is_pooled or (place.options.scaling is not None and place.options.scaling.least == 0)
        about = await asyncio.to_thread(kept, place.app, place.digest) if may_sleep else None
        if place.is_pooled:
            residence = residence_of(place.deployment, place.app)
            return await open_pooled(
                model.name,
                handle,
                residence,
                digest=place.digest,
                timeout_s=_OPEN_S,
                about=about,
                on_cold_start=self._cold_start,
            )
        most = place.options.most_replicas
        return await open_deployment(model.name, handle, most, digest=place.digest, timeout_s=_OPEN_S, about=about)

    def _cold_start(self, model: str) -> None:
        if self._ready.done():
            self._ready.result()[0].telemetry.on_cold_start(model)

    async def _handle(self, model: str, place: Apart) -> DeploymentHandle[Any]:
        """To the replicas of *place*: one for all models of a pool, which have one router then."""
        async with self._handles_lock:
            if place.app not in self._handles:
                handle = await asyncio.to_thread(deployment_handle, model, place.deployment, place.app)
                self._handles[place.app] = handle
            return self._handles[place.app]

    async def _ending_left_over(self) -> None:
        """End models that no gateway asks any more, once all gateways are as this one is, and stay so for a while."""
        before: frozenset[str] | None = None
        while True:
            try:
                found = await self._left_over()
                if found is not None and not found:  # nor will be, until an upgrade brings other gateways
                    return
                if found and found == before:
                    await asyncio.to_thread(delete, found)
                before = found
            except Exception as error:  # Ray's many; Serve may be back at the next look
                log.warning("models that nobody asks any more were not looked for: %r", error)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _left_over(self) -> frozenset[str] | None:
        """See `apart.left_over`."""
        from ray import serve

        apps = (await asyncio.to_thread(serve.status)).applications
        own = serve.get_replica_context().app_name
        asked = set(await self.asks())
        for other in (name for name, app in apps.items() if name != own and GATEWAY in app.deployments):
            asked |= await serve.get_deployment_handle(GATEWAY, other).asks.remote()
        return left_over(apps, asked, self._made.models.others)


class IngressReplica(GatewayReplica):
    """Serves *settings* behind Serve's own listeners: its HTTP proxy, or HAProxy, as an ASGI application, and its gRPC
    proxy, which calls the methods that are named as those of the Open Inference Protocol's service are.
    """

    async def _serve_data(self, gateway: Gateway, control: str) -> None:
        self._calls = ProxiedCalls(gateway.grpc)
        self._tell(gateway, "", "", control)
        await self._stop.first.wait()
        await drain_without_listeners(gateway, self._stop, self._made.settings.server.drain_s)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once it is made."""
        return AsgiApp(self._ready.result()[0].http)

    # As `proxied.METHODS` lists them. Any: Serve's context.

    async def ServerLive(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ServerLive", request, grpc_context)

    async def ServerReady(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ServerReady", request, grpc_context)

    async def ServerMetadata(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ServerMetadata", request, grpc_context)

    async def ModelReady(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ModelReady", request, grpc_context)

    async def ModelMetadata(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: Message, grpc_context: Any) -> Message:  # noqa: N802
        """See the Open Inference Protocol."""
        return await self._calls.answer("ModelInfer", request, grpc_context)


@contextlib.asynccontextmanager
async def _heir(app: ASGIApp, server: ServerOptions, own: int) -> AsyncIterator[None]:
    """Serve *app*, which has port *own*, on the control port of *server* as well, as soon as no other replica does.

    Replicas of an upgrade find it taken by one that leaves; people and Services of Kubernetes ask there.
    """

    async def inherit() -> None:
        while (bound := _claimed(server.host, server.control_port)) is None:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(_LOOK_S)
        with bound:
            async with Listener(app, bound, LAST_REPLIES_S):
                await asyncio.Event().wait()

    if own == server.control_port or not server.control_port:
        yield
        return
    inheriting = asyncio.create_task(inherit())
    try:
        yield
    finally:
        inheriting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await inheriting


def _claimed(host: str, port: int) -> socket.socket | None:
    try:
        return claim(host, port)
    except OSError:
        return None


async def _is_whole() -> bool:
    """Whether all gateways of this one's application are of one version, which is this one's."""
    from ray import serve

    apps = (await asyncio.to_thread(serve.status)).applications
    return is_whole(apps[serve.get_replica_context().app_name])


def _replica_name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_tag)


def _node_address() -> str:
    """Of the node that this replica is on."""
    import ray

    return str(ray.util.get_node_ip_address())
