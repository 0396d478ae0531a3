"""Models for the integration tests: how sure they are stands in the text itself, so a test decides what happens.

A text such as `fast=0.95:b strong=0.4:a` makes the model `fast` say `b` with probability 0.95. What a model is not told
it is sure of: label `a`, probability 1. `nan` makes it answer NaN; `fail` makes it raise; `slow` makes it take 0.3 s,
`hang` ten minutes, and `0.95:b@2` two seconds. Anything else that is no number makes it fail with a message that quotes
the text.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LABELS = ("a", "b", "c")


def fast(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The cheap one."""
    return _answer("fast", inputs)


def strong(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The strong one."""
    return _answer("strong", inputs)


def tongue(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """A detector: says the language that the text tells it to, by a letter."""
    return _answer("tongue", inputs)


def double(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, twice as much out."""
    return {"y": inputs["x"] * 2}


def total(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, their sum out."""
    return {"y": inputs["x"].sum(axis=1, keepdims=True)}


def _answer(model: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {"probabilities": np.stack([_row(model, text.decode()) for text in inputs["text"].reshape(-1)])}


def _row(model: str, text: str) -> NDArray[np.float32]:
    found = re.search(rf"{model}=(\S+)", text)
    if found is None:
        return _sure(1.0, "a")
    told, _, took_s = found[1].partition("@")
    confidence, _, label = told.partition(":")
    time.sleep(float(took_s or 0))
    if confidence == "nan":
        return np.full(len(LABELS), np.nan, dtype=np.float32)
    if confidence == "fail":
        raise RuntimeError("secret-internal-detail")
    if confidence == "hang":
        time.sleep(600)
    if confidence == "slow":
        time.sleep(0.3)
        return _sure(1.0, "a")
    return _sure(float(confidence), label or "a")


def _sure(confidence: float, label: str) -> NDArray[np.float32]:
    rest = (1.0 - confidence) / (len(LABELS) - 1)
    return np.array([confidence if name == label else rest for name in LABELS], dtype=np.float32)


def brightness(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Pictures as files in, whether each is dark or bright out; never sure, and less so the nearer to the middle."""
    shares = []
    for data in inputs["picture"].reshape(-1):
        with Image.open(io.BytesIO(data)) as image:
            shares.append(float(np.asarray(image.convert("L")).mean()) / 255)
    bright = 0.1 + 0.8 * np.asarray(shares, dtype=np.float32)
    return {"probabilities": np.stack([1 - bright, bright], axis=1)}


def creditworthy(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Records in, a guess at yes or no out."""
    income = inputs["income"].reshape(-1).astype(np.float32)
    yes = 0.3 + 0.4 * income / (income + 30_000)
    return {"probabilities": np.stack([1 - yes, yes], axis=1)}
