"""Which requests' tensors stay in their callers' shared memory, and go to a model's server from there.

    located (the edge) -> admitted -> placed -> a stage -> ... -> read, for a stage that cannot take them

**Inputs** stay where they are while nobody but a server on this machine needs them. They are read when the request
comes, as all others are, where

- the route decodes them, or the first model preprocesses them, or is not on such a server;
- a person may have to see them, or a certificate rests on them: what was decided about, and what is shown, must be the
  same bytes;
- an idempotency key came with them, whose fingerprint covers the bytes (the edge sees to that);
- the route is yet to be found: rules and detectors look at tensors;
- they are more items than a call takes, or fewer bytes than `SharedMemoryOptions.pass_from_bytes`, which are answered
  sooner in company.

A cascade that goes on to a second stage reads them then. A caller that has changed them meanwhile, which no protocol
allows, is answered about one or the other; so it would be by the server alone.

**Outputs** go to their caller's places directly where nothing else needs them: the route has one stage and accepts
anything, the signature fixes their size, they are no labels, and the configuration does not measure confidence on them.
They are never seen here. So the decision log has no hash of them, and says that; the store does not keep them; and
where confidence would have been measured on one, the answer has none. Outputs below the same number of bytes are
written by the gateway, with all of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backends.contract import Batch, SharedMemoryWindow, Tensors, TensorSpec
from backends.errors import InvalidInput
from gateway.answer import LABEL, Answer, ItemAnswer
from gateway.catalog import Catalog, Model
from gateway.oip.windows import Place, is_window, loaded
from gateway.request import Request, TensorInputs
from gateway.shared_memory import SharedMemory
from router.contract import AcceptAny, MinConfidence, Route


@dataclass(frozen=True, slots=True, eq=False)
class InPlace:
    """What of a request lies in its caller's shared memory; implements `gateway.request.Shared`.

    Attributes:
        tensors: its inputs, some of them windows with their regions.
        places: where outputs of it go.
    """

    memory: SharedMemory
    tenant: str
    tensors: Tensors
    places: Mapping[str, Place]

    async def read(self) -> Tensors:
        """The inputs in host memory, as they are now; see `gateway.oip.windows.loaded`."""
        return await loaded(self.memory, self.tenant, self.tensors)

    def outputs(self, least_bytes: int, specs: Sequence[TensorSpec], size: int) -> dict[str, SharedMemoryWindow]:
        """The windows for those of *specs*, of *size* items, that have a place and at least *least_bytes*.

        Raises:
            InvalidInput: one is longer than its place.
        """
        found: dict[str, SharedMemoryWindow] = {}
        for spec in specs:
            place, takes = self.places.get(spec.name), spec.fixed_bytes(size)
            if place is None or takes is None or takes < least_bytes:
                continue
            if takes > place.window.byte_size:
                raise InvalidInput(
                    f"output {spec.name!r} takes {takes} bytes, and its place in shared memory has "
                    f"{place.window.byte_size}; make it larger"
                )
            found[spec.name] = replace(place.window, byte_size=takes, of=place.region)
        return found


def in_place(memory: SharedMemory, tenant: str, tensors: Tensors, places: Mapping[str, Place]) -> InPlace | None:
    """*tensors*, of which some are windows with their regions, to be passed on; None where they are too small for that.

    Args:
        places: where outputs go.
    """
    least = memory.pass_from_bytes
    there = sum(t.data.byte_size for t in tensors.values() if isinstance(t.data, SharedMemoryWindow))
    return None if least is None or there < least else InPlace(memory, tenant, tensors, places)


async def admitted(catalog: Catalog, route: Route | None, request: Request) -> Request:
    """*request*, which has tensors in shared memory: as it is, where its route leaves them there, or with them read.

    Args:
        route: as it is in force; None where it is not known yet.

    Raises:
        PointsmanError: they cannot be read.
    """
    shared = request.shared
    assert shared is not None, "nothing of the request lies in shared memory. This is a bug."
    if route is not None and request.route in catalog.table.unruled and _leaves(catalog, route, shared):
        return request
    assert isinstance(request.payload, TensorInputs), "only tensors lie in shared memory. This is a bug."
    return replace(request, payload=replace(request.payload, tensors=await shared.read()), shared=None)


def _leaves(catalog: Catalog, route: Route, shared: InPlace) -> bool:
    """Whether *route* takes inputs where they are, and needs nothing else of them."""
    if not route.cascade or route.decode is not None or route.human is not None:
        return False
    if not isinstance(route.accept, AcceptAny | MinConfidence):
        return False
    rows = min((tensor.shape[0] for tensor in shared.tensors.values() if tensor.shape), default=0)
    return takes(catalog.models[route.cascade[0].model], rows)


def takes(model: Model, size: int) -> bool:
    """Whether *model* takes *size* items where they are."""
    return model.batcher.takes_shared and size <= model.batcher.max_batch


def placed(route: Route, model: Model, batch: Batch, shared: InPlace) -> Batch:
    """*batch* of *route*, with the places of those outputs that *model* may leave there.

    Raises:
        InvalidInput: one is longer than its place.
    """
    least = shared.memory.pass_from_bytes
    if not isinstance(route.accept, AcceptAny) or len(route.cascade) != 1 or least is None or not shared.places:
        return batch
    specs = [spec for spec in route.signature.outputs if spec.name not in (LABEL, model.measured)]
    return replace(batch, places=shared.outputs(least, specs, batch.size) or None)


def unseen(answer: Answer) -> Answer:
    """*answer* as it can be kept: without outputs that went to their caller's memory, and saying so."""
    if not any(is_window(tensor) for item in answer.items for tensor in (item.outputs or {}).values()):
        return answer
    return replace(answer, items=tuple(map(_unseen, answer.items)))


def _unseen(item: ItemAnswer) -> ItemAnswer:
    outputs = item.outputs or {}
    seen = {name: tensor for name, tensor in outputs.items() if not is_window(tensor)}
    gone = ", ".join(sorted(outputs.keys() - seen.keys()))
    *before, last = item.trail
    detail = f"not seen here, as the model's server wrote it to the caller's shared memory: {gone}"
    return replace(item, outputs=seen or None, trail=(*before, replace(last, detail=detail)))
