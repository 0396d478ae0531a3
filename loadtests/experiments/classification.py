"""How far can the detectors be trusted, and what do they cost? magika and py3langid on real content.

    python -m loadtests.experiments.classification [--demo DIR] [--out DIR]

**Content types**: files of this machine whose name tells what they are (site-packages, the standard library,
/usr/share, /usr/lib), at most 60 of a kind; and the demo's messages and pictures. None of them is kept.

**Languages**: the demo's messages, which are English; messages of Django in English and in its translations, made by
people (BSD-3-Clause; from the package index, pinned by its hash, cached). The question is a gateway's: how many English
texts are called foreign at a threshold, and how many foreign texts are caught. Where a locale's language is unknown to
the model, or it is called by a sister's name (Norwegian, Serbo-Croatian), it is caught all the same: it is not English.

**Cost** is taken through `Backend.infer`, as a gateway pays it: wall and CPU time of the process an item, and how late
the event loop is meanwhile.

Limits: an extension is not always the truth (most .pl files of a Debian machine are Unicode tables, and magika calls
them text), so that figures are given for each kind, and errors are an upper bound; the kinds are those that a Python
developer's machine has, most of them also kinds that magika was trained on; the texts of programs are shorter and
stiffer than people's.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import base64
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from backends.content_type import ContentTypeOptions, open_content_type
from backends.contract import NO_DEADLINE, Backend, Batch, Tensor
from backends.language import LanguageOptions, open_language
from loadtests.experiments.packages import cache_folder, wheel

SEED = 20_250_101
THRESHOLDS = (0.0, 0.5, 0.7, 0.9, 0.95, 0.99)
LENGTHS = ((0, 20), (20, 50), (50, 100), (100, math.inf))  # characters
FILES_OF_A_KIND = 60
TEXTS_OF_A_LOCALE = 100
MAX_FILE_BYTES = 8 << 20
READ_SIZES = (256, 1024, 2048, 4096, 16384)  # the longest is about what the messages of a locale add up to

# Extension to (media types that are right, group that is right).
KINDS: dict[str, tuple[set[str], str]] = {
    "py": ({"text/x-python"}, "code"),
    "pyc": ({"application/x-bytecode.python"}, "executable"),
    "js": ({"application/javascript"}, "code"),
    "css": ({"text/css"}, "code"),
    "html": ({"text/html"}, "code"),
    "json": ({"application/json"}, "code"),
    "yaml": ({"application/x-yaml"}, "code"),
    "toml": ({"application/toml"}, "text"),
    "xml": ({"text/xml"}, "code"),
    "csv": ({"text/csv"}, "code"),
    "c": ({"text/x-c"}, "code"),
    "h": ({"text/x-c"}, "code"),
    "pl": ({"text/x-perl"}, "code"),
    "sh": ({"text/x-shellscript"}, "code"),
    "txt": ({"text/plain"}, "text"),
    "md": ({"text/markdown"}, "text"),
    "rst": ({"text/x-rst"}, "text"),
    "png": ({"image/png"}, "image"),
    "jpg": ({"image/jpeg"}, "image"),
    "gif": ({"image/gif"}, "image"),
    "svg": ({"image/svg+xml"}, "image"),
    "pdf": ({"application/pdf"}, "document"),
    "wav": ({"audio/x-wav"}, "audio"),
    "ttf": ({"font/sfnt"}, "font"),
    "so": ({"application/x-executable-elf"}, "executable"),
    "exe": ({"application/x-dosexec"}, "executable"),
    "gz": ({"application/gzip"}, "archive"),
    "whl": ({"application/zip"}, "archive"),
    "zip": ({"application/zip"}, "archive"),
    "jar": ({"application/java-archive"}, "archive"),
}
UNKNOWN_TO_MAGIKA = ("mo", "afm")  # kinds it was not trained on: compiled message catalogues, font metrics
RIGHT_WHEN_UNKNOWN = {"application/octet-stream", "text/plain"}

TRANSLATIONS = ("django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")
_CATALOGUE = re.compile(r"locale/([a-z]{2,3}(?:_\w+)?)/LC_MESSAGES/django(?:js)?\.po$")
_CATALOGUE_LINE = re.compile(r'(msgctxt|msgid|msgid_plural|msgstr|msgstr\[\d\])? ?(".*")$')
_MARKUP = re.compile(r"%\(\w+\)[sdif]|%[sdif]|\{\w*\}|<[^>]*>|&\w+;")


class Answer(NamedTuple):
    """What a detector says of an item."""

    label: str
    group: str
    score: float  # NaN: no confidence

    def sure(self, threshold: float) -> bool:
        """Whether a rule with *threshold* acts on it; at 0 any answer with a number is acted on."""
        return self.score >= threshold


class File(NamedTuple):
    """A real file."""

    extension: str
    content: bytes


class Item(NamedTuple):
    """One of the demo's items."""

    route: str
    content: bytes


