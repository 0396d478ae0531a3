"""Fused kernels under watch: an optimisation that turns out wrong costs speed, never answers.

A share of items, drawn at random, is computed again by the plain steps and compared. That takes tens of times as long
as the kernel, so it is done behind the answer, by one thread for the whole process, on copies; what comes while it is
busy is not drawn. An item that is further off than rounding explains, an exception that the steps do not raise, or a
lack of memory for one alone demotes the kernel for pictures of that shape: the steps do them from then on, for the life
of the plan. Where memory lacks for several they are done in halves, and where one is too much, the steps do that batch.
After `SHAPES_LIMIT` of them it is demoted for all: callers choose shapes, and what is remembered and logged is bounded.
A check that cannot be made, for want of memory, costs nobody an answer.

Results may stay on the kernels' device, where whoever made the plan can use them there: what the steps do in a kernel's
place comes from the host all the same, so that each batch says by itself where it is. An item that is drawn is copied
from there first.

Scores that a model has left on that device are handled likewise: `GuardedScores`.

Rejected: comparing before the answer. One request in a thousand would miss its deadline, and the error that is looked
for (a kernel that is wrong on this machine, for this shape) shows as well one request later.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from queue import Full, Queue
from typing import Protocol

import numpy as np

from kernels import fused, outputs
from kernels.arrays import Array, DeviceArray, ItemError, Values
from kernels.dlpack import spec_of, to_host
from kernels.recipe import Recipe

log = logging.getLogger("pointsman.kernels")

LEVELS_APART = 1.01
"""Levels of uint8 by which a kernel may differ from the reference: one, where a sum falls on the other side of a half,
and what the arithmetic behind it rounds off where a mean is taken from a number next to it."""

SHAPES_LIMIT = 64
"""Shapes after which a kernel is not used any more at all: so many are no matter of a shape."""

Shape = tuple[int, ...]


class Fault(StrEnum):
    """Why a kernel is not used any more."""

    MISMATCH = "mismatch"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class KernelDemoted:
    """Items of a shape are left to the plain steps from now on.

    Attributes:
        kernel: which was used so far.
        shape: of the pictures, (height, width, channels), or of the scores, (classes,); None: of all from now on.
        detail: what was seen, for operators.
    """

    kernel: str
    shape: Shape | None
    fault: Fault
    detail: str


@dataclass(frozen=True, slots=True)
class KernelChecked:
    """An item was computed twice.

    Attributes:
        levels_apart: the largest difference, in levels of uint8 before scaling; of scores, in multiples of
            `SCORES_APART`.
    """

    kernel: str
    shape: Shape
    levels_apart: float


class KernelObserver(Protocol):
    """Is told of what happens, on the thread where it does; must be quick, and must not raise."""

    def on_checked(self, record: KernelChecked) -> None:
        """An item was computed twice."""
        ...

    def on_demoted(self, record: KernelDemoted) -> None:
        """A kernel is not used any more for a shape."""
        ...


class Logged:
    """The observer where nobody else watches: what an operator must read goes to the log."""

    def on_checked(self, record: KernelChecked) -> None:
        """Statistics count it."""

    def on_demoted(self, record: KernelDemoted) -> None:
        """A kernel is left out."""
        log.error(
            "kernel %r is not used any more for items of %s (%s): %s; answers go on, more slowly; report it "
            "with this line",
            record.kernel,
            "any shape" if record.shape is None else f"shape {list(record.shape)}",
            record.fault,
            record.detail,
        )


@dataclass(frozen=True, slots=True)
class KernelStatistics:
    """What has become of a plan's kernels so far; the numbers only grow.

    Attributes:
        fused: items that a kernel did.
        plain: items that the plain steps did in its place.
        checked: items that were computed twice.
        demoted: shapes that a kernel is not used for any more, by fault; at most `SHAPES_LIMIT`, then it is for none.
    """

    fused: int = 0
    plain: int = 0
    checked: int = 0
    demoted: dict[Fault, int] = field(default_factory=dict)


Kernel = Callable[[Recipe, Sequence[Array] | Array], Array | None]
"""From a recipe and pictures to the batch, or None where the steps refuse one of them."""

KernelThere = Callable[[Recipe, Sequence[Array] | Array], DeviceArray | None]
"""A `Kernel` whose result stays on its device."""

ScoreKernel = Callable[[DeviceArray, int | None, float], tuple[Array, ...]]
"""From scores on a device, k and a temperature to the probabilities alone where k is None, else to the *k* highest of
them and their indices; on the host.
"""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which kernels a plan uses, and how they are watched.

    Attributes:
        fuse: False leaves everything to the plain steps.
        check: share of items that are computed twice, 0 to 1.
        smallest: numbers of a picture, and of what it is resampled to, below which the plain steps are quicker.
        observer: is told of checks and demotions.
        kernel: what does recipes; its `__module__` names it.
        there: does them too, and leaves the result on its device; None: it has none.
        scores: does softmax and top-k of scores that are on its device; likewise.
    """

    fuse: bool = True
    check: float = 0.001
    smallest: int = 4096
    observer: KernelObserver = field(default_factory=Logged)
    kernel: Kernel = fused.run
    there: KernelThere | None = None
    scores: ScoreKernel | None = None


