"""The environment that a command is given: an id, and settings that are otherwise than the checkpoint's contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import click

from surgery.cli import _options
from surgery.errors import MissingDependency, UnknownName

if TYPE_CHECKING:
    from surgery.interface import Environment
    from surgery.json_values import Json

F = TypeVar("F", bound=Callable[..., object])


def _setting(word: str) -> tuple[str, Json]:
    """A value is JSON, or else plain text."""
    from surgery.interface import SETTINGS

    key, equals, text = word.partition("=")
    if not (key and equals):
        raise ValueError
    if key not in SETTINGS:
        raise UnknownName("setting of an environment", key, SETTINGS)
    try:
        return key, json.loads(text)
    except json.JSONDecodeError:
        return key, text


settings = _options.by_name(_setting, "KEY=JSON")


def options(function: F) -> F:
    """`--env ID --env-setting KEY=JSON`"""
    chosen = click.option(
        "--env",
        "environment",
        metavar="ID",
        help="Environment to use instead of the contract's; MODULE:ID imports MODULE first.",
    )
    adjusted = click.option(
        "--env-setting",
        "settings",
        metavar="KEY=JSON",
        multiple=True,
        callback=settings,
        help="Override a setting of the contract, such as sticky_actions=0.25.",
    )
    return chosen(adjusted(function))


def contract(own: Environment, environment: str | None, changes: Mapping[str, Json]) -> Environment:
    """The contract to play by.

    Raises:
      UnknownName, ArgumentError: an environment or setting that does not exist or fit. MissingDependency.
    """
    from surgery.envs import adjusted

    return adjusted(own, None if environment is None else imported(environment), changes)


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
            f"cannot import {module}, which should register {rest}: {error}", hint=f"pip install {module}"
        ) from error
    return rest
