"""The steps that a plan is made of: each one operation with its arguments, as configuration names them.

A step is a frozen dataclass whose fields are its arguments. A field's annotation carries the `Argument` that parses
it, so that what is accepted, what the error says and what the type checker sees stand in one line. A step knows
nothing of the others: `bind` is given the `Scope` it finds and answers with what it reads, does and leaves behind.

Rejected: functions with arguments read from their signatures. They cannot say what shape they leave, and a plan that
only fails on its first request is what this module exists to prevent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from kernels import audio, images, outputs, tabular, text
from kernels.arrays import PIXEL_LIMIT, Array, ArraySpec, ItemError, Values
from kernels.recipe import Boxed, Chain, Exact, Shortest

_UINT8 = np.dtype(np.uint8)
_INT64 = np.dtype(np.int64)
_FLOAT32 = np.dtype(np.float32)
_BYTES = np.dtype(object)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a step finds.

    Attributes:
        values: by name, what the inputs and the steps so far have left.
        current: the value that a step acts on unless told otherwise; None where it must be told.
        base: the folder that file names are relative to.
        labels: of the model's classes, as UTF-8 `bytes`; None where it has none.
    """

    values: Mapping[str, ArraySpec]
    current: str | None
    base: Path
    labels: NDArray[np.object_] | None

    def pick(self, name: str | None) -> tuple[str, ArraySpec]:
        """The value *name*, or the current one.

        Raises:
            ValueError: there is no such value, or none is current.
        """
        chosen = name or self.current
        if chosen is None:
            raise ValueError(f"several values are at hand; add input: one of {sorted(self.values)}")
        if chosen not in self.values:
            raise ValueError(f"there is no value {chosen!r}; at hand are {sorted(self.values)}")
        return chosen, self.values[chosen]


@dataclass(frozen=True, slots=True)
class Bound:
    """A step that has been checked against its scope.

    Attributes:
        reads: names of the values that `run` takes, in order.
        run: from those values to those that `writes` names, in order.
        writes: what it leaves, by name.
        drops: names that are gone afterwards, unless written.
        current: the value that the next step acts on; None where it must say.
    """

    reads: tuple[str, ...]
    run: Callable[..., tuple[Values, ...]]
    writes: Mapping[str, ArraySpec]
    drops: frozenset[str]
    current: str | None


