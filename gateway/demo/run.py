"""`pointsman demo`: an intake desk on real models, real data and recorded people, from set-up to the table.

    set up (once) -> start the gateway -> send held-out items, people deciding meanwhile -> table -> serve until Ctrl-C

The gateway is the one that an operator starts, in a process of its own; everything goes through its ports. Its store is
new for every run.

Progress goes to standard error; the table, what to try next, and with `--json` the summary go to standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tritonclient.grpc.aio import InferenceServerClient

from gateway.demo.items import Item, read_items
from gateway.demo.load import RATE_PER_S, Callers, pick
from gateway.demo.mail import INTAKE
from gateway.demo.packages import SetupFailed, cache_folder
from gateway.demo.raters import RATERS, opinions, work
from gateway.demo.server import ALONE, Addresses, GatewayEnded, Listening, Server, on_a_cluster, serving
from gateway.demo.summary import Ended, Promise, Result, Summary, summarise, table
from gateway.demo.train import CONFIG, ITEMS, export_scores, prepare
from router.certificate import Certificate
from router.contract import AUTO

LEFT_OPEN = 5
"""Reviews that wait in the inbox for the reader."""

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `pointsman demo` can be told.

    Attributes:
        items: held-out items to send.
        once: end when the table is printed.
        prepare: only set up, and print the folder, labelled scores of all items that trained no model in it.
        as_json: print the summary as JSON on the last line.
        http_port, grpc_port, control_port: 0 means any that is free.
        replicas: of a gateway on Ray Serve; 0: it is one process, without.
    """

    items: int = 600
    once: bool = False
    prepare: bool = False
    as_json: bool = False
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    control_port: int = 8002
    replicas: int = 0


def main(options: DemoOptions) -> int:
    """Run the demo; the exit status: 0, 1 where something failed, 130 where it was interrupted before the table."""
    console = Console(stderr=True, highlight=False)
    try:
        progress = _SetupProgress(console)
        folder = prepare(cache_folder(), progress)
        if options.prepare:
            export_scores(folder, progress)
            sys.stdout.write(f"{folder}\n")
            return 0
        return asyncio.run(run_demo(options, folder, console))
    except (SetupFailed, GatewayEnded) as error:
        console.print(f"pointsman demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; everything was stopped.")
        return _INTERRUPTED


