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
@click.option("--factor", metavar="F", type=float, help="Widen every space to F times its size, rounded up.")
@click.option(
    "--width",
    "widths",
    metavar="SPACE=N",
    multiple=True,
    callback=_options.widths,
    help="Widen one space to N.",
)
@click.option(
    "--to", "architecture", metavar="ARCH", help="To a named architecture, or that of another model's file."
)
@click.option(
    "--init",
    type=click.Choice(["auto", "zero", "net2net"]),
    default="auto",
    show_default=True,
    help="New units: random with zero outgoing weights, or copies; auto takes zero where it is exact.",
)
@click.option(
    "--shares",
    type=click.Choice(["equal", "unequal"]),
    default="equal",
    show_default=True,
    help="How copies share the outgoing weights.",
)
@click.option(
    "--noise",
    metavar="X",
    type=float,
    default=0.0,
    show_default=True,
    help="Noise on copies, as a fraction of each tensor's deviation; the outputs then change.",
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
    """Widen layers so that the outputs stay the same, optimizer state included.

    Name spaces with --width (as `surgery inspect` shows them), or widen all with --factor, or name an architecture
    with --to, as in `surgery migrate`. The result is proved before it is written.

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