@dataclass
class Findings:
    """Everything measured, as the JSON has it, and the curves of the plot."""

    # Any: JSON.
    report: dict[str, Any] = field(default_factory=dict)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table to the text."""
        self.tables.append((title, list(header), [[_shown(cell) for cell in row] for row in rows]))


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return "–" if math.isnan(cell) else f"{cell:.3g}"
    return str(cell)


def share(part: int, whole: int) -> float:
    """*part* of *whole*, NaN of nothing."""
    return part / whole if whole else math.nan


async def ask(backend: Backend, items: Sequence[bytes]) -> list[Answer]:
    """The answers to *items*, in batches as large as *backend* allows."""
    answers: list[Answer] = []
    most = backend.limits.max_batch
    for start in range(0, len(items), most):
        outputs = await backend.infer(batch_of(backend, items[start : start + most]), NO_DEADLINE)
        labels, scores = outputs["label"].numpy()[:, 0], outputs["score"].numpy()[:, 0]
        groups = outputs["group"].numpy()[:, 0] if "group" in outputs else [b""] * len(labels)
        answers += [Answer(a.decode(), b.decode(), float(c)) for a, b, c in zip(labels, groups, scores, strict=True)]
    return answers


def batch_of(backend: Backend, items: Sequence[bytes]) -> Batch:
    """*items* as the one input of *backend*."""
    array = np.empty((len(items), 1), object)
    array[:, 0] = items
    return Batch.of({backend.signature.inputs[0].name: Tensor.of(array)})


# Content types


def real_files(rng: np.random.Generator) -> list[File]:
    """A sample of this machine's files, their contents all different, in a fixed order for a fixed machine."""
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "/usr/share", "/usr/lib"]
    found: dict[str, set[Path]] = defaultdict(set)
    for root in roots:
        for path in _files_below(root):
            extension = path.suffix[1:].lower()
            if extension in KINDS or extension in UNKNOWN_TO_MAGIKA:
                found[extension].add(path)
    files: list[File] = []
    for extension in sorted(found):
        paths = sorted(found[extension])
        files += _first_different(extension, [paths[i] for i in rng.permutation(len(paths))])
    return files


def _files_below(root: str) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if "." in name)


def _first_different(extension: str, paths: Sequence[Path]) -> list[File]:
    """The first files of *paths* that can be read, are no larger than they should be, and are not alike."""
    contents: dict[bytes, None] = {}
    for path in paths:
        with contextlib.suppress(OSError):  # not readable, or gone
            if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= MAX_FILE_BYTES:
                contents[path.read_bytes()] = None
        if len(contents) == FILES_OF_A_KIND:
            break
    return [File(extension, content) for content in contents]


