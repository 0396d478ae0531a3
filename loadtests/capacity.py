"""What a cluster of so many nodes would carry, and where its store becomes the limit: a model, from measured figures.

    .venv/bin/python -m loadtests.capacity [--cores 16] [--store-times 1] [--out FOLDER]

**Measured**, on the machines that the results name: CPU time that a request costs a gateway with the null model
(`results/peers.json`, 32 clients, HTTP with binary tensors); what an item costs a real model on the node's own cores
(`results/latency_curves.json`, the largest batch); durable deferrals that one PostgreSQL takes a second from a writer
that commits in groups, with 64 callers (`results/store.json`).

**Assumed**, since one machine cannot show it:

1. Nodes share nothing but the store, and callers are spread evenly over them: what does not touch the store grows with
   the nodes. Ray's own processes take none of their cores to speak of.
2. Cores, and the store, are used to `BUSY`, so that deadlines hold while load varies, and a part `SPARE` of the nodes
   may be missing.
3. The store is one PostgreSQL, as fast as the measured one, which shared two cores with its callers; `--store-times`
   says how many times as fast another is. Rows cost it alike whoever writes them.
4. Where the store is the limit, writers have more waiting than a group takes, so that their groups are full: measured
   of one writer with 8 and with 64 callers. Deferrals wait for that meanwhile.
5. Every decision is in the log in the store, written in groups behind the answer. What such a row costs is not
   measured: between nothing and as much as a deferral, which is an answer, its items, a review, a key and a row of the
   log. So there are two limits of the store, and the truth is between them.

Left out: the network, webhooks, people, and reads of answers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NODES = (10, 100, 1000)
DEFERRED = (0.001, 0.01, 0.05, 0.2)
"""Parts of requests that go to people."""

BUSY = 0.6
SPARE = 0.1

_FORM, _CLIENTS = "http binary", 32
_CALLERS = 64
_MODEL = "MiniLM, 32 tokens"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        gateway_us: CPU time of a gateway, a request.
        model_us: of a model on the node's cores, an item.
        store_per_s: deferrals that the store takes.
    """

    gateway_us: float
    model_us: float
    store_per_s: float


@dataclass(frozen=True, slots=True)
class Carried:
    """What a cluster carries, in requests a second.

    Attributes:
        has_model: whether a model runs on the nodes' cores, or elsewhere.
        deferred: the part of requests that goes to people.
        nodes_per_s: what the nodes answer.
        store_at_least, store_at_most: what the store keeps up with, if a row of the log costs as much as a deferral,
            and if it costs nothing.
    """

    nodes: int
    has_model: bool
    deferred: float
    nodes_per_s: float
    store_at_least: float
    store_at_most: float

    @property
    def at_least(self) -> float:
        """What the cluster carries in any case."""
        return min(self.nodes_per_s, self.store_at_least)

    @property
    def at_most(self) -> float:
        """What it carries if rows of the log cost nothing."""
        return min(self.nodes_per_s, self.store_at_most)

    @property
    def limit(self) -> str:
        """What it is that ends it."""
        if self.nodes_per_s <= self.store_at_least:
            return "nodes"
        return "store" if self.store_at_most < self.nodes_per_s else "store, or nodes"


def measured(peers: Mapping[str, Any], curves: Mapping[str, Any], store: Mapping[str, Any]) -> Measured:
    """From what `results/` has in the files of these names.

    Raises:
        ValueError: a figure is missing; says how to measure it.
    """
    size, took_s = max(_found(curves["models"], _MODEL, "latency_curves")["points"])
    callers = {cell["callers"]: cell for cell in store["cells"] if "callers" in cell}
    grouped = _found(callers, _CALLERS, "store")["postgres/grouped"]
    gateways = {
        (comparison["form"], cell["clients"]): cell["servers"]["gateway"]
        for comparison in peers["comparisons"]
        for cell in comparison["cells"]
        if "clients" in cell
    }
    gateway = _found(gateways, (_FORM, _CLIENTS), "peers")
    model_us = 1e6 * took_s / size * curves["machine"]["cores"]  # ONNX Runtime uses them all
    return Measured(gateway["server_cpu_us"]["median"], model_us, grouped["rate"]["median"])


