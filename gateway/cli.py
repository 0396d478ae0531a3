"""The command `pointsman`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from backends.errors import PointsmanError
from gateway.settings import (
    MAX_WORKERS,
    ServerOptions,
    Settings,
    SettingsError,
    load_settings,
    load_store,
    settings_schema,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")

_config = click.argument("config", type=click.Path(path_type=Path))


def _listening(command: _Command) -> _Command:
    """The options of every command that listens."""
    for option in (
        click.option("--control-port", type=click.IntRange(0, 65535), help="Metrics, inbox and status. [8002]"),
        click.option("--grpc-port", type=click.IntRange(0, 65535), help="gRPC data plane. [8001]"),
        click.option("--http-port", type=click.IntRange(0, 65535), help="HTTP data plane; 0: any free port. [8000]"),
        click.option("--host", help="Address to listen on; any but loopback needs API keys. [127.0.0.1]"),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pointsman")
def main() -> None:
    """An inference gateway: each request to the cheapest model that is sure enough, or to a person."""


@main.command()
@_config
@_listening
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), help="Processes that share the data plane's ports. [1]")
@click.option("--insecure", is_flag=True, help="Listen on any address without API keys.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def serve(config: Path, insecure: bool, log_level: str, **listening: Any) -> None:
    """Serve the routes of CONFIG until SIGTERM or Ctrl-C."""
    from gateway.security import check_binding
    from gateway.telemetry import configure_logging

    configure_logging(log_level)
    settings = _load(config)
    settings = replace(settings, server=_listen_as_told(settings.server, listening))
    try:
        check_binding(settings.server.host, settings.security, insecure)
        if (why := settings.server.why_not_workers()) is not None:
            raise ValueError(f"--workers {settings.server.workers} {why}")
        _run(settings)
    except (PointsmanError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _run(settings: Settings) -> None:
    def announce(addresses: Any) -> None:  # Any: gateway.serve.Addresses, imported late
        _announce(settings, addresses)

    if settings.server.workers == 1:
        from gateway import serve as process

        process.run(settings, announce)
    else:
        from gateway.workers import supervisor

        supervisor.run(settings, announce)


def _listen_as_told(server: ServerOptions, listening: dict[str, Any]) -> ServerOptions:
    return replace(server, **_given(listening))


def _given(options: dict[str, Any]) -> dict[str, Any]:  # Any: click's values, which it has checked
    """The options that were given; the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _announce(settings: Settings, addresses: Any, version: int | None = None) -> None:
    """Any: gateway.serve.Addresses, imported late."""
    routes = ",".join(settings.names)
    click.echo(
        f"pointsman ready http=http://{addresses.http} grpc={addresses.grpc} "
        f"control=http://{addresses.control} routes={routes}" + (f" version={version}" if version is not None else "")
    )
    sys.stdout.flush()


@main.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--model", "models", multiple=True, help="Only this model; may be given several times.  [all]")
@click.option("--shared-memory", is_flag=True, help="Move large tensors through shared memory: all on one machine.")
def discover(urls: tuple[str, ...], models: tuple[str, ...], shared_memory: bool) -> None:
    """Print the configuration that puts the gateway in front of the servers at URL...

    They are Tritons, or other servers of the Open Inference Protocol, that serve the same models: grpc://host:8001,
    http://host:8000.
    """
    from gateway.discover import configuration_of

    try:
        click.echo(asyncio.run(configuration_of(urls, models, shared_memory=shared_memory)), nl=False)
    except (PointsmanError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_config
@click.option("--load", is_flag=True, help="Load every model too, and check that plans and outputs fit.")
def check(config: Path, load: bool) -> None:
    """Check CONFIG: tells every fault at once, with its line and its remedy."""
    settings = _load(config)
    if load:
        from gateway.compose import check_models

        _done(check_models(settings))
    click.echo(f"{config}: {len(settings.models)} models, {len(settings.names)} routes, no faults")


@main.command()
@_config
@click.option("--route", default="auto", show_default=True, help="The route that the request names.")
@click.option("--content-type", default="", help="What its sender says that it is, such as image/png.")
@click.option(
    "--parameter", "-p", multiple=True, metavar="NAME=VALUE", help="A parameter of the caller's; JSON, or text."
)
@click.option("--tenant", default="default", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    config: Path, route: str, content_type: str, parameter: tuple[str, ...], tenant: str, as_json: bool
) -> None:
    """Tell what would become of the request on standard input, and why, without answering it."""
    from gateway.compose import explain as explain_request
    from gateway.explain import told
    from gateway.http.headers import content_type as read_content_type
    from gateway.http.v1 import read_body
    from gateway.request import Caller, Protocol, RawBody, Request

    settings = _load(config)
    body = sys.stdin.buffer.read()
    try:
        media = read_content_type({"content-type": content_type})
        payload, own = read_body(media, body) if content_type else (RawBody(body, ""), {})
        caller = Caller(tenant=tenant)
        parameters = {**own, **dict(map(_parameter, parameter))}
        request = Request(route, payload, Protocol.V1_HTTP, caller, parameters=parameters)
        explained: dict[str, Any] = asyncio.run(explain_request(settings, request))
    except PointsmanError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(explained, indent=2) if as_json else told(explained))
    if explained["route"] is None:
        sys.exit(1)


