"""`pointsman cluster up` and `down`: the gateway on a Ray of its own, on this machine, with one command.

`up` starts Ray and Serve in processes below its own, all on 127.0.0.1, deploys, says that it is ready as `serve` does,
and stays until SIGTERM or Ctrl-C, or `down`, at which replicas drain. Another `up` for the same folder meanwhile
upgrades what runs to the configuration that it names, replica by replica, and returns when that is done. `versions`
tells how each is kept, and gone back to.

**An upgrade that fails** is taken back. Serve itself leaves things as they are then: some replicas may be of the next
version already, and one that is lost is not replaced any more. So what ran before is deployed again, as one of the
replicas tells it; those of them that run stay as they are, and the next ones go.

The folder is where both find what runs: whoever holds its lock (`flock`) is the `up` that runs, and the file `running`
in it tells its process and Ray's address; a token there is what Ray's processes know each other by. Ray's own files
are below it, its sockets among them, so its name must be short.

On a cluster that runs already, nothing of this is needed: see `gateway.ray_app`, and `pointsman cluster config`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.cluster.apart import apart, cores, delete, deploy_apart, deployed, is_whole
from gateway.cluster.application import application, end_s, replicated
from gateway.cluster.deployments import APP, GATEWAY, ONE_LOOP
from gateway.cluster.replica import Made
from gateway.cluster.rollout import ClusterFailed, Patience, wait_serving
from gateway.cluster.versions import Rollout, rolling_out
from gateway.ports import bind, held, port_of
from gateway.serve import Addresses
from gateway.settings import Settings

_OBJECTS_BYTES = 200 * 2**20
"""Shared memory for tensors on their way."""

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""Keeps a Ray of one machine to it. Whoever has lost theirs must not start another by asking for anything: Ray does
that by itself, and such a one would listen on every interface.
"""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_DOWN_S = 90.0
"""What the end of a cluster may take beside that of its replicas."""

_LONGER_S = 10.0
"""For which replicas are waited beyond what they may take: Serve ends them then, one after the other."""

_PATIENCE = Patience(room_s=60.0)
"""Nobody adds nodes to a Ray of one machine; who leaves may do so for a while."""

_TELL_S = 10.0
"""For a replica to tell what it was made of."""

_LOOK_S = 0.1
_SPARE_CPUS = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """What the file `running` says.

    Attributes:
        pid: of the `up` that runs.
        ray: the cluster's address.
        http, grpc, control: ports; the last is one replica's after the other.
        end_s: what replicas may take to end.
    """

    pid: int
    ray: str
    http: int
    grpc: int
    control: int
    end_s: float


def default_folder() -> Path:
    """Where this user's cluster is, if nothing else is said."""
    return Path(tempfile.gettempdir()) / f"pointsman-cluster-{os.geteuid()}"


def up(
    settings: Settings,
    folder: Path,
    announce: Callable[[Addresses, int], None],
    *,
    log_level: str,
    version: int | None = None,
) -> None:
    """Serve *settings* until a signal, or upgrade what runs by *folder*.

    Args:
        announce: called once all are ready, with the version that they serve.
        log_level: from which on replicas log.
        version: that *settings* are of; None: they are kept as one.

    Raises:
        OSError: an address cannot be bound, the folder not be used, or a file not be read.
        PointsmanError: a replica cannot start; what is configured cannot be replicated; the version cannot be kept, or
            somebody else is rolling out one.
    """
    replicated(settings.server)
    with _claimed(folder) as is_ours:
        running = None if is_ours else _read(folder)
        if not is_ours and running is None:
            raise ClusterFailed(f"a cluster is starting, or ending, in {folder}; try again, or name another --folder")
        with rolling_out(settings, version) as rollout:
            settings = rollout.applied(settings)
            if running is None:
                _serve(settings, folder, rollout, announce, log_level)
                return
            _upgrade(settings, folder, running, log_level)
        announce(_addresses(settings, running), rollout.version)


