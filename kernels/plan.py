"""Plans: preprocessing or postprocessing composed from configuration, checked whole before the first request.

    plan = Plan.from_spec(["gray", {"resize": [28, 28]}, {"scale": 1 / 255}, "chw"], {"image": spec}, base=folder)
    plan.outputs            # what the model must take
    plan({"image": batch})  # per batch

The model: a plan holds named values; steps act on the current one (the only one, or the one last produced) unless
their `input` names another. Configuration is checked in two moments: `parse_spec` checks names and arguments, and
reports all faults, before anything is loaded; `Plan.from_spec` walks the specs of the inputs through the steps, so
that a wrong order, dtype or shape, or a missing file, stops the start and not a request. There the first fault ends
the walk, since what follows depends on it.

Classifiers end in `probabilities`, float32 (classes,), and `label`, bytes (1,). Where labels are given, a plan does
that by itself, so that a model which gives probabilities needs no postprocessing steps at all. It cannot see whether
what it is given are probabilities: a model that gives scores needs `softmax`.

Steps on pictures that follow each other are done as one where a fused kernel can (`recipe`), under watch (`guard`).

**On a device.** Where the kernels' results may stay on their device (`leave`), a value that nothing but a name is done
to behind its kernel is a `DeviceArray`, or the steps' host array, by batch. The other way round, `takes_there` names
the inputs that may come from that device: scores, to which nothing is done before a `softmax`; it, and a `top_k` behind
it, are done there, and what is copied back is the probabilities, or the k highest of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import ArraySpec, DeviceArray, ItemError, Values
from kernels.cost import Cost, bytes_of, in_words, sample_of, timed
from kernels.dlpack import spec_of
from kernels.guard import Guarded, GuardedScores, Kernels, KernelStatistics, trial
from kernels.recipe import CHANNEL_LIMIT, Chain, Recipe
from kernels.steps import STEPS, Bound, Cast, Label, Rename, Scope, Select, Softmax, Step, TopK, Unary

__all__ = ["ArraySpec", "ItemError", "Kernels", "Plan", "PlanError", "Values", "parse_spec"]

_KERNELS = Kernels()


class PlanError(ValueError):
    """A plan's configuration cannot work.

    Attributes:
        faults: each names the step by its place (from 1), what is wrong, and the remedy.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked steps; safe to share between threads.

    Attributes:
        inputs: what it takes, by name.
        outputs: what it gives, by name: an array a value, or a tuple of arrays where its spec says `ragged`.
        takes_there: inputs that may be on the kernels' device.
    """

    inputs: Mapping[str, ArraySpec]
    outputs: Mapping[str, ArraySpec]
    takes_there: frozenset[str]
    _steps: tuple[Bound, ...]
    _guarded: tuple[Guarded | GuardedScores, ...]

    @classmethod
    def from_spec(
        cls,
        spec: object,
        inputs: Mapping[str, ArraySpec],
        *,
        base: Path,
        labels: Sequence[str] | None = None,
        kernels: Kernels = _KERNELS,
        leave: bool = False,
    ) -> Plan:
        """Compose the steps of *spec* and check that each can work on what it will find.

        Args:
            spec: a list of step names, or one-key mappings from a step's name to its arguments.
            inputs: what the plan will be called with.
            base: the folder that file names in *spec* are relative to.
            labels: of the model's classes, by index. The one float output with as many elements is then called
                `probabilities`, and `label` is added.
            kernels: what does several steps on pictures as one, and how it is watched.
            leave: whether results may stay on the kernels' device.

        Raises:
            PlanError: a step is unknown or misused, a file is missing, or outputs and labels do not match.
        """
        steps = parse_spec(spec)
        current = next(iter(inputs)) if len(inputs) == 1 else None
        scope = Scope(dict(inputs), current, base, None if labels is None else _encoded(labels))
        bound = []
        found = []
        for place, step in enumerate(steps, start=1):
            found.append(scope)
            action, scope = _bind(step, scope, f"{_place(place, len(steps))} ({_name_of(step)})")
            bound.append(action)
        guarded: list[Guarded | GuardedScores] = []
        takes_there = frozenset[str]()
        if kernels.fuse:
            takes_there = _scored_there(steps, bound, inputs, kernels)
            bound, guarded = _fuse(steps, found, bound, kernels, leave=leave, scored=takes_there)
        if scope.labels is not None:
            for step in _classifier_steps(scope, already_labelled=any(isinstance(step, Label) for step in steps)):
                action, scope = _bind(step, scope, "labels")
                bound.append(action)
        return cls(dict(inputs), dict(scope.values), takes_there, tuple(bound), tuple(guarded))

    def __call__(self, values: Mapping[str, Values | DeviceArray]) -> dict[str, Values]:
        """Run the plan on a batch.

        Args:
            values: one for each of `inputs`, with the same number of items; never written to.

        Returns:
            one for each of `outputs`; what no step has changed is passed on without a copy. What may be on the kernels'
            device is told above.

        Raises:
            ItemError: an item cannot be processed; it says which.
            ValueError: *values* are not what `inputs` describes, or no item can be processed.
        """
        held = self._checked(values)
        for step in self._steps:
            _take(step, held)
        return held

    def cost(self) -> Cost | None:
        """What an item takes; None where it has no steps, or they refuse a made-up item.

        Takes time, and is counted nowhere. Bytes of what stays on a device are left out.
        """
        if not self._steps:
            return None
        sample = sample_of(self.inputs)
        with trial():
            try:
                between, given = self._traced(sample)  # which also loads what is loaded late
                seconds = timed(lambda: self(sample))
            except Exception:  # whatever it is, it says nothing of what callers will send
                return None
        written = {name: value for name, value in given.items() if isinstance(value, np.ndarray | tuple)}
        return Cost(in_words(sample), bytes_of(sample), between, bytes_of(written), seconds)

    def _traced(self, sample: Mapping[str, Values]) -> tuple[int, Mapping[str, Values]]:
        """Bytes of what the steps leave for each other, and what they give in the end."""
        held = self._checked(sample)
        made: list[NDArray[Any]] = []
        for step in self._steps:
            results = [held[name] for name in _take(step, held)]
            made += [array for value in results for array in (value if isinstance(value, tuple) else (value,))]
        final = {id(array) for value in held.values() for array in (value if isinstance(value, tuple) else (value,))}
        own = {id(array): array for array in made if isinstance(array, np.ndarray) and array.base is None}
        return sum(array.nbytes for key, array in own.items() if key not in final), held

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What fused kernels do of it."""
        return tuple(guarded.recipe for guarded in self._guarded if isinstance(guarded, Guarded))

    def statistics(self) -> tuple[KernelStatistics, ...]:
        """What has become of each kernel so far: of `recipes`, and of those for scores."""
        return tuple(guarded.statistics() for guarded in self._guarded)

    def _checked(self, values: Mapping[str, Values | DeviceArray]) -> dict[str, Values]:
        if values.keys() != self.inputs.keys():
            raise ValueError(f"the plan takes {sorted(self.inputs)}; got {sorted(values)}")
        checked = {
            name: _fitting(name, values[name], spec, may_be_there=name in self.takes_there)
            for name, spec in self.inputs.items()
        }
        sizes = {name: _length(value) for name, value in checked.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"every value needs the same number of items; got {sizes}")
        return checked


