"""The environment that a command is given: an id, and settings that are otherwise than the checkpoint's contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import click

from surgery.errors import ArgumentError, MissingDependency, UnknownName

if TYPE_CHECKING:
    from surgery.interface import Environment
    from surgery.json_values import Json

F = TypeVar("F", bound=Callable[..., object])


def options(function: F) -> F:
    """`--env ID --env-setting KEY=JSON`"""
    chosen = click.option(
        "--env",
        "environment",
        metavar="ID",
        help="Another environment than the contract's; MODULE:ID imports MODULE.",
    )
    adjusted = click.option(
        "--env-setting",
        "settings",
        metavar="KEY=JSON",
        multiple=True,
        help="Otherwise than the contract says: sticky_actions=0.25.",
    )
    return chosen(adjusted(function))


def contract(own: Environment, environment: str | None, words: tuple[str, ...]) -> Environment:
    """The contract to play by.

    Raises:
      UnknownName, ArgumentError: an environment or setting that does not exist or fit. MissingDependency.
    """
    from surgery.envs import adjusted

    return adjusted(own, None if environment is None else imported(environment), settings(words))


def settings(words: tuple[str, ...]) -> dict[str, Json]:
    """`KEY=VALUE …` as a mapping; a value is JSON, or else plain text.

    Raises:
      UnknownName: a setting that nothing reads. ArgumentError: not KEY=JSON, or given twice.
    """
    from surgery.interface import SETTINGS

    found: dict[str, Json] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals) or key in found:
            raise ArgumentError(
                f"--env-setting '{word}' is {'given twice' if key in found else 'not KEY=JSON'}"
            )
        if key not in SETTINGS:
            raise UnknownName("setting of an environment", key, SETTINGS)
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def plain(name: str) -> str:
    """The id of `ID` or `MODULE:ID`, as a file may record it: none names a module to import."""
    return name.rpartition(":")[2]


def imported(name: str) -> str:
    """The id of `MODULE:ID`, whose module registers it when imported. Only a person may ask for that, no file."""
    from surgery.adapters import code_from_here

    module, _, rest = name.rpartition(":")
    if not module:
        return name
    try:
        with code_from_here():
            import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"cannot import {module}, which is to register {rest}: {error}", hint=f"pip install {module}"
        ) from error
    return rest