_TRIAL = threading.local()


@contextmanager
def trial() -> Iterator[None]:
    """Let what this thread runs be counted nowhere, and nothing of it be checked."""
    _TRIAL.is_on = True
    try:
        yield
    finally:
        _TRIAL.is_on = False


def _is_trial() -> bool:
    return getattr(_TRIAL, "is_on", False)


class _Watched:
    """What has become of a kernel, and of whom it is not used for any more; safe to share between threads."""

    def __init__(self, name: str, kernels: Kernels, rng: random.Random | None) -> None:
        self._name = name
        self._kernels = kernels
        self._rng = rng or random.Random()  # noqa: S311
        self._demoted: dict[Shape, Fault] = {}
        self._lock = threading.Lock()
        self._fused_items = self._plain_items = self._checked_items = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {self.statistics()}>"

    def statistics(self) -> KernelStatistics:
        """How it went so far."""
        with self._lock:
            faults = list(self._demoted.values())
            return KernelStatistics(
                self._fused_items,
                self._plain_items,
                self._checked_items,
                {fault: faults.count(fault) for fault in faults},
            )

    def _count(self, *, fused: int = 0, plain: int = 0, checked: int = 0) -> None:
        if _is_trial():
            return
        with self._lock:
            self._fused_items += fused
            self._plain_items += plain
            self._checked_items += checked

    def _drawn(self, count: int) -> list[int]:
        """Which of *count* items are checked."""
        if not self._kernels.check or _is_trial():
            return []
        with self._lock:
            return [index for index in range(count) if self._rng.random() < self._kernels.check]

    @property
    def _is_retired(self) -> bool:
        """Whether the kernel is used for no shape any more."""
        return len(self._demoted) >= SHAPES_LIMIT

    def _demote(self, shapes: Iterable[Shape], fault: Fault, detail: str) -> None:
        for shape in dict.fromkeys(shapes):
            with self._lock:
                if shape in self._demoted or self._is_retired:
                    continue
                self._demoted = {**self._demoted, shape: fault}  # replaced, not changed: others iterate over it
                is_last = len(self._demoted) == SHAPES_LIMIT
            self._kernels.observer.on_demoted(KernelDemoted(self._name, shape, fault, detail))
            if is_last:
                last = f"{SHAPES_LIMIT} shapes are left out; the last, {list(shape)}: {detail}"
                self._kernels.observer.on_demoted(KernelDemoted(self._name, None, fault, last))

    def _offer(self, drawn: Callable[[], tuple[Array, Array]]) -> None:
        """Have the item and the result that *drawn* gives checked, where they can be had."""
        try:
            CHECKER.offer(self, *drawn())
        except Exception:  # whatever it is, the answer is there
            log.warning("an item could not be copied to be checked against the reference; go on", exc_info=True)

    def _failed(self, shapes: Iterable[Shape], error: Exception) -> None:
        """The kernel raised *error*."""
        if isinstance(error, MemoryError):
            self._demote(shapes, Fault.OUT_OF_MEMORY, str(error) or "no memory")
        else:
            self._demote(shapes, Fault.FAILED, f"{type(error).__name__}: {error}")

    def check(self, item: Array, got: Array) -> None:
        """Compare *got* with what the steps make of *item*; called by the checker."""
        raise NotImplementedError

    def _compared(self, shape: Shape, apart: float, limit: float, detail: str) -> None:
        """An item was *apart* from what the steps make of it."""
        self._count(checked=1)
        self._kernels.observer.on_checked(KernelChecked(self._name, shape, apart))
        if not apart <= limit:
            self._demote((shape,), Fault.MISMATCH, detail)


