"""An array library that has what the Python array API standard says, and nothing else: no method and no function of
NumPy's, and no silent way back to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FUNCTIONS = frozenset(
    [
        "abs",
        "all",
        "any",
        "argmax",
        "argsort",
        "asarray",
        "astype",
        "can_cast",
        "concat",
        "empty",
        "exp",
        "expand_dims",
        "flip",
        "full",
        "full_like",
        "isnan",
        "log",
        "matmul",
        "max",
        "maximum",
        "mean",
        "min",
        "minimum",
        "moveaxis",
        "multiply",
        "ones_like",
        "permute_dims",
        "reshape",
        "result_type",
        "sort",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "sum",
        "take",
        "take_along_axis",
        "where",
        "zeros",
        "zeros_like",
    ]
)
CONSTANTS = frozenset(
    ["bool", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint32", "nan", "inf"]
)


class Strict:
    """An array of that library; `view`, which the standard has not, is CuPy's and NumPy's."""

    __array_ufunc__ = None

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.dtype, self.shape = self.array.dtype, self.array.shape
        self.ndim, self.size = self.array.ndim, self.array.size

    def __array__(self, *given: Any, **named: Any) -> Any:
        raise TypeError("this array is not of the host")

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __bool__(self) -> bool:
        return bool(self.array)

    def __getitem__(self, key: Any) -> Strict:
        assert all(
            isinstance(one, int | slice | type(...) | None) for one in (key if isinstance(key, tuple) else (key,))
        )
        return Strict(self.array[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.array[key] = _inner(value)

    def view(self, dtype: Any) -> Strict:
        return Strict(self.array.view(dtype))


def _inner(value: Any) -> Any:
    """What is in a `Strict`; numbers of Python stay what they are, and arrays of NumPy are none of ours."""
    if isinstance(value, tuple | list):
        return type(value)(_inner(one) for one in value)
    assert not isinstance(value, np.ndarray | np.generic), "an array or a number of NumPy's"
    return value.array if isinstance(value, Strict) else value


def _wrapped(found: Any) -> Any:
    return Strict(found) if isinstance(found, np.ndarray | np.generic) else found


class _Namespace:
    """Attributes:
    asked: names that were looked up and are there.
    """

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in FUNCTIONS | CONSTANTS:
            self.asked.add(name)
        if name in CONSTANTS:
            return getattr(np, name)
        if name not in FUNCTIONS:
            raise AttributeError(f"the standard has no {name!r}")

        def function(*given: Any, **named: Any) -> Any:
            if name == "asarray":  # takes whatever has a buffer
                return Strict(np.array(*given, **named))
            if name == "astype":
                array, dtype = given
                return Strict(_inner(array).astype(dtype, **named))
            if name == "argsort":
                named = {"stable": True, **named}
            return _wrapped(getattr(np, name)(*map(_inner, given), **named))

        return function


NAMESPACE = _Namespace()


def _operator(name: str) -> Callable[..., Any]:
    def operate(*operands: Any) -> Any:
        first, *others = (_inner(one) for one in operands)
        return _wrapped(getattr(first, name)(*others))

    return operate


for _name in ("add", "sub", "mul", "truediv", "matmul", "rshift", "lshift", "and", "radd", "rsub", "rmul", "rtruediv"):
    setattr(Strict, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert"):
    setattr(Strict, f"__{_name}__", _operator(f"__{_name}__"))