class _SetupProgress:
    """Tells the steps of the set-up, and before the first of them that this happens once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = False

    def __call__(self, step: str) -> None:
        if not self._told:
            self._console.print("Setting up, once: about a minute on two cores.")
            self._told = True
        self._console.print(f"  {step}", markup=False)


async def run_demo(options: DemoOptions, folder: Path, console: Console) -> int:
    """Run the demo that was prepared in *folder*, and tell its progress on *console*; the exit status.

    Raises:
        GatewayEnded: the gateway could not start, or ended before its time.
    """
    own_task = asyncio.current_task()
    assert own_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own_task.cancel)
    with tempfile.TemporaryDirectory(prefix="pointsman-demo-") as scratch:
        run = Path(scratch)
        config = run / CONFIG
        config.write_text(yaml.safe_dump(own_configuration(folder, run), sort_keys=False))
        console.print("Starting the gateway.")
        listening = Listening(options.host, options.http_port, options.grpc_port, options.control_port)
        start = on_a_cluster(options.replicas, run / "ray") if options.replicas else ALONE
        gateway = serving(config, listening, run / "gateway.log", start)
        async with gateway as server, _callers(server.addresses) as callers:
            desk = _Desk(options, server.addresses, callers, console, run)
            items = read_items(folder / ITEMS)
            return await _unless_ended(server, desk.open(items, _promises(config)))


def own_configuration(folder: Path, run: Path) -> dict[str, Any]:
    """The configuration that was prepared in *folder*, for one run with a store of its own in *run* (Any: YAML).

    It will lie elsewhere than the files it names, so it names them in full.
    """
    settings: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text())
    for entry in (*settings["models"].values(), *(route.get("accept", {}) for route in settings["routes"].values())):
        for key in entry.keys() & {"path", "calibration", "certificate"}:
            entry[key] = str(folder / entry[key])
        for step in entry.get("preprocess", ()):
            if isinstance(step, dict) and "tokenize" in step:
                step["tokenize"]["file"] = str(folder / step["tokenize"]["file"])
    settings["store"]["path"] = str(run / settings["store"]["path"])
    return settings


def _promises(config: Path) -> Mapping[str, Promise]:
    routes = yaml.safe_load(config.read_text())["routes"]
    return {name: _promise(route) for name, route in routes.items()}


def _promise(route: Mapping[str, Any]) -> Promise:
    if "accept" not in route:
        return Promise(tuple(route["cascade"]), None)
    if "certificate" not in route["accept"]:
        return Promise(tuple(route["cascade"]), route["accept"]["max_error"])
    certificate = Certificate.from_dict(orjson.loads(Path(route["accept"]["certificate"]).read_bytes()))
    return Promise(tuple(route["cascade"]), certificate.max_error, certificate.bound)


@contextlib.asynccontextmanager
async def _callers(addresses: Addresses) -> AsyncIterator[Callers]:
    # No limit on connections: most of them only wait for a person.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        InferenceServerClient(addresses.grpc) as grpc,
    ):
        yield Callers(addresses, session, grpc)


async def _unless_ended(server: Server, story: Coroutine[Any, Any, int]) -> int:
    """The outcome of *story*, given up as soon as the gateway has ended.

    Raises:
        GatewayEnded: it ended first, or took the story with it.
    """
    watching = asyncio.ensure_future(server.wait_ended())
    telling = asyncio.ensure_future(story)
    try:
        await asyncio.wait((watching, telling), return_when=asyncio.FIRST_COMPLETED)
        if telling.done() and telling.exception() is not None:
            await asyncio.wait((watching,), timeout=1.0)  # a gateway that dies fails its callers just before
        if watching.done():
            raise watching.result()
        return await telling
    finally:
        watching.cancel()
        telling.cancel()
        await asyncio.gather(watching, telling, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Desk:
    """One run against a gateway that is ready."""

    options: DemoOptions
    addresses: Addresses
    callers: Callers
    console: Console
    run: Path

    async def open(self, items: Sequence[Item], promises: Mapping[str, Promise]) -> int:
        """Send, tell, and keep serving where that is wanted; the exit status."""
        summary, results = await self._send(items, promises)
        tell = Console(highlight=False, width=None if self.console.is_terminal else _WIDTH)
        tell.print(table(summary))
        for detail in summary.details:
            tell.print(f"  {detail}", markup=False, soft_wrap=True)
        if not self.options.once:
            await self._invite(tell, results)
        if self.options.as_json:
            tell.file.write(orjson.dumps(summary.to_dict()).decode() + "\n")
            tell.file.flush()
        if not self.options.once:
            self.console.print("Serving until Ctrl-C.")
            await _interrupted()
        return 1 if summary.errors else 0

    async def _send(self, items: Sequence[Item], promises: Mapping[str, Promise]) -> tuple[Summary, list[Result]]:
        results: list[Result] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.console.print(
            f"Sending {self.options.items} held-out items, about {RATE_PER_S:.0f} a second, over HTTP and gRPC; "
            "people decide meanwhile."
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("requests", total=self.options.items)

            def on_result(result: Result) -> None:
                results.append(result)
                waiting = self.callers.waiting
                description = f"requests ({waiting} with people)" if waiting else "requests"
                progress.update(bar, completed=len(results), description=description)

            async with _people(self.addresses, opinions(items)):
                duration_s = await self.callers.send_all(list(pick(items, self.options.items)), on_result)
        return summarise(results, promises, duration_s), results

    async def _invite(self, tell: Console, results: Sequence[Result]) -> None:
        """Leave some reviews to the reader, and say how to go on by hand."""
        deferred = [result.item for result in results if result.ended is Ended.HUMAN][:LEFT_OPEN]
        for item in deferred:
            await self.callers.decide(item, AUTO if item.route == INTAKE else item.route)
        digit = next((result.item for result in results if result.item.route == "digits"), None)
        picture = self.run / "digit.png"
        picture.write_bytes(digit.payload if digit else b"")
        tell.print(
            _INVITATION.format(picture=picture, a=self.addresses, left=len(deferred)), markup=False, soft_wrap=True
        )


_WIDTH = 120
"""Columns of a table that goes to no terminal."""

_INVITATION = """
People: feedback is decided by recorded raters, one of those who rated the message; digits by a simulated typist, pages
by a simulated reader, what is foreign or of no known kind by a simulated clerk.

Try it yourself:
  curl -H 'Content-Type: image/png' --data-binary @{picture} {a.http}/v1/routes/digits:decide
  curl -H 'Content-Type: text/plain' -d 'It broke after two days.' {a.http}/v1/routes/auto:decide
  curl -H 'Content-Type: text/plain' -d 'Guten Tag, wo bleibt mein Paket?' {a.http}/v1/explain

or with tritonclient:
  import numpy, tritonclient.grpc as triton
  text = triton.InferInput("text", [1, 1], "BYTES")
  text.set_data_from_numpy(numpy.array([["It broke after two days."]], dtype=object))
  print(triton.InferenceServerClient("{a.grpc}").infer("feedback", [text]).as_numpy("label"))

Be the person: {left} items wait for you in the review inbox at {a.control}/inbox"""


@contextlib.asynccontextmanager
async def _people(addresses: Addresses, known: Mapping[str, str]) -> AsyncIterator[None]:
    """The demo's raters, at work until left."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as raters:
        working = [raters.create_task(work(rater, session, addresses.control, known)) for rater in RATERS]
        yield
        for task in working:
            task.cancel()


async def _interrupted() -> None:
    """Return on Ctrl-C or SIGTERM."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