class Guarded(_Watched):
    """A recipe's kernel, with the plain steps beside it; safe to share between threads."""

    def __init__(
        self,
        recipe: Recipe,
        plain: Callable[[Values], Values],
        kernels: Kernels,
        rng: random.Random | None = None,
        *,
        stays: bool = False,
    ) -> None:
        """Args:
        recipe: what both do.
        plain: the steps one after the other; refuses what they refuse, with `ItemError`.
        kernels: which kernel, and how it is watched.
        rng: draws what is checked.
        stays: whether the kernel's result may stay on its device.
        """
        super().__init__(kernels.kernel.__module__, kernels, rng)
        self.recipe = recipe
        self._plain = plain
        self._there = kernels.there if stays else None

    def __call__(self, pictures: Values) -> Values:
        """Do the recipe on a batch; see `fused.run`.

        Raises:
            ItemError: the steps refuse a picture.
        """
        if self._is_retired or all(self._is_small(item) for item in pictures):
            return self._by_steps(pictures)
        if self._demoted and not self._demoted.keys().isdisjoint(item.shape for item in pictures):
            return self._mixed(pictures)
        result = self._try(pictures, self._there or self._kernels.kernel)
        return self._by_steps(pictures) if result is None else result

    def _is_small(self, item: Array) -> bool:
        """Whether the steps are quicker."""
        smallest = self._kernels.smallest
        return item.size < smallest and self.recipe.numbers_before_crop(*item.shape[:2]) < smallest

    def _try(self, pictures: Values, kernel: Kernel | KernelThere) -> Array | DeviceArray | None:
        """What the kernel makes of them; None where it, or the steps, cannot."""
        try:
            result = kernel(self.recipe, pictures)
        except MemoryError as error:
            if len(pictures) > 1:  # of all together there may be too much
                return self._in_halves(pictures)
            self._failed((item.shape for item in pictures), error)
            return None
        except Exception as error:  # whatever a kernel's bug may raise: the steps decide
            self._failed((item.shape for item in pictures), error)
            return None
        if result is not None:
            self._count(fused=len(pictures))
            for index in self._drawn(len(pictures)):
                self._offer(partial(_pair, pictures, result, index))
        return result

    def _in_halves(self, pictures: Values) -> Array | None:
        """As `_try`, half of them at a time, on the host; None where one alone is too much, or the steps cannot."""
        result = np.empty((len(pictures), *self.recipe.shape), dtype=self.recipe.dtype)
        middle = len(pictures) // 2
        for half in (slice(0, middle), slice(middle, len(pictures))):
            if (done := self._try(pictures[half], self._kernels.kernel)) is None:
                return None
            result[half] = done
        return result

    def _by_steps(self, pictures: Values) -> Values:
        self._count(plain=len(pictures))
        return self._plain(pictures)

    def _mixed(self, pictures: Values) -> Values:
        """A batch with pictures that are left to the steps."""
        result = np.empty((len(pictures), *self.recipe.shape), dtype=self.recipe.dtype)
        demoted = self._demoted  # one look: the checker replaces it meanwhile
        left = [index for index, item in enumerate(pictures) if item.shape in demoted]
        others = [index for index, item in enumerate(pictures) if item.shape not in demoted]
        if others:
            done = self._try(tuple(pictures[index] for index in others), self._kernels.kernel)
            if done is None:
                left = list(range(len(pictures)))
            else:
                result[others] = done
        for index in left:
            try:
                result[index] = self._by_steps((pictures[index],))[0]
            except ItemError as error:
                raise ItemError(index, error.reason) from error
        return result

    def check(self, picture: Array, got: Array) -> None:
        """Compute *picture* by the steps, and compare; called by the checker."""
        apart = self.recipe.levels_apart(got, np.asarray(self._plain((picture,))[0]))
        self._compared(
            picture.shape, apart, LEVELS_APART, f"a result is {apart:.3g} levels of uint8 from the reference"
        )


def _pair(pictures: Values, result: Array | DeviceArray, index: int) -> tuple[Array, Array]:
    """One picture, and what was made of it."""
    return pictures[index], to_host(result[index])