def down(folder: Path) -> bool:
    """End what runs by *folder*, in order; whether anything did.

    Raises:
        ClusterFailed: it does not end.
    """
    with _claimed(folder) as is_ours:
        running = None if is_ours else _read(folder)
    if is_ours:
        return False
    if running is None:
        raise ClusterFailed(f"a cluster is starting, or ending, in {folder}; try again")
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    within_s = running.end_s + _DOWN_S
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with _claimed(folder) as is_over:
            if is_over:
                return True
        time.sleep(_LOOK_S)
    raise ClusterFailed(f"the cluster did not end within {within_s:g} s; end process {running.pid} yourself")


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether *folder* is this process's, until the end; it is somebody else's otherwise.

    Raises:
        OSError: it is another user's, others may write to it, or it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_is_private(folder, os.fstat(opened))
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)


def _check_is_private(folder: Path, found: os.stat_result) -> None:
    """Whoever else could write to *folder* could put a token of their own there, and Ray's files.

    Raises:
        OSError: somebody else could.
    """
    if found.st_uid != os.geteuid():
        raise OSError(f"the folder {folder} is another user's; name another with --folder")
    if found.st_mode & _OTHERS_WRITE:
        raise OSError(f"other users may write to the folder {folder}; chmod go-w it, or name another with --folder")


def _serve(
    settings: Settings, folder: Path, rollout: Rollout, announce: Callable[[Addresses, int], None], log_level: str
) -> None:
    server = settings.server
    with held(server.host, server.http_port) as http, held(server.host, server.grpc_port) as grpc:
        with bind(server.host, server.control_port) as control:
            settings = _on_ports(settings, port_of(http), port_of(grpc), port_of(control))
        with _ray(settings, folder) as address, _told(folder, settings, address) as running, _ending_first(folder):
            _deploy(settings, log_level)
            stop = _Stop()
            rollout.served()
            announce(_addresses(settings, running), rollout.version)
            stop.wait()


def _on_ports(settings: Settings, http: int, grpc: int, control: int) -> Settings:
    return replace(settings, server=replace(settings.server, http_port=http, grpc_port=grpc, control_port=control))


def _addresses(settings: Settings, running: Running) -> Addresses:
    host = settings.server.host
    shown = f"[{host}]" if ":" in host else host
    return Addresses(*(f"{shown}:{port}" for port in (running.http, running.grpc, running.control)))


@contextlib.contextmanager
def _told(folder: Path, settings: Settings, address: str) -> Iterator[Running]:
    server = settings.server
    running = Running(
        os.getpid(), address, server.http_port, server.grpc_port, server.control_port, end_s(replicated(server))
    )
    _write(folder, running)
    try:
        yield running
    finally:
        (folder / "running").unlink(missing_ok=True)


def _write(folder: Path, running: Running) -> None:
    fresh = folder / "running.new"
    fresh.write_text(json.dumps({name: getattr(running, name) for name in Running.__dataclass_fields__}))
    fresh.rename(folder / "running")


def _read(folder: Path) -> Running | None:
    try:
        return Running(**json.loads((folder / "running").read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _ray(settings: Settings, folder: Path) -> Iterator[str]:
    """A Ray and a Serve without proxies below this process, and its address; ended in order.

    Raises:
        OSError: Ray's sockets have too long names there, or a token cannot be written.
    """
    _write_token(folder)
    _prepare(folder)
    import ray
    from ray import serve

    context = ray.init(
        address="local",
        num_cpus=_cpus(settings),
        object_store_memory=_OBJECTS_BYTES,
        include_dashboard=False,
        namespace="serve",
        log_to_driver=True,
        _temp_dir=str(folder / "ray"),
    )
    try:
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})
        yield str(context.address_info["gcs_address"])
    finally:
        try:
            serve.shutdown()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _ending_first(folder: Path) -> Iterator[None]:
    """At the end, have gateways end, with all that they have accepted, before Serve ends everything at once."""
    try:
        yield
    finally:
        running = _read(folder)
        with contextlib.suppress(Exception):  # Ray's many: it may be what has failed
            _end_gateways(0.0 if running is None else running.end_s)