@dataclass(frozen=True, slots=True)
class Argument:
    """How an argument is read from configuration.

    Attributes:
        expects: completes "must be ...".
        parse: from what YAML holds to the field's value; raises ValueError or TypeError where it is not that.
    """

    expects: str
    parse: Callable[[Any], Any]  # Any: parsed YAML


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """One operation with its arguments.

    Attributes:
        shorthand: the argument that may be given alone, as in `{scale: 0.5}`.
    """

    shorthand: ClassVar[str | None] = None

    @classmethod
    def parse(cls, arguments: object) -> Step:
        """Build the step from what configuration gives after its name: a mapping, the shorthand's value, or None.

        Raises:
            ValueError: every unknown, missing or malformed argument, one a line.
        """
        known, defaults = cls.arguments(), {f.name for f in fields(cls) if f.default is not MISSING}
        given = cls._given(arguments, known)
        faults = [f"unknown argument {name!r}; it takes {sorted(known)}" for name in given if name not in known]
        faults += [f"{name} is missing; it must be {known[name].expects}" for name in known.keys() - given - defaults]
        values = {}
        for name in known.keys() & given:
            try:
                values[name] = known[name].parse(given[name])
            except (ValueError, TypeError, OverflowError):
                faults.append(f"{name} must be {known[name].expects}; got {given[name]!r}")
        if faults:
            raise ValueError("\n".join(sorted(faults)))
        return cls(**values)

    @classmethod
    def arguments(cls) -> dict[str, Argument]:
        """How each argument is read, by name."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name].__metadata__[0] for field in fields(cls)}

    @classmethod
    def _given(cls, arguments: object, known: Mapping[str, Argument]) -> dict[object, Any]:
        if arguments is None:
            return {}
        if isinstance(arguments, Mapping):
            return dict(arguments)
        if cls.shorthand is None:
            raise ValueError(f"arguments must be a mapping of {sorted(known)}; got {arguments!r}")
        return {cls.shorthand: arguments}

    @abstractmethod
    def bind(self, scope: Scope) -> Bound:
        """Check the step against what it finds.

        Raises:
            ValueError: the value it acts on is missing, or not what it works on; says the remedy.
        """


# Arguments.


def _whole(low: int, high: int = 2**31 - 1) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return parse


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _single(value: Any) -> float:
    """What float32 can hold."""
    if not abs(number := _finite(value)) <= _LARGEST:
        raise ValueError
    return number


_LARGEST = float(np.finfo(np.float32).max)


def _divisor(value: Any) -> float:
    """Above 0 in float32 as well."""
    if (number := _single(value)) < np.finfo(np.float32).tiny:
        raise ValueError
    return number


def _positive(value: Any) -> float:
    if (number := _finite(value)) <= 0:
        raise ValueError
    return number


def _not_negative(value: Any) -> float:
    if (number := _finite(value)) < 0:
        raise ValueError
    return number


def _share(value: Any) -> float:
    if (number := _not_negative(value)) > 1:
        raise ValueError
    return number


def _categories(value: Any) -> tuple[Any, ...]:
    found = tuple(_list(value))
    if len({type(one) for one in found}) != 1 or type(found[0]) not in (str, int) or len(set(found)) != len(found):
        raise ValueError
    return found


def _size(value: Any) -> tuple[int, int]:
    height, width = (_whole(1)(side) for side in _list(value))
    if height * width > PIXEL_LIMIT:
        raise ValueError
    return height, width


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return value


def _numbers(number: Callable[[Any], float]) -> Callable[[Any], tuple[float, ...]]:
    def parse(value: Any) -> tuple[float, ...]:
        return tuple(number(one) for one in (value if isinstance(value, list | tuple) else [value]))

    return parse


def _one_of(*choices: Any) -> Argument:
    def parse(value: Any) -> Any:
        if type(value) is not type(choices[0]) or value not in choices:
            raise ValueError
        return value

    return Argument(f"one of {', '.join(str(choice) for choice in choices)}", parse)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(_name(one) for one in _list(value))
    if len(set(names)) != len(names):
        raise ValueError
    return names


def _renames(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError
    pairs = tuple((_name(old), _name(new)) for old, new in value.items())
    if len({new for _, new in pairs}) != len(pairs):
        raise ValueError
    return pairs


_BFLOAT16 = "bfloat16"
_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DTYPES = (_BFLOAT16, *_NUMBERS)

Input = Annotated[str | None, Argument("the name of a value", _name)]
Size = Annotated[tuple[int, int], Argument(f"[height, width], at least 1 and up to {PIXEL_LIMIT} pixels", _size)]
Method = Annotated[images.Method, _one_of("bilinear", "nearest", "area")]
Rounding = Annotated[images.Rounding, _one_of("down", "even")]
Flag = Annotated[bool, _one_of(True, False)]
Side = Annotated[int, Argument("a whole number of pixels, 1 to 65535", _whole(1, 65_535))]
Level = Annotated[int, Argument("a whole number, 0 to 255", _whole(0, 255))]
Degrees = Annotated[int, _one_of(90, 180, 270)]
Factor = Annotated[float, Argument("a number that float32 can hold (0.00392156862745098 is 1/255)", _single)]
Mean = Annotated[
    tuple[float, ...], Argument("a number that float32 can hold, or a list with one a channel", _numbers(_single))
]
Deviation = Annotated[
    tuple[float, ...],
    Argument("a number above 0 that float32 can hold, or a list with one a channel", _numbers(_divisor)),
]
Gaps = Annotated[tuple[float, ...], Argument("a finite number, or a list with one a feature", _numbers(_finite))]
DtypeName = Annotated[str, _one_of(*_DTYPES)]
File = Annotated[str, Argument("the name of a file", _name)]
Length = Annotated[int, Argument("a whole number of tokens, 1 to 1048576", _whole(1, 2**20))]
Padding = Annotated[text.Padding, _one_of("longest", "max_length")]
Temperature = Annotated[float, Argument("a number above 0", _positive)]
Count = Annotated[int, Argument("a whole number, at least 1", _whole(1))]
Seed = Annotated[int, Argument("a whole number, 0 to 4294967295", _whole(0, 2**32 - 1))]
Share = Annotated[float, Argument("a number from 0 to 1", _share)]
Window = Annotated[int, Argument("a whole number of samples, at least 2", _whole(2))]
Hertz = Annotated[float, Argument("a number, 0 or above", _not_negative)]
HighHertz = Annotated[float | None, Argument("a number above 0", _positive)]
ValueName = Annotated[str, Argument("the name of a value", _name)]
Categories = Annotated[
    tuple[str, ...] | tuple[int, ...], Argument("a list of different texts, or of different whole numbers", _categories)
]
Names = Annotated[tuple[str, ...], Argument("a list of different names", _names)]
Renames = Annotated[tuple[tuple[str, str], ...], Argument("a mapping from old to different new names", _renames)]


# Steps that turn one value into another of the same name.


@dataclass(frozen=True, slots=True)
class Unary(Step):
    """A step that replaces one value; `input` names it where it is not the current one."""

    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Check the value's spec, and run on each item or on the batch at once."""
        name, spec = scope.pick(self.input)
        try:
            result = self._result(spec)
        except ValueError as error:
            raise ValueError(f"value {name!r} is {spec}: {error}") from error

        def run(value: Values) -> tuple[Values]:
            return (_each(self._apply, value, ragged=result.ragged),)

        return Bound((name,), run, {name: result}, frozenset(), name)

    @abstractmethod
    def _result(self, spec: ArraySpec) -> ArraySpec:
        """What becomes of a value of *spec*.

        Raises:
            ValueError: the step does not work on it; says what it needs.
        """

    @abstractmethod
    def _apply(self, array: Array) -> Array:
        """The operation, on one item or on a batch of equal ones."""

    def fuse(self, chain: Chain) -> Chain | None:
        """*chain* with this step at its end; None where a fused kernel cannot do it."""
        return None


