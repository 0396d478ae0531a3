"""py3langid as a backend, with its real model and real sentences."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from py3langid import langid

from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, Deadline, Limits, Tensor
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound
from backends.language import LANGID, READ_BYTES, Language, LanguageOptions, open_language

ROOT = Path(__file__).parents[3]

SENTENCES = {
    "en": "The parcel arrived two days late, and one of the glasses was broken.",
    "de": "Das Paket kam zwei Tage zu spät an, und eines der Gläser war zerbrochen.",
    "fr": "Le colis est arrivé avec deux jours de retard, et l'un des verres était cassé.",
    "es": "El paquete llegó dos días tarde y uno de los vasos estaba roto.",
    "it": "Il pacco è arrivato con due giorni di ritardo e uno dei bicchieri era rotto.",
    "pt": "A encomenda chegou com dois dias de atraso e um dos copos não estava inteiro.",
    "nl": "Het pakket kwam twee dagen te laat aan en een van de glazen was gebroken.",
    "pl": "Paczka przyszła dwa dni za późno, a jedna ze szklanek była stłuczona.",
    "ru": "Посылка пришла на два дня позже, и один из стаканов был разбит.",
    "zh": "包裹晚到了两天,其中一个杯子已经碎了,请尽快给我换一个新的。",
    "ja": "荷物は二日遅れて届き、グラスのひとつが割れていました。",
    "ar": "وصل الطرد متأخرا يومين وكان أحد الأكواب مكسورا.",
}


def batch_of(*texts: bytes) -> Batch:
    array = np.empty((len(texts), 1), object)
    array[:, 0] = texts
    return Batch.of({"text": Tensor.of(array)})


async def ask(backend: Backend, *texts: bytes) -> list[tuple[str, float]]:
    """(label, score) of every item."""
    outputs = await backend.infer(batch_of(*texts), NO_DEADLINE)
    labels, scores = (outputs[name].numpy()[:, 0].tolist() for name in ("label", "score"))
    return [(label.decode(), score) for label, score in zip(labels, scores, strict=True)]


def sample(size: int, rng: np.random.Generator) -> Batch:
    texts = list(SENTENCES.values())
    return batch_of(*(f"{texts[rng.integers(len(texts))]} {rng.integers(10**6)}".encode() for _ in range(size)))


@pytest.fixture(scope="module")
def identifier() -> Any:  # Any: py3langid has no types
    """The real model, loaded once: it takes a second."""
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@pytest.fixture
async def backend(identifier: Any) -> AsyncIterator[Backend]:
    backend = Language("m", LanguageOptions(), identifier)
    yield backend
    await backend.aclose()


@pytest.mark.parametrize("options", [LanguageOptions(), LanguageOptions("7", ("en", "de", "fr"), 4, 2)], ids=str)
async def test_it_keeps_the_contract(options: LanguageOptions) -> None:
    async def open_backend() -> Backend:
        return await LANGID.open("m", options)

    await exercise_backend(open_backend, sample)


async def test_it_describes_itself(backend: Backend) -> None:
    assert backend.version == "py3langid-0.4.0"
    assert backend.limits == Limits(max_batch=64, max_in_flight=1)
    assert [(spec.name, spec.datatype, spec.shape) for spec in backend.signature.outputs] == [
        ("label", Datatype.BYTES, (1,)),
        ("score", Datatype.FP32, (1,)),
    ]
    assert repr(backend) == "<Language 'm' version py3langid-0.4.0: ready>"


# What it says


@pytest.mark.parametrize("language", SENTENCES)
async def test_a_sentence_is_recognised(backend: Backend, language: str) -> None:
    [(label, score)] = await ask(backend, SENTENCES[language].encode())

    assert label == language
    assert 0.8 < score <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \t\r\n", id="white space"),
        pytest.param(b"4711 - 08/15, +49 (30) 1234", id="digits and punctuation"),
        pytest.param("½ ² 😀 🤷‍♂️ …".encode(), id="symbols"),
        pytest.param(b"\0" * 100, id="NUL"),
        pytest.param("Ça va très bien, merci beaucoup".encode("latin-1"), id="latin-1"),
        pytest.param("The parcel arrived two days late".encode("utf-16"), id="utf-16"),
        pytest.param("The parcel arrived two days late".encode("utf-16-le"), id="utf-16 unmarked"),
        pytest.param("schön".encode()[:-1] + b"\xc3", id="half a character at the end"),
        pytest.param(b"The parcel arrived \xff two days late", id="one byte that is not UTF-8"),
        pytest.param(b"\xed\xa0\x80 a lone surrogate is no UTF-8", id="surrogate"),
        pytest.param(b"ok", id="letters in which the model finds nothing"),
        pytest.param(b"AGF0YSBlbmNvZGVkIGJhc2U2NA==" * 4, id="base64, which the model calls no language"),
    ],
)
async def test_what_has_no_language_is_undetermined_and_never_confident(backend: Backend, text: bytes) -> None:
    [(label, score)] = await ask(backend, text)

    assert label == "und"
    assert math.isnan(score)


async def test_a_byte_order_mark_changes_nothing(backend: Backend) -> None:
    plain, marked = await ask(backend, *(SENTENCES["en"].encode(codec) for codec in ("utf-8", "utf-8-sig")))

    assert marked == plain


async def test_a_text_between_undetermined_ones_keeps_its_place(backend: Backend) -> None:
    labels = [label for label, _ in await ask(backend, b"", SENTENCES["de"].encode(), b"\xff", b"12")]

    assert labels == ["und", "de", "und", "und"]


async def test_languages_are_chosen_among_those_configured() -> None:
    backend = await open_language("m", LanguageOptions(languages=("en", "de", "en")))

    answers = await ask(backend, *(SENTENCES[language].encode() for language in ("en", "de", "nl", "ja")))

    assert [label for label, _ in answers[:2]] == ["en", "de"]
    assert {label for label, _ in answers[2:]} <= {"en", "de", "und"}
    await backend.aclose()


# How much it reads


async def test_only_the_beginning_of_a_long_text_is_read(backend: Backend) -> None:
    english = (SENTENCES["en"] * 100).encode()[:READ_BYTES]

    alone, followed, spoilt = await ask(backend, english, english + SENTENCES["ja"].encode() * 9_999, english + b"\xff")

    assert alone == followed == spoilt
    assert alone[0] == "en"


@pytest.mark.parametrize("shift", range(4))
async def test_a_character_cut_in_two_does_not_spoil_a_long_text(backend: Backend, shift: int) -> None:
    text = (b" " * shift) + (SENTENCES["ru"] * 100).encode()

    [(label, _)] = await ask(backend, text)

    assert label == "ru"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SENTENCES["fr"] * 13_000, id="a megabyte of French"),
        pytest.param("a" * 10_000, id="one letter"),
        pytest.param("a" + "\u0301\u0323" * 500_000, id="combining marks out of order, quadratic to normalise"),
        pytest.param("1" * 1_000_000 + "a", id="a letter after a million digits"),
    ],
)
async def test_the_longest_text_takes_no_longer_than_its_beginning(backend: Backend, text: str) -> None:
    assert len(await ask(backend, *[text.encode()] * 64)) == 64  # unbounded, the worst takes minutes


# How it ends


class Slow:
    """An identifier that takes 20 ms a text and counts them."""

    def __init__(self) -> None:
        self.texts = 0
        self.started = threading.Event()

    def classify(self, text: str) -> tuple[str, float]:
        if text:
            self.texts += 1
            self.started.set()
            time.sleep(0.02)
        return "en", 0.5 if text else 0.01


async def test_a_cancelled_call_ends_after_the_text_it_is_at() -> None:
    model = Slow()
    backend = Language("m", LanguageOptions(), model)
    call = asyncio.create_task(backend.infer(batch_of(*[b"x"] * 64), NO_DEADLINE))
    await asyncio.to_thread(model.started.wait)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert model.texts < 64
    assert await ask(backend, b"x") == [("en", 0.5)]
    await backend.aclose()


async def test_a_late_call_ends_after_the_text_it_is_at() -> None:
    model = Slow()
    backend = Language("m", LanguageOptions(), model)

    with pytest.raises(DeadlineExceeded, match="while model 'm' was at work"):
        await backend.infer(batch_of(*[b"x"] * 64), Deadline(time.monotonic() + 0.05))
    assert model.texts < 64
    assert await ask(backend, b"x") == [("en", 0.5)]
    await backend.aclose()


async def test_what_py3langid_raises_fails_the_batch_and_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> tuple[str, float]:
        raise KeyError("/etc/secret")

    model = Slow()
    backend = Language("m", LanguageOptions(), model)
    monkeypatch.setattr(model, "classify", fail)

    with pytest.raises(BackendFailed) as raised:
        await ask(backend, b"x")
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, KeyError)
    await backend.aclose()


async def test_elements_must_be_bytes(backend: Backend) -> None:
    with pytest.raises(InvalidInput, match="holds a str; encode it"):
        await backend.infer(Batch.of({"text": Tensor.of(np.array([["text"]], object))}), NO_DEADLINE)


# How it is opened


def test_nothing_is_imported_before_a_model_asks_for_it() -> None:
    code = """
import sys
from backends.registry import backend_type
backend_type("langid")
assert "py3langid" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


async def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)

    with pytest.raises(NotFound, match=r"model 'm': py3langid cannot be loaded: .*; install the package py3langid"):
        await open_language("m", LanguageOptions())


async def test_an_incomplete_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langid, "MODEL_FILE", "data/no_such_model")

    with pytest.raises(NotFound, match=r"no_such_model.*; install the package py3langid"):
        await open_language("m", LanguageOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            LanguageOptions(languages=("en", "xx", "english")),
            r"names english, xx, unknown .* it knows .* de, ",
        ),
        (LanguageOptions(languages=("en",)), "with en as its only language, every text would be that, at 1; name two"),
        (LanguageOptions(languages=("en", "en")), "with en as its only language"),
        (LanguageOptions(max_batch=0), "max_batch is 0"),
        (LanguageOptions(max_in_flight=0), "max_in_flight is 0"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: LanguageOptions, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await open_language("m", options)
