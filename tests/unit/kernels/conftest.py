"""Arrays and files that the kernel tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "red": 4, "green": 5, "blue": 6}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A word-level tokenizer that wraps texts in [CLS] and [SEP]; the test's own."""
    return _word_level(tmp_path)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all tests."""
    return _word_level(tmp_path_factory.mktemp("tokenizer"))


def _word_level(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def unfriendly(array: NDArray[Any]) -> NDArray[Any]:
    """The same elements, read-only and with no axis contiguous."""
    spread = np.zeros([2 * length for length in array.shape], dtype=array.dtype)
    view = spread[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    view.flags.writeable = False
    return view


@pytest.fixture(name="unfriendly")
def _unfriendly() -> Any:
    return unfriendly