async def content_types(backend: Backend, demo: Sequence[Item], findings: Findings, rng: np.random.Generator) -> None:
    """Accuracy at coverage, the confusion of groups, and what becomes of the demo's items."""
    files = real_files(rng)
    answers = await ask(backend, [file.content for file in files])
    known = [(f, a) for f, a in zip(files, answers, strict=True) if f.extension in KINDS]
    other = [(f, a) for f, a in zip(files, answers, strict=True) if f.extension not in KINDS]

    by_threshold = {str(t): _accuracy(known, t) for t in THRESHOLDS}
    confusion = Counter((KINDS[f.extension][1], a.group) for f, a in known)
    kinds = {e: _accuracy([(f, a) for f, a in known if f.extension == e], 0.0) for e in KINDS}
    mistakes = Counter(
        f"{f.extension}: {a.label}" for f, a in known if a.sure(0.9) and a.label not in KINDS[f.extension][0]
    )
    unknown = {str(t): share(sum(a.sure(t) and a.label not in RIGHT_WHEN_UNKNOWN for _, a in other), len(other))
               for t in THRESHOLDS}  # fmt: skip
    findings.report["content_type"] = {
        "files": len(known),
        "digest": hashlib.sha256(b"".join(hashlib.sha256(f.content).digest() for f in files)).hexdigest()[:16],
        "by_threshold": by_threshold,
        "by_kind": {kind: accuracy for kind, accuracy in kinds.items() if accuracy["items"]},
        "confusion_of_groups": {f"{true} > {said}": n for (true, said), n in sorted(confusion.items())},
        "mistakes_at_0.9": dict(mistakes.most_common()),
        "unknown_kinds": {"files": len(other), "called_something_else": unknown},
        "curve": _curve(known),
    }
    findings.table(
        f"Content types: {len(known)} files, {len(KINDS)} kinds",
        ["score at least", "covered", "label right, of these", "group right, of these"],
        [[t, v["coverage"], v["label_right"], v["group_right"]] for t, v in by_threshold.items()],
    )
    findings.table(
        "By extension, whatever the score",
        ["extension", "files", "covered", "label right, of these", "group right, of these"],
        [[e, *kinds[e].values()] for e in KINDS if kinds[e]["items"]],
    )
    true_groups, groups = (sorted({pair[side] for pair in confusion}) for side in (0, 1))
    findings.table(
        "Groups: true (rows), said (columns)",
        ["", *groups],
        [[true, *(confusion[true, said] or "" for said in groups)] for true in true_groups],
    )
    findings.table(
        "Mistaken at 0.9 or more",
        ["file: called", "files"],
        [list(pair) for pair in mistakes.most_common()],
    )
    findings.table(
        f"{len(other)} files of kinds unknown to magika ({', '.join(UNKNOWN_TO_MAGIKA)}): called something else",
        ["score at least", "share"],
        [list(pair) for pair in unknown.items()],
    )
    await _demo_content(backend, demo, findings)


def _accuracy(answered: Sequence[tuple[File, Answer]], threshold: float) -> dict[str, float]:
    sure = [(f, a) for f, a in answered if a.sure(threshold)]
    return {
        "items": len(answered),
        "coverage": share(len(sure), len(answered)),
        "label_right": share(sum(a.label in KINDS[f.extension][0] for f, a in sure), len(sure)),
        "group_right": share(sum(a.group == KINDS[f.extension][1] for f, a in sure), len(sure)),
    }


def _curve(answered: Sequence[tuple[File, Answer]]) -> list[tuple[float, float, float]]:
    """(coverage, error of the label, error of the group) as the threshold falls, at each twentieth."""
    ranked = sorted((pair for pair in answered if pair[1].sure(0.0)), key=lambda pair: -pair[1].score)
    ends = [round(len(ranked) * i / 20) for i in range(1, 21)]
    points = []
    for end in ends:
        accuracy = _accuracy(ranked[:end], 0.0)
        points.append((share(end, len(answered)), 1 - accuracy["label_right"], 1 - accuracy["group_right"]))
    return points


async def _demo_content(backend: Backend, demo: Sequence[Item], findings: Findings) -> None:
    said: dict[str, Counter[str]] = defaultdict(Counter)
    sure: dict[str, Counter[str]] = defaultdict(Counter)
    answers = await ask(backend, [item.content for item in demo])
    for item, answer in zip(demo, answers, strict=True):
        said[item.route][f"{answer.group}: {answer.label}"] += 1
        sure[item.route].update(str(t) for t in THRESHOLDS if answer.sure(t))
    findings.report["demo_content"] = {
        route: {
            "items": said[route].total(),
            "said": dict(said[route].most_common()),
            "covered": {t: n / said[route].total() for t, n in sure[route].items()},
        }
        for route in sorted(said)
    }
    findings.table(
        "What the demo's items are called",
        ["route", "group: label", "items"],
        [[route, label, n] for route in sorted(said) for label, n in said[route].most_common()],
    )


# Languages


def translations(cache: Path) -> dict[str, dict[str, str]]:
    """Django's messages: English to translated, by locale."""
    by_locale: dict[str, dict[str, str]] = defaultdict(dict)
    with zipfile.ZipFile(wheel(*TRANSLATIONS, cache)) as archive:
        for name in archive.namelist():
            if found := _CATALOGUE.search(name):
                by_locale[found[1]].update(_messages(archive.read(name).decode()))
    return {locale: messages for locale, messages in by_locale.items() if messages}


