"""Text operations and tokenisation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
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
