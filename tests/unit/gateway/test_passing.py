"""Which requests' tensors stay in their callers' memory, which are read, and what is kept of those that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from backends.contract import Batch, Datatype, SharedMemoryWindow, Signature, Tensor, TensorSpec
from backends.errors import InvalidInput
from gateway.answer import Answer, ItemAnswer, StageRecord, Status, new_answer_id
from gateway.catalog import Catalog, Model
from gateway.oip.windows import located, places
from gateway.passing import InPlace, admitted, in_place, placed, takes, unseen
from gateway.request import Protocol, Request, TensorInputs
from gateway.shared_memory import SharedMemory, SharedMemoryOptions
from router.contract import AcceptAny, Certified, Decision, HumanPolicy, MinConfidence, Observe, OnDefer, Route, Stage

SPECS = (
    TensorSpec("y", Datatype.FP32, (4,)),
    TensorSpec("small", Datatype.FP32, (1,)),
    TensorSpec("open", Datatype.FP32, (-1,)),
    TensorSpec("label", Datatype.INT64, (8,)),
    TensorSpec("text", Datatype.BYTES, (4,)),
)
ROUTE = Route(
    name="r",
    signature=Signature((TensorSpec("x", Datatype.FP32, (4,)),), SPECS),
    decode=None,
    cascade=(Stage("m"),),
    accept=AcceptAny(),
    human=None,
    on_defer=OnDefer.PROVISIONAL,
    deadline_s=1.0,
)
SENT = np.arange(8, dtype=np.float32).reshape(2, 4)


def memory_in(folder: Path, **options: Any) -> SharedMemory:  # Any: SharedMemoryOptions' own
    """Regions, with `r` registered, in which `SENT` lies."""
    (folder / "object").write_bytes(SENT.tobytes() + bytes(1000))
    memory = SharedMemory(SharedMemoryOptions(enabled=True, **{"pass_from_bytes": 16, **options}), folder=folder)
    memory.register("t", "r", "/object", 0, 1032)
    return memory


def lying(memory: SharedMemory, out: dict[str, SharedMemoryWindow] | None = None) -> InPlace | None:
    tensors = {"x": Tensor(Datatype.FP32, (2, 4), SharedMemoryWindow("r", 0, SENT.nbytes))}
    return in_place(memory, "t", located(memory, "t", tensors), places(memory, "t", out or {}))


def model(*, takes_shared: bool = True, max_batch: int = 8, measured: str = "") -> Model:
    batcher = SimpleNamespace(takes_shared=takes_shared, max_batch=max_batch)
    return cast(Model, SimpleNamespace(batcher=batcher, measured=measured))


def catalog(of: Model, *, is_ruled: bool = False) -> Catalog:
    table = SimpleNamespace(unruled=() if is_ruled else ("r",))
    return cast(Catalog, SimpleNamespace(table=table, models={"m": of, "n": of}))


def request_of(shared: InPlace) -> Request:
    return Request("r", TensorInputs(shared.tensors), Protocol.OIP_HTTP, shared=shared)


def inputs_of(request: Request) -> Tensor:
    assert isinstance(request.payload, TensorInputs)
    return request.payload.tensors["x"]


@pytest.mark.parametrize(
    "route",
    [ROUTE, replace(ROUTE, accept=MinConfidence(0.5)), replace(ROUTE, cascade=(Stage("m"), Stage("n")))],
    ids=["one stage", "judged", "two stages"],
)
async def test_what_a_server_alone_needs_stays_where_it_is(tmp_path: Path, route: Route) -> None:
    shared = lying(memory_in(tmp_path))
    assert shared is not None
    asked = request_of(shared)

    assert await admitted(catalog(model()), route, asked) is asked


@pytest.mark.parametrize(
    ("route", "served"),
    [
        (replace(ROUTE, decode="utf8"), catalog(model())),
        (replace(ROUTE, human=HumanPolicy("q", 60.0)), catalog(model())),
        (replace(ROUTE, accept=Certified(0.9, "c")), catalog(model())),
        (replace(ROUTE, accept=Observe()), catalog(model())),
        (replace(ROUTE, cascade=()), catalog(model())),
        (None, catalog(model())),
        (ROUTE, catalog(model(), is_ruled=True)),
        (ROUTE, catalog(model(takes_shared=False))),
        (ROUTE, catalog(model(max_batch=1))),
    ],
    ids=["decoded", "people", "certified", "observed", "no model", "unknown", "rules", "elsewhere", "too many items"],
)
async def test_what_somebody_else_needs_is_read_when_it_comes(
    tmp_path: Path, route: Route | None, served: Catalog
) -> None:
    shared = lying(memory_in(tmp_path))
    assert shared is not None

    found = await admitted(served, route, request_of(shared))

    assert found.shared is None
    assert np.array_equal(inputs_of(found).numpy(), SENT)


def test_little_is_read_and_merged_and_so_is_everything_where_it_is_turned_off(tmp_path: Path) -> None:
    assert lying(memory_in(tmp_path, pass_from_bytes=SENT.nbytes)) is not None
    assert lying(memory_in(tmp_path, pass_from_bytes=SENT.nbytes + 1)) is None
    assert lying(memory_in(tmp_path, pass_through=False)) is None


def places_of(route: Route, of: Model, shared: InPlace) -> set[str]:
    return set(placed(route, of, Batch(shared.tensors, 2), shared).places or {})


def test_outputs_go_to_their_places_where_nobody_looks_at_them(tmp_path: Path) -> None:
    out = {spec.name: SharedMemoryWindow("r", 100 + 100 * i, 100) for i, spec in enumerate(SPECS)}
    shared = lying(memory_in(tmp_path), out)
    assert shared is not None

    assert places_of(ROUTE, model(), shared) == {"y"}  # the others are small, of open size, the label, or text
    assert places_of(ROUTE, model(measured="y"), shared) == set()
    assert places_of(replace(ROUTE, accept=MinConfidence(0.5)), model(), shared) == set()
    assert places_of(replace(ROUTE, cascade=(Stage("m"), Stage("n"))), model(), shared) == set()
    assert takes(model(), 8)
    assert not takes(model(), 9)


def test_an_output_that_is_longer_than_its_place_is_refused_before_anybody_works(tmp_path: Path) -> None:
    shared = lying(memory_in(tmp_path), {"y": SharedMemoryWindow("r", 100, 31)})
    assert shared is not None

    with pytest.raises(InvalidInput, match="takes 32 bytes, and its place in shared memory has 31; make it larger"):
        placed(ROUTE, model(), Batch(shared.tensors, 2), shared)


def answer(make: Callable[[int], Tensor]) -> Answer:
    record = StageRecord("m", "1", None, None, Decision.ACCEPT)
    items = tuple(
        ItemAnswer(
            Status.FINAL, "m", None, {"y": make(i), "z": Tensor.of(np.ones((1, 1)))}, None, "model:m", None, (record,)
        )
        for i in range(2)
    )
    return Answer(new_answer_id(), "t", "r", 1.0, items)


def test_what_was_never_seen_is_not_kept_and_the_log_says_so() -> None:
    written = answer(lambda i: Tensor(Datatype.FP32, (1, 4), SharedMemoryWindow("r", 16 * i, 16)))

    kept = unseen(written)

    for item in kept.items:
        assert set(item.outputs or {}) == {"z"}
        assert item.trail[-1].detail == "not seen here, as the model's server wrote it to the caller's shared memory: y"
    held = answer(lambda i: Tensor.of(np.ones((1, 4))))
    assert unseen(held) is held