def _messages(catalogue: str) -> dict[str, str]:
    """English to translated; without doubtful ("fuzzy") and untranslated messages, formats and markup taken out."""
    messages: dict[str, str] = {}
    for entry in catalogue.split("\n\n"):
        doubtful = False
        parts: dict[str, str] = defaultdict(str)
        keyword = ""
        for line in entry.splitlines():
            if line.startswith("#"):
                doubtful |= line.startswith("#,") and "fuzzy" in line
            elif found := _CATALOGUE_LINE.match(line):
                keyword = found[1] or keyword
                parts[keyword] += ast.literal_eval(found[2])
        english, translated = (_plain(text) for text in (parts["msgid"], parts["msgstr"] or parts["msgstr[0]"]))
        if not doubtful and english and translated and translated != english:
            messages[english] = translated
    return messages


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).split())


async def languages(
    backend: Backend, people: Sequence[str], cache: Path, findings: Findings, rng: np.random.Generator
) -> None:
    """English called foreign, foreign texts caught, by threshold and length; and how much of a text to read."""
    by_locale = translations(cache)
    programs = sorted({english for messages in by_locale.values() for english in messages})
    foreign: list[str] = []
    locales: list[str] = []
    for locale in sorted(by_locale):
        if locale.startswith("en"):
            continue
        messages = sorted(set(by_locale[locale].values()))
        some = rng.permutation(len(messages))[:TEXTS_OF_A_LOCALE]
        foreign += [messages[i] for i in some]
        locales += [locale] * len(some)

    report: dict[str, Any] = {"texts": {"people": len(people), "programs": len(programs), "foreign": len(foreign)}}
    rows: dict[str, list[list[object]]] = {}
    asked: dict[str, Sequence[str]] = {"people": people, "programs": programs, "foreign": foreign}
    for name, texts in asked.items():
        answers = await ask(backend, [text.encode() for text in texts])
        report[name], rows[name] = _called_foreign(texts, answers)
        if name == "foreign":
            report["caught_by_locale_at_0.9"] = _by_locale(locales, answers)
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    report["reading"] = _reading(identifier, by_locale, rng)
    report["not_english"] = _not_english(identifier, people, foreign)
    findings.report["language"] = report

    header = ["length in characters", "texts", "undetermined", *(f"≥ {t}" for t in THRESHOLDS)]
    findings.table("English messages of people called foreign", header, rows["people"])
    findings.table("English messages of programs called foreign", header, rows["programs"])
    findings.table(f"Foreign messages ({len(set(locales))} locales) caught", header, rows["foreign"])
    worst = sorted(report["caught_by_locale_at_0.9"].items(), key=lambda pair: pair[1])[:12]
    findings.table("Least caught at 0.9", ["locale", "share"], [list(pair) for pair in worst])
    findings.table(
        "How much of a long text to read",
        ["bytes", "texts", "right", "mean score", "score ≥ 0.9", "µs a text"],
        [list(row.values()) for row in report["reading"]],
    )
    findings.table(
        f"What a score of another kind would give: texts from {LENGTHS[1][0]} characters on",
        ["at least", "people's English: top score", "1 - p(en)", "foreign caught: top score", "1 - p(en)"],
        [list(row.values()) for row in report["not_english"]],
    )


def _called_foreign(texts: Sequence[str], answers: Sequence[Answer]) -> tuple[dict[str, Any], list[list[object]]]:
    report: dict[str, Any] = {}
    rows: list[list[object]] = []
    for low, high in ((0, math.inf), *LENGTHS):
        name = "all" if (low, high) == (0, math.inf) else f"{low} to {high - 1:g}" if high < math.inf else f"{low} up"
        some = [answer for text, answer in zip(texts, answers, strict=True) if low <= len(text) < high]
        undetermined = share(sum(a.label == "und" for a in some), len(some))
        shares = [share(sum(a.label != "en" and a.sure(t) for a in some), len(some)) for t in THRESHOLDS]
        report[name] = {"texts": len(some), "undetermined": undetermined,
                        "called_foreign": dict(zip(map(str, THRESHOLDS), shares, strict=True))}  # fmt: skip
        rows.append([name, len(some), undetermined, *shares])
    return report, rows


def _by_locale(locales: Sequence[str], answers: Sequence[Answer]) -> dict[str, float]:
    caught: dict[str, list[bool]] = defaultdict(list)
    for locale, answer in zip(locales, answers, strict=True):
        caught[locale].append(answer.label != "en" and answer.sure(0.9))
    return {locale: share(sum(hits), len(hits)) for locale, hits in caught.items()}


# Any, below: py3langid has no types.


