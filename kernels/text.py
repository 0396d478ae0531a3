"""Text operations on object arrays of UTF-8 `bytes`, and tokenisation.

`tokenizers` would spread a batch over threads of its own, which fights the gateway's executors for cores and warns when
a process forks later: it is told not to. Of its calls, those for batches alone let other threads run meanwhile. Padding
is done here as well, because the library keeps it as mutable state of a tokenizer that several threads share.

A text is much longer than what a model takes of it only by mistake, or on purpose, and so no more of it is tokenised
than it takes to be sure of the tokens that are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import tokenizers
from numpy.typing import NDArray

from kernels.arrays import ItemError
from kernels.normal_forms import nfc_of

Padding: TypeAlias = Literal["longest", "max_length"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
    """Normalise to NFC (Unicode Standard Annex 15); arguments and errors as `lower`, and those of `nfc_of`.

    The decoder `utf8` has done so already.
    """
    return _map(texts, nfc_of)


def collapse_whitespace(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Every run of Unicode white space becomes one space, none stays at the ends; arguments and errors as `lower`."""
    return _map(texts, lambda text: " ".join(text.split()))


def _map(texts: NDArray[np.object_], change: Callable[[str], str]) -> NDArray[np.object_]:
    result = np.empty(texts.size, dtype=object)
    for index, text in enumerate(_strings(texts)):
        try:
            result[index] = change(text).encode()
        except ValueError as error:
            raise ItemError(index // _per_item(texts), str(error)) from error
    return result.reshape(texts.shape)


def _per_item(texts: NDArray[np.object_]) -> int:
    return max(1, texts.size // max(1, len(texts)))


def _strings(texts: NDArray[np.object_]) -> list[str]:
    per_item = _per_item(texts)
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

    The file says on which side is truncated (at *max_length* tokens, special tokens included) and padded, and with
    what; how long the result is, is said here.
    """

    __slots__ = ("_longest", "_max_length", "_padding", "_shortest", "_tokenizer")

    def __init__(self, file: Path, max_length: int, *, pad: Padding = "longest") -> None:
        """Load *file*.

        Args:
            max_length: most tokens of a text.
            pad: to the `longest` of the batch, or always to `max_length`, as models of one length need.

        Raises:
            ValueError: it is missing, not a tokenizer, or needs more special tokens than *max_length*.
        """
        self._tokenizer = _load(file)
        self._padding = _Pads.of(self._tokenizer)
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(f"max_length {max_length} leaves no room beside {special} special tokens; raise it")
        stated = self._tokenizer.truncation
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction="right" if stated is None else stated["direction"])
        self._max_length = max_length
        self._shortest = max_length if pad == "max_length" else 1
        is_cut_short = stated is None or stated["direction"] == "right"
        self._longest = max(_LEAST, max_length * _CHARACTERS_A_TOKEN) if is_cut_short else None

    def __call__(self, texts: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise a batch.

        Args:
            texts: (n, 1), object, UTF-8 `bytes`.

        Returns:
            input_ids, attention_mask (1 for tokens, 0 for padding) and token_type_ids, each (n, T), int64. T is the
            longest of the batch, and at least 1: models fail on an axis without elements; or *max_length*.

        Raises:
            ItemError: an element is not UTF-8 `bytes`.
        """
        encodings = self._encoded(_strings(texts))
        length = max(self._shortest, *(len(encoding.ids) for encoding in encodings))
        pads = self._padding
        return (
            _padded([encoding.ids for encoding in encodings], length, pads.id, left=pads.is_left),
            _padded([encoding.attention_mask for encoding in encodings], length, 0, left=pads.is_left),
            _padded([encoding.type_ids for encoding in encodings], length, pads.type_id, left=pads.is_left),
        )

    def _encoded(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Their tokens: of a long text the beginning, and again twice as much while that is too little to be sure."""
        longest = self._longest
        heads = [text if longest is None else _head(text, longest) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
            while longest is not None and len(head) < len(text) and not self._is_sure(encodings[index]):
                head = _head(text, 2 * len(head))
                (encodings[index],) = self._tokenizer.encode_batch_fast([head])
        return encodings

    def _is_sure(self, encoding: tokenizers.Encoding) -> bool:
        """Whether so many tokens were cut off that where the text was cut cannot be seen in those that are left."""
        return sum(map(len, encoding.overflowing)) >= self._max_length


_LEAST, _CHARACTERS_A_TOKEN = 4096, 16
"""Of a text: characters that are tokenised at first."""


def _head(text: str, length: int) -> str:
    """The first *length* characters of *text*, up to white space if there is some in the last quarter of them."""
    if len(text) <= length:
        return text
    head = text[:length]
    words = head.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and len(words[0]) > length * 3 // 4 else head


class _Pads(NamedTuple):
    """What a text is padded with."""

    id: int
    type_id: int
    is_left: bool

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> _Pads:
        """What the file states; else the token of a usual name, else 0 (it is masked anyway), on the right."""
        if (stated := tokenizer.padding) is not None:
            return cls(int(stated["pad_id"]), int(stated["pad_type_id"]), stated["direction"] == "left")
        known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        return cls(next((token for token in known if token is not None), 0), 0, False)


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read tokenizer {str(file)!r}: {error.strerror}; check the path") from error
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{str(file)!r} is not a tokenizer.json: {error}") from error


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int, *, left: bool) -> NDArray[np.int64]:
    result = np.full((len(rows), length), fill, dtype=np.int64)
    for target, row in zip(result, rows, strict=True):
        target[length - len(row) if left else 0 :][: len(row)] = row
    return result