def _parameter(text: str) -> tuple[str, bool | int | float | str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint="--parameter")
    try:
        read = json.loads(value)
    except ValueError:
        return name, value
    return name, read if isinstance(read, bool | int | float | str) else value


class _Share(click.ParamType[float]):
    """`2%` or 0.02."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from gateway.settings.units import share

        try:
            return share(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


class _Moment(click.ParamType[float]):
    """A date, or a date and a time, in UTC where it names no other zone; as Unix time in seconds."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment; write 2026-11-26, or 2026-11-26T10:00:00Z", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@main.command()
@click.argument("scores", type=click.Path(path_type=Path), required=False)
@click.option("--max-error", type=_Share(), help="Share of accepted answers that may be wrong, as 1%; the route's.")
@click.option("--confidence", type=_Share(), help="How sure the proof must be. [95%]")
@click.option("--route", metavar="NAME", help="The route (or NAME@VERSION) to certify; its certificate is kept.")
@click.option("--config", type=click.Path(path_type=Path), help="The configuration with the route and the store.")
@click.option("--missing", type=click.Choice(["hold", "wrong", "drop"]),
              help="The store's items without a label: end at the first, count all as wrong, or (labels are a random "
              "sample) leave them out. [hold]")  # fmt: skip
@click.option("--people-only", is_flag=True, help="Of the store's labels, take people's decisions alone.")
@click.option("--labelled-twice", "twice_only", is_flag=True,
              help="Of the store's items, take those alone that a second person was to label too; an item is wrong "
              "where the two differ.")  # fmt: skip