def _end_gateways(within_s: float) -> None:
    from ray import serve

    until = time.monotonic() + within_s + _LONGER_S
    serve.delete(APP, _blocking=False)
    while APP in serve.status().applications and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _prepare(folder: Path) -> None:
    """Say, before Ray is imported, how its processes are to be, those that join them included.

    They listen on 127.0.0.1, as Ray has it by default on systems that it has no clusters on; `_node_ip_address` does
    not do that, as Ray looks for an address of the machine that others can reach. They take orders from those alone who
    can read a token in *folder*, since every user of this machine reaches 127.0.0.1. They tell nobody of their use.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    os.environ |= {**ONE_LOOP, **LOOPBACK, **token}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _write_token(folder: Path) -> None:
    """Have a token in *folder* that nobody but this user has read: a new one, in a new file.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / "token"
    path.unlink(missing_ok=True)
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(opened, "w") as file:
        file.write(secrets.token_hex(32))


def _cpus(settings: Settings) -> int:
    """Cores that Ray is to set aside: what replicas ask for, twice, as an upgrade has the next ones beside them.

    They are a bookkeeping of Ray's; nothing is pinned.
    """
    asked = settings.cluster.replicas * settings.cluster.num_cpus + cores(deployed(settings))
    return max(os.cpu_count() or 1, int(2 * asked + _SPARE_CPUS))


def _upgrade(settings: Settings, folder: Path, running: Running, log_level: str) -> None:
    """Have what runs serve *settings*, on the ports that it has.

    Raises:
        ClusterFailed: the next replicas cannot start; those that run go on.
    """
    _prepare(folder)
    import ray

    settings = _on_ports(settings, running.http, running.grpc, running.control)
    try:
        ray.init(address=running.ray, namespace="serve", log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ClusterFailed(
            f"the cluster at {running.ray} cannot be reached; `pointsman cluster down` ends it"
        ) from error
    longer_s = max(running.end_s, end_s(replicated(settings.server)))
    try:
        _write(folder, replace(running, end_s=longer_s))  # while those that run end, and those that are next may too
        before = asyncio.run(_running())
        try:
            _deploy(settings, log_level)
        except BaseException as error:
            _take_back(before, settings, error)
            raise
    finally:
        ray.shutdown()


def _deploy(settings: Settings, log_level: str) -> None:
    """Deploy, and return when all replicas serve.

    Raises:
        ClusterFailed: they cannot; says why, as far as Serve does.
    """
    models = deploy_apart(settings, {}, _PATIENCE)
    _deploy_gateways(Made(settings, models, log_level, 0.0))


def _deploy_gateways(made: Made) -> None:
    """Raises:
    ClusterFailed: as `_deploy`.
    """
    from ray import serve

    app = application(made.settings, made.models, log_level=made.log_level, unready_s=made.unready_s, environment={})
    serve.run_many([serve.RunTarget(app, APP, None)], wait_for_applications_running=False)
    wait_serving([APP], _PATIENCE)


async def _running() -> Made | None:
    """What all replicas were made of; None where that cannot be said, as they differ, or do not answer."""
    from ray import serve

    try:
        async with asyncio.timeout(_TELL_S):
            while not is_whole(serve.status().applications[APP]):  # noqa: ASYNC110  # one may just have been lost
                await asyncio.sleep(_LOOK_S)
            found: Made = await serve.get_deployment_handle(GATEWAY, APP).made.remote()
            return found
    except Exception:  # Ray's many; another release's replica has no such method
        return None


def _take_back(before: Made | None, failed: Settings, error: BaseException) -> None:
    """Have all gateways be as *before* again, and nothing of *failed* be there; what cannot is added to *error*."""
    from ray import serve

    if before is None:
        error.add_note(
            "What ran before could not be told, so nothing was taken back; replicas may be of two versions: `up` with "
            "a configuration that can be served"
        )
        return
    try:
        _deploy_gateways(before)
    except ClusterFailed as another:
        error.add_note(f"What ran before could not be put back for all either: {another}")
        return
    asked = {place.app for place in before.models.places.values()}
    delete({place.app for place in apart(failed).values()} & serve.status().applications.keys() - asked)


class _Stop:
    """SIGTERM or SIGINT, of which the second waits for nothing; made after Ray, which sets handlers of its own."""

    def __init__(self) -> None:
        self._told = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:  # Any: a number and a frame
        if self._told.is_set():
            raise SystemExit(0)
        self._told.set()

    def wait(self) -> None:
        """Return once it came."""
        self._told.wait()
