"""`surgery deepen`"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import surgery
from surgery.cli import _edits, _options, _routes
from surgery.errors import ArgumentError

Kind = Literal["auto", "identity", "residual", "rezero", "batchnorm", "recurrent", "attention"]


@click.command("deepen", short_help="Insert layers, exactly.")
@_options.file_argument("model")
@click.option(
    "--after",
    metavar="LAYER",
    multiple=True,
    help="Insert after this layer, or value of the graph; repeatable.",
)
@click.option(
    "--to", "architecture", metavar="ARCH", help="Deepen to a named architecture, or to that of another file."
)
@click.option(
    "--count",
    metavar="N",
    type=int,
    default=1,
    show_default=True,
    help="Insert N layers in a row.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "identity", "residual", "rezero", "batchnorm", "recurrent", "attention"]),
    default="auto",
    show_default=True,
    help="A layer that starts as the identity, or a branch that starts at zero; auto takes what is exact.",
)
@click.option("--width", metavar="N", type=int, help="Units inside a branch; by default as many as outside.")
@click.option("--kernel", metavar="N", type=int, help="Kernel size of new convolutions; 3 by default.")
@click.option("--name", metavar="PATH", multiple=True, help="Name of the new layer; once per layer.")
@_edits.options
def command(
    *,
    model: Path,
    after: tuple[str, ...],
    architecture: str | None,
    count: int,
    kind: Kind,
    width: int | None,
    kernel: int | None,
    name: tuple[str, ...],
    editing: _edits.Editing,
) -> None:
    """Insert layers without changing a single bit of the outputs; the new layers learn from the first step.

    LAYER is the path of a module as shown by `surgery inspect`, the last part of such a path, or a parameter. The new
    layer goes after its activation, or into the residual stream after its block. Alternatively, name an architecture
    with --to as in `surgery migrate`. The result is verified before it is written.

    \b
    Example:
      surgery deepen agent.onnx --after network.7 -o deeper.onnx
      surgery deepen agent.onnx --after stacks.2.3 --count 2 -o deeper.onnx
      surgery deepen agent.onnx --to impala-b3 -o deeper.onnx
      surgery deepen run.zip --after critic.qf0.2 --after critic.qf1.2 -o deeper.zip
      surgery deepen agent.onnx --after actor.2 --kind residual --width 256 -o deeper.onnx
    """
    if architecture is not None:
        if after or count != 1 or width or kernel or name or kind != "auto":
            raise ArgumentError("--to decides which layers are added", hint="leave the other options out")
        _routes.travel(model, architecture, editing)
        return
    if not after:
        raise ArgumentError("behind which layer?", hint="give --after LAYER, or --to ARCH")
    places = after[0] if len(after) == 1 else after

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.deepen(
            checkpoint,
            places,
            count=count,
            kind=kind,
            width=width,
            kernel=kernel,
            name=name or None,
            seed=editing.proof.seed,
        )

    editing.edit(model, describe)
