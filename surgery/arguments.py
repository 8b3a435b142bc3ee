"""What callers hand to the functions of `surgery`: of the types that their signatures say, or refused in one line.

NumPy's numbers become Python's, so that plans, which record their arguments, can be written as JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

import numpy as np

from surgery.errors import ArgumentError

_P = ParamSpec("_P")
_R = TypeVar("_R")

_HINTS = {
    "Checkpoint": 'checkpoint = surgery.load("agent.onnx")',
    "Plan": 'plan = surgery.Plan.from_json(json.loads(Path("plan.json").read_text()))',
    "SpaceDescription": 'surgery.envs.describe(gymnasium.make("CartPole-v1"))',
}
"""Where what a function wants comes from."""


class _Unfit(Exception):
    """A value is of another type; the message says which one was wanted."""


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function, which refuses arguments of types that its signature does not have.

    Raises (when called):
      ArgumentError: says which argument, what it takes, and what was given.
      TypeError: as ever, for arguments that are missing, too many or unknown.
    """
    signature = inspect.signature(function)

    @functools.cache
    def wanted() -> dict[str, Any]:
        return _annotations(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says it with the function's name
        for name, value in call.arguments.items():
            kind = signature.parameters[name].kind
            if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            try:
                call.arguments[name] = taken = _taken(value, wanted().get(name, Any))
                if name == "seed" and taken < 0:
                    raise _Unfit("a whole number, 0 or more")
            except _Unfit as unfit:
                raise _refusal(function, name, value, unfit) from None
        return function(*call.args, **call.kwargs)

    return wrapper


def _refusal(function: Callable[..., object], name: str, value: object, unfit: _Unfit) -> ArgumentError:
    shown = repr(value).replace("\n", " ")
    shown = shown if len(shown) <= 60 else f"a value of type {type(value).__name__}"
    return ArgumentError(
        f"{function.__name__}(): '{name}' must be {unfit}, got {shown}",
        hint=next((hint for kind, hint in _HINTS.items() if str(unfit) == f"a {kind}"), None)
        or f"help(surgery.{function.__name__})",
    )


def _annotations(owner: Any) -> dict[str, Any]:  # noqa: ANN401
    """The types of a function's arguments, or of a class's fields; Any for what only a type checker imports."""
    home = vars(sys.modules[owner.__module__]) | {"Collection": Collection, "Path": Path}
    found: dict[str, Any] = {}
    for name, text in owner.__annotations__.items():
        try:
            found[name] = eval(text, home) if isinstance(text, str) else text
        except NameError:
            found[name] = Any
    return found


def _taken(value: Any, wanted: Any) -> Any:  # noqa: ANN401
    """A value as the type asks for it.

    Raises: _Unfit.
    """
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return _any_of(value, inner)
    if origin is Literal:
        if type(value) in {type(choice) for choice in inner}:
            return value  # which ones there are, the function itself says
        raise _Unfit(" or ".join(repr(choice) for choice in inner))
    if wanted in (int, float):
        return _number(value, wanted)
    if wanted is Path or wanted is str:
        if isinstance(value, str if wanted is str else os.PathLike):
            return value
        raise _Unfit("a path" if wanted is Path else "a string")
    if origin is Mapping and inner:
        if not isinstance(value, Mapping):
            raise _Unfit(_text(wanted))
        return {_within(wanted, k, inner[0]): _within(wanted, v, inner[1]) for k, v in value.items()}
    if origin in (Sequence, Collection) and inner:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise _Unfit(_text(wanted))
        return [_entry(wanted, one, inner[0]) for one in value]
    kind = origin or wanted
    if inspect.isclass(kind) and kind is not object and not isinstance(value, kind):
        raise _Unfit(_text(wanted))
    return value


def _any_of(value: Any, kinds: Sequence[Any]) -> Any:  # noqa: ANN401
    reasons = []
    for kind in kinds:
        if kind is types.NoneType:
            if value is None:
                return None
            continue
        try:
            return _taken(value, kind)
        except _Unfit as unfit:
            reasons.append(str(unfit))
    raise _Unfit(" or ".join(dict.fromkeys(reasons)))


def _number(value: Any, wanted: type) -> int | float:  # noqa: ANN401
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if wanted is int:
        if not whole and not (isinstance(value, float) and value.is_integer()):
            raise _Unfit("a whole number")
        return int(value)
    if whole or (isinstance(value, Real) and not isinstance(value, bool)):
        return value if type(value) in (int, float) else float(value)
    raise _Unfit("a number")


def _within(outer: Any, value: Any, wanted: Any) -> Any:  # noqa: ANN401
    try:
        return _taken(value, wanted)
    except _Unfit:
        raise _Unfit(_text(outer)) from None


def _entry(outer: Any, value: Any, wanted: Any) -> Any:  # noqa: ANN401
    """An entry of a list; of a request, `NewObservation`, the fields too."""
    value = _within(outer, value, wanted)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    own = {}
    for name, kind in _annotations(type(value)).items():
        try:
            own[name] = _taken(getattr(value, name), kind)
        except _Unfit as unfit:
            raise _Unfit(f"{_text(outer)}, of which '{name}' is {unfit}") from None
    return dataclasses.replace(value, **own)


def _text(wanted: Any, several: bool = False) -> str:  # noqa: ANN401
    """A type in words: `a list of NewObservation(input, count, …)`."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_text(one, several) for one in inner if one is not types.NoneType)
    if origin is Mapping:
        return f"a dictionary from {_text(inner[0], True)} to {_text(inner[1], True)}"
    if origin in (Sequence, Collection):
        return f"a list of {_text(inner[0], True)}"
    words = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("a string", "strings"),
    }
    if wanted in words:
        return words[wanted][several]
    if origin is np.ndarray:
        return "arrays" if several else "an array"
    name = getattr(origin or wanted, "__name__", str(wanted))
    if several and dataclasses.is_dataclass(wanted):
        return f"{name}({', '.join(field.name for field in dataclasses.fields(wanted))})"
    return name if several else f"a {name}"
