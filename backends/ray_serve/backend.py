"""A model whose replicas are deployments of Ray Serve, as a backend; `backends.ray_serve` tells how they talk."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backends.contract import (
    TRACE,
    URGENCY,
    WAITED_S,
    Backend,
    Batch,
    Deadline,
    Limits,
    Memory,
    Signature,
    State,
    Tensors,
    check_batch,
    check_outputs,
)
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    Unavailable,
)
from backends.in_flight import InFlight
from backends.ray_serve.kept import short
from backends.ray_serve.messages import About, AnotherModel, Answered, Asked, Refused
from backends.registry import BackendType
from backends.replicas.attempts import call_off, first_to_decide
from backends.replicas.budget import Budget
from backends.replicas.latency import RecentAnswers
from backends.replicas.pacing import FEWEST_ANSWERS, attempt_s, patience_s
from backends.warm.warming import closed

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

_ATTEMPTS = 4
_PAUSE_S = 0.01
"""Before the second attempt; as much more before each further one."""

_LOOKS = 8
"""Replicas of another version that a batch meets before it is taken for certain that there is none of its own."""

_OPENED_AGAIN_S = 1.0
"""In which the next version is there, as a rule."""

_LOOK_AGAIN_S = 0.2
"""Between two looks whether a model's next version is there."""

_TRAVELS = frozenset({Memory.HOST, Memory.RAGGED})
"""What can be sent to another process."""


@dataclass(frozen=True, slots=True)
class RayServeOptions:
    """What a model with `backend: ray_serve` can set.

    Attributes:
        deployment: of the class `backends.ray_serve.deployment.ModelReplica`.
        app: the Serve application that it is part of.
        address: of the cluster, where this process is not part of one; auto: the one on this machine.
        replicas: that there can be of it: as many times what one overlaps is sent to them.
        open_timeout_s: what its first answer may take, the start of a replica included.
    """

    deployment: str
    app: str = "default"
    address: str = "auto"
    replicas: int = 1
    open_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.open_timeout_s <= 0:
            raise ValueError("replicas is at least 1, and open_timeout_s more than 0")


