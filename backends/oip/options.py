"""What a model on another server can set: where the servers are, and what is expected of them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from backends.credentials import certificates, key_in_environment
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


SERVERS_RUNNING_ONLY = frozenset(
    {"url", "token_env", "ca", "connect_timeout_s", "open_timeout_s", "max_reply_bytes", "replicas"}
)
"""Of `ServerOptions`, those that decide how servers are asked, and not what they answer."""


def remote_of(model_name: str, url: str, options: ServerOptions) -> Remote:
    """What speaks to the server at *url*; nothing is connected yet.

    Raises:
        InvalidInput: the token or the certificates are not there.
    """
    address = Address.parse(url)
    token = key_in_environment(options.token_env, "token_env") if options.token_env else None
    ca = certificates(options.ca)
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