def _each(apply: Callable[[Array], Array], value: Values, *, ragged: bool) -> Values:
    """Apply to a batch at once, or to one item after the other; those become one array unless they stay ragged."""
    if isinstance(value, np.ndarray):
        return apply(value)
    results = []
    for index, item in enumerate(value):
        try:
            results.append(apply(item))
        except ValueError as error:
            raise ItemError(index, str(error)) from error
    return tuple(results) if ragged else np.stack(results)


def _check_image(spec: ArraySpec, channels: int | None = None) -> tuple[int, int, int]:
    if len(spec.shape) != 3 or spec.dtype == _BYTES:
        raise ValueError("an image (height, width, channels) is needed; put this step before chw and flatten")
    if channels is not None and spec.shape[2] != channels:
        raise ValueError(f"an image of {channels} channels is needed; put this step before gray")
    height, width, depth = spec.shape
    return height, width, depth


def _check_uint8_image(spec: ArraySpec, channels: int | None = None) -> tuple[int, int, int]:
    if spec.dtype != _UINT8:
        raise ValueError("an image in uint8 is needed; put this step before scale, normalize and cast")
    return _check_image(spec, channels)


def _check_float(spec: ArraySpec) -> None:
    if spec.dtype.kind != "f" or not spec.shape:
        raise ValueError("floats with at least one axis are needed; name another value with input, or cast it")


def _check_text(spec: ArraySpec) -> None:
    if spec.dtype != _BYTES:
        raise ValueError("text (bytes) is needed; name another value with input")


