"""What a model on another server can set: where the servers are, and what is expected of them."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from backends.errors import InvalidInput
from backends.http_client import HttpClient
from backends.oip.address import Address
from backends.oip.grpc_remote import GrpcRemote, channel
from backends.oip.http_remote import HttpRemote
from backends.oip.remote import Remote
from backends.replicas import ReplicaOptions


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What every kind of backend on another server has.

    Attributes:
        url: of the server, or of each of several that serve the same model: grpc://host:8001, http://host:8000, or
            with TLS grpcs://, https://.
        model: what the model is called there; the name that it has here where this is empty.
        version: which one is asked for; empty: the latest when the gateway starts or loads the model.
        token_env: environment variable with a token that is sent to the servers (`Authorization: Bearer`).
        ca: certificates (PEM) that prove the servers; empty: those that the system trusts.
        connect_timeout_s: within which a connection stands, in seconds.
        open_timeout_s: within which a server says what it serves, in seconds.
        max_reply_bytes: most that an answer may have.
        replicas: how calls are divided over the servers, and what is done about failures.
    """

    url: str | tuple[str, ...]
    model: str = ""
    version: str = ""
    token_env: str = ""
    ca: Path | None = None
    connect_timeout_s: float = 2.0
    open_timeout_s: float = 10.0
    max_reply_bytes: int = 256 * 1024 * 1024
    replicas: ReplicaOptions = field(default_factory=ReplicaOptions)

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "open_timeout_s", "max_reply_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not self.urls:
            raise ValueError("url is empty; name at least one server, such as grpc://host:8001")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("url names a server twice; name each once")
        for url in self.urls:
            try:
                Address.parse(url)
            except InvalidInput as error:
                raise ValueError(str(error)) from error

    @property
    def urls(self) -> tuple[str, ...]:
        """Every server's."""
        return (self.url,) if isinstance(self.url, str) else self.url


def remote_of(model_name: str, url: str, options: ServerOptions) -> Remote:
    """What speaks to the server at *url*; nothing is connected yet.

    Raises:
        InvalidInput: the token or the certificates are not there.
    """
    address = Address.parse(url)
    token = _token(options.token_env)
    ca = _certificates(options.ca)
    if address.is_grpc:
        credentials = grpc.ssl_channel_credentials(ca.encode() if ca else None) if address.is_secure else None
        return GrpcRemote(
            model_name,
            lambda: channel(address.authority, credentials=credentials, limit_bytes=options.max_reply_bytes),
            token,
        )
    tls = ssl.create_default_context(cadata=ca) if address.is_secure else None
    client = HttpClient(
        address.host,
        address.port,
        authority=address.authority,
        headers={"Authorization": f"Bearer {token}"} if token else None,
        tls=tls,
        connect_timeout_s=options.connect_timeout_s,
        limit_bytes=options.max_reply_bytes,
    )
    return HttpRemote(model_name, client, address.base)


def _token(variable: str) -> str | None:
    if not variable:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise InvalidInput(f"environment variable {variable!r}, named as `token_env`, is not set; set it to the token")
    if not token.isascii() or not token.isprintable():
        raise InvalidInput(f"environment variable {variable!r} holds more than a token; set it to the token alone")
    return token


def _certificates(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        found = file.read_bytes().decode("ascii", "ignore")  # bundles have names in them, as comments
    except OSError as error:
        raise InvalidInput(f"ca: {file} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, ValueError) as error:  # of an empty file: what the system trusts must not stand in for it
        raise InvalidInput(f"ca: {file} holds no certificates; write them as PEM") from error
    return found
