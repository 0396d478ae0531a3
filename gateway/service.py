"""The data plane as the edges see it: one interface that HTTP, gRPC and ASGI serve.

`gateway.pipeline.Pipeline` implements it. The edges parse, authenticate, call this, and render; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from backends.contract import TensorSpec
from gateway.answer import Answer, AnswerId, Revision
from gateway.oip.statistics import ModelStatistics
from gateway.request import MAX_ITEMS, Caller, Request

ROUTE_VERSION = "1"
"""The version of a route that is configured without any: it is a policy, not a file of weights."""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A route or an exposed model, as `GET /v2/models/{name}` describes it (shapes without the batch axis).

    Attributes:
        versions: all there are, or the one that was asked for.
        labels: of its classes, by index; empty where it has none.
        max_batch: most items that reach a model in one call; a request may have more, up to `MAX_ITEMS`.
        max_delay_s: seconds that an item waits for others to share a call; None where no model shares one.
        sequence_idle_s: seconds without a request after which a sequence is forgotten; None where there are none.
        id_as_key: a request's `id` is its idempotency key, where it has no other.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    max_batch: int = MAX_ITEMS
    max_delay_s: float | None = None
    sequence_idle_s: float | None = None
    id_as_key: bool = False


class Service(Protocol):
    """What a data plane edge can ask."""

    async def decide(self, request: Request) -> Answer:
        """Answer *request*, or hand it to people; see `Pipeline.decide`.

        Raises:
            PointsmanError: with the code to send.
        """
        ...

    async def answer(
        self, caller: Caller, answer_id: AnswerId, wait_s: float = 0.0, after: int | None = None
    ) -> Answer:
        """The answer's current state, waiting up to *wait_s* seconds for nothing of it to be open.

        Args:
            caller: who asks.
            answer_id: the answer.
            wait_s: how long to wait, in seconds; not at all while draining.
            after: a revision; a later one ends the wait, too.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        ...

    async def cancel(self, caller: Caller, answer_id: AnswerId) -> Answer:
        """Ask people no more about what is open of the answer; the answer as it is then. Repeating it is harmless.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        ...

    async def revisions(self, caller: Caller, answer_id: AnswerId) -> Sequence[Revision]:
        """What the answer was, from its first reply to now, in order.

        Raises:
            NotFound: *caller*'s tenant has no such answer.
        """
        ...

    async def feedback(self, caller: Caller, answer_id: AnswerId, item: int, label: str) -> None:
        """Keep what an item's true label turned out to be.

        Raises:
            NotFound: *caller*'s tenant has no such answer or item.
        """
        ...

    async def explain(self, request: Request) -> dict[str, Any]:
        """What would become of *request*, for an operator (Any: JSON); see `gateway.explain`.

        Raises:
            NotFound: there is no such route or version.
        """
        ...

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Describe a route (or an exposed model).

        Raises:
            NotFound: there is no such name or version.
        """
        ...

    def names(self) -> Sequence[str]:
        """Every name that `metadata` knows."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused, and nobody waits for anything any more."""
        ...

    def is_ready(self) -> bool:
        """Whether new requests are welcome: started, not draining, every route has a stage that is ready."""
        ...

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether *name* would be answered.

        Raises:
            NotFound: there is no such name or version.
        """
        ...


class DataPlane(Service, Protocol):
    """What the edges of the Open Inference Protocol ask beside."""

    def why_not_ready(self, name: str, version: str = "") -> str | None:
        """What keeps a model from answering requests for *name*, in Triton's words where it has some; None: nothing.

        Raises:
            NotFound: there is no such name or version.
        """
        ...

    def statistics(self, name: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """What was answered so far for the route *name*, or for each of `names` where it is "".

        Raises:
            NotFound: there is no such name or version.
        """
        ...


class ModelControl(Protocol):
    """What changes which models are loaded; see `gateway.loading`."""

    async def load(self, name: str) -> None:
        """Open the model *name*, or all models of the route *name*, anew, and serve what was opened.

        Raises:
            PointsmanError: why not; what was served before is served still.
        """
        ...

    async def unload(self, name: str, *, dependents: bool) -> None:
        """Serve the model *name* no longer; of a route, with *dependents*, the models that nothing else uses.

        Raises:
            PointsmanError: why not.
        """
        ...