class RayServe:
    """The replicas of one deployment as a backend; `open_deployment` builds it. Belongs to one event loop."""

    def __init__(self, model_name: str, handle: DeploymentHandle[Any], about: About, replicas: int) -> None:
        """Args:
        model_name: names the model in errors.
        handle: of the deployment.
        about: what one of its replicas has said.
        replicas: that there can be.

        Raises:
            InvalidInput: it cannot be asked from another process.
        """
        memory = about.limits.memory & _TRAVELS
        if not memory:
            raise InvalidInput(f"model {model_name!r} takes {sorted(about.limits.memory)}, none of which can be sent")
        self._name = model_name
        self._ask = handle.options(method_name="infer")
        self._about = about
        self._limits = replace(about.limits, max_in_flight=about.limits.max_in_flight * replicas, memory=memory)
        self._state = State.READY
        self._calls = InFlight()
        self._budget = Budget()
        self._replicas = replicas
        self._took = RecentAnswers()
        self._strays: set[asyncio.Task[Tensors]] = set()
        self._misses = 0
        self._on_the_way_s = 0.0

    def __repr__(self) -> str:
        return f"<RayServe {self._name!r} version {self.version}: {self._state}, {self._calls.count} calls>"

    @property
    def signature(self) -> Signature:
        """As a replica has said."""
        return self._about.signature

    @property
    def version(self) -> str:
        """As a replica has said; of a deployment that may change beneath, with what tells its digest."""
        return self._about.version

    @property
    def limits(self) -> Limits:
        """Those of one replica, with calls for as many as there can be."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready, also while there is no replica; failed once all that are met are of another version; closed."""
        return self._state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Ask a replica, and another one where it dies, or hangs; see `Backend.infer`."""
        check_batch(self._about.signature, batch, self._limits)
        if self._state is State.CLOSED:
            raise closed(self._name)
        if self._state is State.FAILED:
            raise self._replaced()
        self._budget.call_came(time.monotonic())
        with self._calls:
            return await self._answered(batch, deadline)

    async def _answered(self, batch: Batch, deadline: Deadline) -> Tensors:
        """The first answer of attempts, of which the next begins when one has failed, or is silent for too long.

        One that is silent is not called off, nor when another has answered: as long as Serve counts it as under way at
        the replica that hangs, and such a replica is full soon, no other call is sent there.
        """
        underway: set[asyncio.Task[Tensors]] = set()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                underway.add(asyncio.create_task(self._attempt(batch, deadline)))
                found = await self._first_of(underway, self._patience_s(deadline, _ATTEMPTS + 1 - attempt))
                if isinstance(found, Mapping):
                    return found
                pause_s = attempt * _PAUSE_S if found is not None else 0.0
                if attempt == _ATTEMPTS or not self._may_try_again(pause_s, deadline):
                    break
                await asyncio.sleep(pause_s)
            if isinstance(found, ReplicaFailed) and not underway:
                raise found
            return (await first_to_decide(underway)).result()
        except asyncio.CancelledError:
            await call_off(underway)
            raise
        finally:
            self._strays |= underway
            for one in underway:
                one.add_done_callback(self._strayed)

    async def _first_of(
        self, underway: set[asyncio.Task[Tensors]], within_s: float | None
    ) -> Tensors | ReplicaFailed | None:
        """The first answer of *underway*, or why a replica gives none, or None where nothing comes *within_s* seconds.

        Raises:
            PointsmanError: what another replica would say as well.
        """
        done, _ = await asyncio.wait(underway, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        underway -= done
        failed = None
        for one in sorted(done, key=_is_failed):
            error = one.exception()
            if error is None:
                return one.result()
            if not isinstance(error, ReplicaFailed):
                raise error
            failed = error
        return failed

    def _patience_s(self, deadline: Deadline, attempts_left: int) -> float | None:
        """What an attempt may take before the next begins beside it; None: whatever it takes.

        As long as nothing recent is known, a silent replica may be one that starts.
        """
        if attempts_left == 1 or self._replicas == 1:
            return None
        now = time.monotonic()
        p99_s = self._took.quantile(0.99, now, fewest=FEWEST_ANSWERS)
        if p99_s is None:
            return None
        return max(0.0, attempt_s(deadline - now, attempts_left, p99_s, patience_s(p99_s)))

    def _may_try_again(self, pause_s: float, deadline: Deadline) -> bool:
        now = time.monotonic()
        return now + pause_s < deadline and self._budget.grant_retry(now)

    def _strayed(self, attempt: asyncio.Task[Tensors]) -> None:
        """*attempt*, whose answer nobody wants any more, has ended."""
        self._strays.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # it is not news

    async def _attempt(self, batch: Batch, deadline: Deadline) -> Tensors:
        """What a replica of this version answers; one of another version does no work, and costs the budget nothing.

        Raises:
            PointsmanError: why there is no answer.
        """
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_PAUSE_S)
            if (outputs := await self._asked(batch, deadline)) is not None:
                return outputs
        self._state = State.FAILED  # whoever opens failed models anew finds the next version
        raise self._replaced()

    async def _asked(self, batch: Batch, deadline: Deadline) -> Tensors | None:
        """What one replica answers; None: it is of another version."""
        sent = time.monotonic()
        left_s = deadline - sent
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before model {self._name!r} started; allow more time")
        misses, self._misses = self._misses, 0
        waited_s = WAITED_S.get() + self._on_the_way_s
        asked = Asked(self._about.digest, batch, left_s, URGENCY.get(), TRACE.get(), waited_s, misses)
        reply: object = None
        try:
            reply = await self._reply(self._ask.remote(asked), left_s)
        finally:
            if not isinstance(reply, Answered | Refused):  # no replica may have heard of them
                self._misses += misses
        match reply:
            case Answered():
                now = time.monotonic()
                if asyncio.current_task() not in self._strays:  # or silence would soon count as normal
                    self._took.add(now - sent, now)
                self._on_the_way_s = max(0.0, now - sent - reply.took_s)
                self._was_answered(reply)
                if fault := check_outputs(self._about.signature, reply.outputs, batch.size):
                    raise BackendFailed(f"model {self._name!r} broke its signature: {fault}")
                return reply.outputs
            case Refused():
                self._misses += reply.kind is DeadlineExceeded
                raise reply.error()
            case AnotherModel():
                return None
        raise BackendFailed(f"model {self._name!r} gave an answer that makes no sense")

    def _was_answered(self, reply: Answered) -> None:
        """A replica has answered; for kinds of models that look at more of that than its outputs."""

    async def _reply(self, response: DeploymentResponse[Any], left_s: float) -> object:
        """What a replica says in *response*; the call is cancelled when *left_s* are over, and when this is."""
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                return await response
        except TimeoutError as error:
            response.cancel()
            self._misses += 1
            raise DeadlineExceeded(
                f"the deadline passed before a replica of model {self._name!r} answered; allow more time"
            ) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                response.cancel()
                raise
            raise self._leaving() from error
        except Exception as error:  # Ray's many
            raise _translated(self._name, error) from error

    def _replaced(self) -> Unavailable:
        return Unavailable(
            f"model {self._name!r} has been replaced by another version; try again", retry_after_s=_OPENED_AGAIN_S
        )

    def _leaving(self) -> ReplicaFailed:
        return ReplicaFailed(f"model {self._name!r}: its replica left before it had answered; try again")

    async def aclose(self) -> None:
        """Take no more calls, and wait for those in flight; the deployment stays, as it is Serve's."""
        self._state = State.CLOSED
        await self._calls.wait_idle()
        for stray in self._strays:
            stray.cancel()


def _is_failed(attempt: asyncio.Task[Tensors]) -> bool:
    return attempt.exception() is not None


