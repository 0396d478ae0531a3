"""Answers, tasks, certificates and clocks for the store's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from backends.contract import Batch, Datatype, Ragged, Tensor, Tensors
from gateway.answer import Answer, ItemAnswer, StageRecord, Status, new_answer_id
from gateway.store.contract import Proposal, ReviewTask
from router.certificate import Certificate, StageSubject, Subject
from router.contract import Decision, Reason

TENANT = "acme"
LABELS = ("cat", "dog", "owl")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def accepted(*, tenant: str = TENANT, label: str = "cat", items: int = 1, outputs: Tensors | None = None) -> Answer:
    """An answer that a model gave."""
    record = StageRecord("fast", "3", label, 0.97, Decision.ACCEPT)
    item = ItemAnswer(Status.FINAL, "fast", label, outputs, 0.97, "model:fast", None, (record,))
    answer = Answer(new_answer_id(), tenant, "pets", 1_700_000_000.25, (item,) * items)
    return replace(answer, max_error=0.05, certified=True)


def deferred(
    *,
    tenant: str = TENANT,
    items: int = 1,
    queue: str = "pets",
    due_s: float = 1e9,
    expires_s: float | None = None,
    priority: int = 5,
    skills: tuple[str, ...] = (),
) -> tuple[Answer, list[ReviewTask]]:
    """An answer whose every item waits for a person, and the tasks for them."""
    trail = (
        StageRecord("fast", "3", "cat", 0.4, Decision.ESCALATE, Reason.LOW_CONFIDENCE),
        StageRecord("strong", "", None, None, Decision.DEFER, Reason.STAGE_FAILED),
    )
    item = ItemAnswer(Status.PROVISIONAL, "fast", "cat", every_datatype(), 0.4, None, Reason.LOW_CONFIDENCE, trail)
    answer = Answer(new_answer_id(), tenant, "pets", 1_700_000_000.5, (item,) * items)
    tasks = [task(i, queue, due_s) for i in range(items)]
    return answer, [replace(one, expires_s=expires_s, priority=priority, skills=skills) for one in tasks]


def seen(answer: Answer, *payloads: bytes) -> Answer:
    """*answer* to items that were sent as *payloads*."""
    column = np.array([[payload] for payload in payloads], dtype=object)
    return replace(answer, inputs=Batch.of({"image": Tensor.of(column, Datatype.BYTES)}))


def uncertified(
    *, tenant: str = TENANT, items: int = 1, at_s: float = 1_700_000_000.5, expires_s: float | None = None
) -> tuple[Answer, list[ReviewTask]]:
    """An answer of a route without a certificate: every stage scored its items, and a person decides."""
    answer, tasks = deferred(tenant=tenant, items=items, expires_s=expires_s)
    trail = (
        StageRecord("fast", "3", "cat", 0.4, Decision.ESCALATE, Reason.NO_CERTIFICATE),
        StageRecord("strong", "1", "cat", 0.9, Decision.DEFER, Reason.NO_CERTIFICATE, "no certificate is valid"),
    )
    return _scored(answer, Reason.NO_CERTIFICATE, trail, at_s), tasks


def observed(*, tenant: str = TENANT, items: int = 1, at_s: float = 1_700_000_000.5) -> Answer:
    """An answer of a route that gathers labels: every stage scored its items, and the last one's answer stands."""
    trail = (
        StageRecord("fast", "3", "cat", 0.4, Decision.ESCALATE, Reason.OBSERVED),
        StageRecord("strong", "1", "cat", 0.9, Decision.ACCEPT, Reason.OBSERVED),
    )
    return _scored(accepted(tenant=tenant, items=items), Reason.OBSERVED, trail, at_s)


def _scored(answer: Answer, reason: Reason, trail: tuple[StageRecord, ...], at_s: float) -> Answer:
    items = tuple(replace(item, reason=reason, trail=trail) for item in answer.items)
    return replace(answer, items=items, created_s=at_s)


def certificate(*, route: str = "pets", created_s: float = 1_700_000_000.0, threshold: float = 0.75) -> Certificate:
    """A certificate for *route*, valid for a day."""
    stages = (StageSubject("fast", "3", "resize", "isotonic"), StageSubject("strong", "1", "resize", "isotonic"))
    return Certificate(
        subject=Subject(route, stages),
        max_error=0.05,
        confidence=0.95,
        threshold=threshold,
        items=5000,
        accepted=4000,
        wrong=120,
        bound=0.035,
        created_s=created_s,
        valid_until_s=created_s + 86_400.0,
        evidence="0" * 64,
    )


def task(item: int, queue: str, due_s: float) -> ReviewTask:
    """A picture to label."""
    proposals = (Proposal("fast", "cat", 0.4), Proposal("strong", None, None))
    return ReviewTask(
        item, queue, due_s, LABELS, b"\x89PNG\0" + bytes([item]), "image/png", proposals, Reason.LOW_CONFIDENCE
    )


def every_datatype() -> Tensors:
    """One tensor of every datatype, and a ragged one."""
    tensors = {}
    for datatype in Datatype:
        if datatype is Datatype.BYTES:
            elements = np.empty((1, 3), object)
            elements[0] = [b"", b"\0\xff", b"owl"]
            tensors["BYTES"] = Tensor(datatype, (1, 3), elements)
        else:
            array = np.arange(6).reshape(1, 2, 3).astype(datatype.numpy)
            tensors[datatype.value] = Tensor.of(array, datatype)
    rows = (np.zeros((2, 3), np.float32), np.ones((4, 3), np.float32))
    return tensors | {"ragged": Tensor.ragged(Datatype.FP32, rows)}


def assert_same_answer(one: Answer | None, other: Answer) -> None:
    """Assert that *one* and *other* are equal, tensors included."""
    assert one is not None
    for name in ("id", "tenant", "route", "created_s", "revision", "max_error", "certified"):
        assert getattr(one, name) == getattr(other, name), name
    assert len(one.items) == len(other.items)
    for a, b in zip(one.items, other.items, strict=True):
        assert _said(a) == _said(b)
        if a.outputs is None or b.outputs is None:
            assert a.outputs is b.outputs
        else:
            assert_same_tensors(a.outputs, b.outputs)


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    """Assert that two sets of tensors are equal to the bit."""
    assert list(one) == list(other)
    for name in one:
        a, b = one[name], other[name]
        assert (a.datatype, a.shape) == (b.datatype, b.shape), name
        for x, y in zip(_arrays(a), _arrays(b), strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert x.tolist() == y.tolist() if x.dtype == object else x.tobytes() == y.tobytes(), name


def _arrays(tensor: Tensor) -> Iterable[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return tensor.data.rows if isinstance(tensor.data, Ragged) else (tensor.numpy(),)


def _said(item: ItemAnswer) -> tuple[object, ...]:
    return (item.status, item.stage, item.label, item.confidence, item.decided_by, item.reason, item.trail)
