"""What a cluster of so many nodes would carry, and where its store becomes the limit: a model, from measured figures.

    .venv/bin/python -m loadtests.capacity [--cores 16] [--store-times 1] [--out FOLDER]

**Measured**, on the machines that the results name: CPU time that a request costs a gateway with the null model
(`results/peers.json`, 32 clients, HTTP with binary tensors); what an item costs a real model on the node's own cores
(`results/latency_curves.json`, the largest batch); durable deferrals, and decisions that are only recorded, that one
PostgreSQL takes a second from a writer that commits in groups (`results/store.json`).

**Assumed**, since one machine cannot show it:

1. Nodes share nothing but the store, and callers are spread evenly over them: what does not touch the store grows with
   the nodes. Ray's own processes take none of their cores to speak of.
2. Cores, and the store, are used to `BUSY`, so that deadlines hold while load varies, and a part `SPARE` of the nodes
   may be missing.
3. The store is one PostgreSQL, as fast as the measured one, which shared two cores with its callers; `--store-times`
   says how many times as fast another is. Rows cost it alike whoever writes them.
4. Where the store is the limit, writers have more waiting than a group takes, so that their groups are full: measured
   of one writer with 8 and with 64 callers. Deferrals wait for that meanwhile.
5. Every decision is in the log in the store, written in groups behind the answer; one that goes to people is a deferral
   instead. The store's time is spent on both as it is on each alone.
6. "Elsewhere" is a model that its server's own machine pays for. One that is a Ray deployment, reached by handle, costs
   the gateway more than twice as much a request (`results/ray_serve.json`, `cluster-apart`).

Left out: the network, webhooks, people, and reads of answers.
"""

from __future__ import annotations

import argparse
import json
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
_CALLERS, _RECORDING = 64, 8
_MODEL = "MiniLM, 32 tokens"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        gateway_us: CPU time of a gateway, a request.
        model_us: of a model on the node's cores, an item.
        deferrals_per_s: that the store takes, and nothing else.
        records_per_s: decisions that are only recorded, likewise.
    """

    gateway_us: float
    model_us: float
    deferrals_per_s: float
    records_per_s: float


@dataclass(frozen=True, slots=True)
class Carried:
    """What a cluster carries, in requests a second.

    Attributes:
        has_model: whether a model runs on the nodes' cores, or elsewhere.
        deferred: the part of requests that goes to people.
        nodes_per_s: what the nodes answer.
        store_per_s: what the store keeps up with.
    """

    nodes: int
    has_model: bool
    deferred: float
    nodes_per_s: float
    store_per_s: float

    @property
    def per_s(self) -> float:
        """What the cluster carries."""
        return min(self.nodes_per_s, self.store_per_s)

    @property
    def limit(self) -> str:
        """What it is that ends it."""
        return "nodes" if self.nodes_per_s <= self.store_per_s else "store"


def measured(peers: Mapping[str, Any], curves: Mapping[str, Any], store: Mapping[str, Any]) -> Measured:
    """From what `results/` has in the files of these names.

    Raises:
        ValueError: a figure is missing; says how to measure it.
    """
    size, took_s = max(_found(curves["models"], _MODEL, "latency_curves")["points"])
    cells = {next(iter(cell.items())): cell for cell in store["cells"]}
    deferring = _found(cells, ("callers", _CALLERS), "store")["postgres/grouped"]
    recording = _found(cells, ("recording", _RECORDING), "store")["postgres/grouped"]
    gateways = {
        (comparison["form"], cell["clients"]): cell["servers"]["gateway"]
        for comparison in peers["comparisons"]
        for cell in comparison["cells"]
        if "clients" in cell
    }
    gateway = _found(gateways, (_FORM, _CLIENTS), "peers")
    model_us = 1e6 * took_s / size * curves["machine"]["cores"]  # ONNX Runtime uses them all
    rates = (one["rate"]["median"] for one in (deferring, recording))
    return Measured(gateway["server_cpu_us"]["median"], model_us, *rates)


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
    seconds_of_store = (deferred / figures.deferrals_per_s + (1 - deferred) / figures.records_per_s) / store_times
    return Carried(nodes, has_model, deferred, nodes_per_s, BUSY / seconds_of_store)


def report(figures: Measured, cores: int, store_times: float, rows: Sequence[Carried]) -> str:
    """As Markdown."""
    head = f"""\
# What a cluster would carry

A model, and no measurement of clusters of that size: `python -m loadtests.capacity` wrote this, and its text says what
is assumed. Measured on machines of two cores: {figures.gateway_us:.0f} µs of CPU a request at a gateway,
{figures.model_us / 1000:.1f} ms an item of a model on the node ({_MODEL}),
{figures.deferrals_per_s:,.0f} deferrals or {figures.records_per_s:,.0f} recorded decisions a second on PostgreSQL.
Nodes have {cores} cores; cores and store are used to {BUSY:.0%}, and {SPARE:.0%} of the nodes may be missing. The store
is {store_times:g} times as fast as the measured one.

| nodes | model | deferred | requests/s | limit | nodes alone | store alone |
|---:|---|---:|---:|---|---:|---:|
"""
    return head + "".join(_row(row) for row in rows) + _reach(figures, cores, store_times)


def _row(row: Carried) -> str:
    model = "on the node" if row.has_model else "elsewhere"
    return (
        f"| {row.nodes:,} | {model} | {row.deferred:.1%} | {row.per_s:,.0f} | {row.limit} | "
        f"{row.nodes_per_s:,.0f} | {row.store_per_s:,.0f} |\n"
    )


def _reach(figures: Measured, cores: int, store_times: float) -> str:
    """How many nodes one store keeps up with."""
    text = "\nNodes that one store keeps up with:\n\n| model | deferred | nodes |\n|---|---:|---:|\n"
    for has_model in (False, True):
        for deferred in DEFERRED:
            one = carried(figures, 1, cores, deferred, has_model=has_model, store_times=store_times)
            reach = one.store_per_s / one.nodes_per_s
            text += f"| {'on the node' if has_model else 'elsewhere'} | {deferred:.1%} | {reach:,.2f} |\n"
    return text


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
        "rows": [{**asdict(row), "per_s": row.per_s, "limit": row.limit} for row in rows],
    }
    (options.out / "capacity.json").write_text(json.dumps(result, indent=1) + "\n")
    text = report(figures, options.cores, options.store_times, rows)
    (options.out / "capacity.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
