"""Options that several verbs share: the same flag means the same thing everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from surgery.cli._output import Output

F = TypeVar("F", bound=Callable[..., object])
V = TypeVar("V")

FILE = click.Path(path_type=Path)
MODEL = "surgery.model"
"""Where a context notes the model of the command, which hints call MODEL or FILE."""


def file_argument(name: str, *, metavar: str | None = None, many: bool = False) -> Callable[[F], F]:
    """A file that is acted on; whether it can be read is for the library to say."""
    nargs = -1 if many else 1
    return click.argument(
        name, metavar=metavar or name.upper(), type=FILE, nargs=nargs, required=True, callback=_noted
    )


def _noted(context: click.Context, argument: click.Parameter, value: Path) -> Path:
    if argument.name in ("model", "source", "teacher"):
        context.meta.setdefault(MODEL, value)
    return value


def output_file(*, required: bool = False) -> Callable[[F], F]:
    """`-o, --out OUT`"""
    return click.option(
        "-o", "--out", "target", metavar="OUT", type=FILE, required=required, help="Output file."
    )


def force(function: F) -> F:
    """`--force`"""
    return click.option("--force", is_flag=True, help="Overwrite existing output.")(function)


def dry_run(function: F) -> F:
    """`-n, --dry-run`"""
    return click.option("-n", "--dry-run", is_flag=True, help="Print the plan and write nothing.")(function)


def no_verify(function: F) -> F:
    """`--no-verify`"""
    return click.option("--no-verify", is_flag=True, help="Write without verifying the result.")(function)


def no_optimizer(function: F) -> F:
    """`--no-optimizer`"""
    return click.option("--no-optimizer", is_flag=True, help="Ignore the optimizer state.")(function)


def observations(function: F) -> F:
    """`--observations FILE.npz`"""
    return click.option(
        "--observations",
        metavar="FILE.npz",
        type=FILE,
        help="Verify on recorded inputs (arrays named like the model's inputs) instead of random ones.",
    )(function)


def seed(function: F) -> F:
    """`--seed N`"""
    return click.option(
        "--seed",
        metavar="N",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Random seed.",
    )(function)


def reported(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """`--json -q -v --debug`, handed to the command as one `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
    @click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
    @click.option("-v", "--verbose", count=True, help="Log to stderr; -vv for more.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: int, debug: bool, **options: object) -> int | None:
        output = Output.start(as_json=as_json, quiet=quiet, verbosity=2 if debug else verbose)
        return function(output=output, **options)

    return command


def by_name(
    read: Callable[[str], tuple[str, V]], wanted: str
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, V]]:
    """A callback that makes a mapping of all that a repeatable option says; of no name it may say two things.

    Args:
      read: a word as name and value; ValueError if it is not `wanted`.
      wanted: the form of a word, for messages.
    """

    def callback(ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> dict[str, V]:
        found: dict[str, V] = {}
        for word in words:
            try:
                name, value = read(word)
            except ValueError as error:
                raise click.BadParameter(f"'{word}' is not {wanted}") from error
            if name in found:
                raise click.BadParameter(f"'{name}' is given twice")
            found[name] = value
        return found

    return callback


def _width(word: str) -> tuple[str, int]:
    space, _, count = word.rpartition("=")
    if not (space and count.isdecimal()):
        raise ValueError
    return space, int(count)


widths = by_name(_width, "SPACE=N, with N a whole number")


def _constant(word: str) -> tuple[str, float]:
    feature, _, number = word.rpartition("=")
    if "." not in feature:
        raise ValueError
    return feature, float(number)


constants = by_name(_constant, "INPUT.FEATURE=VALUE")


def shape(ctx: click.Context, parameter: click.Parameter, word: str | None) -> tuple[int, ...] | None:
    """`4,84,84`, or `4x84x84` as it is shown."""
    if word is None:
        return None
    sizes = word.replace("×", ",").replace("x", ",").split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise click.BadParameter(f"'{word}' is not a shape such as 4,84,84", ctx, parameter)
    return tuple(map(int, sizes))
