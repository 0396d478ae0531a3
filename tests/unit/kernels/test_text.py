"""Text operations and tokenisation."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import text
from kernels.arrays import ItemError


def batch(*texts: str | bytes) -> NDArray[np.object_]:
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = [one.encode() if isinstance(one, str) else one for one in texts]
    return array


@pytest.mark.parametrize(
    ("operation", "given", "expected"),
    [
        (text.lower, "ÄÖÜ Straße", "äöü straße"),
        (text.strip, " \t\u00a0 a b \n", "a b"),
        (text.nfc, "e\u0301", "é"),
        (text.collapse_whitespace, "  a \t\n\u3000 b ", "a b"),
        (text.lower, "", ""),
    ],
)
def test_operations_change_every_text(
    operation: Callable[[NDArray[np.object_]], NDArray[np.object_]], given: str, expected: str
) -> None:
    texts = batch("x", given)
    texts.flags.writeable = False

    result = operation(texts)

    assert result.tolist() == batch("x", expected).tolist()
    assert texts[1, 0] == given.encode()


def test_the_item_that_is_not_utf8_is_named() -> None:
    with pytest.raises(ItemError, match=r"^item 1: invalid UTF-8 at byte 2; send UTF-8$") as caught:
        text.lower(batch("a", b"ab\xff"))
    assert caught.value.item == 1


def test_the_item_that_is_not_bytes_is_named() -> None:
    texts = batch("a", "b", "c")
    texts[2, 0] = "c"

    with pytest.raises(ItemError, match=r"^item 2: a text must be bytes; got str$"):
        text.strip(texts)


def test_texts_are_padded_to_the_longest_of_their_batch(tokenizer_file: Path) -> None:
    ids, mask, types = text.Tokenizer(tokenizer_file, 16)(batch("red green blue", "pink"))

    assert ids.tolist() == [[2, 4, 5, 6, 3], [2, 1, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert types.tolist() == [[0] * 5] * 2
    assert {ids.dtype, mask.dtype, types.dtype} == {np.dtype(np.int64)}


def test_texts_are_truncated_with_their_special_tokens(tokenizer_file: Path) -> None:
    ids, _, _ = text.Tokenizer(tokenizer_file, 4)(batch("red green blue red"))

    assert ids.tolist() == [[2, 4, 5, 3]]


def test_padding_and_truncation_of_the_file_are_replaced(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_padding(length=64, pad_id=6, pad_token="blue")
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tokenizer_file))

    ids, _, _ = text.Tokenizer(tokenizer_file, 16)(batch("red green", "red"))

    assert ids.tolist() == [[2, 4, 5, 3], [2, 4, 3, 6]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_file_says_where_and_with_what_is_padded_and_where_cut(tokenizer_file: Path, side: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_padding(direction=side, pad_id=6, pad_type_id=3, pad_token="blue")
    tokenizer.enable_truncation(512, direction=side)
    tokenizer.save(str(tokenizer_file))

    ids, mask, types = text.Tokenizer(tokenizer_file, 4)(batch("red red green blue", "red"))

    if side == "left":
        assert ids.tolist() == [[2, 5, 6, 3], [6, 2, 4, 3]]
        assert (mask.tolist(), types.tolist()) == ([[1] * 4, [0, 1, 1, 1]], [[0] * 4, [3, 0, 0, 0]])
    else:
        assert ids.tolist() == [[2, 4, 4, 3], [2, 4, 3, 6]]
        assert (mask.tolist(), types.tolist()) == ([[1] * 4, [1, 1, 1, 0]], [[0] * 4, [0, 0, 0, 3]])


def test_texts_are_padded_to_one_length_where_a_model_has_one(tokenizer_file: Path) -> None:
    ids, mask, _ = text.Tokenizer(tokenizer_file, 5, pad="max_length")(batch("red", "green blue red red red"))

    assert ids.tolist() == [[2, 4, 3, 0, 0], [2, 5, 6, 4, 3]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]


WORDS = ["red", "green", "blue", "pink", "re", "redgreen"]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", "  ", "\n", " " * 40]))), max_size=3),
    st.integers(3, 12),
)
def test_however_long_a_text_is_the_tokens_that_are_kept_are_those_of_the_whole(
    tokenizer_path: Path, parts: list[list[tuple[str, str]]], length: int
) -> None:
    texts = batch(*("".join(word + space for word, space in part * 9) for part in parts), "x" * 200, "")
    whole, short = text.Tokenizer(tokenizer_path, length), text.Tokenizer(tokenizer_path, length)
    whole._longest, short._longest = None, 24

    for one, other in zip(whole(texts), short(texts), strict=True):
        assert one.tolist() == other.tolist()


def test_no_more_of_a_text_is_tokenised_than_it_takes(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = text.Tokenizer(tokenizer_file, 8)
    seen: list[int] = []

    class Seen:
        def encode_batch_fast(self, texts: list[str]) -> list[tokenizers.Encoding]:
            seen.extend(map(len, texts))
            return inner.encode_batch_fast(texts)

    inner = tokenizer._tokenizer
    monkeypatch.setattr(tokenizer, "_tokenizer", Seen())

    tokenizer(batch("red " * 1_000_000, " " * 5000 + "red " * 1_000_000))

    assert seen == [4091, 4096, 8187]


def test_other_threads_run_while_a_text_is_tokenised(tokenizer_file: Path) -> None:
    """Of a text without white space all is read, since it has too few tokens to be sure of them."""
    tokenizer, long = text.Tokenizer(tokenizer_file, 8), batch("r" * 4_000_000)
    began, ended = threading.Event(), threading.Event()
    turns = 0

    def work() -> None:
        began.set()
        tokenizer(long)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not ended.is_set():
        turns += 1
        time.sleep(0.0005)
    thread.join()

    assert turns > 20


def test_a_run_of_combining_marks_is_refused_before_it_takes_quadratic_time() -> None:
    with pytest.raises(ItemError, match=r"^item 1: more than 30 combining marks in a row at character 1; shorten the"):
        text.nfc(batch("a", "e" + "\u0301\u0323" * 20_000))


def test_no_tokens_at_all_are_one_padding_token(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    bare = tokenizers.Tokenizer(tokenizer.model)
    bare.save(str(tokenizer_file))

    ids, mask, _ = text.Tokenizer(tokenizer_file, 8)(batch(""))

    assert (ids.tolist(), mask.tolist()) == ([[0]], [[0]])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot read tokenizer '.*absent\.json': No such file or directory; check"):
        text.Tokenizer(tmp_path / "absent.json", 8)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)

    with pytest.raises(ValueError, match=r"tokenizer\.json' is not a tokenizer\.json: "):
        text.Tokenizer(file, 8)


def test_a_length_without_room_for_text_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^max_length 2 leaves no room beside 2 special tokens; raise it$"):
        text.Tokenizer(tokenizer_file, 2)


def test_a_process_that_forks_after_tokenising_is_not_warned(tokenizer_file: Path) -> None:
    program = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "import numpy as np; from pathlib import Path; from kernels.text import Tokenizer\n"
        f"tokenize = Tokenizer(Path({str(tokenizer_file)!r}), 8)\n"
        "texts = np.array([[b'red']] * 64, dtype=object); tokenize(texts)\n"
        "child = os.fork()\n"
        "tokenize(texts)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr == ""


def test_tokenising_reads_scattered_arrays(
    tokenizer_file: Path, unfriendly: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    tokenize = text.Tokenizer(tokenizer_file, 8)
    texts = batch("red", "green blue")

    assert [part.tolist() for part in tokenize(unfriendly(texts))] == [part.tolist() for part in tokenize(texts)]