def _found(figures: Mapping[Any, Any], wanted: Any, name: str) -> Any:
    if wanted not in figures:
        raise ValueError(f"{name}.json tells nothing of {wanted}; run python -m loadtests.{name}")
    return figures[wanted]


def carried(
    figures: Measured, nodes: int, cores: int, deferred: float, *, has_model: bool, store_times: float = 1.0
) -> Carried:
    """What *nodes* of *cores* each carry, on a store that is *store_times* as fast as the measured one."""
    request_us = figures.gateway_us + (figures.model_us if has_model else 0.0)
    nodes_per_s = nodes * (1 - SPARE) * cores * BUSY * 1e6 / request_us
    store_per_s = figures.store_per_s * store_times * BUSY
    at_most = store_per_s / deferred if deferred else math.inf
    return Carried(nodes, has_model, deferred, nodes_per_s, store_per_s, at_most)


def report(figures: Measured, cores: int, store_times: float, rows: Sequence[Carried]) -> str:
    """As Markdown."""
    head = f"""\
# What a cluster would carry

A model, and no measurement of clusters of that size: `python -m loadtests.capacity` wrote this, and its text says what
is assumed. Measured on machines of two cores: {figures.gateway_us:.0f} µs of CPU a request at a gateway,
{figures.model_us / 1000:.1f} ms an item of a model on the node ({_MODEL}),
{figures.store_per_s:,.0f} deferrals a second on PostgreSQL. Nodes have {cores} cores; cores and store are used to
{BUSY:.0%}, and {SPARE:.0%} of the nodes may be missing. The store is {store_times:g} times as fast as the measured one.

The lower figure has every decision cost the store as much as a deferral, the higher one deferrals alone.

| nodes | model | deferred | requests/s | limit | nodes alone | store alone |
|---:|---|---:|---:|---|---:|---:|
"""
    return head + "".join(_row(row) for row in rows) + _reach(figures, cores, store_times)


def _row(row: Carried) -> str:
    model = "on the node" if row.has_model else "elsewhere"
    return (
        f"| {row.nodes:,} | {model} | {row.deferred:.1%} | {_between(row.at_least, row.at_most)} | {row.limit} | "
        f"{row.nodes_per_s:,.0f} | {_between(row.store_at_least, row.store_at_most)} |\n"
    )


def _reach(figures: Measured, cores: int, store_times: float) -> str:
    """How many nodes one store keeps up with."""
    text = "\nNodes that one store keeps up with:\n\n| model | deferred | nodes |\n|---|---:|---:|\n"
    for has_model in (False, True):
        for deferred in DEFERRED:
            one = carried(figures, 1, cores, deferred, has_model=has_model, store_times=store_times)
            reach = _between(one.store_at_least / one.nodes_per_s, one.store_at_most / one.nodes_per_s, digits=2)
            text += f"| {'on the node' if has_model else 'elsewhere'} | {deferred:.1%} | {reach} |\n"
    return text


def _between(low: float, high: float, digits: int = 0) -> str:
    one, other = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
    return one if one == other else f"{one} to {other}"


def main() -> int:
    """Write `capacity.json` and `capacity.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--store-times", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sources = {
        name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("peers", "latency_curves", "store")
    }
    figures = measured(sources["peers"], sources["latency_curves"], sources["store"])
    rows = [
        carried(figures, nodes, options.cores, deferred, has_model=has_model, store_times=options.store_times)
        for has_model in (False, True)
        for nodes in NODES
        for deferred in DEFERRED
    ]
    result = {
        "what": "a model of what clusters carry, from measured figures; not a measurement",
        "measured_on": {name: source["machine"] for name, source in sources.items()},
        "measured": asdict(figures),
        "assumed": {"cores": options.cores, "store_times": options.store_times, "busy": BUSY, "spare": SPARE},
        "rows": [{**asdict(row), "at_least": row.at_least, "at_most": row.at_most, "limit": row.limit} for row in rows],
    }
    (options.out / "capacity.json").write_text(json.dumps(result, indent=1) + "\n")
    text = report(figures, options.cores, options.store_times, rows)
    (options.out / "capacity.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
