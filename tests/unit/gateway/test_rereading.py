"""Files that are read again when they change."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from gateway.rereading import Rereading


class Words:
    """Two files that belong together: their texts must be equal."""

    def __init__(self, folder: Path) -> None:
        self.files = (folder / "one", folder / "other")
        self.used: list[str] = []
        self.reads = 0
        self.write("first", "first")
        self.rereading = Rereading("the word", self.files, self.read, self.use, (LookupError,))

    def write(self, *texts: str) -> None:
        for file, text in zip(self.files, texts, strict=True):
            file.write_text(text)

    def read(self) -> str:
        self.reads += 1
        one, other = (file.read_text() for file in self.files)
        if one != other:
            raise LookupError(f"{one} is not {other}")
        return one

    def use(self, word: str) -> None:
        if word == "":
            raise ValueError("there is no word")
        self.used.append(word)


@pytest.fixture
def words(tmp_path: Path) -> Words:
    return Words(tmp_path)


async def test_they_are_read_once_and_then_only_when_their_bytes_change(words: Words) -> None:
    for _ in range(3):
        await words.rereading.look()
    assert (words.used, words.reads) == (["first"], 1)

    words.write("first", "first")
    await words.rereading.look()
    assert words.reads == 1

    before = words.files[0].stat()
    words.write("later", "later")
    for file in words.files:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    await words.rereading.look()
    assert words.used == ["first", "later"]


async def test_files_that_change_one_after_the_other_are_used_when_they_fit(
    words: Words, caplog: pytest.LogCaptureFixture
) -> None:
    await words.rereading.look()

    words.write("next", "first")
    for _ in range(3):
        await words.rereading.look()
    assert (words.used, words.reads) == (["first"], 2)
    faults = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(faults) == 1
    assert "the word cannot be used as it is in" in faults[0]
    assert "next is not first; what was read before stays in use" in faults[0]

    words.write("next", "next")
    await words.rereading.look()
    assert words.used == ["first", "next"]


@pytest.mark.parametrize("fault", ["removed", "refused"])
async def test_what_cannot_be_used_leaves_what_was_there(words: Words, fault: str) -> None:
    await words.rereading.look()

    if fault == "removed":
        words.files[0].unlink()
    else:
        words.write("", "")
    await words.rereading.look()
    assert words.used == ["first"]

    words.write("first", "first")
    await words.rereading.look()
    assert words.used == ["first", "first"]


async def test_without_files_nothing_is_read() -> None:
    def read() -> str:
        raise AssertionError

    await Rereading("nothing", (), read, lambda word: None).look()


async def test_bugs_in_reading_are_not_taken_for_bad_files(words: Words) -> None:
    def read() -> str:
        raise TypeError

    with pytest.raises(TypeError):
        await Rereading("the word", words.files, read, words.use).look()
