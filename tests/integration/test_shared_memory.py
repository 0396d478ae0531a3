"""Clients of Triton share memory with a running gateway unchanged: HTTP and gRPC, synchronous and asynchronous."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests.integration.process import CONFIG, GatewayProcess, running
from tests.integration.test_v1 import call

TOTAL = """
  total:
    backend: python
    target: tests.integration.models:total
    inputs: [{name: x, datatype: FP32, shape: [-1]}]
    outputs: [{name: y, datatype: FP32, shape: [1]}]
    expose: true

routes:"""
SHARING = CONFIG.replace("\nroutes:", TOTAL) + "\nserver: {shared_memory: {enabled: true, limit: 256MiB}}\n"
MODULES = {
    "http": triton_http,
    "http.aio": triton_http_aio,
    "grpc": triton_grpc,
    "grpc.aio": triton_grpc_aio,
}


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that shares memory."""
    with running(tmp_path_factory.mktemp("sharing"), SHARING) as process:
        yield process


@contextmanager
def an_object(size: int) -> Iterator[tuple[str, Any]]:
    """A shared memory object of *size* bytes as tritonclient makes one: its key, and its handle."""
    key = f"/pointsman-test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("data", key, size, create_only=True)
    try:
        yield key, handle
    finally:
        shm.destroy_shared_memory_region(handle)


async def done(result: Any) -> Any:
    """What a call of either kind of client comes to."""
    return await result if inspect.isawaitable(result) else result


@pytest.fixture(params=MODULES)
async def flavour(request: pytest.FixtureRequest, sharing: GatewayProcess) -> Any:
    """Each of tritonclient's modules, and a client of it."""
    module: Any = MODULES[request.param]
    address = sharing.grpc if "grpc" in request.param else sharing.http.removeprefix("http://")
    client = module.InferenceServerClient(address)
    yield module, client
    await done(client.unregister_system_shared_memory())
    await done(client.close())


async def test_tensors_go_both_ways_through_memory(flavour: Any) -> None:
    module, client = flavour
    sent = np.arange(300_000, dtype=np.float32).reshape(2, -1)
    with an_object(2 * sent.nbytes + 64) as (key, handle):
        shm.set_shared_memory_region(handle, [sent], offset=64)
        await done(client.register_system_shared_memory("data", key, 2 * sent.nbytes + 64))
        tensor = module.InferInput("x", list(sent.shape), "FP32")
        tensor.set_shared_memory("data", sent.nbytes, offset=64)
        output = module.InferRequestedOutput("y")
        output.set_shared_memory("data", sent.nbytes, offset=64 + sent.nbytes)

        result = await done(client.infer("double", [tensor], outputs=[output]))

        told = result.get_output("y")
        shape, datatype = (told["shape"], told["datatype"]) if isinstance(told, dict) else (told.shape, told.datatype)
        assert (list(shape), datatype) == ([2, 150_000], "FP32")
        written = shm.get_contents_as_numpy(handle, np.float32, list(shape), offset=64 + sent.nbytes)
        np.testing.assert_array_equal(written, sent * 2)
        del written


async def test_texts_go_both_ways_through_memory(flavour: Any) -> None:
    module, client = flavour
    packed = serialize_byte_tensor(np.array([[b"fast=0.95:b"], [b"fast=0.99:c"]], dtype=object))
    size = len(packed.item())
    with an_object(1024) as (key, handle):
        shm.set_shared_memory_region(handle, [packed])
        await done(client.register_system_shared_memory("data", key, 1024))
        tensor = module.InferInput("text", [2, 1], "BYTES")
        tensor.set_shared_memory("data", size)
        output = module.InferRequestedOutput("label")
        output.set_shared_memory("data", 512, offset=512)

        await done(client.infer("words", [tensor], outputs=[output]))

        assert shm.get_contents_as_numpy(handle, np.object_, [2, 1], offset=512).tolist() == [[b"b"], [b"c"]]