@click.option("--fit", type=_Share(), help="Share of SCORES that calibrators are fitted on first.")
@click.option("--seed", type=int, help="Of the choice of rows for --fit. [0]")
@click.option("--valid", help="How long a route's certificate holds. [30d]")
@click.option("--out", type=click.Path(path_type=Path), help="Write a route's certificate to this file too.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw reliability, risk and coverage (.png, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, curves included.")
def certify(
    scores: Path | None,
    max_error: float | None,
    confidence: float | None,
    route: str | None,
    config: Path | None,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Find the loosest threshold that keeps an error rate, with proof.

    On SCORES, a file of labelled scores (.csv, .jsonl or .parquet: score_STAGE and right_STAGE for every stage); with
    --route and no SCORES, on the labels in the store of --config. Exit status 1 where nothing can be certified, 2 where
    something is wrong.
    """
    from gateway.certify.commands import certify_file, certify_route, keep, write_json

    if (route is None) != (config is None) or (scores is None and route is None):
        raise click.UsageError("give SCORES, or --route and --config, or all of them")
    _refuse_idle({"out": out, "valid": how["valid"]}, "belongs to --route", route is not None)
    of_store = {"missing": how["missing"], "people-only": how["people_only"], "labelled-twice": how["twice_only"]}
    _refuse_idle(of_store, "is about the store", scores is None)
    _refuse_idle({"fit": how["fit"], "seed": how["seed"]}, "is about SCORES", scores is not None)
    try:
        options = _certify_options(max_error, confidence, **how)
        settings = _load(config) if config is not None else None
        if settings is None or route is None:
            assert scores is not None
            report = certify_file(scores, options)
        else:
            report = asyncio.run(certify_route(settings, route, scores, options))
        if plot is not None:
            report.draw(plot)
        if report.certificate is not None and settings is not None:
            if out is not None:
                write_json(out, report.certificate.to_dict())
            asyncio.run(keep(settings, report.certificate))
    except (PointsmanError, ValueError) as error:
        raise _Failed(str(error)) from error
    click.echo(json.dumps(report.to_dict()) if as_json else report.text())
    sys.exit(0 if report.selection.threshold is not None else 1)


class _Failed(click.ClickException):
    """Something is wrong, which is another thing than a budget that cannot be proven."""

    exit_code = 2


def _refuse_idle(options: dict[str, Any], why: str, applies: bool) -> None:
    """Refuse options that were given and would do nothing."""
    for name, value in options.items():
        if value and not applies:
            raise click.UsageError(f"--{name} {why}; leave it out")


def _certify_options(max_error: float | None, confidence: float | None, **how: Any) -> Any:
    from gateway.certify.commands import CertifyOptions
    from gateway.certify.labels import Missing
    from gateway.settings.units import duration_s
    from router.certification import DEFAULT_CONFIDENCE, Budget

    if confidence is not None and max_error is None:
        raise click.UsageError("--confidence belongs to --max-error; give both, or neither for the route's own")
    valid_s = duration_s(how["valid"] or "30d")
    if valid_s <= 0:
        raise click.UsageError("--valid is 0; give a time, such as 30d")
    return CertifyOptions(
        budget=None if max_error is None else Budget(max_error, confidence or DEFAULT_CONFIDENCE),
        fit=how["fit"],
        seed=how["seed"] or 0,
        missing=Missing(how["missing"] or Missing.HOLD),
        people_only=how["people_only"],
        twice_only=how["twice_only"],
        valid_s=valid_s,
    )


@main.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option("--stage", help="The stage, where SCORES has several.")
@click.option("--model", required=True, help="The model that it is for, as the configuration names it.")
@click.option("--version", "version", required=True, help="That model's version.")
@click.option("--measure", default="max", show_default=True, help="What the scores are, as `confidence:` says it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The calibration file to write.")
def calibrate(scores: Path, stage: str | None, model: str, version: str, measure: str, out: Path) -> None:
    """Fit what turns a model's scores into shares of right answers, on the file SCORES (see certify)."""
    from gateway.certify.commands import calibrate_file, write_json
    from router.confidence import Measure

    try:
        found = calibrate_file(scores, stage, model, version, Measure.parse(measure))
        write_json(out, found.calibration.to_dict())
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{out}: fitted on {found.calibration.fitted_on:,} rows; expected calibration error "
        f"{found.error_before:.4f} before, {found.error_after:.4f} after, on {found.tested_on:,} rows"
    )


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(json.dumps(settings_schema(), indent=2))


@main.command()
def key() -> None:
    """Make an API key: the key for its owner, and the digest for the configuration."""
    from gateway.security import new_api_key

    secret, digest = new_api_key()
    click.echo(f"key:    {secret}    (shown once; give it to its owner)")
    click.echo(f"sha256: {digest}    (for security.api_keys)")


@main.group()
def cluster() -> None:
    """The gateway on Ray Serve, in replicas; needs the extra `cluster`."""


_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="What runs is found by it: a short name, on this machine.  [in the folder for temporary files]",
)


