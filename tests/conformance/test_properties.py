"""Random tensors of every datatype come back from both servers as they went out, in whatever form they travel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from backends.contract import Datatype
from tests.conformance.conftest import Server, Servers
from tests.conformance.observed import elements
from tests.conformance.repository import BATCH, SAME

EXAMPLES = 400
"""Each asks both servers once, and takes some milliseconds."""

_UNHURRIED = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
_SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=BATCH)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Datatype, NDArray[Any], bool]:
    """A datatype, (1 to 8, 1 to 8) elements of it, and whether JSON can carry them."""
    datatype = draw(st.sampled_from(sorted(SAME)))
    shape = draw(_SHAPES)
    if datatype is Datatype.BYTES:
        is_text = draw(st.booleans())
        one = st.text(st.characters(codec="utf-8")).map(str.encode) if is_text else st.binary(max_size=20)
        flat = draw(st.lists(one, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return datatype, array.reshape(shape), is_text
    array = draw(arrays.arrays(datatype.numpy, shape))
    if datatype is Datatype.BF16:
        return datatype, array.view(ml_dtypes.bfloat16), False
    is_plain = datatype is not Datatype.FP16 and bool(np.isfinite(array).all())
    return datatype, array, is_plain


class _Clients:
    """Clients of one server, over both transports."""

    def __init__(self, server: Server) -> None:
        self.http = tritonclient.http.InferenceServerClient(server.http)
        self.grpc = tritonclient.grpc.InferenceServerClient(server.grpc)

    def over_http(
        self, datatype: Datatype, array: NDArray[Any], coding: str | None, *, binary: bool, binary_output: bool
    ) -> NDArray[Any]:
        """What comes back; *coding* packs both bodies."""
        tensor = tritonclient.http.InferInput("x", list(array.shape), datatype.value)
        tensor.set_data_from_numpy(array, binary_data=binary)
        outputs = [tritonclient.http.InferRequestedOutput("y", binary_data=binary_output)]
        coded = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        return _only(self.http.infer(SAME[datatype], [tensor], outputs=outputs, **coded))

    def over_grpc(self, datatype: Datatype, array: NDArray[Any]) -> NDArray[Any]:
        """What comes back."""
        tensor = tritonclient.grpc.InferInput("x", list(array.shape), datatype.value)
        tensor.set_data_from_numpy(array)
        return _only(self.grpc.infer(SAME[datatype], [tensor]))

    def close(self) -> None:
        """Close both."""
        self.http.close()
        self.grpc.close()


def _only(result: Any) -> NDArray[Any]:  # Any: tritonclient is untyped
    found: NDArray[Any] = result.as_numpy("y")
    return found


@pytest.fixture(scope="module")
def both(servers: Servers) -> Iterator[tuple[_Clients, _Clients]]:
    pair = _Clients(servers.triton), _Clients(servers.gateway)
    yield pair
    for one in pair:
        one.close()


@_UNHURRIED
@given(
    sent=tensors(), binary=st.booleans(), binary_output=st.booleans(), coding=st.sampled_from([None, "gzip", "deflate"])
)
def test_over_http(
    both: tuple[_Clients, _Clients],
    sent: tuple[Datatype, NDArray[Any], bool],
    binary: bool,
    binary_output: bool,
    coding: str | None,
) -> None:
    datatype, array, is_plain = sent
    how = {"binary": binary or not is_plain, "binary_output": binary_output or not is_plain}

    expected, found = (one.over_http(datatype, array, coding, **how) for one in both)

    assert found.shape == expected.shape == array.shape
    assert elements(found) == elements(array)
    if how["binary"] or array.dtype.kind != "f":  # of the others, see "FP64, to the last bit" in the table
        assert elements(expected) == elements(array)


@_UNHURRIED
@given(sent=tensors())
def test_over_grpc(both: tuple[_Clients, _Clients], sent: tuple[Datatype, NDArray[Any], bool]) -> None:
    datatype, array, _ = sent

    expected, found = (one.over_grpc(datatype, array) for one in both)

    assert found.shape == expected.shape == array.shape
    assert elements(found) == elements(expected) == elements(array)
