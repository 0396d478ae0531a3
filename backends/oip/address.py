"""Where a server is: `grpc://host:port`, or `http://host:port/base`; `grpcs` and `https` with TLS."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from backends.errors import InvalidInput

_PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
_REMEDY = "write grpc://host:8001 or http://host:8000"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address.

    Attributes:
        is_grpc: gRPC, or else HTTP/1.1.
        is_secure: over TLS.
        base: what stands before /v2 in an HTTP server's paths; "" as a rule.
    """

    host: str
    port: int
    is_grpc: bool
    is_secure: bool
    base: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address that *url* is.

        Raises:
            InvalidInput: it is none, or says what belongs elsewhere.
        """
        _, has_credentials, rest = url.rpartition("@")
        if has_credentials:  # before any other fault, whose message would show them
            raise InvalidInput(f"the url of {rest!r} has credentials in it; name a `token_env` instead")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"url {url!r} is malformed ({error}); {_REMEDY}") from error
        is_plain = url.isascii() and url.isprintable() and " " not in url  # as a request's first line has to be
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or not is_plain:
            raise InvalidInput(f"url {url!r} is no server's; {_REMEDY}")
        is_grpc = parts.scheme in ("grpc", "grpcs")
        base = parts.path.rstrip("/")
        if parts.query or parts.fragment or (is_grpc and base) or base.endswith("/v2"):
            raise InvalidInput(f"url {url!r} goes on after what is needed; end it before /v2, without a query")
        return cls(parts.hostname, port or _PORTS[parts.scheme], is_grpc, parts.scheme in ("https", "grpcs"), base)

    @property
    def authority(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