class GuardedScores(_Watched):
    """Softmax of scores that are on a device, and the highest of it, with the steps beside it for all others."""

    def __init__(self, temperature: float, k: int | None, kernels: Kernels, rng: random.Random | None = None) -> None:
        """Args:
        temperature: as `outputs.softmax` has it.
        k: how many of the highest are wanted, as `outputs.top_k` gives them; None: all the probabilities instead.
        kernels: with `scores`, and how it is watched.
        """
        assert kernels.scores is not None, "there is no kernel for scores. This is a bug."
        super().__init__(kernels.scores.__module__, kernels, rng)
        self._kernel = kernels.scores
        self._temperature = temperature
        self._k = k

    def __call__(self, scores: Values | DeviceArray) -> tuple[Values, ...]:
        """The probabilities, or the k highest and their indices; on the host.

        Args:
            scores: (n, classes), float32.
        """
        if isinstance(scores, np.ndarray):
            return self._by_steps(scores)
        _, (rows, *shape) = spec_of(scores)
        if tuple(shape) not in self._demoted and not self._is_retired:
            try:
                found = self._kernel(scores, self._k, self._temperature)
            except Exception as error:  # whatever a kernel's bug may raise: the steps decide
                self._failed((tuple(shape),), error)
            else:
                self._count(fused=rows)
                for index in self._drawn(rows):
                    self._offer(partial(self._drawn_of, scores, found, index))
                return found
        return self._by_steps(to_host(scores))

    def _drawn_of(self, scores: DeviceArray, found: tuple[Array, ...], index: int) -> tuple[Array, Array]:
        """One item's scores, and what was found of them, as `check` takes it."""
        got = found[0][index] if self._k is None else np.stack([one[index] for one in found])
        return to_host(scores)[index], got

    def _by_steps(self, scores: Array) -> tuple[Values, ...]:
        self._count(plain=len(scores))
        probabilities = outputs.softmax(scores, temperature=self._temperature)
        return (probabilities,) if self._k is None else outputs.top_k(probabilities, self._k)

    def check(self, scores: Array, got: Array) -> None:
        """Compute the probabilities of one item's *scores* by the steps, and compare; called by the checker.

        Args:
            got: all of them, or the highest above their indices.
        """
        wanted = outputs.softmax(scores[np.newaxis], temperature=self._temperature)[0]
        twice = False
        if self._k is not None:
            # By value: of probabilities that round alike, either place is right.
            highest, _ = outputs.top_k(wanted, self._k)
            places = got[1].astype(np.int64)
            ranked = places[places >= 0]
            twice = len(np.unique(ranked)) < len(ranked)
            wanted, got = np.stack([highest, np.where(places < 0, np.float32(np.nan), wanted[places])]), got[[0, 0]]
        with np.errstate(invalid="ignore"):
            apart = np.abs(got - wanted) / (SCORES_APART * np.maximum(wanted, np.finfo(np.float32).tiny))
        apart = np.where(np.isnan(got) & np.isnan(wanted), 0.0, np.where(np.isnan(apart), np.inf, apart))
        worst = np.inf if twice else float(apart.max())
        self._compared(scores.shape, worst, 1.0, f"a probability is {worst:.3g} times as far off as rounding explains")


SCORES_APART = 1e-6
"""By which share a probability may differ from the reference."""


class Checks(Protocol):
    """What compares an item with what the steps make of it."""

    def check(self, item: Array, got: Array) -> None:
        """Compare."""
        ...


class Checker:
    """The one thread that computes again; started with the first item, ends with the process."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[Checks, Array, Array]] = Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def offer(self, guarded: Checks, picture: Array, got: Array) -> None:
        """Have an item checked, unless the thread is busy; copies what it needs."""
        if self._queue.full():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads
                self._thread = threading.Thread(target=self._work, name="kernel-checker", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait((guarded, picture.copy(), got.copy()))
        except Full:
            return

    def wait_idle(self) -> None:
        """Wait until what was offered is checked."""
        self._queue.join()

    def _work(self) -> None:
        while True:
            guarded, picture, got = self._queue.get()
            try:
                guarded.check(picture, got)
            except Exception:
                log.exception("an item could not be checked against the reference. This is a bug.")
            finally:
                self._queue.task_done()
            del guarded, picture, got


CHECKER = Checker()
