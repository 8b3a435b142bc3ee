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


@click.command("narrow", short_help="Remove units, exactly where possible.")
@_options.file_argument("model")
@click.option(
    "--width",
    "widths",
    metavar="SPACE=N",
    multiple=True,
    callback=_options.widths,
    help="Narrow one space to N units; repeatable. Default: remove all that can go exactly.",
)
@click.option(
    "--by",
    type=click.Choice(_SCORES),
    help="Score for removing other units, lowest first; changes the outputs, and reports by how much.",
)
@_edits.options
def command(
    *,
    model: Path,
    widths: dict[str, int],
    by: Score | None,
    editing: _edits.Editing,
) -> None:
    """Remove units without changing the outputs; the optimizer state follows.

    Unread units are dropped, constant and dead ones are folded into biases, duplicates are merged. Bounds on every
    value, over all inputs in the declared range, prove which units are constant. A network that was widened by copies
    comes back bit for bit.

    Other units are removed only with --by: l1 or l2 (norms of incoming times outgoing weights), activation (mean
    activity times outgoing weights) or taylor (first-order change of the outputs). --observations gives the inputs to
    measure activity on.

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
