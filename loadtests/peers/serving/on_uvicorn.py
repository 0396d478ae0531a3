"""What HTTP and JSON cost in Python without a gateway: an ASGI application that does nothing else.

python -m loadtests.peers.serving.on_uvicorn PORT
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
import orjson
import uvicorn

Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Every request is an inference of the Open Inference Protocol in JSON; nothing is checked."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    (tensor,) = orjson.loads(body)["inputs"]
    y = np.array(tensor["data"], np.float32) * np.float32(2)
    outputs = [{"name": "y", "datatype": "FP32", "shape": tensor["shape"], "data": y}]
    reply = orjson.dumps({"model_name": "dbl", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), http="httptools", loop="uvloop", lifespan="off", ws="none",
        log_level="warning", access_log=False,
    )  # fmt: skip
