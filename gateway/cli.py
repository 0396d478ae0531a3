"""The command `pointsman`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from backends.errors import PointsmanError
from gateway.settings import MAX_WORKERS, ServerOptions, Settings, SettingsError, load_settings, settings_schema

_Command = TypeVar("_Command", bound=Callable[..., Any])

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


def _announce(settings: Settings, addresses: Any) -> None:  # Any: gateway.serve.Addresses, imported late
    routes = ",".join(settings.routes)
    click.echo(
        f"pointsman ready http=http://{addresses.http} grpc={addresses.grpc} "
        f"control=http://{addresses.control} routes={routes}"
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

        try:
            asyncio.run(check_models(settings))
        except PointsmanError as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{config}: {len(settings.models)} models, {len(settings.routes)} routes, no faults")


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


@main.command()
@click.argument("scores", type=click.Path(path_type=Path), required=False)
@click.option("--max-error", type=_Share(), help="Share of accepted answers that may be wrong, as 1%; the route's.")
@click.option("--confidence", type=_Share(), help="How sure the proof must be. [95%]")
@click.option("--route", metavar="NAME", help="The route to certify; its certificate is kept in the store.")
@click.option("--config", type=click.Path(path_type=Path), help="The configuration with the route and the store.")
@click.option("--missing", type=click.Choice(["hold", "wrong", "drop"]),
              help="The store's items without a label: end at the first, count all as wrong, or (labels are a random "
              "sample) leave them out. [hold]")  # fmt: skip
@click.option("--people-only", is_flag=True, help="Of the store's labels, take people's decisions alone.")
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
    _refuse_idle({"missing": how["missing"], "people-only": how["people_only"]}, "is about the store", scores is None)
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


@main.command("verify-log")
@_config
def verify_log(config: Path) -> None:
    """Check the hash chains of the decision log of CONFIG's store; tells where one is broken, and changes nothing."""
    from gateway.store import verify_log_file

    settings = _load(config)
    try:
        faults = asyncio.run(verify_log_file(settings.store))
    except PointsmanError as error:
        raise click.ClickException(str(error)) from error
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.ClickException(f"the decision log is broken in {len(faults)} places")
    click.echo("the decision log is whole")


@main.command()
@_listening
@click.option("--items", type=click.IntRange(min=1), help="How many held-out items to send.")
@click.option("--once", is_flag=True, help="End when the table is printed.")
@click.option("--prepare", is_flag=True, help="Only set up, and print the folder with labelled scores for `certify`.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on the last line.")
def demo(items: int | None, once: bool, prepare: bool, as_json: bool, **listening: Any) -> None:
    """An intake desk on real models, real data and recorded people: sends requests, prints what became of them."""
    try:
        from gateway.demo.run import DemoOptions
        from gateway.demo.run import main as run_demo
    except ImportError as error:
        raise click.ClickException(f"the demo needs its extra ({error.name}): pip install 'pointsman[demo]'") from error
    sys.exit(
        run_demo(DemoOptions(once=once, prepare=prepare, as_json=as_json, **_given({"items": items, **listening})))
    )


def _load(config: Path) -> Settings:
    try:
        return load_settings(config)
    except SettingsError as error:
        for fault in error.faults:
            click.echo(str(fault), err=True)
        raise click.ClickException(f"{config} has {len(error.faults)} faults") from error


if __name__ == "__main__":
    main()
