"""Plans: composition from configuration, checks at construction, and the batch at run time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.arrays import Array
from kernels.decode import DECODERS
from kernels.plan import ArraySpec, ItemError, Plan, PlanError, Values, parse_spec
from kernels.steps import STEPS

IMAGE = DECODERS["image"].output
TEXT = DECODERS["utf8"].output
HERE = Path()


def floats(*shape: int, dtype: str = "float32") -> ArraySpec:
    return ArraySpec(np.dtype(dtype), shape)


def plan(
    steps: str,
    inputs: ArraySpec | Mapping[str, ArraySpec] = IMAGE,
    *,
    base: Path = HERE,
    labels: list[str] | None = None,
) -> Plan:
    """A plan from YAML; a single input is called `x`."""
    named = {"x": inputs} if isinstance(inputs, ArraySpec) else inputs
    return Plan.from_spec(yaml.safe_load(steps), named, base=base, labels=labels)


def faults(make: Callable[[], object]) -> list[str]:
    with pytest.raises(PlanError) as caught:
        make()
    assert str(caught.value) == "\n".join(caught.value.faults)
    return list(caught.value.faults)


def pictures(rng: np.random.Generator, *sizes: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)


def texts(*elements: bytes) -> Array:
    array = np.empty((len(elements), 1), dtype=object)
    array[:, 0] = elements
    return array


def array(value: Values) -> Array:
    assert isinstance(value, np.ndarray)
    return value


# Composition


def test_pictures_of_several_sizes_become_one_array(rng: np.random.Generator) -> None:
    made = plan("[gray, {resize: {size: [28, 28], method: area}}, {scale: 0.00392156862745098}, chw]")

    result = made({"x": pictures(rng, (5, 9), (100, 28), (1, 1))})

    assert made.outputs == {"x": floats(1, 28, 28)}
    assert array(result["x"]).shape == (3, 1, 28, 28)
    assert array(result["x"]).dtype == np.float32
    assert 0 <= array(result["x"]).min() <= array(result["x"]).max() <= 1


def test_the_recipe_of_a_page_model_runs(rng: np.random.Generator) -> None:
    made = plan(
        "[{resize_shortest: 256}, {center_crop: [224, 224]}, {scale: 0.00392156862745098},"
        " {normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}, chw]"
    )

    result = made({"x": pictures(rng, (300, 260), (64, 91))})

    assert made.outputs == {"x": floats(3, 224, 224)}
    assert array(result["x"]).shape == (2, 3, 224, 224)


def test_text_becomes_tokens(tokenizer_file: Path) -> None:
    made = plan(
        "[lower, strip, collapse_whitespace, nfc, {tokenize: {file: tokenizer.json, max_length: 8}}]",
        TEXT,
        base=tokenizer_file.parent,
    )

    result = made({"x": texts(b" RED  green ", b"blue")})

    assert list(made.outputs) == list(result) == ["input_ids", "attention_mask", "token_type_ids"]
    assert made.outputs["input_ids"] == ArraySpec(np.dtype(np.int64), (-1,))
    assert array(result["input_ids"]).tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]


def test_an_empty_plan_passes_values_through() -> None:
    made = plan("[]")
    given_values = {"x": np.zeros((2, 3, 4, 3), dtype=np.uint8)}

    assert made({"x": given_values["x"]})["x"] is given_values["x"]
    assert made.outputs == {"x": IMAGE}


def test_pictures_that_stay_unequal_stay_a_tuple(rng: np.random.Generator) -> None:
    made = plan("[bgr, {rotate: 90}, {scale: 2}]")

    result = made({"x": pictures(rng, (2, 3), (4, 5))})

    assert made.outputs == {"x": ArraySpec(np.dtype(np.float32), (-1, -1, 3), ragged=True)}
    assert [item.shape for item in result["x"]] == [(3, 2, 3), (5, 4, 3)]


def test_equal_pictures_may_come_as_an_array(rng: np.random.Generator) -> None:
    batch = np.stack(pictures(rng, (6, 8), (6, 8)))
    made = plan("[{letterbox: {size: [4, 4], fill: 0}}, {cast: int32}, flatten]")

    assert np.array_equal(array(made({"x": batch})["x"]), array(made({"x": tuple(batch)})["x"]))
    assert made.outputs == {"x": ArraySpec(np.dtype(np.int32), (48,))}


def test_items_of_one_known_shape_may_come_as_a_tuple() -> None:
    made = plan("[sigmoid]", floats(2))

    result = made({"x": (np.zeros(2, dtype=np.float32),) * 3})

    assert array(result["x"]).tolist() == [[0.5, 0.5]] * 3


def test_a_step_may_name_its_value() -> None:
    made = plan("[{softmax: {input: a, temperature: 2}}, {select: [a, b]}]", {"a": floats(2), "b": floats(3)})

    result = made({"a": np.zeros((1, 2), dtype=np.float32), "b": np.ones((1, 3), dtype=np.float32)})

    assert array(result["a"]).tolist() == [[0.5, 0.5]]
    assert array(result["b"]).tolist() == [[1, 1, 1]]


def test_embeddings_are_pooled_and_normalised() -> None:
    inputs = {"hidden": floats(-1, 2), "attention_mask": ArraySpec(np.dtype(np.int64), (-1,))}
    made = plan("[{mean_pool: {input: hidden}}, l2_normalize, {rename: {hidden: embedding}}]", inputs)

    result = made(
        {"hidden": np.array([[[6, 8], [0, 0], [9, 9]]], dtype=np.float32), "attention_mask": np.array([[1, 1, 0]])}
    )

    assert made.outputs == {"embedding": floats(2)}
    assert array(result["embedding"]).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_top_k_leaves_indices_beside_values() -> None:
    made = plan("[{top_k: 2}]", floats(3))

    result = made({"x": np.array([[1, 3, 2]], dtype=np.float32)})

    assert made.outputs == {"x": floats(2), "x_indices": ArraySpec(np.dtype(np.int64), (2,))}
    assert (array(result["x"]).tolist(), array(result["x_indices"]).tolist()) == ([[3, 2]], [[1, 2]])


def test_values_may_swap_names() -> None:
    made = plan("[{rename: {a: b, b: a}}]", {"a": floats(1), "b": floats(2)})

    result = made({"a": np.zeros((1, 1), dtype=np.float32), "b": np.zeros((1, 2), dtype=np.float32)})

    assert {name: array(value).shape for name, value in result.items()} == {"a": (1, 2), "b": (1, 1)}


def test_what_is_selected_alone_is_current() -> None:
    assert plan("[{select: [b]}, softmax]", {"a": floats(2), "b": floats(3)}).outputs == {"b": floats(3)}


def test_what_is_said_about_scores_stands_beside_them() -> None:
    made = plan("[log_softmax, margin, entropy]", floats(2))

    result = made({"x": np.zeros((3, 2), dtype=np.float32)})

    assert made.outputs == {"x": floats(2), "x_margin": floats(1), "x_entropy": floats(1)}
    assert {name: array(value).shape for name, value in result.items()} == {
        "x": (3, 2),
        "x_margin": (3, 1),
        "x_entropy": (3, 1),
    }


def test_boxes_are_suppressed_by_class() -> None:
    made = plan("[{nms: {limit: 2, overlap: 0.4}}]", {"boxes": floats(-1, 4), "scores": floats(-1, 3)})

    result = made({"boxes": np.zeros((1, 5, 4), np.float32), "scores": np.ones((1, 5, 3), np.float32)})

    assert made.outputs == {"boxes": floats(2, 4), "scores": floats(2), "classes": ArraySpec(np.dtype(np.int64), (2,))}
    assert {name: array(value).shape for name, value in result.items()} == {
        "boxes": (1, 2, 4),
        "scores": (1, 2),
        "classes": (1, 2),
    }


def test_rows_of_a_table_become_features() -> None:
    numbers = plan("[{impute: [1, 2]}, {normalize: {mean: [1, 1], std: [1, 2]}}]", floats(2))
    colours = plan("[{one_hot: [red, blue]}]", ArraySpec(np.dtype(object), (1,)))
    digits = plan("[{one_hot: [1, 2]}]", ArraySpec(np.dtype(np.int64), (2,)))
    buckets = plan("[{hash: {buckets: 8, seed: 3}}]", TEXT)

    assert array(numbers({"x": np.array([[math.nan, 5]], np.float32)})["x"]).tolist() == [[0, 2]]
    assert array(colours({"x": texts(b"blue", b"green")})["x"]).tolist() == [[0, 1], [0, 0]]
    assert array(digits({"x": np.array([[2, 1]])})["x"]).tolist() == [[0, 1, 1, 0]]
    assert buckets.outputs == {"x": ArraySpec(np.dtype(np.int64), (1,))}
    assert 0 <= array(buckets({"x": texts(b"blue")})["x"]).item() < 8


def test_sound_becomes_bands() -> None:
    made = plan("[{log_mel: {rate: 16000, mels: 8}}]", floats(1600))
    frames = plan("[{frame: {length: 400, hop: 160}}]", floats(1600))
    samples = {"x": np.zeros((2, 1600), np.float32)}

    assert made.outputs == {"x": floats(8, 11)}
    assert array(made(samples)["x"]).shape == (2, 8, 11)
    assert frames.outputs == {"x": floats(8, 400)}
    assert array(frames(samples)["x"]).shape == (2, 8, 400)


def test_the_first_token_and_bfloat16() -> None:
    made = plan("[first_token, {cast: bfloat16}]", floats(-1, 2))

    assert made.outputs == {"x": ArraySpec(np.dtype(np.uint16), (2,))}
    assert array(made({"x": np.ones((1, 3, 2), np.float32)})["x"]).tolist() == [[0x3F80, 0x3F80]]


# Classifiers


@pytest.mark.parametrize("steps", ["[softmax]", "[softmax, label]", "[softmax, {rename: {x: probabilities}}, label]"])
def test_a_classifier_ends_in_probabilities_and_label(steps: str) -> None:
    made = plan(steps, floats(2), labels=["no", "yes"])

    result = made({"x": np.array([[0, math.log(3)], [math.nan, 0]], dtype=np.float32)})

    assert made.outputs == {"probabilities": floats(2), "label": TEXT}
    assert array(result["probabilities"])[0] == pytest.approx([0.25, 0.75])
    assert np.isnan(array(result["probabilities"])[1]).all()
    assert array(result["label"]).tolist() == [[b"yes"], [b""]]


def test_a_model_that_gives_probabilities_needs_no_steps() -> None:
    made = plan("[]", {"p": floats(2, dtype="float64"), "extra": floats(4)}, labels=["no", "yes"])

    result = made({"p": np.array([[0.9, 0.1]]), "extra": np.zeros((1, 4), dtype=np.float32)})

    assert made.outputs == {"probabilities": floats(2), "label": TEXT, "extra": floats(4)}
    assert array(result["probabilities"]).dtype == np.float32
    assert array(result["label"]).tolist() == [[b"no"]]


def test_a_length_that_the_model_leaves_open_is_checked_with_each_batch() -> None:
    made = plan("[]", floats(-1), labels=["no", "yes"])

    assert made.outputs["probabilities"] == floats(2)
    with pytest.raises(ValueError, match=r"^3 scores for 2 labels; list one label a class$"):
        made({"x": np.zeros((1, 3), dtype=np.float32)})


@pytest.mark.parametrize(
    ("inputs", "labels", "fault"),
    [
        (
            {"x": floats(3)},
            ["a", "b"],
            "labels: 0 outputs fit 2 labels; the outputs are x float32[3]; correct labels, or end in floats[2]",
        ),
        (
            {"x": floats(2), "y": floats(2)},
            ["a", "b"],
            "labels: 2 outputs fit 2 labels; the outputs are x float32[2], y float32[2]; choose one with select",
        ),
        (
            {"x": floats(2), "label": ArraySpec(np.dtype(np.int64), ())},
            ["a", "b"],
            "labels: there is a value 'label' already; rename it first, or leave it out with select",
        ),
        (
            {"x": floats(2), "probabilities": floats(5)},
            ["a", "b"],
            "labels: there is a value 'probabilities' already; rename it too, or leave it out with select",
        ),
        ({"x": floats(2)}, ["a", "a"], "labels: must be different, and none empty; got ['a', 'a']"),
        ({"x": floats(2)}, ["a", ""], "labels: must be different, and none empty; got ['a', '']"),
        ({"x": floats(0)}, [], "labels: must be different, and none empty; got []"),
    ],
)
def test_labels_that_do_not_fit_stop_the_start(inputs: dict[str, ArraySpec], labels: list[str], fault: str) -> None:
    assert faults(lambda: plan("[]", inputs, labels=labels)) == [fault]


# Faults that names and arguments alone show


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ("[grey]", "step 1 of 1: unknown step 'grey'; did you mean gray?"),
        ("[xyzzy]", f"step 1 of 1: unknown step 'xyzzy'; the steps are {', '.join(STEPS)}"),
        ("[gray, 3]", "step 2 of 2: must be a step's name, or a mapping with one key, that name; got 3"),
        (
            "[{gray: {}, chw: {}}]",
            "step 1 of 1: must be a step's name, or a mapping with one key, that name; got {'gray': {}, 'chw': {}}",
        ),
        ("[resize]", "step 1 of 1 (resize): size is missing; it must be [height, width], at least 1 and up to 36000000 "
                     "pixels"),
        ("[{gray: 3}]", "step 1 of 1 (gray): arguments must be a mapping of ['input']; got 3"),
        ("[{gray: {size: 3}}]", "step 1 of 1 (gray): unknown argument 'size'; it takes ['input']"),
        ("[{rotate: 45}]", "step 1 of 1 (rotate): degrees must be one of 90, 180, 270; got 45"),
        ("[{rotate: 90.0}]", "step 1 of 1 (rotate): degrees must be one of 90, 180, 270; got 90.0"),
        ("[{scale: 1/255}]", "step 1 of 1 (scale): factor must be a number that float32 can hold "
                             "(0.00392156862745098 is 1/255); got '1/255'"),
        ("[{scale: .nan}]", "step 1 of 1 (scale): factor must be a number that float32 can hold "
                            "(0.00392156862745098 is 1/255); got nan"),
        ("[{scale: true}]", "step 1 of 1 (scale): factor must be a number that float32 can hold "
                            "(0.00392156862745098 is 1/255); got True"),
        ("[{softmax: 0}]", "step 1 of 1 (softmax): temperature must be a number above 0; got 0"),
        ("[{top_k: 1.5}]", "step 1 of 1 (top_k): k must be a whole number, at least 1; got 1.5"),
        ("[{cast: complex64}]", "step 1 of 1 (cast): dtype must be one of bfloat16, float16, float32, float64, int8, "
                                "int16, int32, int64, uint8, uint16, uint32, uint64; got 'complex64'"),
        ("[{select: []}]", "step 1 of 1 (select): names must be a list of different names; got []"),
        ("[{select: [a, a]}]", "step 1 of 1 (select): names must be a list of different names; got ['a', 'a']"),
        ("[{rename: {a: c, b: c}}]", "step 1 of 1 (rename): names must be a mapping from old to different new names; "
                                     "got {'a': 'c', 'b': 'c'}"),
        ("[{rename: a}]", "step 1 of 1 (rename): names must be a mapping from old to different new names; got 'a'"),
        ("[{softmax: {input: 3}}]", "step 1 of 1 (softmax): input must be the name of a value; got 3"),
        ("[{letterbox: {size: [9, 9], fill: 256}}]", "step 1 of 1 (letterbox): fill must be a whole number, 0 to 255; "
                                                     "got 256"),
        ("[{letterbox: {size: [9, 9], antialias: 1}}]", "step 1 of 1 (letterbox): antialias must be one of True, "
                                                        "False; got 1"),
        ("[{resize_shortest: 0}]", "step 1 of 1 (resize_shortest): side must be a whole number of pixels, 1 to 65535; "
                                   "got 0"),
        ("[{normalize: {mean: 0, std: [1, 0]}}]", "step 1 of 1 (normalize): std must be a number above 0 that float32 "
                                                  "can hold, or a list with one a channel; got [1, 0]"),
        ("[{scale: 1.0e+39}]", "step 1 of 1 (scale): factor must be a number that float32 can hold "
                               "(0.00392156862745098 is 1/255); got 1e+39"),
        ("[{normalize: {mean: 0, std: 1.0e-60}}]", "step 1 of 1 (normalize): std must be a number above 0 that float32 "
                                                   "can hold, or a list with one a channel; got 1e-60"),
        ("[{tokenize: {file: '', max_length: 8}}]", "step 1 of 1 (tokenize): file must be the name of a file; got ''"),
        ("[{one_hot: [a, 1]}]", "step 1 of 1 (one_hot): categories must be a list of different texts, or of different "
                                "whole numbers; got ['a', 1]"),
        ("[{hash: 0}]", "step 1 of 1 (hash): buckets must be a whole number, at least 1; got 0"),
        ("[{nms: {overlap: 2}}]", "step 1 of 1 (nms): overlap must be a number from 0 to 1; got 2"),
        ("[{log_mel: {rate: 16000, low_hz: -1}}]", "step 1 of 1 (log_mel): low_hz must be a number, 0 or above; got "
                                                   "-1"),
        ("gray", "steps must be a list such as [lower, {softmax: {input: logits}}]; got 'gray'"),
    ],
)  # fmt: skip
def test_a_fault_in_the_configuration_is_told_with_its_remedy(steps: str, fault: str) -> None:
    assert faults(lambda: parse_spec(yaml.safe_load(steps))) == [fault]


@pytest.mark.parametrize("size", ["[28]", "[28, 28, 3]", "28", "[0, 28]", "[28, 28.0]", "[true, 28]", "[6001, 6000]"])
def test_a_size_is_two_whole_numbers_within_the_limit(size: str) -> None:
    assert faults(lambda: parse_spec(yaml.safe_load(f"[{{resize: {size}}}]"))) == [
        "step 1 of 1 (resize): size must be [height, width], at least 1 and up to 36000000 pixels; "
        f"got {yaml.safe_load(size)!r}"
    ]


def test_all_faults_are_told_at_once() -> None:
    found = faults(lambda: parse_spec(["grey", {"resize": {"sise": 3, "method": "cubic"}}, "chw", {"top_k": 0}]))

    assert [fault.partition(":")[0] for fault in found] == [
        "step 1 of 4",
        "step 2 of 4 (resize)",
        "step 2 of 4 (resize)",
        "step 2 of 4 (resize)",
        "step 4 of 4 (top_k)",
    ]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(json_like)
def test_any_configuration_is_parsed_or_refused(spec: Any) -> None:
    for made in (spec, [spec], [{name: spec} for name in STEPS], [{"resize": {"size": spec, "method": spec}}]):
        try:
            parse_spec(made)
        except PlanError as error:
            assert error.faults  # noqa: PT017 - both ends are allowed


# Faults that inputs show


@pytest.mark.parametrize(
    ("steps", "inputs", "fault"),
    [
        ("[{scale: 1}, gray]", IMAGE,
         "step 2 of 2 (gray): value 'x' is float32[-1, -1, 3]: an image in uint8 is needed; put this step before "
         "scale, normalize and cast"),
        ("[gray, gray]", IMAGE,
         "step 2 of 2 (gray): value 'x' is uint8[-1, -1, 1]: an image of 3 channels is needed; put this step before "
         "gray"),
        ("[chw, {center_crop: [9, 9]}]", ArraySpec(np.dtype(np.uint8), (4, 8, 3)),
         "step 2 of 2 (center_crop): value 'x' is uint8[3, 4, 8]: it is smaller than the crop [9, 9]; resize it first"),
        ("[gray]", TEXT,
         "step 1 of 1 (gray): value 'x' is bytes[1]: an image in uint8 is needed; put this step before scale, "
         "normalize and cast"),
        ("[bgr]", TEXT,
         "step 1 of 1 (bgr): value 'x' is bytes[1]: an image (height, width, channels) is needed; put this step "
         "before chw and flatten"),
        ("[flatten]", IMAGE,
         "step 1 of 1 (flatten): value 'x' is uint8[-1, -1, 3]: every length must be known; put a resize to a fixed "
         "size before flatten"),
        ("[{normalize: {mean: 0, std: 1}}]", IMAGE,
         "step 1 of 1 (normalize): value 'x' is uint8[-1, -1, 3]: float32 is needed; put scale before normalize"),
        ("[{scale: 1}, {normalize: {mean: [1, 2], std: 1}}]", IMAGE,
         "step 2 of 2 (normalize): value 'x' is float32[-1, -1, 3]: mean has 2 numbers for a last axis of 3; give one "
         "a channel, and put normalize before chw"),
        ("[{scale: 1}]", TEXT, "step 1 of 1 (scale): value 'x' is bytes[1]: uint8 or float32 is needed; cast it first"),
        ("[{cast: int8}]", floats(2),
         "step 1 of 1 (cast): value 'x' is float32[2]: it cannot become int8 without losing what it holds"),
        ("[lower]", floats(2),
         "step 1 of 1 (lower): value 'x' is float32[2]: text (bytes) is needed; name another value with input"),
        ("[softmax]", IMAGE,
         "step 1 of 1 (softmax): value 'x' is uint8[-1, -1, 3]: floats with at least one axis are needed; name "
         "another value with input, or cast it"),
        ("[{top_k: 3}]", floats(2),
         "step 1 of 1 (top_k): value 'x' is float32[2]: 3 or more floats in its last axis are needed; lower k"),
        ("[{top_k: {k: 1, input: x}}]", {"x": floats(2), "x_indices": floats(2)},
         "step 1 of 1 (top_k): there is a value 'x_indices' already; rename it first"),
        ("[label]", floats(2), "step 1 of 1 (label): the model has no labels; list them under labels"),
        ("[softmax]", {"b": floats(2), "a": floats(2)},
         "step 1 of 1 (softmax): several values are at hand; add input: one of ['a', 'b']"),
        ("[{softmax: {input: y}}]", floats(2),
         "step 1 of 1 (softmax): there is no value 'y'; at hand are ['x']"),
        ("[{rename: {y: z}}]", floats(2), "step 1 of 1 (rename): there is no value 'y'; at hand are ['x']"),
        ("[mean_pool]", floats(-1, 2), "step 1 of 1 (mean_pool): there is no value 'attention_mask'; at hand are "
                                       "['x']"),
        ("[{mean_pool: {input: x}}]", {"x": floats(2), "attention_mask": ArraySpec(np.dtype(np.int64), (-1,))},
         "step 1 of 1 (mean_pool): value 'x' is float32[2]: floats (tokens, features) are needed; name them with "
         "input"),
        ("[{mean_pool: {input: x}}]", {"x": floats(7, 2), "attention_mask": ArraySpec(np.dtype(np.int64), (8,))},
         "step 1 of 1 (mean_pool): mask 'attention_mask' is int64[8]: whole numbers of shape [7] are needed"),
        ("[{resize: {size: [2, 2], align_corners: true}}]", IMAGE,
         "step 1 of 1 (resize): value 'x' is uint8[-1, -1, 3]: align_corners goes with method bilinear and antialias "
         "false; set both"),
        ("[{cast: bfloat16}]", TEXT,
         "step 1 of 1 (cast): value 'x' is bytes[1]: it cannot become bfloat16; numbers are needed"),
        ("[first_token]", floats(2),
         "step 1 of 1 (first_token): value 'x' is float32[2]: floats (tokens, features) are needed; name them with "
         "input"),
        ("[{impute: [1, 2]}]", floats(3),
         "step 1 of 1 (impute): value 'x' is float32[3]: there are 2 values for 3 features; give one a feature"),
        ("[{one_hot: [a]}]", floats(2),
         "step 1 of 1 (one_hot): value 'x' is float32[2]: the categories are texts, and so must be what they are "
         "compared with"),
        ("[{one_hot: [1]}]", floats(2, 2),
         "step 1 of 1 (one_hot): value 'x' is float32[2, 2]: a known number of values an item is needed; name another "
         "value with input"),
        ("[{frame: {length: 4, hop: 2}}]", floats(3),
         "step 1 of 1 (frame): value 'x' is float32[3]: it is shorter than a frame of 4; lower length"),
        ("[{log_mel: {rate: 8000, high_hz: 5000}}]", floats(-1),
         "step 1 of 1 (log_mel): value 'x' is float32[-1]: bands from 0 to 5000 Hz do not lie within 0 to 4000 Hz, "
         "half of rate; correct low_hz and high_hz"),
        ("[{log_mel: {rate: 8000}}]", floats(200),
         "step 1 of 1 (log_mel): value 'x' is float32[200]: it is too short for a window of 400; lower window"),
        ("[margin]", floats(1),
         "step 1 of 1 (margin): value 'x' is float32[1]: 2 or more floats in its last axis are needed"),
        ("[entropy]", {"x": floats(2), "x_entropy": floats(1)},
         "step 1 of 1 (entropy): several values are at hand; add input: one of ['x', 'x_entropy']"),
        ("[{entropy: {input: x}}]", {"x": floats(2), "x_entropy": floats(1)},
         "step 1 of 1 (entropy): there is a value 'x_entropy' already; rename it first"),
        ("[nms]", {"boxes": floats(5, 3), "scores": floats(5)},
         "step 1 of 1 (nms): value 'boxes' is float32[5, 3]: floats (boxes, 4) are needed; name them with boxes"),
        ("[nms]", {"boxes": floats(5, 4), "scores": floats(6)},
         "step 1 of 1 (nms): value 'scores' is float32[6]: floats (5) or (5, classes) are needed; name them with "
         "scores"),
        ("[nms]", {"boxes": floats(5, 4), "scores": floats(5), "classes": floats(5)},
         "step 1 of 1 (nms): there is a value 'classes' already; rename it first"),
        ("[{tokenize: {file: t.json, max_length: 4}}]", floats(2),
         "step 1 of 1 (tokenize): value 'x' is float32[2]: text, bytes[1], is needed; name another value with input"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_work_on_what_it_finds_stops_the_start(
    steps: str, inputs: ArraySpec | Mapping[str, ArraySpec], fault: str
) -> None:
    assert faults(lambda: plan(steps, inputs)) == [fault]


def test_a_label_step_needs_one_score_a_label() -> None:
    assert faults(lambda: plan("[label]", floats(3), labels=["a", "b"])) == [
        "step 1 of 1 (label): value 'x' is float32[3]: floats[2], one score a label, are needed"
    ]


def test_a_missing_tokenizer_stops_the_start(tmp_path: Path) -> None:
    (fault,) = faults(lambda: plan("[{tokenize: {file: absent.json, max_length: 8}}]", TEXT, base=tmp_path))

    assert fault.startswith("step 1 of 1 (tokenize): cannot read tokenizer '")
    assert fault.endswith("absent.json': No such file or directory; check the path")


def test_known_sizes_are_carried_through() -> None:
    made = plan("[{resize_shortest: 10}, {rotate: 90}]", ArraySpec(np.dtype(np.uint8), (20, 45, 3)))

    assert made.outputs == {"x": ArraySpec(np.dtype(np.uint8), (22, 10, 3))}


# Bad batches


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, "the plan takes ['a', 'b']; got []"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((1, 2)), "c": np.zeros(1)}, "the plan takes ['a', 'b']; got "
                                                                           "['a', 'b', 'c']"),
        ({"a": np.zeros((0, 2)), "b": np.zeros((0, 2))}, "value 'a' has no items"),
        ({"a": (), "b": ()}, "value 'a' has no items"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((2, 2))}, "every value needs the same number of items; got "
                                                         "{'a': 1, 'b': 2}"),
        ({"a": np.zeros((1, 3)), "b": np.zeros((1, 2))}, "item 0: value 'a' is float64[3]; the plan takes float64[2]"),
        ({"a": np.zeros((1, 2), dtype=np.int64), "b": np.zeros((1, 2))}, "item 0: value 'a' is int64[2]; the plan "
                                                                         "takes float64[2]"),
        ({"a": (np.zeros(2), np.zeros(5)), "b": np.zeros((2, 2))}, "item 1: value 'a' is float64[5]; the plan takes "
                                                                   "float64[2]"),
    ],
)  # fmt: skip
def test_a_batch_that_is_not_what_the_plan_takes_is_refused(values: dict[str, Values], error: str) -> None:
    made = plan("[]", {"a": floats(2, dtype="float64"), "b": floats(2, dtype="float64")})

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared whole
        made(values)
    assert str(caught.value) == error


def test_the_picture_that_cannot_be_processed_is_named(rng: np.random.Generator) -> None:
    made = plan("[{center_crop: [4, 4]}]")

    with pytest.raises(ItemError, match=r"^item 1: image of 3x9 is smaller than the crop of 4x4") as caught:
        made({"x": pictures(rng, (9, 9), (3, 9), (9, 9))})
    assert caught.value.item == 1


# Invariants

GEOMETRY = st.sampled_from(
    [
        {"resize": [3, 4]},
        {"resize": {"size": [8, 2], "method": "nearest"}},
        {"resize": {"size": [2, 9], "method": "area"}},
        {"resize_shortest": 5},
        {"letterbox": [6, 5]},
        {"rotate": 90},
        {"rotate": 180},
        "bgr",
    ]
)
NUMBERS = st.sampled_from([{"scale": 0.5}, {"cast": "int32"}, "chw"])
SIDES = st.integers(1, 20)


@given(
    st.lists(GEOMETRY, max_size=4),
    st.lists(NUMBERS, max_size=1),
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4),
    st.booleans(),
)
def test_what_comes_out_is_what_the_plan_said(
    geometry: list[Any], numbers: list[Any], sizes: list[tuple[int, int]], gray: bool
) -> None:
    rng = np.random.default_rng(0)
    made = Plan.from_spec([*geometry, *["gray"][:gray], *numbers], {"x": IMAGE}, base=HERE)
    batch = pictures(rng, *sizes)
    for item in batch:
        item.flags.writeable = False

    result = made({"x": batch})["x"]

    assert isinstance(result, tuple) is made.outputs["x"].ragged
    assert len(result) == len(sizes)
    for index, item in enumerate(result):
        alone = array(made({"x": batch[index : index + 1]})["x"][0:1]) if not made.outputs["x"].ragged else None
        assert item.dtype == made.outputs["x"].dtype
        assert made.outputs["x"].admits(item.shape)
        assert alone is None or np.array_equal(alone[0], item)