def parse_spec(spec: object) -> tuple[Step, ...]:
    """Check the names and arguments of *spec* alone: no inputs, no files.

    Raises:
        PlanError: with every fault.
    """
    if not isinstance(spec, list | tuple):
        raise PlanError([f"steps must be a list such as [lower, {{softmax: {{input: logits}}}}]; got {spec!r}"])
    steps: list[Step] = []
    faults: list[str] = []
    for place, entry in enumerate(spec, start=1):
        try:
            steps.append(_parse_step(entry))
        except ValueError as error:
            faults += [f"{_place(place, len(spec))}{fault}" for fault in str(error).splitlines()]
    if faults:
        raise PlanError(faults)
    return tuple(steps)


def _parse_step(entry: object) -> Step:
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, arguments = next(iter(entry.items()))
    else:
        name, arguments = entry, None
    if not isinstance(name, str):
        raise ValueError(f": must be a step's name, or a mapping with one key, that name; got {entry!r}")
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the steps are {', '.join(STEPS)}"
        raise ValueError(f": unknown step {name!r}; {hint}")
    try:
        return STEPS[name].parse(arguments)
    except ValueError as error:
        raise ValueError("\n".join(f" ({name}): {fault}" for fault in str(error).splitlines())) from error


def _place(place: int, count: int) -> str:
    return f"step {place} of {count}"


