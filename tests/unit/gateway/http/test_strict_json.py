"""JSON is read strictly, and no two readers of it can differ."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidInput
from gateway.http.strict_json import MAX_DEPTH, MAX_NODES, loads, parameters

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from([":", "a:b", "\\u003a", '"'])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


@given(values, st.booleans())
def test_what_was_written_is_read(value: Any, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


pairs = st.lists(st.tuples(st.sampled_from(["a", "b", "a:", ":"]), values), min_size=2, max_size=4)


@given(pairs, st.sampled_from(["%s", "[%s]", '{"x": %s}', "[1, %s]", '["\\u003a", %s]', '[":", 2, %s]']))
def test_equal_keys_are_refused_wherever_they_hide(found: list[tuple[str, Any]], around: str) -> None:
    text = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found) + "}"
    body = (around % text).encode()
    keys = [key for key, _ in found]

    if len(set(keys)) == len(keys):
        assert loads(body) == orjson.loads(body)
    else:
        with pytest.raises(InvalidInput, match="twice in one object"):
            loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"a:": 1, "a\\u003a": 2}',
        b'{"x": "\\u003a", "a": 1, "a": 2}',
        b'{"x": ["\\u003A"], "a": 1, "a": 2}',
        b'[1, {"a": 1, "a": 2}]',
        b'["t", {"a": 1, "a": 2}]',
    ],
)
def test_equal_keys_cannot_be_hidden_by_escapes(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="twice in one object"):
        loads(body)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[1,{"a":', b"}]")])
def test_nesting_ends_at_a_hundred(opening: bytes, closing: bytes) -> None:
    levels = opening.count(b"[") + opening.count(b"{")
    loads(opening * (MAX_DEPTH // levels) + b"1" + closing * (MAX_DEPTH // levels))
    for depth in (MAX_DEPTH // levels + 1, 250_000):
        with pytest.raises(InvalidInput):
            loads(opening * depth + b"1" + closing * depth)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"NaN",
        b"[Infinity]",
        b"1e400",
        b"9" * 5000,
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b"[1,]",
        b"\x80\x04",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="not JSON"):
        loads(body)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**300])
def test_an_integer_beyond_64_bits_is_no_parameter(value: int) -> None:
    with pytest.raises(InvalidInput, match="beyond 64 bits"):
        parameters(loads(json.dumps({"a": value}).encode()))


@pytest.mark.parametrize("value", [None, [], {}, [1]])
def test_a_parameter_is_a_scalar(value: Any) -> None:
    with pytest.raises(InvalidInput, match="a text, a number or a boolean"):
        parameters({"a": value})


@pytest.mark.parametrize("element", [b"[]", b"{}", b'{"":1}'])
def test_more_structure_than_can_be_read_without_a_stall_is_refused_unread(element: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"at most {MAX_NODES} are read: .* binary tensor data"):
        loads(b"[" + element + (b"," + element) * MAX_NODES + b"]")


def test_the_last_of_many_keys_being_equal_is_found_in_time() -> None:
    """Looking for it key by key among all earlier ones took minutes for a text of this size."""
    keys = b",".join(b'"%x":1' % i for i in range(190_000))
    started = time.thread_time()

    with pytest.raises(InvalidInput, match="'2e62f' twice"):
        loads(b"{" + keys + b',"2e62f":1}')

    assert time.thread_time() - started < 5


def test_ten_thousand_parameters_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 256"):
        parameters({str(i): i for i in range(10_000)})
