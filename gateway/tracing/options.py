"""What an operator says of traces, and the headers that only a file or the environment may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_HEADERS_LIMIT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class TracesOptions:
    """Where spans go, and of which requests.

    Attributes:
        endpoint: of the receiver, without `/v1/traces`.
        sample: share of the requests that are recorded whose callers have not decided about it, in [0, 1].
        service_name: as which this gateway appears.
        headers_file: file with headers for the receiver, `Name: value` a line; None: those of the environment alone.
        ca: certificates (PEM) that prove the receiver; None: those that are usual.
        timeout_s: what one export may take, its repetitions included, in seconds.
        max_queue: most spans that wait, or are under way; what does not fit is dropped.

    Raises:
        ValueError: lists every value that makes no sense.
    """

    endpoint: str
    sample: float = 0.01
    service_name: str = "pointsman"
    headers_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = 10.0
    max_queue: int = 8192

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        yield from _faults_of_url(self.endpoint)
        if not 0.0 <= self.sample <= 1.0:
            yield f"sample is {self.sample}; use 0% to 100%"
        if not self.service_name:
            yield "service_name is empty; name the gateway"
        if self.timeout_s <= 0.0:
            yield f"timeout is {self.timeout_s}; use something above 0"
        if self.max_queue < 1:
            yield f"max_queue is {self.max_queue}; use at least 1"
        if self.ca is not None and not self.endpoint.lower().startswith("https:"):
            yield "ca stands beside an endpoint without TLS; write https, or take ca out"

    @property
    def url(self) -> str:
        """Where spans are sent."""
        return f"{self.endpoint.rstrip('/')}/v1/traces"


def _faults_of_url(url: str) -> Iterator[str]:
    """What is wrong with *url*, which is not repeated: somebody may have written a key into it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        yield "endpoint is malformed; write it as http://127.0.0.1:4318"
        return
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield "endpoint is no server's; write it as http://127.0.0.1:4318"
    if parts.username is not None or parts.password is not None:
        yield "endpoint has credentials in it; name a `headers_file` instead"
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/v1/traces"):
        yield "endpoint goes on after what is needed; end it before /v1/traces, without a query"


def read_headers(path: Path) -> Mapping[str, str]:
    """The headers in a file: `Name: value` a line.

    Raises:
        ValueError: it cannot be read, or a line is none; no value is repeated.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_HEADERS_LIMIT_BYTES).decode("latin-1")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct the path or its permissions") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value.strip()):
            raise ValueError(f"line {number} of {path} is no header (it is not shown); write it as Name: value")
        found[name] = value.strip()
    return found


def why_not_tracing() -> str | None:
    """What keeps this installation from exporting spans, and the remedy; None: nothing."""
    for package in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return "needs OpenTelemetry, which is not installed; pip install 'pointsman[tracing]'"
    return None
