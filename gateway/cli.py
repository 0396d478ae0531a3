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
from gateway.settings import ServerOptions, Settings, SettingsError, load_settings, settings_schema

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
@click.option("--insecure", is_flag=True, help="Listen on any address without API keys.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def serve(config: Path, insecure: bool, log_level: str, **listening: Any) -> None:
    """Serve the routes of CONFIG until SIGTERM or Ctrl-C."""
    from gateway import serve as process
    from gateway.security import check_binding
    from gateway.telemetry import configure_logging

    configure_logging(log_level)
    settings = _load(config)
    settings = replace(settings, server=_listen_as_told(settings.server, listening))
    try:
        check_binding(settings.server.host, settings.security, insecure)
        process.run(settings, lambda addresses: _announce(settings, addresses))
    except (PointsmanError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


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
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on the last line.")
def demo(items: int | None, once: bool, as_json: bool, **listening: Any) -> None:
    """An intake desk on real models, real data and recorded people: sends requests, prints what became of them."""
    try:
        from gateway.demo.run import DemoOptions
        from gateway.demo.run import main as run_demo
    except ImportError as error:
        raise click.ClickException(f"the demo needs its extra ({error.name}): pip install 'pointsman[demo]'") from error
    sys.exit(run_demo(DemoOptions(once=once, as_json=as_json, **_given({"items": items, **listening}))))


def _load(config: Path) -> Settings:
    try:
        return load_settings(config)
    except SettingsError as error:
        for fault in error.faults:
            click.echo(str(fault), err=True)
        raise click.ClickException(f"{config} has {len(error.faults)} faults") from error


if __name__ == "__main__":
    main()
