"""`surgery widen`"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import surgery
from surgery.cli import _edits, _options, _routes
from surgery.errors import ArgumentError


@click.command("widen", short_help="Widen layers, exactly.")
@_options.file_argument("model")
@click.option("--factor", metavar="F", type=float, help="Widen every space by this factor, rounded up.")
@click.option(
    "--width",
    "widths",
    metavar="SPACE=N",
    multiple=True,
    callback=_options.widths,
    help="Widen one space to N units; repeatable.",
)
@click.option(
    "--to", "architecture", metavar="ARCH", help="Widen to a named architecture, or to that of another file."
)
@click.option(
    "--init",
    type=click.Choice(["auto", "zero", "net2net"]),
    default="auto",
    show_default=True,
    help="New units: zero outgoing weights, or copies (net2net); auto takes zero where that is exact.",
)
@click.option(
    "--shares",
    type=click.Choice(["equal", "unequal"]),
    default="equal",
    show_default=True,
    help="How copies share outgoing weights.",
)
@click.option(
    "--noise",
    metavar="X",
    type=float,
    default=0.0,
    show_default=True,
    help="Noise on copies, relative to each tensor's standard deviation; changes the outputs.",
)
@_routes.fallback
@_edits.options
def command(
    *,
    model: Path,
    widths: dict[str, int],
    factor: float | None,
    architecture: str | None,
    init: Literal["auto", "zero", "net2net"],
    shares: Literal["equal", "unequal"],
    noise: float,
    play: _routes.Play | None,
    editing: _edits.Editing,
) -> None:
    """Widen layers without changing the outputs; the optimizer state follows.

    Name spaces with --width (`surgery inspect` lists them), widen all of them with --factor, or name an architecture
    with --to as in `surgery migrate`. The result is verified before it is written.

    \b
    Example:
      surgery widen agent.onnx --factor 2 -o wide.onnx
      surgery widen agent.onnx --width network.0=64 --width fc=1024 -o wide.onnx
      surgery widen agent.onnx --to nature-x2 -o wide.onnx
      surgery widen agent.onnx --to impala --or-distill --frames 2000000 -o student.onnx
      surgery widen agent.onnx --factor 1.5 --dry-run --json > plan.json
    """
    _check_request(widths, factor, architecture, model)
    if play and architecture is None:
        raise ArgumentError("--or-distill teaches a new architecture", hint="name it with --to")
    if architecture is not None:
        if noise or shares != "equal":
            raise ArgumentError(
                "a route is exact: no noise, and equal shares", hint="leave --noise and --shares out"
            )
        _routes.travel(model, architecture, editing, init=init, play=play)
        return

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.widen(
            checkpoint,
            widths=widths or None,
            factor=factor,
            init=init,
            shares=shares,
            noise=noise,
            seed=editing.proof.seed,
        )

    editing.edit(model, describe)


def _check_request(
    widths: dict[str, int], factor: float | None, architecture: str | None, model: Path
) -> None:
    if architecture is not None:
        if widths or factor is not None:
            raise ArgumentError("--to and --width or --factor say different things", hint="give one of them")
        return
    if not widths and factor is None:
        raise ArgumentError(
            "nothing to widen to", hint=f"give --factor F or --width SPACE=N; spaces: surgery inspect {model}"
        )
    if widths and factor is not None:
        raise ArgumentError("--factor and --width say different things", hint="give one of them")