def _name_of(step: Step) -> str:
    return next(name for name, kind in STEPS.items() if kind is type(step))


def _bind(step: Step, scope: Scope, where: str) -> tuple[Bound, Scope]:
    try:
        bound = step.bind(scope)
    except ValueError as error:
        raise PlanError([f"{where}: {error}"]) from error
    values = {name: spec for name, spec in scope.values.items() if name not in bound.drops} | dict(bound.writes)
    return bound, Scope(values, bound.current, scope.base, scope.labels)


def _fuse(
    steps: Sequence[Step],
    scopes: Sequence[Scope],
    bound: Sequence[Bound],
    kernels: Kernels,
    *,
    leave: bool,
    scored: Collection[str],
) -> tuple[list[Bound], list[Guarded | GuardedScores]]:
    """*bound* with runs of image steps replaced by fused kernels, each as long as it can be.

    Args:
        leave: as `Plan.from_spec` has it.
        scored: values that are scores, whose softmax is replaced too.
    """
    result: list[Bound] = []
    guarded: list[Guarded | GuardedScores] = []
    place = 0
    while place < len(steps):
        step = steps[place]
        if isinstance(step, Softmax) and bound[place].reads[0] in scored:
            length, k = _ranked(steps[place:], bound[place:])
            scores = GuardedScores(step.temperature, k, kernels)
            guarded.append(scores)
            result.append(replace(bound[place + length - 1], reads=bound[place].reads, run=scores))
            place += length
            continue
        length, recipe = _longest_chain(steps[place:], scopes[place], bound[place:])
        if recipe is None:
            result.append(bound[place])
            place += 1
            continue
        parts = bound[place : place + length]
        (name,) = parts[-1].writes
        stays = leave and _is_left_alone(name, steps[place + length :], bound[place + length :])
        plain = partial(_one_after_the_other, [part.run for part in parts])
        pictures = Guarded(recipe, plain, kernels, stays=stays)
        guarded.append(pictures)
        result.append(replace(parts[-1], run=partial(_alone, pictures)))
        place += length
    return result, guarded


def _ranked(steps: Sequence[Step], bound: Sequence[Bound]) -> tuple[int, int | None]:
    """How many of *steps*, from a softmax on, a kernel for scores does, and how many of the highest are wanted."""
    if len(steps) > 1 and isinstance(steps[1], TopK) and bound[1].reads == bound[0].reads:
        return 2, steps[1].k
    return 1, None


def _scored_there(
    steps: Sequence[Step], bound: Sequence[Bound], inputs: Mapping[str, ArraySpec], kernels: Kernels
) -> frozenset[str]:
    """The *inputs* that are scores which a kernel can take on its device, and nothing else is done to."""
    if kernels.scores is None:
        return frozenset()
    first = {name: step for step, action in reversed(list(zip(steps, bound, strict=True))) for name in action.reads}
    return frozenset(
        name
        for name, spec in inputs.items()
        if isinstance(first.get(name), Softmax) and spec.dtype == np.float32 and len(spec.shape) == 1
    )


def _is_left_alone(name: str, steps: Sequence[Step], bound: Sequence[Bound]) -> bool:
    """Whether *steps* do nothing to the value *name* but to name it otherwise, or to leave it out."""
    for step, action in zip(steps, bound, strict=True):
        if isinstance(step, Rename):
            name = dict(step.names).get(name, name)
        elif name in action.reads and not isinstance(step, Select):
            return False
    return True