@cluster.command()
@_config
@_listening
@click.option("--replicas", type=click.IntRange(min=1), help="Gateways that share the data plane's ports.  [1]")
@click.option("--version", "version", type=click.IntRange(min=1),
              help="Serve CONFIG as it was in this version; `cluster versions` lists them.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Listen on any address without API keys.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
@_folder
def up(
    config: Path,
    replicas: int | None,
    version: int | None,
    insecure: bool,
    log_level: str,
    folder: Path | None,
    **listening: Any,
) -> None:
    """Serve the routes of CONFIG by replicas on a Ray of this command's own, until SIGTERM, Ctrl-C or `cluster down`.

    Given again while that runs, it upgrades what runs to CONFIG, on the same ports, and ends. CONFIG's store keeps what
    is served as a version, which --version goes back to.
    """
    launch = _launch()
    settings = _load(config) if version is None else _load_version(config, version)
    settings = replace(settings, server=_listen_as_told(settings.server, listening))
    if replicas is not None:
        settings = replace(settings, cluster=replace(settings.cluster, replicas=replicas))
    from gateway.security import check_binding

    try:
        check_binding(settings.server.host, settings.security, insecure)
        launch.up(
            settings,
            folder or launch.default_folder(),
            lambda addresses, served: _announce(settings, addresses, served),
            log_level=log_level,
            version=version,
        )
    except (PointsmanError, OSError, ValueError) as error:
        raise click.ClickException(" ".join([str(error), *getattr(error, "__notes__", ())])) from error


def _load_version(config: Path, version: int) -> Settings:
    from gateway.cluster.versions import settings_of

    try:
        return settings_of(config, version)
    except SettingsError as error:
        raise _with_faults(error, f"version {version} of {config} cannot be served by this release:") from error
    except (PointsmanError, OSError) as error:
        raise click.ClickException(str(error)) from error


@cluster.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a version a line.")
def versions(config: Path, as_json: bool) -> None:
    """Tell what was served of CONFIG, by the store that it names, the newest first.

    Serving is what all replicas have come to serve last, for as long as they run.
    """
    from gateway.cluster.listing import as_dict, table
    from gateway.store import list_configurations

    try:
        place = load_store(config)
    except SettingsError as error:
        raise _with_faults(error, f"{config} has") from error
    found = _done(list_configurations(place))
    click.echo("\n".join(json.dumps(as_dict(one)) for one in found) if as_json else table(found))


@cluster.command()
@_folder
def down(folder: Path | None) -> None:
    """End what `cluster up` serves, in order: what was accepted is finished."""
    launch = _launch()
    where = folder or launch.default_folder()
    try:
        found = launch.down(where)
    except (PointsmanError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("ended" if found else f"nothing runs by {where}")


@cluster.command("config")
@_config
@click.option("--image", help="A Kubernetes manifest (RayService) instead, with this image.")
@click.option("--redis", metavar="HOST:PORT", help="With --image: Ray keeps its tables there, and outlives its head.")
@click.option("--replicas", type=click.IntRange(min=1), help="Gateways.  [what CONFIG says]")
def config_(config: Path, image: str | None, redis: str | None, replicas: int | None) -> None:
    """Print what `serve deploy` takes to serve CONFIG, which has the same path on every node."""
    from gateway.cluster.manifest import ray_service, serve_config

    if redis is not None and image is None:
        raise click.UsageError("--redis is for a Kubernetes manifest; name its image with --image too")
    settings = _load(config)
    if replicas is not None:
        settings = replace(settings, cluster=replace(settings.cluster, replicas=replicas))
    try:
        click.echo(serve_config(settings) if image is None else ray_service(settings, image, redis), nl=False)
    except (PointsmanError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _launch() -> Any:  # Any: the module gateway.cluster.launch, imported late
    if importlib.util.find_spec("ray") is None:
        raise click.ClickException("a cluster needs its extra: pip install 'pointsman[cluster]'")
    from gateway.cluster import launch

    return launch


@main.group()
def audit() -> None:
    """Read the decision log of a configuration's store: what was decided, by whom, and why."""


@audit.command()
@_config
def verify(config: Path) -> None:
    """Check the hash chains of the decision log of CONFIG's store; tells where one is broken, and changes nothing."""
    from gateway.store import verify_log_of

    settings = _load(config)
    faults = _done(verify_log_of(settings.store))
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.ClickException(f"the decision log is broken in {len(faults)} places")
    click.echo("the decision log is whole")


@audit.command()
@_config
@click.argument("answer_id", metavar="ANSWER")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a row of the log a line.")
def show(config: Path, answer_id: str, as_json: bool) -> None:
    """Tell the path that ANSWER took: what every stage said of it, who decided, and when."""
    from gateway.audit import timeline
    from gateway.store import read_answer_log

    settings = _load(config)
    rows = _done(read_answer_log(settings.store, answer_id))
    if not rows:
        raise click.ClickException(f"the decision log has no answer {answer_id!r}; check its id, and `store`")
    click.echo("\n".join(json.dumps(row.to_dict()) for row in rows) if as_json else timeline(rows))


@audit.command()
@_config
@click.option("--since", type=_Moment(), help="From then on: 2026-11-26, or 2026-11-26T10:00:00Z.")
@click.option("--until", type=_Moment(), help="Before then.")
@click.option("--tenant", help="Whose.")
@click.option("--route", help="Of which route.")
@click.option("--out", type=click.File("wb"), default="-", help="A file, instead of standard output.")
def export(
    config: Path, since: float | None, until: float | None, tenant: str | None, route: str | None, out: IO[bytes]
) -> None:
    """Write the rows of the decision log of CONFIG's store as JSON Lines, chain by chain."""
    from gateway.store import Selection, export_log

    settings = _load(config)
    with tempfile.TemporaryFile() as rows:  # a consistent snapshot, however slow its reader is
        count = _done(export_log(settings.store, Selection(since, until, tenant, route), rows))
        rows.seek(0)
        shutil.copyfileobj(rows, out)
    click.echo(f"{count:,} rows", err=True)


@audit.command()
@_config
@click.argument("input_", metavar="INPUT", type=click.File("rb"))
def digest(config: Path, input_: IO[bytes]) -> None:
    """Print the digest that the decision log has of INPUT, a file with one item's text or bytes, by the store's key."""
    from gateway.store.key import open_key

    settings = _load(config)
    click.echo(_done(asyncio.to_thread(open_key, settings.store)).of_input(input_.read()).hex())


@main.group()
def reviews() -> None:
    """Take reviews to other labelling tools, and their decisions back."""


_format = click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "label-studio", "argilla"]),
    default="jsonl",
    show_default=True,
    help="Whose file.",
)
_tenant = click.option("--tenant", default="default", show_default=True, help="Whose reviews.")


