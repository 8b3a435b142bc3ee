"""`surgery narrow`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _edits, _options

if TYPE_CHECKING:
    from surgery.ops.importance import Score

_SCORES = ("l1", "l2", "activation", "taylor")


@click.command("narrow", short_help="Remove units, exactly as far as that goes.")
@_options.file_argument("model")
@click.option(
    "--width",
    "widths",
    metavar="SPACE=N",
    multiple=True,
    callback=_options.widths,
    help="Narrow one space to N units; without any, everything that goes exactly goes.",
)
@click.option(
    "--by",
    type=click.Choice(_SCORES),
    help="Remove further units, least important first; the outputs then change, and the result says by how much.",
)
@_edits.options
def command(
    *,
    model: Path,
    widths: dict[str, int],
    by: Score | None,
    editing: _edits.Editing,
) -> None:
    """Remove units so that the outputs stay the same: those that nothing reads go, dead and constant ones are folded
    into biases, duplicates are merged, optimizer state included.

    Which units are constant is proved by bounds on every value, for all inputs in the declared range. A network
    that was widened by copies comes back bit by bit. Other units go only with --by SCORE: l1 or l2 (norms of
    incoming times outgoing weights), activation (mean activity times outgoing weights), taylor (first-order
    change of the outputs); --observations gives the inputs that activity is measured on.

    \b
    Example:
      surgery narrow wide.onnx -o small.onnx
      surgery narrow agent.onnx --width network.7=500 -o small.onnx
      surgery narrow agent.onnx --width network.7=256 --by taylor --observations obs.npz -o small.onnx
    """

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.narrow(
            checkpoint,
            widths=widths or None,
            by=by,
            observations=editing.proof.observations,
            seed=editing.proof.seed,
        )

    editing.edit(model, describe)