def _longest_chain(steps: Sequence[Step], scope: Scope, bound: Sequence[Bound]) -> tuple[int, Recipe | None]:
    """How many of *steps* are one recipe, and which; None where the first is in none."""
    (name, *others) = bound[0].reads
    spec = scope.values[name]
    if others or spec.dtype != np.uint8 or len(spec.shape) != 3 or not 1 <= spec.shape[2] <= CHANNEL_LIMIT:
        return 0, None
    chain: Chain | None = Chain(tuple(range(spec.shape[2])))
    best: tuple[int, Recipe | None] = (0, None)
    for length, (step, action) in enumerate(zip(steps, bound, strict=True), start=1):
        chain = step.fuse(chain) if chain and isinstance(step, Unary) and action.reads == (name,) else None
        if chain is None:
            break
        if recipe := chain.recipe():
            best = (length, recipe)
    return best


def _take(step: Bound, held: dict[str, Values]) -> Collection[str]:
    """Run *step* on what is *held*, and say which values it left."""
    results = step.run(*(held[name] for name in step.reads))
    for name in step.drops:
        del held[name]
    held.update(zip(step.writes, results, strict=True))
    return step.writes


def _one_after_the_other(runs: Sequence[Callable[[Values], tuple[Values, ...]]], value: Values) -> Values:
    for run in runs:
        (value,) = run(value)
    return value


def _alone(guarded: Guarded, value: Values) -> tuple[Values]:
    return (guarded(value),)


def _encoded(labels: Sequence[str]) -> NDArray[np.object_]:
    if not labels or len(set(labels)) != len(labels) or not all(labels):
        raise PlanError([f"labels: must be different, and none empty; got {list(labels)}"])
    encoded = np.empty(len(labels), dtype=object)
    encoded[:] = [label.encode() for label in labels]
    return encoded


def _classifier_steps(scope: Scope, *, already_labelled: bool) -> list[Step]:
    """What is left to do for `probabilities` and `label`."""
    assert scope.labels is not None
    count = len(scope.labels)
    floats = {name: spec for name, spec in scope.values.items() if spec.dtype.kind == "f" and len(spec.shape) == 1}
    # A length that the model leaves open counts where no other fits; it is checked with every batch.
    exact = [name for name, spec in floats.items() if spec.shape == (count,)]
    found = exact or [name for name, spec in floats.items() if spec.shape == (-1,)]
    if len(found) != 1:
        outputs = ", ".join(f"{name} {spec}" for name, spec in scope.values.items())
        remedy = "choose one with select" if found else f"correct labels, or end in floats[{count}]"
        raise PlanError([f"labels: {len(found)} outputs fit {count} labels; the outputs are {outputs}; {remedy}"])
    (name,) = found
    steps: list[Step] = []
    if scope.values[name].dtype != np.float32:
        steps.append(Cast(dtype="float32", input=name))
    if name != "probabilities":
        steps.append(Rename(names=((name, "probabilities"),)))
    if not already_labelled:
        steps.append(Label(input="probabilities"))
    return steps


def _length(value: Values | DeviceArray) -> int:
    """How many items it has."""
    return len(value) if isinstance(value, np.ndarray | tuple) else spec_of(value)[1][0]


def _fitting(name: str, value: Values | DeviceArray, spec: ArraySpec, *, may_be_there: bool) -> Values | DeviceArray:
    """*value*, if it is what *spec* describes: items of one known shape as one array."""
    if may_be_there and not isinstance(value, np.ndarray | tuple):
        dtype, whole = spec_of(value)
        if dtype != spec.dtype or not spec.admits(whole[1:]):
            raise ItemError(0, f"value {name!r} is {ArraySpec(dtype, whole[1:])}; the plan takes {spec}")
        if not whole[0]:
            raise ValueError(f"value {name!r} has no items")
        return value
    if not len(value):
        raise ValueError(f"value {name!r} has no items")
    # The items of an array are all alike: one shape speaks for them.
    shapes = [value.shape[1:]] if isinstance(value, np.ndarray) else [item.shape for item in value]
    dtypes = [value.dtype] if isinstance(value, np.ndarray) else [item.dtype for item in value]
    for item, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True)):
        if dtype != spec.dtype or not spec.admits(shape):
            raise ItemError(item, f"value {name!r} is {ArraySpec(dtype, shape)}; the plan takes {spec}")
    return value if spec.ragged or isinstance(value, np.ndarray) else np.stack(value)
