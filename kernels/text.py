"""Text operations on object arrays of UTF-8 `bytes`, and tokenisation.

Items are processed one after the other: `tokenizers` would spread a batch over threads of its own, which fights the
gateway's executors for cores and warns when a process forks later. Padding is done here as well, because the
library keeps it as mutable state of a tokenizer that several threads share.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from kernels.arrays import ItemError


def lower(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Lower-case by Unicode's full mapping (`str.lower`).

    Args:
        texts: (n, ...), object, UTF-8 `bytes`.

    Returns:
        the same shape.

    Raises:
        ItemError: an element is not UTF-8 `bytes`.
    """
    return _map(texts, str.lower)


def strip(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Drop Unicode white space at both ends (`str.strip`); arguments and errors as `lower`."""
    return _map(texts, str.strip)


def nfc(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Normalise to NFC (Unicode Standard Annex 15); arguments and errors as `lower`.

    The decoder `utf8` has done so already, and bounds the time it takes.
    """
    return _map(texts, lambda text: unicodedata.normalize("NFC", text))


def collapse_whitespace(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Every run of Unicode white space becomes one space, none stays at the ends; arguments and errors as `lower`."""
    return _map(texts, lambda text: " ".join(text.split()))


def _map(texts: NDArray[np.object_], change: Callable[[str], str]) -> NDArray[np.object_]:
    result = np.empty(texts.shape, dtype=object)
    result.reshape(-1)[:] = [change(text).encode() for text in _strings(texts)]
    return result


def _strings(texts: NDArray[np.object_]) -> list[str]:
    per_item = max(1, texts.size // max(1, len(texts)))
    strings = []
    elements: list[object] = texts.ravel().tolist()
    for index, element in enumerate(elements):
        if not isinstance(element, bytes):
            raise ItemError(index // per_item, f"a text must be bytes; got {type(element).__name__}")
        try:
            strings.append(element.decode())
        except UnicodeDecodeError as error:
            raise ItemError(index // per_item, f"invalid UTF-8 at byte {error.start}; send UTF-8") from error
    return strings


class Tokenizer:
    """A `tokenizer.json` with a fixed *max_length*; safe to share between threads.

    Truncation and padding that the file states are replaced: truncated on the right at *max_length* tokens (special
    tokens included), padded on the right to the longest of the batch.
    """

    __slots__ = ("_pad_id", "_tokenizer")

    def __init__(self, file: Path, max_length: int) -> None:
        """Load *file*.

        Raises:
            ValueError: it is missing, not a tokenizer, or needs more special tokens than *max_length*.
        """
        self._tokenizer = _load(file)
        self._pad_id = _pad_id(self._tokenizer)
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(f"max_length {max_length} leaves no room beside {special} special tokens; raise it")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def __call__(self, texts: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise a batch.

        Args:
            texts: (n, 1), object, UTF-8 `bytes`.

        Returns:
            input_ids, attention_mask (1 for tokens, 0 for padding) and token_type_ids, each (n, T), int64. T is the
            longest of the batch, and at least 1: models fail on an axis without elements.

        Raises:
            ItemError: an element is not UTF-8 `bytes`.
        """
        encodings = [self._tokenizer.encode(text) for text in _strings(texts)]
        length = max(1, *(len(encoding.ids) for encoding in encodings))
        return (
            _padded([encoding.ids for encoding in encodings], length, self._pad_id),
            _padded([encoding.attention_mask for encoding in encodings], length, 0),
            _padded([encoding.type_ids for encoding in encodings], length, 0),
        )


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read tokenizer {str(file)!r}: {error.strerror}; check the path") from error
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{str(file)!r} is not a tokenizer.json: {error}") from error


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    """The padding token's id: what the file states, else that of a usual name, else 0 (it is masked anyway)."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return next((token for token in known if token is not None), 0)


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int) -> NDArray[np.int64]:
    result = np.full((len(rows), length), fill, dtype=np.int64)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result
