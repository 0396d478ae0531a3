"""Texts that are tables are laid out, within bounds, and nothing of them is changed."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control import media
from gateway.control.tables import MAX_CELL_CHARACTERS, MAX_COLUMNS, MAX_ROWS, Table, read_json, read_separated


def _separated(text: str, *, is_declared: bool = False, is_cut: bool = False) -> Table | None:
    return read_separated(text, is_declared=is_declared, is_cut=is_cut)


def _json_table(text: str) -> Table | None:
    found = read_json(text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_equally_many_cells_in_every_line_are_a_table(delimiter: str) -> None:
    table = _separated("\r\n".join(delimiter.join(row) for row in (("a", "b"), ("1", "x y"), ("", "3"))))

    assert table == Table(("a", "b"), (("1", "x y"), ("", "3")), 2, 2)


def test_quoted_cells_keep_their_delimiters_quotes_and_lines() -> None:
    table = _separated('a,b\n"1,5","say ""hi"""\n"two\nlines",3')

    assert table is not None
    assert table.rows == (("1,5", 'say "hi"'), ("two\nlines", "3"))


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\nthe parcel, sadly,\nnever came.",
        "Hello, Anna\nBye, Ben\nYes, Carl",
        "one line, only",
        "a,b\nc,d",
        "a,b\nc,d,e\nf,g",
        'a,b\n"c,d\ne,f',
        "",
        "\n\n\n",
    ],
)
def test_other_plain_texts_are_no_tables(text: str) -> None:
    assert _separated(text) is None


def test_what_is_declared_a_table_may_be_ragged_and_short() -> None:
    table = _separated("a,b\n1\n1,2,3", is_declared=True)

    assert table == Table(("a", "b", ""), (("1", "", ""), ("1", "2", "3")), 2, 3)
    assert _separated("one column\n1", is_declared=True) is None


def test_of_a_text_that_was_cut_the_last_line_is_left_out() -> None:
    table = _separated("a,b\n1,2\n3,4\n5", is_cut=True)

    assert table == Table(("a", "b"), (("1", "2"), ("3", "4")), 2, 2, is_cut=True)


def test_a_large_table_is_shown_from_its_corner() -> None:
    line = ",".join(["x" * (MAX_CELL_CHARACTERS + 1)] + ["y"] * MAX_COLUMNS)
    table = _separated("\n".join([line] * (MAX_ROWS + 2)))

    assert table is not None
    assert (len(table.columns), len(table.rows)) == (MAX_COLUMNS, MAX_ROWS)
    assert (table.of_columns, table.of_rows) == (MAX_COLUMNS + 1, MAX_ROWS + 1)
    assert table.rows[0][0] == "x" * (MAX_CELL_CHARACTERS - 1) + "…"


def test_a_list_of_objects_is_a_table_of_their_names() -> None:
    table = _json_table('[{"id": 1, "who": "Anna"}, {"id": 2, "tags": ["a", 1.50], "in": {"x": null}}]')

    assert table == Table(
        ("id", "who", "tags", "in"), (("1", "Anna", "", ""), ("2", "", '["a", 1.50]', '{"x": null}')), 2, 4
    )


def test_an_object_of_plain_values_is_a_record() -> None:
    """As people are shown a request of several tensors: each a list, most of one element."""
    table = _json_table(
        '{"income": [41000.50], "job": ["clerk"], "flags": [true, null], "big": 12345678901234567890.0}'
    )

    assert table == Table(
        (),
        (("income", "41000.50"), ("job", "clerk"), ("flags", "[true, null]"), ("big", "12345678901234567890.0")),
        4,
        2,
    )


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "[]", '{"a": {"b": 1}}', '[{"a": 1}, 2]', '{"a": [[1]]}', "[{}]"])
def test_other_documents_are_indented_and_no_tables(text: str) -> None:
    assert _json_table(text) is None


def test_a_document_in_which_a_name_stands_twice_shows_both() -> None:
    found = read_json('{"amount": 1, "amount": 1000}')

    assert found == ('{\n  "amount": 1,\n  "amount": 1000\n}', None)


def test_indenting_keeps_numbers_as_they_were_written_and_flat_lists_on_a_line() -> None:
    found = read_json('{"a":[1.10, 1e5,-0],"b":[[1],[]],"c":{},"d":"\\u00fc \\"{[,:]}\\"","e":NaN}')

    assert found is not None
    assert found[0].splitlines() == [
        "{",
        '  "a": [1.10, 1e5, -0],',
        '  "b": [',
        "    [1],",
        "    []",
        "  ],",
        '  "c": {},',
        '  "d": "ü \\"{[,:]}\\"",',
        '  "e": NaN',
        "}",
    ]


def test_half_a_character_does_not_break_the_page() -> None:
    found = read_json('{"half": "\\ud800", "\\udfff": 1}')

    assert found is not None
    assert found[1] is not None
    assert found[0].encode() == b'{\n  "half": "\\ud800",\n  "\\udfff": 1\n}'
    assert found[1].rows == (("half", "\N{REPLACEMENT CHARACTER}"), ("\N{REPLACEMENT CHARACTER}", "1"))


@pytest.mark.parametrize("text", ["{", "null", "plain", "[urgent] call", "[" * 40_000, "[" * 40 + "]" * 40])
def test_what_is_no_json_or_too_deep_is_left_alone(text: str) -> None:
    assert read_json(text) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON.filter(lambda value: isinstance(value, dict | list)))
def test_an_indented_document_says_what_it_said(value: object) -> None:
    found = read_json(json.dumps(value))

    assert found is not None
    assert json.loads(found[0]) == value


@given(st.text(max_size=200), st.booleans(), st.booleans())
def test_any_text_is_read_without_an_error(text: str, is_declared: bool, is_cut: bool) -> None:
    table = _separated(text, is_declared=is_declared, is_cut=is_cut)

    assert table is None or {len(row) for row in table.rows} <= {len(table.columns)}


@pytest.mark.parametrize(
    "text",
    [
        "[" + ",".join(f'{{"a{i}":1}}' for i in range(4000)) + "]",
        "," * 24_000 + "\n" + "," * 24_000,
        '"' + "\\n" * 20_000 + '"',
        "a,b\n" * 12_000,
    ],
)
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    began = time.process_time()
    media.view(text.encode(), "text/plain")

    assert time.process_time() - began < 2


def test_a_table_is_shown_beside_the_text_itself() -> None:
    csv = b"id;name\n1;Anna\n2;Ben\n"
    declared = media.view(b"id,name\n1,Anna", "text/csv; charset=utf-8")
    shown = media.view(csv, "text/plain; charset=utf-8")
    document = media.view(b'{"a": 1}', "application/json")

    assert shown.table is not None
    assert shown.sent == csv.decode()
    assert declared.table is not None
    assert document.table == Table((), (("a", "1"),), 1, 2)
    assert document.sent == '{"a": 1}'
    assert media.view(b"a,b\nc,d\ne,f", "text/html").table is None
