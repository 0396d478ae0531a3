"""Which of two transports carries the gRPC data plane; both serve the same calls, under one suite of tests.

**grpcio** serves everywhere. **native** is `pygrpc-native`, HTTP/2 and gRPC in Rust outside the GIL, whose calls reach
the event loop in batches: a fraction of the time per call. It cannot take grpcio's place where strangers can connect:

| what a client does | grpcio 1.85 | native 0.5.0 |
|---|---|---|
| sends more than `max_body` | refused by its length prefix | taken into memory, up to 4 GiB, then refused (1) |
| sends gzip of gigabytes | refused at the limit | unpacked whole, then refused (1) |
| floods with pings | the connection ends | answered; neighbours are served (1) |
| resets calls as fast as it makes them | goes on; neighbours are served (2) | the connection ends |
| compresses with deflate | read | UNIMPLEMENTED: gzip, or nothing |
| names a compression that nobody knows | INTERNAL | UNIMPLEMENTED |
| claims 4 GiB, and sends nothing | RESOURCE_EXHAUSTED | INTERNAL: the message is missing |
| sends a grpc-timeout that is none | INTERNAL | none: the route's deadline holds |
| must not repeat a call by itself | pushback metadata says so | headers ahead of the trailers say so (3) |
| connects while the gateway drains | refused by the kernel | each call is UNAVAILABLE until the end |

(1) What protects instead: `auto` takes grpcio where other machines can connect. (2) Of sixteen connections that do so
at a time; see `on_grpcio`. (3) A call is committed once its headers have come (gRFC A6). `tests/faults/test_grpc.py`
holds both transports to this table.

So `auto` is native where only this machine can connect (loopback, as beside a proxy that bounds messages) and the
package is installed, and grpcio otherwise. `native` takes it anywhere, for a network of friends. Neither speaks TLS.

Rejected: native for every listener, with a watch on memory (nothing tells which connection fills it before the message
is whole); a filter in Python before it, which reads every frame's header (it would cost what native saves); the
package's own `aio.server()`, whose context for every call takes longer than the call.
"""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from typing import Protocol

from gateway.security import is_loopback

PACKAGE = "pygrpc_native"


class Transport(StrEnum):
    """What `server: {grpc_transport: ...}` says."""

    AUTO = "auto"
    NATIVE = "native"
    GRPCIO = "grpcio"


class Listener(Protocol):
    """A transport, bound to one address."""

    async def start(self) -> int:
        """Listen; the port.

        Raises:
            OSError: the address cannot be bound.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give those in flight *grace_s* seconds, and end what is left then."""
        ...

    async def hand_over(self, grace_s: float) -> None:
        """As `stop`, where others listen on the port too, and callers are to go on with them."""
        ...


def why_not_native() -> str | None:
    """What keeps the native transport from serving on this machine, and the remedy; None: nothing."""
    try:
        import_module(PACKAGE)
    except ModuleNotFoundError:
        return "needs pygrpc-native, which is not installed (Linux and macOS: pip install pygrpc-native); or say auto"
    except ImportError as error:
        return f"needs pygrpc-native, which this machine cannot load: {error}; say auto, or grpcio"
    return None


def chosen(wanted: Transport, host: str) -> Transport:
    """NATIVE or GRPCIO, for a listener on *host*.

    Raises:
        ValueError: NATIVE is wanted and cannot serve; says why.
    """
    if wanted is Transport.AUTO:
        return Transport.NATIVE if is_loopback(host) and why_not_native() is None else Transport.GRPCIO
    if wanted is Transport.NATIVE and (why := why_not_native()) is not None:
        raise ValueError(f"grpc_transport: native {why}")
    return wanted
