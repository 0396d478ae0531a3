"""A step of the load on Ray Serve: how soon more replicas of a model serve, and who misses the deadline meanwhile.

    .venv-ray/bin/python -m loadtests.ray_steps [--rounds 3] [--seconds 45]

One gateway, and a model that is a deployment of its own with 1 to 4 replicas; a batch sleeps as long as an accelerator
might take (`loadtests.models`). Requests come as a Poisson process over HTTP JSON, at 0.4 of what one replica can
answer, and then at 2.5 of it; each has half a second. The sides differ in what adds replicas alone:

    ours     how long batches wait, and missed deadlines (`backends.ray_serve.scaling`), with its defaults
    serve    Serve's own policy, requests under way at a replica, with its defaults

Both are asked in turns, each time in a cluster of its own. A replica counts as serving once its process has ended its
initialisation; "settled" is the first second from which on three in a row have 95 % in time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batching.simulation.arrivals import poisson
from gateway.cluster import apart
from loadtests.generator.load import Plan
from loadtests.generator.report import generate
from loadtests.looking import looking
from loadtests.models import BASE_S, ITEM_S
from loadtests.peers.machine import machine
from loadtests.peers.servers import gateway_versions
from loadtests.ratios import spread
from tests.integration.ray.clusters import CLI, Cluster, running, why_not

RESULTS = Path(__file__).parent / "results" / "ray_steps.json"
_MAX_BATCH, _MOST = 4, 4
_PER_S = _MAX_BATCH / (BASE_S + _MAX_BATCH * ITEM_S)
_BEFORE, _AFTER = 0.4, 2.5  # in parts of what one replica answers
_BEFORE_S, _WITHIN_S = 8.0, 0.5
_ENOUGH, _IN_A_ROW = 0.95, 3
_LOOK_S = 0.1
_CONFIG = f"""
models:
  dbl:
    backend: python
    target: loadtests.models:accelerator
    inputs: [{{name: x, datatype: FP32, shape: [16]}}]
    outputs: [{{name: y, datatype: FP32, shape: [16]}}]
    max_batch: {_MAX_BATCH}
    expose: true
    serve: {{num_cpus: 0.1, autoscale: {{min: 1, max: {_MOST}}}}}
cluster: {{replicas: 1, num_cpus: 0.1}}
store: {{path: steps.db, retention: 1d, limit: 16GiB}}
"""
_AS_SERVE = "--as-serve"
_PROGRAMS = {"ours": CLI, "serve": ("-m", "loadtests.ray_steps", _AS_SERVE)}


def as_serve(arguments: Sequence[str]) -> None:
    """The gateway's command line, in which replicas of models are scaled as Serve does it where nothing is said."""
    from gateway.cli import main as cli

    def autoscaling(scaling: Any, running: int) -> dict[str, Any]:  # Any: our options
        return {"min_replicas": scaling.least, "max_replicas": scaling.most}

    apart._autoscaling = autoscaling
    cli(list(arguments))


@contextmanager
def watching(cluster: Cluster) -> Iterator[list[tuple[float, int]]]:
    """How many replicas serve while the block runs, and since when it has been so many (`time.monotonic`)."""
    seen: list[tuple[float, int]] = []

    def look() -> None:
        serving = len(cluster.serving("model-dbl"))
        if not seen or seen[-1][1] != serving:
            seen.append((time.monotonic(), serving))

    with looking(look, _LOOK_S):
        yield seen


def moments(after_s: float, seed: int) -> tuple[float, ...]:
    """When requests come: `_BEFORE_S` seconds before the step, and *after_s* after it."""
    found: list[float] = []
    for part, begin_s, length_s in ((_BEFORE, 0.0, _BEFORE_S), (_AFTER, _BEFORE_S, after_s)):
        rate_per_s = part * _PER_S
        trace = poisson(rate_per_s, round(rate_per_s * length_s), _WITHIN_S, seed)
        found += [begin_s + request.at_s for request in trace if request.at_s < length_s]
    return tuple(found)


def settled_s(shares: Sequence[float], first: int) -> int | None:
    """Seconds after slice *first* from which on enough are in time, a second each; None: never."""
    for index in range(first, len(shares) - _IN_A_ROW + 1):
        if min(shares[index : index + _IN_A_ROW]) >= _ENOUGH:
            return index - first
    return None


def stepped(side: str, after_s: float, seed: int) -> dict[str, Any]:
    """What becomes of the step at a cluster of *side*."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), _CONFIG, ("--log-level", "WARNING"), program=_PROGRAMS[side]) as cluster,
    ):
        came = moments(after_s, seed)
        seconds = _BEFORE_S + after_s
        warm = Plan(cluster.http, rate=0.2 * _PER_S, seconds=3.0)
        generate(warm)
        plan = Plan(
            cluster.http, moments=came, seconds=seconds, within_s=_WITHIN_S, timeout_s=_WITHIN_S, slices=round(seconds)
        )
        with watching(cluster) as seen:
            report = generate(plan)
        step_s = report.started_s + _BEFORE_S
        shares = report.in_time_by_slice
        first = round(_BEFORE_S)
        counts = plan.by_slice(came)
        missed = sum(float(count) * (1.0 - share) for count, share in zip(counts[first:], shares[first:], strict=True))
        more = [(round(at_s - step_s, 2), serving) for at_s, serving in seen if at_s > step_s and serving > 1]
        return {
            "second_replica_s": more[0][0] if more else None,
            "replicas": more,
            "settled_s": settled_s(shares, first),
            "missed": round(missed),
            "missed_share": round(missed / float(counts[first:].sum()), 4),
            "wrong": report.wrong,
            "shares": shares,
        }


def told(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and quartiles over *runs*; what never happened counts as None."""
    found: dict[str, Any] = {"runs": list(runs)}
    for name in ("second_replica_s", "settled_s", "missed_share"):
        values = [run[name] for run in runs]
        found[name] = None if None in values else asdict(spread(values, 3))
    return found


def main() -> int:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0, help="after the step")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        parser.error(reason)
    where = machine()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in _PROGRAMS}
    for number in range(options.rounds):
        for side in list(_PROGRAMS)[:: 1 if number % 2 == 0 else -1]:
            runs[side].append(stepped(side, options.seconds, number + 1))
            print(side, json.dumps({k: v for k, v in runs[side][-1].items() if k != "shares"}), flush=True)
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": where,
        "versions": gateway_versions(),
        "seconds": options.seconds,
        "within_s": _WITHIN_S,
        "one_replica_per_s": round(_PER_S, 1),
        "sides": {side: told(each) for side, each in runs.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [_AS_SERVE]:
        as_serve(sys.argv[2:])
    else:
        sys.exit(main())