async def test_a_client_sees_its_regions_and_what_is_wrong(flavour: Any) -> None:
    module, client = flavour
    with an_object(64) as (key, _):
        await done(client.register_system_shared_memory("data", key, 48, offset=16))

        status = await done(client.get_system_shared_memory_status())
        found = status[0] if isinstance(status, list) else status.regions["data"]
        expected = {"name": "data", "key": key, "offset": 16, "byte_size": 48}
        assert (found if isinstance(found, dict) else {name: getattr(found, name) for name in expected}) == expected
        with pytest.raises(InferenceServerException, match="'data' already in manager"):
            await done(client.register_system_shared_memory("data", key, 48))
        output = module.InferRequestedOutput("y")
        output.set_shared_memory("data", 7)
        tensor = module.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
        with pytest.raises(InferenceServerException, match="'y' takes 8 bytes, and its place in shared memory has 7"):
            await done(client.infer("double", [tensor], outputs=[output]))

        await done(client.unregister_system_shared_memory("data"))
        assert not await _listed(client)
    assert not await _listed(client)


async def _listed(client: Any) -> Any:
    status = await done(client.get_system_shared_memory_status())
    return status if isinstance(status, list) else status.regions


async def test_an_output_in_memory_leaves_others_readable_from_the_reply(flavour: Any) -> None:
    module, client = flavour
    with an_object(256) as (key, handle):
        await done(client.register_system_shared_memory("data", key, 256))
        tensor = module.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"fast=0.95:b"]], dtype=object))
        placed, plain = module.InferRequestedOutput("probabilities"), module.InferRequestedOutput("label")
        placed.set_shared_memory("data", 256)

        result = await done(client.infer("words", [tensor], outputs=[placed, plain]))

        assert result.as_numpy("label").tolist() == [[b"b"]]
        scores = shm.get_contents_as_numpy(handle, np.float32, [3]).tolist()
        assert scores == pytest.approx([0.025, 0.95, 0.025])


def test_a_person_is_shown_what_the_model_saw_whatever_the_client_did_then(sharing: GatewayProcess) -> None:
    seen, later = b"fast=0.5 strong=0.4:a", b"fast=0.1 strong=0.1:c"
    address = sharing.http.removeprefix("http://")
    with an_object(64) as (key, handle), triton_http.InferenceServerClient(address) as client:
        client.register_system_shared_memory("person", key, 64)
        packed = serialize_byte_tensor(np.array([[seen]], dtype=object))
        shm.set_shared_memory_region(handle, [packed])
        tensor = triton_http.InferInput("text", [1, 1], "BYTES")
        tensor.set_shared_memory("person", len(packed.item()))

        result = client.infer("words", [tensor])

        shm.set_shared_memory_region(handle, [serialize_byte_tensor(np.array([[later]], dtype=object))])
        answer_id = result.get_response()["parameters"]["pointsman_answer_id"]
        client.unregister_system_shared_memory("person")
    reviews = call(f"{sharing.control}/v1/reviews?queue=words&limit=200").body["reviews"]
    (review,) = (review for review in reviews if review["answer_id"] == answer_id)
    text = json.dumps(call(f"{sharing.control}/v1/reviews/{review['id']}").body)
    assert seen.decode() in text
    assert later.decode() not in text


def own_bytes(process: psutil.Process) -> int:
    """Resident, without the pages that it shares, which come and go as the system likes."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_large_inputs_through_memory_leave_the_process_as_small_as_it_was(
    sharing: GatewayProcess, protocol: str
) -> None:
    """Of 100 requests with 10 MB each, 5 MB stay at most, which is half of one."""
    module: Any = MODULES[protocol]
    values = np.ones((1, 2_500_000), dtype=np.float32)
    address = sharing.grpc if protocol == "grpc" else sharing.http.removeprefix("http://")
    with an_object(values.nbytes) as (key, handle), module.InferenceServerClient(address) as client:
        shm.set_shared_memory_region(handle, [values])
        client.register_system_shared_memory(protocol, key, values.nbytes)
        tensor = module.InferInput("x", list(values.shape), "FP32")
        tensor.set_shared_memory(protocol, values.nbytes)
        process = psutil.Process(sharing.process.pid)
        for _ in range(20):
            client.infer("total", [tensor])
        before = own_bytes(process)

        for _ in range(100):
            assert client.infer("total", [tensor]).as_numpy("y").tolist() == [[2_500_000.0]]

        assert own_bytes(process) - before < 5_000_000
        client.unregister_system_shared_memory(protocol)
