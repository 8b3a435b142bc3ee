"""The names that layers have in a recognised architecture, where a function takes the names of spaces.

`conv1` of a Nature network is what its graph calls `network.0`. Nothing is recognised, or loaded for it, before a name
is given that the graph does not know.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from surgery.errors import ArgumentError, SurgeryError, UnknownName

if TYPE_CHECKING:
    from surgery.architectures.family import Family
    from surgery.checkpoint import Checkpoint
    from surgery.graph.spaces import Analysis

_P = ParamSpec("_P")
_R = TypeVar("_R")


def recognised(checkpoint: Checkpoint) -> tuple[Family | None, Analysis]:
    """The family of a network, and the analysis with its names for spaces; None for what is no policy."""
    from surgery.architectures.family import identify, with_aliases
    from surgery.architectures.like import observed
    from surgery.architectures.recognise import recognise

    try:
        _, shape = observed(checkpoint)
    except SurgeryError:
        return None, checkpoint.analysis
    found = identify(recognise(checkpoint), shape)
    return found, with_aliases(checkpoint.analysis, found.aliases)


def aliased(function: Callable[_P, _R], argument: str) -> Callable[_P, _R]:
    """The same function, which also takes the names of a recognised architecture.

    Args:
      function: takes a checkpoint first, and raises UnknownName.
      argument: its parameter that names a space or layer, or has their names as keys.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except UnknownName:
            call = signature.bind(*args, **kwargs)
            own = _by_graph(call.arguments[next(iter(signature.parameters))], call.arguments.get(argument))
            if own is None:
                raise
            call.arguments[argument] = own
        return function(*call.args, **call.kwargs)

    return wrapper


def _by_graph(checkpoint: Checkpoint, given: object) -> object:
    """What was given with the graph's own names; None if the architecture does not know the names either."""
    family, _ = recognised(checkpoint)
    aliases: Mapping[str, str] = family.aliases if family else {}
    if isinstance(given, str):
        return aliases.get(given)
    if not isinstance(given, Mapping) or aliases.keys().isdisjoint(given):
        return None
    own: dict[object, object] = {}
    for name, value in given.items():
        space = aliases.get(name, name)
        if space in own:
            raise ArgumentError(f"space '{space}' is given twice, once as '{name}'", hint="give it once")
        own[space] = value
    return own