def _is_cancelled() -> bool:
    """Whether the task at hand is, and not what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _translated(model: str, error: Exception) -> PointsmanError:
    """Which error of ours *error*, from a call of a replica, is."""
    from ray import exceptions as ray
    from ray.serve import exceptions as serve

    match error:
        case serve.BackPressureError():
            return Overloaded(f"model {model!r}: too much waits for its replicas; try again later")
        case ray.ObjectStoreFullError() | ray.OutOfDiskError() | ray.PendingCallsLimitExceeded():
            return Overloaded(f"model {model!r}: the node's shared memory is full; try again later", retry_after_s=1.0)
        case serve.DeploymentUnavailableError():
            return Unavailable(f"model {model!r} could not be deployed; an operator must see to it")
        case ray.RayTaskError():
            return BackendFailed(f"model {model!r} failed on this batch; the log of its replica has the cause")
        case serve.RayServeException() | ray.RayError():
            return ReplicaFailed(f"model {model!r}: its replica is gone, or cannot be reached; try again")
    return BackendFailed(f"model {model!r} could not be asked; the log has the cause")


async def open_deployment(
    model_name: str,
    handle: DeploymentHandle[Any],
    replicas: int,
    *,
    digest: str | None = None,
    timeout_s: float | None = None,
    about: About | None = None,
) -> Backend:
    """The model behind *handle*, once a replica has said what it takes and gives.

    Args:
        replicas: that there can be.
        digest: of the model that is wanted; None: whichever is there.
        timeout_s: what that may take; None: as long as Serve takes to start one.
        about: what one has said before; none is asked then, or started.

    Raises:
        Unavailable: no replica answers, or none of the version that is wanted.
        InvalidInput: it cannot be asked from another process.
    """
    near_first(handle)
    if about is None:
        about = await ask_about(model_name, handle, digest=digest, timeout_s=timeout_s)
    return RayServe(model_name, handle, about, replicas)


async def ask_about(
    model_name: str, handle: DeploymentHandle[Any], *, digest: str | None, timeout_s: float | None
) -> About:
    """What a replica says of the model *digest* (None: whichever is there), once one says it.

    Raises:
        Unavailable: none does within *timeout_s*.
    """
    ask = handle.options(method_name="about")
    try:
        async with asyncio.timeout(timeout_s):
            said: About = await ask.remote(digest or "")
            while digest is not None and said.digest != digest:  # it is being replaced
                await asyncio.sleep(_LOOK_AGAIN_S)
                said = await ask.remote(digest)
    except TimeoutError as error:
        raise Unavailable(
            f"model {model_name!r}: no replica of the version that is wanted answered within {timeout_s:g} s"
        ) from error
    except Exception as error:  # Ray's many
        raise Unavailable(f"model {model_name!r}: no replica could be asked: {error}") from error
    return said if digest is not None else replace(said, version=_told_apart(said))


def _told_apart(about: About) -> str:
    """The version of a model that nobody here has deployed: of another digest it is another, whatever it is called."""
    return f"{about.version}-{short(hashlib.sha256(about.digest.encode()).hexdigest())}"


def near_first(handle: DeploymentHandle[Any]) -> None:
    """Have *handle* ask replicas of this node while they have room; Serve's proxies do it by the same call."""
    if not handle.is_initialized:
        handle._init(_prefer_local_routing=True)


async def open_ray_serve(model_name: str, options: RayServeOptions) -> Backend:
    """Find the deployment on the cluster, and ask it what it takes and gives.

    Raises:
        InvalidInput: Ray is not installed.
        NotFound: there is no such deployment.
        Unavailable: there is no such cluster, or no replica answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise InvalidInput(f"model {model_name!r}: Ray needs its extra: pip install 'pointsman[cluster]'")
    handle = await asyncio.to_thread(_handle, model_name, options)
    return await open_deployment(model_name, handle, options.replicas, timeout_s=options.open_timeout_s)


def _handle(model_name: str, options: RayServeOptions) -> DeploymentHandle[Any]:
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=options.address, namespace="serve", configure_logging=False, log_to_driver=False)
        except ConnectionError as error:
            raise Unavailable(f"model {model_name!r}: there is no Ray cluster at {options.address!r}") from error
    return deployment_handle(model_name, options.deployment, options.app)


def deployment_handle(model_name: str, deployment: str, app: str) -> DeploymentHandle[Any]:
    """To the replicas of *deployment* in *app*; asks Serve, so call it off the event loop.

    Raises:
        NotFound: there is none.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.get_deployment_handle(deployment, app)
    except (KeyError, RayServeException) as error:
        raise NotFound(
            f"model {model_name!r}: there is no deployment {deployment!r} in the application {app!r}"
        ) from error


RAY_SERVE = BackendType(
    "ray_serve", RayServeOptions, open_ray_serve, frozenset({"app", "address", "replicas", "open_timeout_s"})
)
