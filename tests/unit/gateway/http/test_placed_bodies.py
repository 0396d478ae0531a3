"""Long bodies with tensors in them are put where they will stay, once, at an address that models can work on."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.messages import HttpRequest
from gateway.http.oip_body import HEADER_LENGTH, parse
from gateway.http.protocol import RequestReader, WireLimits

MIB = 1 << 20
LIMIT = 16 * MIB


def head(length: int, json_bytes: str | int) -> bytes:
    return (
        f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        f"{HEADER_LENGTH}: {json_bytes}\r\n\r\n"
    ).encode()


def fed(data: bytes, cuts: list[int]) -> list[HttpRequest]:
    """The requests that *data* is, when it comes in parts that end at *cuts*."""
    reader = RequestReader(WireLimits(), LIMIT)
    found = []
    for start, stop in pairwise([0, *sorted(cuts), len(data)]):
        request = reader.read(data[start:stop])
        while request is not None:
            found.append(request)
            request = reader.read(b"")
    return found


@settings(max_examples=60)
@given(st.data(), st.integers(0, 200))
def test_however_it_comes_it_is_the_same_and_what_follows_it_is_too(data: st.DataObject, json_bytes: int) -> None:
    body = np.random.default_rng(json_bytes).bytes(300_000)
    sent = head(len(body), json_bytes) + body + b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=6))

    first, second = fed(sent, cuts)

    assert bytes(first.body) == body
    assert second.path == "/next"
    assert np.frombuffer(first.body[json_bytes:], np.uint8).ctypes.data % 64 == 0


def test_its_tensors_are_views_on_it_that_nobody_can_write_to() -> None:
    tensor = np.arange(100_000, dtype=np.float64)
    said = {"name": "x", "datatype": "FP64", "shape": [1, 100_000], "parameters": {"binary_data_size": tensor.nbytes}}
    text = orjson.dumps({"inputs": [said]})
    (request,) = fed(head(len(text) + tensor.nbytes, len(text)) + text + tensor.tobytes(), [40, 5000])

    found = parse(request.body, len(text), LIMIT).tensors["x"].numpy()

    assert np.array_equal(found[0], tensor)
    assert np.shares_memory(found, np.frombuffer(request.body, np.uint8))
    assert not found.flags.writeable


@pytest.mark.parametrize("stated", ["-1", "", "1e3", "9" * 19, "0x10"])
def test_a_length_of_json_that_makes_no_sense_is_left_to_whoever_reads_it(stated: str) -> None:
    body = bytes(300_000)

    (request,) = fed(head(len(body), stated) + body, [1000])

    assert request.body == body
    assert request.headers[HEADER_LENGTH] == stated


def test_it_is_held_once_while_it_comes() -> None:
    length = 10 * MIB
    reader = RequestReader(WireLimits(), LIMIT)
    part = bytes(64 * 1024)
    tracemalloc.start()
    reader.read(head(length, 100))
    while reader.read(part) is None:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < length + MIB