@reviews.command("export")
@_config
@_format
@_tenant
@click.option("--queue", help="Of this queue alone.")
@click.option("--state", type=click.Choice(["open", "claimed", "decided", "all"]), default="open", show_default=True)
@click.option("--out", type=click.File("w", encoding="utf-8"), default="-", help="A file, instead of standard output.")
def export_reviews(config: Path, form: str, tenant: str, queue: str | None, state: str, out: IO[str]) -> None:
    """Write reviews with what is to be looked at, and what models propose."""
    from gateway.labelling.commands import write_reviews
    from gateway.labelling.formats import Format
    from gateway.store.contract import ReviewState

    settings = _load(config)
    wanted = None if state == "all" else ReviewState(state)
    made = _done(write_reviews(settings, tenant, queue, wanted, Format(form), out.write))
    for review_id, why in made.left_out:
        click.echo(f"{review_id}: {why}", err=True)
    click.echo(f"{made.count:,} reviews", err=True)
    if made.left_out:
        sys.exit(1)


@reviews.command("import")
@_config
@click.argument("decisions", type=click.File("r", encoding="utf-8"))
@_format
@_tenant
@click.option("--reviewer", help="What stands before the names that the other tool has. [its own name and a colon]")
def import_reviews(config: Path, decisions: IO[str], form: str, tenant: str, reviewer: str | None) -> None:
    """Make the decisions in the file DECISIONS, which that tool has exported; making them again changes nothing."""
    from gateway.labelling.commands import import_decisions
    from gateway.labelling.formats import Format, read

    settings = _load(config)
    before = reviewer if reviewer is not None else "" if form == "jsonl" else f"{form}:"
    try:
        found = list(read(decisions.read(), Format(form)))
    except ValueError as error:
        raise click.ClickException(f"{decisions.name}: {error}") from error
    made = _done(import_decisions(settings, tenant, found, before))
    for refused in made.refused:
        click.echo(f"{refused.review_id or 'a decision without a review'}: {refused.why_not}", err=True)
    click.echo(f"{made.decided:,} decided, {made.known:,} known before, {len(made.refused):,} refused")
    if made.refused:
        sys.exit(1)


@reviews.command("label-config")
@_config
@click.argument("route")
def label_config_(config: Path, route: str) -> None:
    """Print the labelling interface for Label Studio that fits the reviews of ROUTE."""
    from gateway.labelling.formats import label_config

    settings = _load(config)
    found = next(iter(settings.versions_of(route)), None)  # they share their people
    if found is None or found.human is None:
        raise click.ClickException(f"there is no route {route!r} with people; known: {', '.join(settings.names)}")
    click.echo(label_config(found.human.labels, image=found.decode == "image"))


@main.command()
@_config
@_tenant
@click.option("--queue", help="Of this queue alone.")
@click.option("--since", type=_Moment(), help="From then on, instead of the last 90 days: 2026-11-26.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reviewers(config: Path, tenant: str, queue: str | None, since: float | None, as_json: bool) -> None:
    """Tell how often reviewers are right, and how far they agree, with intervals."""
    from gateway.reviewers.commands import figures
    from gateway.reviewers.figures import RECENT_S

    settings = _load(config)
    since_s = time.time() - RECENT_S if since is None else since
    found = _done(figures(settings, tenant, queue, since_s))
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.text())


