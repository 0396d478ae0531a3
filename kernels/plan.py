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
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import ArraySpec, ItemError, Values
from kernels.steps import STEPS, Bound, Cast, Label, Rename, Scope, Step

__all__ = ["ArraySpec", "ItemError", "Plan", "PlanError", "Values", "parse_spec"]


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
    """

    inputs: Mapping[str, ArraySpec]
    outputs: Mapping[str, ArraySpec]
    _steps: tuple[Bound, ...]

    @classmethod
    def from_spec(
        cls, spec: object, inputs: Mapping[str, ArraySpec], *, base: Path, labels: Sequence[str] | None = None
    ) -> Plan:
        """Compose the steps of *spec* and check that each can work on what it will find.

        Args:
            spec: a list of step names, or one-key mappings from a step's name to its arguments.
            inputs: what the plan will be called with.
            base: the folder that file names in *spec* are relative to.
            labels: of the model's classes, by index. The one float output with as many elements is then called
                `probabilities`, and `label` is added.

        Raises:
            PlanError: a step is unknown or misused, a file is missing, or outputs and labels do not match.
        """
        steps = parse_spec(spec)
        current = next(iter(inputs)) if len(inputs) == 1 else None
        scope = Scope(dict(inputs), current, base, None if labels is None else _encoded(labels))
        bound = []
        for place, step in enumerate(steps, start=1):
            action, scope = _bind(step, scope, f"{_place(place, len(steps))} ({_name_of(step)})")
            bound.append(action)
        if scope.labels is not None:
            for step in _classifier_steps(scope, already_labelled=any(isinstance(step, Label) for step in steps)):
                action, scope = _bind(step, scope, "labels")
                bound.append(action)
        return cls(dict(inputs), dict(scope.values), tuple(bound))

    def __call__(self, values: Mapping[str, Values]) -> dict[str, Values]:
        """Run the plan on a batch.

        Args:
            values: one for each of `inputs`, with the same number of items; never written to.

        Returns:
            one for each of `outputs`; what no step has changed is passed on without a copy.

        Raises:
            ItemError: an item cannot be processed; it says which.
            ValueError: *values* are not what `inputs` describes, or no item can be processed.
        """
        held = self._checked(values)
        for step in self._steps:
            results = step.run(*(held[name] for name in step.reads))
            for name in step.drops:
                del held[name]
            held.update(zip(step.writes, results, strict=True))
        return held

    def _checked(self, values: Mapping[str, Values]) -> dict[str, Values]:
        if values.keys() != self.inputs.keys():
            raise ValueError(f"the plan takes {sorted(self.inputs)}; got {sorted(values)}")
        checked = {name: _fitting(name, values[name], spec) for name, spec in self.inputs.items()}
        sizes = {name: len(value) for name, value in checked.items()}
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


def _fitting(name: str, value: Values, spec: ArraySpec) -> Values:
    """*value*, if it is what *spec* describes: items of one known shape as one array."""
    if not len(value):
        raise ValueError(f"value {name!r} has no items")
    # The items of an array are all alike: one shape speaks for them.
    shapes = [value.shape[1:]] if isinstance(value, np.ndarray) else [item.shape for item in value]
    dtypes = [value.dtype] if isinstance(value, np.ndarray) else [item.dtype for item in value]
    for item, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True)):
        if dtype != spec.dtype or not spec.admits(shape):
            raise ItemError(item, f"value {name!r} is {ArraySpec(dtype, shape)}; the plan takes {spec}")
    return value if spec.ragged or isinstance(value, np.ndarray) else np.stack(value)