def _reading(identifier: Any, by_locale: dict[str, dict[str, str]], rng: np.random.Generator) -> list[dict[str, float]]:
    """What more of a text gives, and costs: long texts made of a locale's messages, cut to several sizes."""
    long: dict[str, bytes] = {}
    for locale, messages in sorted(by_locale.items()):
        texts = sorted(set(messages.values()))
        text = " ".join(texts[i] for i in rng.permutation(len(texts))).encode()
        if locale in identifier.labels and len(text) >= READ_SIZES[-1]:
            long[locale] = text
    rows = []
    for size in READ_SIZES:
        cut = {locale: text[:size].decode(errors="ignore") for locale, text in long.items()}
        started = time.perf_counter()
        answers = {locale: identifier.classify(text) for locale, text in cut.items()}
        spent_s = time.perf_counter() - started
        rows.append(
            {
                "bytes": size,
                "texts": len(cut),
                "right": share(sum(label == locale for locale, (label, _) in answers.items()), len(cut)),
                "mean_score": float(np.mean([score for _, score in answers.values()])),
                "score_at_least_0.9": share(sum(score >= 0.9 for _, score in answers.values()), len(cut)),
                "us_per_text": 1e6 * spent_s / len(cut),
            }
        )
    return rows


def _not_english(identifier: Any, people: Sequence[str], foreign: Sequence[str]) -> list[dict[str, float]]:
    """Were "foreign" judged by all that is not English, sister languages would not take each other's probability."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for name, texts in (("english", people), ("foreign", foreign)):
        scores[name] = []
        for text in texts:
            if len(text) >= LENGTHS[1][0]:
                ranking = identifier.rank(text)
                label, top = ranking[0]
                scores[name].append((top, 1 - dict(ranking)["en"]) if label != "en" else (math.nan, math.nan))
    return [
        {"at_least": t}
        | {
            f"{name}_{how}": share(sum(pair[i] >= t for pair in scores[name]), len(scores[name]))
            for name in ("english", "foreign")
            for i, how in enumerate(("top", "not_english"))
        }
        for t in (*THRESHOLDS, 0.999)
    ]


# Cost


async def cost(name: str, backend: Backend, items: Sequence[bytes], findings: Findings) -> None:
    """Wall and CPU time an item through `Backend.infer`: back to back in batches, and alone every 20 ms."""
    rows = findings.report.setdefault("cost", [])
    for size in (1, 8, backend.limits.max_batch):
        rows.append(await _timed(name, f"batches of {size}", backend, items, size, pause_s=0.0))
    rows.append(await _timed(name, "1 every 20 ms", backend, items, 1, pause_s=0.02))


async def _timed(
    name: str, how: str, backend: Backend, items: Sequence[bytes], size: int, *, pause_s: float
) -> dict[str, Any]:
    batches = [batch_of(backend, [items[(i + j) % len(items)] for j in range(size)]) for i in range(0, 4 * size, size)]
    walls_s: list[float] = []
    async with _loop_watched() as lags_s:
        cpu_s, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < 1.5 or len(walls_s) < 5:
            started = time.perf_counter()
            await backend.infer(batches[len(walls_s) % len(batches)], NO_DEADLINE)
            walls_s.append(time.perf_counter() - started)
            if pause_s:
                await asyncio.sleep(pause_s)
        cpu_s = time.process_time() - cpu_s
    per_item = 1e3 * np.asarray(walls_s) / size
    return {
        "detector": name,
        "how": how,
        "calls": len(walls_s),
        "wall_ms_per_item_p50": float(np.median(per_item)),
        "wall_ms_per_item_p99": float(np.quantile(per_item, 0.99)),
        "cpu_ms_per_item": 1e3 * cpu_s / (len(walls_s) * size),
        "loop_lag_ms_p99": 1e3 * float(np.quantile(lags_s, 0.99)),
        "loop_lag_ms_worst": 1e3 * max(lags_s),
    }


@contextlib.asynccontextmanager
async def _loop_watched() -> AsyncIterator[list[float]]:
    """How late a task that wants to run every millisecond is; its own CPU time is part of what is measured."""
    lags_s: list[float] = [0.0]

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            lags_s.append(time.perf_counter() - started - 0.001)

    watcher = asyncio.create_task(watch())
    try:
        yield lags_s
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


# The whole


async def measure(demo: Sequence[Item], cache: Path) -> Findings:
    """Everything, one after the other."""
    findings = Findings()
    findings.report.update(
        seed=SEED,
        machine=f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.machine()}",
        load_average=os.getloadavg()[0],
        python=platform.python_version(),
        versions={name: version(name) for name in ("magika", "py3langid", "onnxruntime", "numpy")},
        foreign_texts=TRANSLATIONS[0],
    )
    magika = await open_content_type("magika", ContentTypeOptions())
    langid = await open_language("langid", LanguageOptions())
    try:
        await content_types(magika, demo, findings, np.random.default_rng(SEED))
        messages = [item.content for item in demo if item.route == "feedback"]  # English, written by people
        await languages(
            langid, [message.decode() for message in messages], cache, findings, np.random.default_rng(SEED)
        )
        await cost("magika", magika, messages, findings)
        await cost("langid", langid, messages, findings)
        long = b" ".join(messages)
        await cost("langid, long texts", langid, [long[i << 12 : (i + 1) << 12] for i in range(16)], findings)
    finally:
        await magika.aclose()
        await langid.aclose()
    rows = [list(row.values()) for row in findings.report["cost"]]
    header = ["detector", "how", "calls", "ms p50", "ms p99", "CPU ms", "loop late, ms p99", "worst"]
    findings.table("Cost an item, through `Backend.infer`", header, rows)
    return findings


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def text_of(findings: Findings) -> str:
    """The tables as Markdown."""
    report = findings.report
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines = [
        "# What the detectors are worth, and what they cost",
        "",
        f"`python -m loadtests.experiments.classification`; seed {report['seed']}; {report['machine']}, "
        f"load {report['load_average']:.1f} at the start; Python {report['python']}, {versions}; "
        f"foreign texts of {report['foreign_texts']}. Shares are of all items of the row.",
    ]
    for title, header, rows in findings.tables:
        lines += ["", f"## {title}", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(findings: Findings, path: Path) -> None:
    """Error against coverage; English called foreign and foreign caught against the threshold; cost an item."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    content, language = findings.report["content_type"], findings.report["language"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    covered, label_error, group_error = zip(*content["curve"], strict=True)
    left.plot(covered, label_error, marker=".", label="label wrong")
    left.plot(covered, group_error, marker=".", label="group wrong")
    left.set(title=f"magika: {content['files']} files", xlabel="share answered, surest first", ylabel="share wrong")
    left.legend()
    for name, style in (("people", "-"), ("foreign", "--")):
        for length, row in language[name].items():
            values = [100 * row["called_foreign"][str(t)] for t in THRESHOLDS]
            what = "English called foreign" if name == "people" else "foreign caught"
            if length != "all":
                middle.plot(range(len(THRESHOLDS)), values, style, marker=".", label=f"{what}, {length} characters")
    middle.set(title="py3langid", xlabel="score at least", ylabel="% of texts")
    middle.set_yscale("symlog", linthresh=0.1)
    middle.set_ylim(0, 110)
    middle.set_xticks(range(len(THRESHOLDS)), map(str, THRESHOLDS))
    middle.legend(fontsize="x-small", loc="center right")
    rows = findings.report["cost"]
    places = np.arange(len(rows))
    right.barh(places - 0.2, [row["wall_ms_per_item_p50"] for row in rows], 0.4, label="wall, median")
    right.barh(places + 0.2, [row["cpu_ms_per_item"] for row in rows], 0.4, label="CPU")
    right.set_yticks(places, [f"{row['detector']}: {row['how']}" for row in rows], fontsize="small")
    right.set(title="Cost an item", xlabel="ms (log)", xscale="log")
    right.invert_yaxis()
    right.legend()
    figure.savefig(path, dpi=110)


def demo_items(folder: Path | None) -> list[Item]:
    """The demo's items, prepared by the demo itself where no *folder* is given."""
    if folder is None:
        prepare = [sys.executable, "-m", "gateway.cli", "demo", "--prepare"]
        printed = subprocess.run(prepare, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  # fixed
        folder = Path(printed.strip().splitlines()[-1])
    path = folder / "items.jsonl"
    if not path.is_file():
        sys.exit(f"there is no {path}; name the folder that the demo prepared with --demo")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    return [Item(item["route"], base64.b64decode(item["payload_b64"])) for item in written]


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="the folder that the demo prepared (default: it is asked to)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="a folder")
    arguments = parser.parse_args()
    findings = asyncio.run(measure(demo_items(arguments.demo), cache_folder()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    place = arguments.out / "classification"
    place.with_suffix(".json").write_text(json.dumps(findings.report, indent=1, ensure_ascii=False) + "\n")
    place.with_suffix(".md").write_text(text_of(findings))
    plot(findings, place.with_suffix(".png"))
    print(place.with_suffix(".md"))


if __name__ == "__main__":
    main()