@main.group()
def gold() -> None:
    """Keep items with a known answer, which are put beside real ones to see how often reviewers are right."""


@gold.command("add")
@_config
@click.argument("queue")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@_tenant
def add_gold(config: Path, queue: str, files: tuple[Path, ...], tenant: str) -> None:
    """Add the items in FILEs to QUEUE: JSON Lines with a label, and text, file, payload or payload_b64."""
    from gateway.reviewers.gold import add

    settings = _load(config)
    added = _done(add(settings, queue, files, tenant))
    click.echo(f"{added.new:,} added, {added.known:,} known before")
    for remark in added.remarks:
        click.echo(f"note: {remark}", err=True)


@gold.command("list")
@_config
@_tenant
def list_gold(config: Path, tenant: str) -> None:
    """Tell how many gold items each queue has."""
    from gateway.reviewers.gold import listed

    settings = _load(config)
    for queue, count in _done(listed(settings, tenant)).items():
        click.echo(f"{queue}: {count.items:,} items, {count.labels:,} labels of reviewers")


@gold.command("remove")
@_config
@click.argument("queue")
@_tenant
def remove_gold(config: Path, queue: str, tenant: str) -> None:
    """Ask about the gold items of QUEUE no more; what reviewers said of them stays."""
    from gateway.reviewers.gold import remove

    settings = _load(config)
    click.echo(f"{_done(remove(settings, queue, tenant)):,} removed")


@main.group()
def webhooks() -> None:
    """Look at messages for webhooks, and have them sent anew."""


@webhooks.command()
def secret() -> None:
    """Make a signing secret, for the webhook's receiver and for `secret_env` or `secret_file`."""
    from gateway.webhooks.signing import Secret

    click.echo(Secret.new().text())


@webhooks.command("list")
@_config
@click.option("--state", type=click.Choice(["waiting", "delivered", "dead"]), help="Only these.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a message a line.")
def list_(config: Path, state: str | None, limit: int, as_json: bool) -> None:
    """Tell what became of messages, the newest first."""
    from gateway.store import list_messages
    from gateway.store.contract import OutboxState

    settings = _load(config)
    wanted = None if state is None else OutboxState(state)
    for one in _done(list_messages(settings.store, wanted, limit)):
        told = {
            "id": one.message.id,
            "webhook": one.message.webhook,
            "answer_id": one.answer_id,
            "state": one.state,
            "attempts": one.attempts,
            "last": one.last,
        }
        click.echo(json.dumps(told) if as_json else "  ".join(str(value) for value in told.values() if value != ""))


@webhooks.command()
@_config
@click.argument("ids", nargs=-1, metavar="[MESSAGE]...")
@click.option("--dead", is_flag=True, help="All that are dead, instead of those named.")
def redeliver(config: Path, ids: tuple[str, ...], dead: bool) -> None:
    """Have messages sent anew, by the gateway that serves CONFIG's store, or the next that does."""
    from gateway.store import redeliver as send_anew

    if bool(ids) == dead:
        raise click.UsageError("name messages, or give --dead; `pointsman webhooks list` tells which there are")
    settings = _load(config)
    count = _done(send_anew(settings.store, None if dead else ids))
    click.echo(f"{count} messages are sent anew")
    if count < len(ids):
        raise click.ClickException(f"{len(ids) - count} of these are unknown, or forgotten since")


