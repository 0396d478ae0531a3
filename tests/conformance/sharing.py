"""What users of tritonclient do with system shared memory, and what they see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm

from tests.conformance.clients import Action, Client, got, seen
from tests.conformance.observed import elements, of_message

SENT = np.arange(32, dtype=np.float32).reshape(2, 16)
SIZE = SENT.nbytes
BEHIND = 2 * SIZE
"""Where the output goes, behind the input and a gap."""

# Any, throughout: tritonclient is untyped.


@dataclass(frozen=True, slots=True)
class Memory:
    """A shared memory object that holds `SENT`, and has room for the answer.

    Attributes:
        region: what servers are to call it, in no other test: Triton keeps a region for a while after its last use.
    """

    key: str
    region: str
    handle: Any

    def answer(self) -> list[object]:
        """What stands where the output goes."""
        return elements(shm.get_contents_as_numpy(self.handle, np.float32, [2, 16], BEHIND))


async def _register(client: Client, memory: Memory, size: int = 4 * SIZE, offset: int = 0) -> None:
    await got(client.client.register_system_shared_memory(memory.region, memory.key, size, offset))


async def _infer(client: Client, memory: Memory, size: int = SIZE, offset: int = 0, out: int | None = None) -> Any:
    tensor = client.module.InferInput("x", [2, 16], "FP32")
    tensor.set_shared_memory(memory.region, size, offset)
    output = client.output("y")
    if out is not None:
        output.set_shared_memory(memory.region, out, BEHIND)
    return await got(client.client.infer("dbl", [tensor], outputs=[output]))


async def _status(client: Client, memory: Memory, name: str = "") -> object:
    """Where the region lies in its object, if there is one, as numbers: protobuf's JSON has 64-bit numbers as text."""
    found = await got(client.client.get_system_shared_memory_status(name))
    regions = found if isinstance(found, list) else list(of_message(found)["regions"].values())
    places = {found["name"]: (int(found["offset"]), int(found["byte_size"])) for found in regions}
    return places.get(memory.region)


async def _both_ways(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    result = await _infer(client, memory, out=SIZE)
    output = result.get_output("y")
    described = of_message(output) if client.is_grpc else output
    return {"shape": [int(n) for n in described["shape"]], "elements": memory.answer()}


async def _in(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    return elements((await _infer(client, memory)).as_numpy("y"))


async def _status_told(client: Client, memory: Memory) -> object:
    await _register(client, memory, SIZE)
    return {"of all": await _status(client, memory), "of one": await _status(client, memory, memory.region)}


async def _within_a_page(client: Client, memory: Memory) -> object:
    await _register(client, memory, SIZE, offset=SIZE)
    return await _status(client, memory)


async def _status_of_none(client: Client, memory: Memory) -> object:
    return await _status(client, memory, "nowhere")


async def _twice(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    await _register(client, memory)
    return {}


async def _no_such_object(client: Client, memory: Memory) -> object:
    await _register(client, replace(memory, key=f"{memory.key}-nowhere"))
    return {}


async def _beyond_the_object(client: Client, memory: Memory) -> object:
    await _register(client, memory, 1 << 30)
    return {}


async def _no_region(client: Client, memory: Memory) -> object:
    return await _infer(client, memory)


async def _input_beyond_the_region(client: Client, memory: Memory) -> object:
    await _register(client, memory, SIZE)
    return await _infer(client, memory, offset=4)


async def _input_too_small(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    return await _infer(client, memory, SIZE - 4)


async def _output_too_small(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    return await _infer(client, memory, out=SIZE - 4)


async def _output_beyond_the_region(client: Client, memory: Memory) -> object:
    await _register(client, memory, 2 * SIZE)
    return await _infer(client, memory, out=SIZE)


async def _unregistered(client: Client, memory: Memory) -> object:
    await _register(client, memory)
    await got(client.client.unregister_system_shared_memory(memory.region))
    return {"left": await _status(client, memory), **await seen(Action("", lambda one: _infer(one, memory)), client)}


async def _none_to_unregister(client: Client, memory: Memory) -> object:
    await got(client.client.unregister_system_shared_memory("nowhere"))
    return await _status(client, memory)


USES: Mapping[str, Callable[[Client, Memory], Awaitable[object]]] = {
    "both ways": _both_ways,
    "the input alone": _in,
    "status": _status_told,
    "a region that begins within a page": _within_a_page,
    "status of no region": _status_of_none,
    "registered twice": _twice,
    "no such object": _no_such_object,
    "a region beyond its object": _beyond_the_object,
    "no region": _no_region,
    "an input beyond the region": _input_beyond_the_region,
    "an input too small": _input_too_small,
    "an output too small": _output_too_small,
    "an output beyond the region": _output_beyond_the_region,
    "unregistered": _unregistered,
    "none to unregister": _none_to_unregister,
}
