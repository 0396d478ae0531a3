"""Which language a text is in: py3langid as a backend.

    backend: langid

    text BYTES [1]  →  label BYTES [1]  the ISO 639 code, such as en; `und` where there is nothing to tell by
                       score FP32  [1]  its probability, 0 to 1; NaN for `und`

**Undetermined** (`und`, and NaN, which is "no confidence" everywhere) is what is not valid UTF-8, what holds no letter,
letters in which the model finds nothing it knows ("ok"), and what the model calls `zxx`, no language at all (base64).

**The score** is a probability among the languages that the model knows, all equally likely beforehand, or among those
that `languages` names. Below 20 letters or so it is low for any language, and sister languages (Croatian, Bosnian and
Serbian; Indonesian and Malay) share it between them for any length, so a high threshold misses them all. What becomes
of English and foreign messages at several thresholds: `loadtests/experiments/classification.py`.

**Only the first 2 KiB are read.** More adds next to nothing: of long texts in 58 languages, all are told from 256 bytes
on, at a mean score of 0.965, 0.991 at 1 KiB, 0.995 at 4 and 0.997 at 16. And it bounds what one text can cost, since
more of it costs more, to the worst: combining marks, whose normalisation takes quadratic time, 0.8 ms for 2 KiB of
them, 810 ms for 64.

**It holds the GIL**, so more threads gain nothing, and a thread that wants it, the event loop's above all, may wait for
5 ms every time. So the worker lets go of it after every 2 KiB or so. Measured beside a stream of long texts, for a
tenth more time: the loop is late by 0.15 instead of 0.55 ms (median), by 2.4 instead of 8.5 at worst.

Source: py3langid 0.4.0, after M. Lui and T. Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL
2012: naive Bayes over byte n-grams. Where we differ: it gives every text a language, "12 34" as any other.
"""

from __future__ import annotations

import asyncio
import codecs
import importlib.metadata
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
)
from backends.errors import BackendFailed, Cancelled, InvalidInput, NotFound
from backends.in_process import Workers, host_array
from backends.registry import BackendType

# Any, here and below: py3langid has no types of its own.

READ_BYTES = 2048
"""How much of a text is read."""

_UNDETERMINED = ("und", math.nan)
_NO_LANGUAGE = "zxx"

_SIGNATURE = Signature(
    inputs=(TensorSpec("text", Datatype.BYTES, (1,)),),
    outputs=(TensorSpec("label", Datatype.BYTES, (1,)), TensorSpec("score", Datatype.FP32, (1,))),
)


@dataclass(frozen=True, slots=True)
class LanguageOptions:
    """What a model with `backend: langid` can set.

    Attributes:
        version: as clients see it; by default the package's, such as py3langid-0.4.0.
        languages: the codes to choose among, two at least; empty for all that the model knows.
        max_batch: most items in one call.
        max_in_flight: calls that run at once, each on a thread of its own; more than one gains nothing.
    """

    version: str | None = None
    languages: tuple[str, ...] = ()
    max_batch: int = 64
    max_in_flight: int = 1


class Language:
    """py3langid as a backend; `open_language` builds it."""

    def __init__(self, model_name: str, options: LanguageOptions, identifier: Any) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        options: as configured.
        identifier: a `py3langid.langid.LanguageIdentifier` that normalises probabilities, its languages chosen.
        """
        self._name = model_name
        self._version = options.version or f"py3langid-{importlib.metadata.version('py3langid')}"
        self._limits = Limits(options.max_batch, options.max_in_flight)
        self._workers = Workers(model_name, options.max_in_flight)
        self._identifier = [identifier]  # emptied by aclose
        _, self._score_of_nothing = identifier.classify("")

    def __repr__(self) -> str:
        return f"<Language {self._name!r} version {self._version}: {self.state}>"

    @property
    def signature(self) -> Signature:
        """Text in; label and score out."""
        return _SIGNATURE

    @property
    def version(self) -> str:
        """As configured, or the package's."""
        return self._version

    @property
    def limits(self) -> Limits:
        """As configured."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready until closed."""
        return self._workers.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Identify the items one by one on a worker thread; see `Backend.infer`."""
        check_batch(_SIGNATURE, batch, self._limits)
        stopped = threading.Event()
        return await self._workers.run(lambda: self._identify(batch, stopped), deadline, stopped.set)

    def _identify(self, batch: Batch, stopped: threading.Event) -> Tensors:
        texts = host_array("text", batch.inputs["text"])
        labels = np.empty((batch.size, 1), object)
        scores = np.empty((batch.size, 1), np.float32)
        read_bytes = 0
        for row, content in enumerate(texts[:, 0]):
            if stopped.is_set():
                raise Cancelled(f"model {self._name!r} was told to stop")  # no one is left to see it
            if read_bytes + min(len(content), READ_BYTES) > READ_BYTES:
                time.sleep(0)  # lets go of the GIL
                read_bytes = 0
            read_bytes += min(len(content), READ_BYTES)
            label, scores[row] = self._language(content)
            labels[row] = label.encode()
        return {"label": Tensor.of(labels), "score": Tensor.of(scores)}

    def _language(self, content: bytes) -> tuple[str, float]:
        text = _readable(content)
        if text is None:
            return _UNDETERMINED
        try:
            label, score = self._identifier[0].classify(text)
        except Exception as error:  # py3langid states none
            raise BackendFailed(
                f"model {self._name!r} failed on this batch; its operator's log has the cause"
            ) from error
        if label == _NO_LANGUAGE or score <= self._score_of_nothing:
            return _UNDETERMINED
        return label, score

    async def aclose(self) -> None:
        """Wait for calls in flight and free the model."""
        await self._workers.aclose(self._identifier.clear)


def _readable(content: bytes) -> str | None:
    """The text that *content* begins with; None where it is not UTF-8, or holds no letter."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:  # where the text is cut, half a character at its end is nobody's fault
        text = decoder.decode(content[:READ_BYTES], final=len(content) <= READ_BYTES)
    except UnicodeDecodeError:
        return None
    return text if any(map(str.isalpha, text)) else None


async def open_language(model_name: str, options: LanguageOptions) -> Backend:
    """Load py3langid's model off the event loop: about a second, and 80 MiB of memory.

    Raises:
        NotFound: the package is not installed, or incomplete.
        InvalidInput: a language that the model does not know, or only one; a limit below 1.
    """
    return Language(model_name, options, await asyncio.to_thread(_load, model_name, options.languages))


def _load(model_name: str, languages: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except Exception as error:  # what an incomplete package raises, while imported or while it opens its files
        raise NotFound(
            f"model {model_name!r}: py3langid cannot be loaded: {error}; install the package py3langid, 0.4 or newer"
        ) from error
    if languages:
        _require_choice(model_name, languages, identifier.labels)
        identifier.set_languages(languages)
    return identifier


def _require_choice(model_name: str, languages: tuple[str, ...], known: list[str]) -> None:
    if unknown := sorted(set(languages) - set(known)):
        raise InvalidInput(
            f"model {model_name!r}: languages names {', '.join(unknown)}, unknown to the model; "
            f"it knows {', '.join(sorted(known))}"
        )
    if len(set(languages)) < 2:
        raise InvalidInput(
            f"model {model_name!r}: with {languages[0]} as its only language, every text would be that, at 1; "
            "name two at least, or none for all"
        )


_RUNNING_ONLY = frozenset({"max_batch", "max_in_flight"})
LANGID = BackendType("langid", LanguageOptions, open_language, _RUNNING_ONLY)
