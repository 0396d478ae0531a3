"""Structure is counted on the bytes, before a message is built from them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from backends.errors import InvalidInput
from gateway.grpc_edge.wire import MAX_FIELDS, check_structure

KIND = service_pb2.ModelInferRequest.DESCRIPTOR


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x2a\x00" * 40_000, id="inputs"),
        pytest.param(b"\x32\x00" * 40_000, id="outputs"),
        pytest.param(b"\x3a\x00" * 40_000, id="raw contents"),
        pytest.param(b"\x22\x00" * 40_000, id="parameters"),
        pytest.param(b"\x2a\x80\xf1\x04" + b"\x22\x00" * 40_000, id="parameters of one input"),
        pytest.param(b"\x2a\x84\xf1\x04\x2a\x80\xf1\x04" + b"\x42\x00" * 40_000, id="texts of one input"),
        pytest.param(b"\x78\x01" * 40_000, id="unknown fields"),
        pytest.param(b"\x0b" * 80_000, id="groups"),
    ],
)
def test_two_bytes_each_for_40_000_fields_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"more than {MAX_FIELDS} fields; send tensors raw"):
        check_structure(KIND, data)


def test_many_bytes_in_few_fields_pass() -> None:
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\x2a\x00" * 500_000])
    numbers = {"name": "x", "contents": {"fp32_contents": [1.0] * 100_000, "int_contents": [300] * 100_000}}
    request.inputs.add(**numbers)

    check_structure(KIND, request.SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_whatever_are_counted_in_no_time(data: bytes) -> None:
    started = time.thread_time()

    try:
        check_structure(KIND, (data or b"\xff") * 2048)
    except InvalidInput as error:
        assert "more than" in str(error)  # noqa: PT017

    assert time.thread_time() - started < 1
