"""What the router itself costs a request, beside what detectors cost: microseconds of CPU, step by step.

    python -m loadtests.experiments.router_cost [--rounds N] [--out DIR]

Every step is called as the pipeline calls it, on the rules and the two-stage cascade of the demo, for one item; each
round times all steps in turn, so that a slow moment of the machine hits all alike. Reported is the median over rounds
with its quartiles. What detectors cost is taken from the results of `classification`, where those are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backends.contract import Signature, Tensor
from router.calibration import Temperature, confidences
from router.cascade import judge, next_stage
from router.classify import Signal, classify
from router.confidence import Measure
from router.contract import Certified, ModelState, OnDefer, Route, Stage, Traits
from router.table import Conditions, Glob, RouteTable, Rule, Target, TraitTest, route

RESULTS = Path(__file__).parent.parent / "results"
CALLS = 2_000

DESK = Target("intake", to_person=True)
FOREIGN = Conditions(
    content_types=(Glob("text/*"),), traits=(TraitTest("language", excluded=(Glob("en"),), floor=0.9),)
)
TABLE = RouteTable(
    routes=frozenset({"digits", "feedback", "intake"}),
    rules=(
        Rule(Conditions(content_types=(Glob("image/*"),)), "digits"),
        Rule(FOREIGN, "intake", to_person=True, name="foreign text"),
        Rule(Conditions(content_types=(Glob("text/*"),)), "feedback"),
    ),
    default=DESK,
    unsure=DESK,
    detectors=frozenset({"content_type", "language"}),
)
ROUTE = Route(
    name="feedback",
    signature=Signature((), ()),
    decode="utf8",
    cascade=(Stage("fast", 0.02), Stage("strong")),
    accept=Certified(0.66, "certificate"),
    human=None,
    on_defer=OnDefer.PROVISIONAL,
    deadline_s=2.0,
)
STATES = {name: ModelState(ready=True, version="1", latency_s=0.01) for name in ("fast", "strong")}
SIGNALS = {"content_type": [Signal("text/plain", 1.0)], "language": [Signal("en", 0.99)]}
FLOORS = {"content_type": 0.5}
STATED = Traits("auto", "text/plain", 120)
CLASSIFIED = classify(STATED, SIGNALS, FLOORS)
OUTPUTS = {"probabilities": Tensor.of(np.array([[0.1, 0.2, 0.7]], np.float32))}
SURE = np.array([0.7])

STEPS: Mapping[str, Callable[[], object]] = {
    "a named route": lambda: route(TABLE, Traits("feedback", "text/plain", 120)),
    "auto, up to the detectors": lambda: route(TABLE, STATED),
    "signals to traits": lambda: classify(STATED, SIGNALS, FLOORS),
    "auto, rules on traits": lambda: route(TABLE, CLASSIFIED),
    "next stage": lambda: next_stage(ROUTE, None, STATES, 2.0),
    "confidence": lambda: confidences(Measure(), Temperature(1.3), OUTPUTS, 1),
    "judge": lambda: judge(ROUTE, 0, SURE),
}
A_STAGE = ("next stage", "confidence", "judge")
AUTO = ("auto, up to the detectors", "signals to traits", "auto, rules on traits")


def microseconds(step: Callable[[], object]) -> float:
    """CPU time of one call, of many."""
    started = time.thread_time_ns()
    for _ in range(CALLS):
        step()
    return (time.thread_time_ns() - started) / CALLS / 1e3


def measured(rounds: int) -> Mapping[str, Mapping[str, float]]:
    """Median and quartiles of every step, in microseconds."""
    found: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name, step in STEPS.items():
            found[name].append(microseconds(step))
    return {
        name: dict(zip(("low", "median", "high"), np.percentile(values, [25, 50, 75]).round(2).tolist(), strict=True))
        for name, values in found.items()
    }


def detectors(results: Path) -> Any:  # Any: JSON
    """What `classification` measured of the detectors; None where it has not run."""
    file = results / "classification.json"
    return json.loads(file.read_text()).get("cost") if file.is_file() else None


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    steps = measured(options.rounds)

    def total(names: tuple[str, ...]) -> float:
        return round(sum(steps[name]["median"] for name in names), 1)

    result = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "rounds": options.rounds,
        "calls_a_round": CALLS,
        "microseconds_of_cpu": steps,
        "named_route_two_stages": round(steps["a named route"]["median"] + 2 * total(A_STAGE), 1),
        "auto_two_stages": round(total(AUTO) + 2 * total(A_STAGE), 1),
        "detectors": detectors(options.out),
    }
    (options.out / "router_cost.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, values in steps.items():
        print(f"{name:28} {values['median']:7.2f} µs  ({values['low']:.2f} to {values['high']:.2f})")
    print(f"{'named route, two stages':28} {result['named_route_two_stages']:7.2f} µs")
    print(f"{'auto, two stages':28} {result['auto_two_stages']:7.2f} µs, detectors apart")


if __name__ == "__main__":
    main()
