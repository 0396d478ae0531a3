"""Keeping a replica to its machine, where its Ray is one of this machine alone.

Serve opens a port in each replica for calls by gRPC, on every interface whatever address Ray was given, and takes
pickled requests there. No call of ours comes that way. Where Ray is on 127.0.0.1, that port is put there too.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("pointsman.ray_serve")

_EVERYWHERE = "[::]:0"


def stay_on_loopback() -> None:
    """Called in a replica's `__init__`, after which Serve opens that port; it is Serve's own code that is changed."""
    import ray
    from ray.serve._private import replica

    if not ray.util.get_node_ip_address().startswith("127."):
        return
    add_port = getattr(replica, "add_port_to_grpc_server", None)
    if add_port is None:
        log.warning("this Ray opens its replicas' ports in another way; see whether they are open to other machines")
        return

    def add_loopback_port(server: Any, address: str) -> Any:  # Any: gRPC's server, and a port
        return add_port(server, "127.0.0.1:0" if address == _EVERYWHERE else address)

    replica.add_port_to_grpc_server = add_loopback_port
