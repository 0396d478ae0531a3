"""Conversations in `ModelStreamInfer`: what is sent, and what comes back for each request."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.conformance.observed import of_error, of_grpc_inference, of_rpc_error

# Any, throughout: tritonclient's messages are untyped.


@dataclass(frozen=True, slots=True)
class Script:
    """The requests of one stream, as messages or as bytes that stand for one."""

    name: str
    requests: tuple[Any, ...]


def observe(script: Script, channel: grpc.Channel) -> dict[str, object]:
    """The facets of the reply to each request, and how the stream ended.

    A request goes out when the one before has its reply: what is answered after an error shows that the stream is open.
    """
    talk: Any = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    replies = talk(iter(waiting.get, None), timeout=30)
    found: dict[str, object] = {}
    try:
        for number, request in enumerate(script.requests):
            waiting.put(request if isinstance(request, bytes) else request.SerializeToString())
            found |= {f"{number}.{facet}": value for facet, value in _of_reply(next(replies)).items()}
        waiting.put(None)
        found |= {"status": "OK", "left over": len(list(replies))}
    except StopIteration:
        found["status"] = "ended early"
    except grpc.RpcError as error:
        found |= of_rpc_error(error)
    finally:
        waiting.put(None)
    return found


def _of_reply(reply: Any) -> dict[str, object]:
    if reply.error_message:
        return {"id": reply.infer_response.id, **of_error(reply.error_message)}
    return of_grpc_inference(reply.infer_response)


def _request(request_id: str, model: str = "dbl", width: int = 16, **members: Any) -> Any:
    tensor = {"name": "x", "shape": [1, width], "datatype": "FP32"}
    data = (np.arange(width, dtype=np.float32) - 1).tobytes()
    return service_pb2.ModelInferRequest(
        model_name=model, id=request_id, inputs=[tensor], raw_input_contents=[data], **members
    )


_FINAL = {"triton_enable_empty_final_response": {"bool_param": True}}

SCRIPTS = (
    Script("several requests", tuple(_request(str(number)) for number in range(5))),
    Script("without ids", (_request(""), _request(""))),
    Script("no requests", ()),
    Script("no such model in the middle", (_request("a"), _request("b", "nowhere"), _request("c"))),
    Script("no such version in the middle", (_request("a"), _request("b", model_version="7"), _request("c"))),
    Script("a wrong shape in the middle", (_request("a"), _request("b", width=15), _request("c"))),
    Script("a failure in the middle", (_request("a"), _request("b", "fails"), _request("c"))),
    Script("an error first", (_request("a", "nowhere"), _request("b"))),
    Script("an empty final response asked for", (_request("a", parameters=_FINAL), _request("b"))),
    Script("a message that is none", (_request("a"), b"\xff\xff\xff")),
)
