"""The command line: a thin skin over the library, and the one place where exit statuses are set.

    0    success
    1    refused or not equal: a frozen axis, no exact route, a score that is not reached
    2    a wrong command or file
    3    a bug in surgery
    130  interrupted        141  the reader of our output went away

Each verb is a module of its own, imported on use; stdout carries the result, stderr everything else.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from surgery.cli import _failure, _options
from surgery.errors import SurgeryError, UnknownName

SECTIONS = {
    "Inspect and play": ("inspect", "verify", "diff", "evaluate", "compare", "list"),
    "Edit": (
        "widen", "deepen", "kernel", "migrate", "sidecar", "gate", "finish", "extend", "adapt", "retire", "reorder",
        "narrow", "optimizer", "apply", "invert",
    ),
    "Import and export": ("new", "attach", "convert", "annotate", "code"),
    "Train": ("distill", "finetune"),
}  # fmt: skip
"""Title -> verbs, in the order of the help."""

VERBS = {
    verb: "listing" if verb == "list" else verb  # a submodule called list would hide the built-in here
    for verbs in SECTIONS.values()
    for verb in verbs
}
"""Verb -> its module."""


class _Verbs(click.Group):
    """Imports the module of a verb when its command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"surgery.cli.{VERBS[cmd_name]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise UnknownName("command", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        column = max(map(len, VERBS))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                commands = [(f"{verb:<{column}}", self.get_command(ctx, verb)) for verb in verbs]
                rows = [(verb, command.short_help or "") for verb, command in commands if command]
                formatter.write_dl(rows)


@click.group(
    cls=_Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="policy-surgery", prog_name="surgery", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Change the architecture of a trained agent while keeping its outputs and its optimizer state.

    \b
    Start with:
      surgery inspect agent.onnx
      surgery widen   agent.onnx --factor 2 -o wide.onnx
      surgery verify  agent.onnx wide.onnx

    MODEL is an .onnx file or a framework's own: an SB3 .zip, a .d3, a .pt, an RLlib folder.
    Every command takes --json, -q, -v and --debug. Exit status: 0 success, 1 refused or not equal,
    2 a wrong command or file, 3 a bug in surgery, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; what goes wrong is reported here and nowhere else."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    if "_SURGERY_COMPLETE" in os.environ:
        cli.main(words, prog_name="surgery")
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except (KeyboardInterrupt, click.Abort):
        return _failure.interrupted(words)
    except click.ClickException as error:
        return _failure.usage(error, words)
    except SurgeryError as error:
        return _failure.expected(error, words)
    except OSError as error:
        return _failure.system(error, words)
    except Exception as error:
        return _failure.internal(error, words)


def _run(words: list[str]) -> int:
    """The exit status of a command: what its function returns, 0 for None."""
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    try:
        with cli.make_context("surgery", list(words)) as context:
            try:
                status = cli.invoke(context)
            except SurgeryError as error:
                _failure.name_model(error, context.meta.get(_options.MODEL))
                raise
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return int(status or 0)


def _open_streams() -> None:
    """What is written to a stream that the caller has closed goes nowhere; Python has None in its place.

    Characters that the encoding of stdout does not have (a file's or pipe's on Windows) are escaped, in JSON's way.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _discard_stdout() -> None:
    """Python flushes stdout once more at exit: give what is left somewhere to go."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