@dataclass(frozen=True, slots=True)
class Gray(Unary):
    """`images.gray`."""

    def _result(self, spec: ArraySpec) -> ArraySpec:
        height, width, _ = _check_uint8_image(spec, channels=3)
        return spec.reshaped((height, width, 1))

    def _apply(self, array: Array) -> Array:
        return images.gray(array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Unary):
    """`images.resize`."""

    shorthand: ClassVar[str | None] = "size"
    size: Size
    method: Method = "bilinear"
    antialias: Flag = True
    align_corners: Flag = False

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if self.align_corners and (self.method != "bilinear" or self.antialias):
            raise ValueError("align_corners goes with method bilinear and antialias false; set both")
        return spec.reshaped((*self.size, _check_uint8_image(spec)[2]))

    def _apply(self, array: Array) -> Array:
        return images.resize(
            array, self.size, method=self.method, antialias=self.antialias, align_corners=self.align_corners
        )

    def fuse(self, chain: Chain) -> Chain | None:
        """One of the kernel's ways to place a picture."""
        return chain.resized(Exact(self.size), images.Filter(self.method, self.antialias, self.align_corners))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeShortest(Unary):
    """`images.resize_shortest`."""

    shorthand: ClassVar[str | None] = "side"
    side: Side
    method: Method = "bilinear"
    antialias: Flag = True

    def _result(self, spec: ArraySpec) -> ArraySpec:
        height, width, channels = _check_uint8_image(spec)
        if -1 in (height, width):
            return spec.reshaped((-1, -1, channels))
        return spec.reshaped((*images.shortest_size(height, width, self.side), channels))

    def _apply(self, array: Array) -> Array:
        return images.resize_shortest(array, self.side, method=self.method, antialias=self.antialias)

    def fuse(self, chain: Chain) -> Chain | None:
        """One of the kernel's ways to place a picture."""
        return chain.resized(Shortest(self.side), images.Filter(self.method, self.antialias))


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterCrop(Unary):
    """`images.center_crop`."""

    shorthand: ClassVar[str | None] = "size"
    size: Size
    rounding: Rounding = "down"

    def _result(self, spec: ArraySpec) -> ArraySpec:
        height, width, channels = _check_image(spec)
        if -1 < height < self.size[0] or -1 < width < self.size[1]:
            raise ValueError(f"it is smaller than the crop {list(self.size)}; resize it first")
        return spec.reshaped((*self.size, channels))

    def _apply(self, array: Array) -> Array:
        return images.center_crop(array, self.size, rounding=self.rounding)

    def fuse(self, chain: Chain) -> Chain | None:
        """What lies outside is not even read."""
        return chain.cropped(self.size, self.rounding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letterbox(Unary):
    """`images.letterbox`."""

    shorthand: ClassVar[str | None] = "size"
    size: Size
    fill: Level = 114
    method: Method = "bilinear"
    antialias: Flag = True

    def _result(self, spec: ArraySpec) -> ArraySpec:
        return spec.reshaped((*self.size, _check_uint8_image(spec)[2]))

    def _apply(self, array: Array) -> Array:
        return images.letterbox(array, self.size, fill=self.fill, method=self.method, antialias=self.antialias)

    def fuse(self, chain: Chain) -> Chain | None:
        """One of the kernel's ways to place a picture."""
        return chain.resized(Boxed(self.size, self.fill), images.Filter(self.method, self.antialias))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate(Unary):
    """`images.rotate`."""

    shorthand: ClassVar[str | None] = "degrees"
    degrees: Degrees

    def _result(self, spec: ArraySpec) -> ArraySpec:
        height, width, channels = _check_image(spec)
        return spec.reshaped((height, width, channels) if self.degrees == 180 else (width, height, channels))

    def _apply(self, array: Array) -> Array:
        return images.rotate(array, self.degrees)


@dataclass(frozen=True, slots=True)
class Bgr(Unary):
    """`images.bgr`."""

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_image(spec, channels=3)
        return spec

    def _apply(self, array: Array) -> Array:
        return images.bgr(array)

    def fuse(self, chain: Chain) -> Chain | None:
        """The order in which planes are written."""
        return chain.reversed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Unary):
    """`images.scale`."""

    shorthand: ClassVar[str | None] = "factor"
    factor: Factor

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if spec.dtype not in (_UINT8, _FLOAT32):
            raise ValueError("uint8 or float32 is needed; cast it first")
        return spec.reshaped(spec.shape, _FLOAT32)

    def _apply(self, array: Array) -> Array:
        return images.scale(array, self.factor)

    def fuse(self, chain: Chain) -> Chain | None:
        """Arithmetic on what is resampled."""
        return chain.computed("multiply", (self.factor,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize(Unary):
    """`images.normalize`."""

    mean: Mean
    std: Deviation

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if spec.dtype != _FLOAT32 or not spec.shape:
            raise ValueError("float32 is needed; put scale before normalize")
        for name, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (1, spec.shape[-1]):
                raise ValueError(
                    f"{name} has {len(given)} numbers for a last axis of {spec.shape[-1]}; give one a channel, "
                    "and put normalize before chw"
                )
        return spec

    def _apply(self, array: Array) -> Array:
        return images.normalize(array, self.mean, self.std)

    def fuse(self, chain: Chain) -> Chain | None:
        """Arithmetic on what is resampled."""
        shifted = chain.computed("subtract", self.mean)
        return shifted and shifted.computed("divide", self.std)


@dataclass(frozen=True, slots=True)
class Chw(Unary):
    """`images.chw`."""

    def _result(self, spec: ArraySpec) -> ArraySpec:
        height, width, channels = _check_image(spec)
        return spec.reshaped((channels, height, width))

    def _apply(self, array: Array) -> Array:
        return images.chw(array)

    def fuse(self, chain: Chain) -> Chain | None:
        """Where planes are written."""
        return chain.channels_first()


@dataclass(frozen=True, slots=True)
class Flatten(Unary):
    """`images.flatten`."""

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if -1 in spec.shape:
            raise ValueError("every length must be known; put a resize to a fixed size before flatten")
        return spec.reshaped((math.prod(spec.shape),))

    def _apply(self, array: Array) -> Array:
        return images.flatten(array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(Unary):
    """`images.cast`, and `images.bfloat16` for that dtype, whose bit patterns travel as uint16."""

    shorthand: ClassVar[str | None] = "dtype"
    dtype: DtypeName

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if self.dtype == _BFLOAT16:
            if spec.dtype == _BYTES or not np.can_cast(spec.dtype, np.float32, casting="same_kind"):
                raise ValueError("it cannot become bfloat16; numbers are needed")
            return spec.reshaped(spec.shape, np.dtype(np.uint16))
        if spec.dtype == _BYTES or not np.can_cast(spec.dtype, self.dtype, casting="same_kind"):
            raise ValueError(f"it cannot become {self.dtype} without losing what it holds")
        return spec.reshaped(spec.shape, np.dtype(self.dtype))

    def _apply(self, array: Array) -> Array:
        return images.bfloat16(array) if self.dtype == _BFLOAT16 else images.cast(array, np.dtype(self.dtype))

    def fuse(self, chain: Chain) -> Chain | None:
        """What is written."""
        return chain.cast(self.dtype)


@dataclass(frozen=True, slots=True)
class _Text(Unary):
    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_text(spec)
        return spec


@dataclass(frozen=True, slots=True)
class Lower(_Text):
    """`text.lower`."""

    def _apply(self, array: Array) -> Array:
        return text.lower(array)


@dataclass(frozen=True, slots=True)
class Strip(_Text):
    """`text.strip`."""

    def _apply(self, array: Array) -> Array:
        return text.strip(array)


@dataclass(frozen=True, slots=True)
class Nfc(_Text):
    """`text.nfc`."""

    def _apply(self, array: Array) -> Array:
        return text.nfc(array)


@dataclass(frozen=True, slots=True)
class CollapseWhitespace(_Text):
    """`text.collapse_whitespace`."""

    def _apply(self, array: Array) -> Array:
        return text.collapse_whitespace(array)


@dataclass(frozen=True, slots=True)
class _Scores(Unary):
    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_float(spec)
        return spec.reshaped(spec.shape, _FLOAT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(_Scores):
    """`outputs.softmax`."""

    shorthand: ClassVar[str | None] = "temperature"
    temperature: Temperature = 1.0

    def _apply(self, array: Array) -> Array:
        return outputs.softmax(array, temperature=self.temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSoftmax(_Scores):
    """`outputs.log_softmax`."""

    shorthand: ClassVar[str | None] = "temperature"
    temperature: Temperature = 1.0

    def _apply(self, array: Array) -> Array:
        return outputs.log_softmax(array, temperature=self.temperature)


@dataclass(frozen=True, slots=True)
class Sigmoid(_Scores):
    """`outputs.sigmoid`."""

    def _apply(self, array: Array) -> Array:
        return outputs.sigmoid(array)


@dataclass(frozen=True, slots=True)
class L2Normalize(_Scores):
    """`outputs.l2_normalize`."""

    def _apply(self, array: Array) -> Array:
        return outputs.l2_normalize(array)


@dataclass(frozen=True, slots=True)
class FirstToken(Unary):
    """`outputs.first_token`."""

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_float(spec)
        if len(spec.shape) != 2 or spec.ragged:
            raise ValueError("floats (tokens, features) are needed; name them with input")
        return spec.reshaped(spec.shape[1:], _FLOAT32)

    def _apply(self, array: Array) -> Array:
        return outputs.first_token(array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Impute(Unary):
    """`tabular.impute`."""

    shorthand: ClassVar[str | None] = "values"
    values: Gaps

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_float(spec)
        if len(self.values) not in (1, spec.shape[-1]):
            raise ValueError(f"there are {len(self.values)} values for {spec.shape[-1]} features; give one a feature")
        with np.errstate(over="ignore"):
            if not np.isfinite(np.asarray(self.values, dtype=spec.dtype)).all():
                raise ValueError(f"{max(self.values, key=abs):g} is more than {spec.dtype} can hold; correct values")
        return spec

    def _apply(self, array: Array) -> Array:
        return tabular.impute(array, self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHot(Unary):
    """`tabular.one_hot`."""

    shorthand: ClassVar[str | None] = "categories"
    categories: Categories

    def _result(self, spec: ArraySpec) -> ArraySpec:
        if len(spec.shape) != 1 or spec.shape[0] < 0:
            raise ValueError("a known number of values an item is needed; name another value with input")
        kinds, needed = ("O", "texts") if isinstance(self.categories[0], str) else ("iu", "whole numbers")
        if spec.dtype.kind not in kinds:
            raise ValueError(f"the categories are {needed}, and so must be what they are compared with")
        return spec.reshaped((spec.shape[0] * len(self.categories),), _FLOAT32)

    def _apply(self, array: Array) -> Array:
        categories = np.empty(len(self.categories), dtype=object)
        categories[:] = [one.encode() if isinstance(one, str) else one for one in self.categories]
        return tabular.one_hot(array, categories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hash(Unary):
    """`tabular.hash_buckets`."""

    shorthand: ClassVar[str | None] = "buckets"
    buckets: Count
    seed: Seed = 0

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_text(spec)
        return spec.reshaped(spec.shape, _INT64)

    def _apply(self, array: Array) -> Array:
        return tabular.hash_buckets(array, self.buckets, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame(Unary):
    """`audio.frame`."""

    length: Count
    hop: Count

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_float(spec)
        if -1 < spec.shape[-1] < self.length:
            raise ValueError(f"it is shorter than a frame of {self.length}; lower length")
        frames = -1 if spec.shape[-1] == -1 else 1 + (spec.shape[-1] - self.length) // self.hop
        return spec.reshaped((*spec.shape[:-1], frames, self.length))

    def _apply(self, array: Array) -> Array:
        return audio.frame(array, self.length, self.hop)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMel(Unary):
    """`audio.log_mel`."""

    rate: Count
    window: Window = 400
    hop: Count = 160
    mels: Count = 80
    low_hz: Hertz = 0.0
    high_hz: HighHertz = None

    def _result(self, spec: ArraySpec) -> ArraySpec:
        _check_float(spec)
        high_hz = self.rate / 2 if self.high_hz is None else self.high_hz
        if not self.low_hz < high_hz <= self.rate / 2:
            raise ValueError(
                f"bands from {self.low_hz:g} to {high_hz:g} Hz do not lie within 0 to {self.rate / 2:g} Hz, half of "
                "rate; correct low_hz and high_hz"
            )
        if -1 < spec.shape[-1] <= self.window // 2:
            raise ValueError(f"it is too short for a window of {self.window}; lower window")
        frames = -1 if spec.shape[-1] == -1 else 1 + (spec.shape[-1] + self.window // 2 * 2 - self.window) // self.hop
        return spec.reshaped((*spec.shape[:-1], self.mels, frames), _FLOAT32)

    def _apply(self, array: Array) -> Array:
        return audio.log_mel(
            array,
            rate=self.rate,
            window=self.window,
            hop=self.hop,
            mels=self.mels,
            low_hz=self.low_hz,
            high_hz=self.high_hz,
        )


# Steps that read or leave several values.


@dataclass(frozen=True, slots=True)
class _Measure(Step):
    """One number about the scores, under `{name}_{what}`; the scores stay."""

    what: ClassVar[str]
    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Check that there are two scores or more."""
        name, spec = scope.pick(self.input)
        if spec.dtype.kind != "f" or not spec.shape or spec.ragged or -1 < spec.shape[-1] < 2:
            raise ValueError(f"value {name!r} is {spec}: 2 or more floats in its last axis are needed")
        if (measure := f"{name}_{self.what}") in scope.values:
            raise ValueError(f"there is a value {measure!r} already; rename it first")

        def run(scores: Array) -> tuple[Values, Values]:
            return scores, self._measured(scores)

        writes = {name: spec, measure: ArraySpec(_FLOAT32, (*spec.shape[:-1], 1))}
        return Bound((name,), run, writes, frozenset(), name)

    @abstractmethod
    def _measured(self, scores: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Margin(_Measure):
    """`outputs.margin`."""

    what: ClassVar[str] = "margin"

    def _measured(self, scores: Array) -> Array:
        return outputs.margin(scores)


@dataclass(frozen=True, slots=True)
class Entropy(_Measure):
    """`outputs.entropy`."""

    what: ClassVar[str] = "entropy"

    def _measured(self, scores: Array) -> Array:
        return outputs.entropy(scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nms(Step):
    """`outputs.non_maximum_suppression`: boxes and scores give way to the best, and `classes` says of what."""

    boxes: ValueName = "boxes"
    scores: ValueName = "scores"
    overlap: Share = 0.5
    min_score: Share = 0.0
    limit: Count = 100

    def bind(self, scope: Scope) -> Bound:
        """Check that boxes and scores belong together."""
        boxes, boxes_spec = scope.pick(self.boxes)
        scores, scores_spec = scope.pick(self.scores)
        if boxes_spec.dtype.kind != "f" or boxes_spec.ragged or boxes_spec.shape[1:] != (4,):
            raise ValueError(f"value {boxes!r} is {boxes_spec}: floats (boxes, 4) are needed; name them with boxes")
        count = boxes_spec.shape[0]
        matching = bool(scores_spec.shape) and (-1 in (count, scores_spec.shape[0]) or scores_spec.shape[0] == count)
        if scores_spec.dtype.kind != "f" or scores_spec.ragged or len(scores_spec.shape) > 2 or not matching:
            raise ValueError(
                f"value {scores!r} is {scores_spec}: floats ({count}) or ({count}, classes) are needed; name them with "
                "scores"
            )
        if "classes" in scope.values:
            raise ValueError("there is a value 'classes' already; rename it first")

        def run(corners: Array, rated: Array) -> tuple[Values, Values, Values]:
            return outputs.non_maximum_suppression(
                corners, rated, overlap=self.overlap, min_score=self.min_score, limit=self.limit
            )

        writes = {
            boxes: ArraySpec(_FLOAT32, (self.limit, 4)),
            scores: ArraySpec(_FLOAT32, (self.limit,)),
            "classes": ArraySpec(_INT64, (self.limit,)),
        }
        return Bound((boxes, scores), run, writes, frozenset(), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize(Step):
    """`text.Tokenizer`: the text gives way to input_ids, attention_mask and token_type_ids."""

    file: File
    max_length: Length
    pad: Padding = "longest"
    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Load the tokenizer."""
        name, spec = scope.pick(self.input)
        if spec.dtype != _BYTES or spec.shape != (1,):
            raise ValueError(f"value {name!r} is {spec}: text, bytes[1], is needed; name another value with input")
        tokens = ArraySpec(_INT64, (self.max_length if self.pad == "max_length" else -1,))
        writes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
        tokenizer = text.Tokenizer(scope.base / self.file, self.max_length, pad=self.pad)
        return Bound((name,), tokenizer, writes, frozenset({name}), current=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPool(Step):
    """`outputs.mean_pool`: hidden states and their mask give way to one vector, under the states' name."""

    mask: ValueName = "attention_mask"
    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Check that states and mask belong together."""
        name, spec = scope.pick(self.input)
        mask, mask_spec = scope.pick(self.mask)
        if spec.dtype.kind != "f" or len(spec.shape) != 2 or spec.ragged:
            raise ValueError(f"value {name!r} is {spec}: floats (tokens, features) are needed; name them with input")
        fits = len(mask_spec.shape) == 1 and (-1 in spec.shape[:1] or mask_spec.admits(spec.shape[:1]))
        if mask_spec.dtype.kind not in "biu" or mask_spec.ragged or not fits:
            raise ValueError(f"mask {mask!r} is {mask_spec}: whole numbers of shape [{spec.shape[0]}] are needed")

        def run(hidden: Array, kept: Array) -> tuple[Values]:
            return (outputs.mean_pool(hidden, kept),)

        return Bound((name, mask), run, {name: ArraySpec(_FLOAT32, spec.shape[1:])}, frozenset({mask}), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Step):
    """`outputs.top_k`: the scores give way to the highest, and `{name}_indices` says which they are."""

    shorthand: ClassVar[str | None] = "k"
    k: Count
    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Check that there are k scores."""
        name, spec = scope.pick(self.input)
        if spec.dtype.kind != "f" or not spec.shape or spec.ragged or spec.shape[-1] < self.k:
            raise ValueError(f"value {name!r} is {spec}: {self.k} or more floats in its last axis are needed; lower k")
        if (indices := f"{name}_indices") in scope.values:
            raise ValueError(f"there is a value {indices!r} already; rename it first")
        shape = (*spec.shape[:-1], self.k)

        def run(scores: Array) -> tuple[Values, Values]:
            return outputs.top_k(scores, self.k)

        writes = {name: ArraySpec(spec.dtype, shape), indices: ArraySpec(_INT64, shape)}
        return Bound((name,), run, writes, frozenset(), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Step):
    """`outputs.label`: the scores stay, and `label` names the best of them."""

    input: Input = None

    def bind(self, scope: Scope) -> Bound:
        """Check that there is one label a score."""
        name, spec = scope.pick(self.input)
        if scope.labels is None:
            raise ValueError("the model has no labels; list them under labels")
        labels = scope.labels
        if spec.dtype.kind != "f" or spec.ragged or not spec.admits((len(labels),)):
            raise ValueError(f"value {name!r} is {spec}: floats[{len(labels)}], one score a label, are needed")
        if "label" in scope.values:
            raise ValueError("there is a value 'label' already; rename it first, or leave it out with select")

        def run(scores: Array) -> tuple[Values, Values]:
            return scores, outputs.label(scores, labels)

        writes = {name: ArraySpec(spec.dtype, (len(labels),)), "label": ArraySpec(_BYTES, (1,))}
        return Bound((name,), run, writes, frozenset(), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(Step):
    """Give values other names: `{rename: {old: new}}`."""

    names: Renames

    @classmethod
    def _given(cls, arguments: object, known: Mapping[str, Argument]) -> dict[object, Any]:
        return {"names": arguments}

    def bind(self, scope: Scope) -> Bound:
        """Check that the old names exist and the new ones are free."""
        names = dict(self.names)
        for old, new in names.items():
            scope.pick(old)
            if new in scope.values and new not in names:
                raise ValueError(f"there is a value {new!r} already; rename it too, or leave it out with select")
        writes = {new: scope.values[old] for old, new in names.items()}
        current = None if scope.current is None else names.get(scope.current, scope.current)
        return Bound(tuple(names), lambda *values: values, writes, frozenset(names), current)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Step):
    """Keep only the values named, in that order."""

    shorthand: ClassVar[str | None] = "names"
    names: Names

    def bind(self, scope: Scope) -> Bound:
        """Check that they exist."""
        writes = {name: scope.pick(name)[1] for name in self.names}
        only = self.names[0] if len(self.names) == 1 else None
        current = scope.current if scope.current in writes else only
        return Bound(self.names, lambda *values: values, writes, frozenset(scope.values), current)


STEPS: Mapping[str, type[Step]] = {
    "gray": Gray,
    "resize": Resize,
    "resize_shortest": ResizeShortest,
    "center_crop": CenterCrop,
    "letterbox": Letterbox,
    "rotate": Rotate,
    "bgr": Bgr,
    "scale": Scale,
    "normalize": Normalize,
    "chw": Chw,
    "flatten": Flatten,
    "cast": Cast,
    "lower": Lower,
    "strip": Strip,
    "nfc": Nfc,
    "collapse_whitespace": CollapseWhitespace,
    "tokenize": Tokenize,
    "impute": Impute,
    "one_hot": OneHot,
    "hash": Hash,
    "frame": Frame,
    "log_mel": LogMel,
    "softmax": Softmax,
    "log_softmax": LogSoftmax,
    "sigmoid": Sigmoid,
    "mean_pool": MeanPool,
    "first_token": FirstToken,
    "l2_normalize": L2Normalize,
    "top_k": TopK,
    "margin": Margin,
    "entropy": Entropy,
    "nms": Nms,
    "label": Label,
    "rename": Rename,
    "select": Select,
}
"""The steps by name, as configuration names them."""
