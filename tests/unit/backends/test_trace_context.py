"""W3C Trace Context: what is read is what was sent, and what cannot be read is ignored."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.trace_context import TraceContext, foremost, trace_in

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
WRITTEN = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]")

hexadecimal = st.text("0123456789abcdef", min_size=1)
trace_ids = st.integers(1, 2**128 - 1).map("{:032x}".format)
span_ids = st.integers(1, 2**64 - 1).map("{:016x}".format)
flags = st.integers(0, 255).map("{:02x}".format)
later_versions = st.integers(1, 254).map("{:02x}".format)
keys = st.from_regex(r"[a-z][_0-9a-z\-*/]{0,30}", fullmatch=True) | st.from_regex(
    r"[a-z0-9][_0-9a-z\-*/]{0,20}@[a-z][_0-9a-z\-*/]{0,13}", fullmatch=True
)
values = st.from_regex(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,20}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", fullmatch=True)


@given(trace_ids, span_ids, flags)
def test_a_well_formed_parent_is_read_as_it_is(trace_id: str, span_id: str, flag: str) -> None:
    read = TraceContext.read(f"00-{trace_id}-{span_id}-{flag}")

    assert read is not None
    assert (read.trace_id, read.span_id) == (trace_id, span_id)
    assert read.is_sampled == bool(int(flag, 16) & 1)
    assert not read.is_recorded
    assert read.traceparent == f"00-{trace_id}-{span_id}-0{int(flag, 16) & 3}"  # unknown flags are not passed on


@given(later_versions, trace_ids, span_ids, flags, st.sampled_from(["", "-", "-what-the-future-will-be-like"]))
def test_of_later_versions_the_known_part_is_read(
    version: str, trace_id: str, span_id: str, flag: str, rest: str
) -> None:
    read = TraceContext.read(f"{version}-{trace_id}-{span_id}-{flag}{rest}")

    assert read is not None
    assert read.traceparent == f"00-{trace_id}-{span_id}-0{int(flag, 16) & 1}"


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        PARENT[:-1],
        f"{PARENT}0",
        f"{PARENT}-",
        f"{PARENT}-more",
        f" {PARENT}",
        f"{PARENT} ",
        f"{PARENT}\n",
        f"{PARENT}, {PARENT}",
        PARENT.upper(),
        PARENT.replace("-", "_"),
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"0-{TRACE}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE[:-1]}١-{SPAN}-01",
        f"00-{TRACE}\r\nx: y-{SPAN}-01",
    ],
)
def test_a_malformed_parent_is_none(malformed: str) -> None:
    assert TraceContext.read(malformed) is None
    assert trace_in({"traceparent": malformed}) is None


@given(st.text())
def test_whatever_is_sent_nothing_but_the_standard_is_passed_on(text: str) -> None:
    read = TraceContext.read(text, text)

    assert read is None or WRITTEN.fullmatch(read.traceparent)


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_no_state_breaks_a_header(text: str) -> None:
    read = TraceContext.read(PARENT, text)

    assert read is not None
    assert all(" " <= character <= "~" for character in read.tracestate)
    assert len(read.tracestate) <= 512
    if read.tracestate:
        again = TraceContext.read(PARENT, read.tracestate)
        assert again is not None
        assert again.tracestate == read.tracestate


@given(st.dictionaries(keys, values, max_size=8), st.sampled_from([",", ", ", " ,\t", ",,"]))
def test_a_well_formed_state_is_passed_on_in_order(entries: dict[str, str], comma: str) -> None:
    written = [f"{key}={value}" for key, value in entries.items()]

    read = TraceContext.read(PARENT, comma.join(written))

    assert read is not None
    whole = ",".join(entry.strip(" ") for entry in written)
    assert read.tracestate == whole or (len(whole) > 512 and whole.startswith(read.tracestate))


@pytest.mark.parametrize(
    "malformed",
    ["novalue", "a=1,a=2", "A=1", "a=", "a=b=c", "a= ", "a=é", "@a=1", "a@=1", ",".join(f"k{n}=v" for n in range(33))],
)
def test_a_malformed_state_costs_the_state_alone(malformed: str) -> None:
    read = TraceContext.read(PARENT, malformed)

    assert read is not None
    assert (read.traceparent, read.tracestate) == (PARENT, "")


def test_a_long_state_loses_its_last_entries() -> None:
    entries = [f"k{n}={'v' * 96}" for n in range(8)]

    read = TraceContext.read(PARENT, ",".join(entries))

    assert read is not None
    assert read.tracestate == ",".join(entries[:5])


@given(trace_ids, span_ids, flags)
def test_a_child_is_another_span_of_the_same_trace(trace_id: str, span_id: str, flag: str) -> None:
    parent = TraceContext.read(f"00-{trace_id}-{span_id}-{flag}", "a=1")
    assert parent is not None

    child = parent.child()

    assert WRITTEN.fullmatch(child.traceparent)
    assert child.span_id != parent.span_id
    assert (child.trace_id, child.is_sampled, child.tracestate) == (trace_id, parent.is_sampled, "a=1")


@pytest.mark.parametrize("sampled", [True, False])
def test_a_trace_begins_with_ids_of_its_own(sampled: bool) -> None:
    begun = [TraceContext.begin(sampled=sampled) for _ in range(100)]

    assert len({trace.trace_id for trace in begun}) == len({trace.span_id for trace in begun}) == 100
    assert all(WRITTEN.fullmatch(trace.traceparent) for trace in begun)
    assert {trace.is_sampled for trace in begun} == {trace.is_recorded for trace in begun} == {sampled}


def test_headers_are_those_that_there_are() -> None:
    assert TraceContext(PARENT).headers() == (("traceparent", PARENT),)
    assert TraceContext(PARENT, "a=1").headers() == (("traceparent", PARENT), ("tracestate", "a=1"))
    assert trace_in({"traceparent": PARENT, "tracestate": "a=1"}) == TraceContext(PARENT, "a=1")
    assert trace_in({"tracestate": "a=1"}) is None


def test_the_first_that_is_sampled_stands_for_all() -> None:
    sampled, other = TraceContext(PARENT), TraceContext(f"00-{TRACE}-{SPAN}-00")

    assert foremost([other, sampled]) is sampled
    assert foremost([other, other.child()]) is other
