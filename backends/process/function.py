"""The function of a Python model, wherever it runs: found by its name, called, and held to its signature.

Shared by `backends.python`, which calls it in this process, and by `backends.process.worker`, in which it has a process
of its own. Imports little, since every worker process begins with it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TypeAlias

import numpy as np

from backends.contract import HostArray, TensorSpec
from backends.errors import BackendFailed, InvalidInput, NotFound

Function: TypeAlias = Callable[[Mapping[str, HostArray]], Mapping[str, HostArray]]


def import_function(model_name: str, target: str) -> Function:
    """Import what *target* names.

    Args:
        model_name: as errors name it.
        target: "package.module:attribute".

    Raises:
        NotFound: there is no such module or attribute.
        InvalidInput: it is not a function that can be served, or its module fails while it is imported.
    """
    where = f"model {model_name!r}: target {target!r}"
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidInput(f'{where} is not of the form "package.module:attribute"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(f"{where}: {error}; install it, or put its folder on PYTHONPATH") from error
    except Exception as error:  # a module of somebody else's: anything can happen while it is imported
        raise InvalidInput(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        function: Function = reduce(getattr, attribute.split("."), module)  # type: ignore[assignment]  # checked next
    except AttributeError as error:
        raise NotFound(f"{where}: {error}; correct the part after the colon") from error
    if not callable(function):
        raise InvalidInput(f"{where} is of type {type(function).__name__}; name a function")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise InvalidInput(f"{where} is async; name a plain function, which runs on a thread of its own")
    return function


def answer(
    model_name: str, function: Function, specs: Mapping[str, TensorSpec], given: Mapping[str, HostArray]
) -> dict[str, HostArray]:
    """What *function* says to *given*: the arrays of *specs*, of their dtypes; their shapes are not looked at.

    Raises:
        BackendFailed: the function raised, which is the cause then, or it returned something else.
    """
    try:
        returned = function(given)
    except BaseException as error:  # the function is somebody else's: anything can happen in it, panics too
        raise BackendFailed(f"model {model_name!r} failed on this batch; its operator's log has the cause") from error
    if not isinstance(returned, Mapping):
        raise BackendFailed(f"model {model_name!r} returned a {type(returned).__name__}, not a mapping of arrays")
    outputs = {name: array for name, array in returned.items() if name in specs}
    for name, array in outputs.items():
        _check_elements(model_name, specs[name], array)
    return outputs


def _check_elements(model_name: str, spec: TensorSpec, array: HostArray) -> None:
    expected = spec.datatype.numpy
    if not isinstance(array, np.ndarray) or array.dtype != expected:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BackendFailed(
            f"model {model_name!r} returned output {spec.name!r} as {found}; "
            f"{spec.datatype} is a NumPy array of {expected}"
        )
    if array.dtype == object and not all(isinstance(element, bytes) for element in array.flat):
        raise BackendFailed(f"model {model_name!r} returned output {spec.name!r} with elements that are not bytes")