@main.command()
@_config
@click.option("--subject", help="Of every answer about them, as its callers name them; - reads it from standard input.")
@click.option("--answer", "answer_id", metavar="ANSWER", help="Of this answer.")
@click.option("--tenant", default="default", show_default=True, help="Whose.")
def erase(config: Path, subject: str | None, answer_id: str | None, tenant: str) -> None:
    """Erase what CONFIG's store has of somebody, or of one answer: inputs, outputs, and texts made of them.

    The decision log stays whole: it keeps its digests, and says that there was an erasure, and when. Reviews that are
    open are cancelled, and gold items that show the same input are removed. Doing it again erases what came since.
    """
    from gateway.erase import erase as erase_from_store
    from gateway.keys import parse_answer_id, parse_subject
    from gateway.store.contract import Erasure

    if (subject is None) == (answer_id is None):
        raise click.UsageError("give --subject or --answer, one of them")
    settings = _load(config)
    try:
        named = None if subject is None else parse_subject(sys.stdin.readline().strip() if subject == "-" else subject)
        known = None if answer_id is None else parse_answer_id(answer_id)
    except PointsmanError as error:
        raise click.ClickException(str(error)) from error
    erased = _done(erase_from_store(settings, Erasure(tenant, "operator:pointsman erase", named, known)))
    gold = f", {erased.gold:,} gold items removed" if erased.gold else ""
    click.echo(f"{erased.answers:,} answers erased, {erased.reviews:,} open reviews cancelled{gold}")
    if not erased.is_overwritten:
        click.echo(f"its bytes may stand in the store's file still; at a quiet time: pointsman store vacuum {config}")


@main.group()
def store() -> None:
    """Back up a configuration's store, put a backup back, and look after its file and its key."""


@store.command()
@_config
@click.argument("target", type=click.Path(path_type=Path))
def backup(config: Path, target: Path) -> None:
    """Copy CONFIG's store to the new file TARGET, checked, whether or not a gateway is using it."""
    from gateway.store import back_up

    settings = _load(config)
    size = _done(asyncio.to_thread(back_up, settings.store, target))
    click.echo(f"{target}: {size:,} bytes, whole")


@store.command()
@_config
@click.argument("source", type=click.Path(path_type=Path))
def restore(config: Path, source: Path) -> None:
    """Put the backup SOURCE in the place of CONFIG's store, while no gateway runs; the store that was there is kept."""
    from gateway.store import restore as put_back

    settings = _load(config)
    former = _done(asyncio.to_thread(put_back, settings.store, source))
    click.echo(f"{settings.store.path}: restored from {source}" + (f"; before: {former}" if former else ""))


@store.command()
@_config
def vacuum(config: Path) -> None:
    """Write the file of CONFIG's store anew, so that nothing that was deleted stands in it; writers wait meanwhile."""
    from gateway.store import overwrite_beside

    settings = _load(config)
    if not _done(asyncio.to_thread(overwrite_beside, settings.store)):
        raise click.ClickException("somebody has been reading the store all the time; try again")
    click.echo(f"{settings.store.path}: {settings.store.path.stat().st_size:,} bytes, nothing deleted among them")


@store.command("key")
def store_key() -> None:
    """Make a key for `store: {key_env: ...}` or `key_file`, which digests of subjects and inputs are made with."""
    from gateway.store.key import StoreKey

    click.echo(StoreKey.new().text())


def _done(work: Coroutine[Any, Any, _Result]) -> _Result:
    """What *work* gives; what goes wrong with it is told as an error of the command."""
    try:
        return asyncio.run(work)
    except PointsmanError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_listening
@click.option("--items", type=click.IntRange(min=1), help="How many held-out items to send.")
@click.option("--once", is_flag=True, help="End when the table is printed.")
@click.option("--prepare", is_flag=True, help="Only set up, and print the folder with labelled scores for `certify`.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on the last line.")
@click.option("--cluster", "replicas", type=click.IntRange(min=1), help="On Ray Serve, by so many replicas.")
def demo(items: int | None, once: bool, prepare: bool, as_json: bool, replicas: int | None, **listening: Any) -> None:
    """An intake desk on real models, real data and recorded people: sends requests, prints what became of them."""
    try:
        from gateway.demo.run import DemoOptions
        from gateway.demo.run import main as run_demo
    except ImportError as error:
        raise click.ClickException(f"the demo needs its extra ({error.name}): pip install 'pointsman[demo]'") from error
    sys.exit(
        run_demo(
            DemoOptions(
                once=once,
                prepare=prepare,
                as_json=as_json,
                **_given({"items": items, "replicas": replicas, **listening}),
            )
        )
    )


def _load(config: Path) -> Settings:
    try:
        return load_settings(config)
    except SettingsError as error:
        raise _with_faults(error, f"{config} has") from error


def _with_faults(error: SettingsError, what: str) -> click.ClickException:
    """The error of a command that cannot go on; its faults are told before it is."""
    for fault in error.faults:
        click.echo(str(fault), err=True)
    return click.ClickException(f"{what} {len(error.faults)} faults")


if __name__ == "__main__":
    main()
