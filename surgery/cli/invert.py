"""`surgery invert`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _files, _options


@click.command("invert", short_help="Undo a plan, as long as nothing new is in use.")
@_options.file_argument("plan", metavar="PLAN.json")
@_options.file_argument("model")
@_edits.options
def command(
    *,
    plan: Path,
    model: Path,
    editing: _edits.Editing,
) -> None:
    """Undo a plan on a model that it produced; the optimizer state follows.

    New units that nothing reads yet are removed, copies that are still equal are merged, and what was reordered is put
    back. Once training has put a new part to use, this is refused with exit status 1 and the name of the weight.

    \b
    Example:
      surgery widen agent.onnx --factor 2 --dry-run --json > plan.json
      surgery apply plan.json agent.onnx -o wide.onnx
      surgery invert plan.json wide.onnx -o agent-again.onnx
    """
    recipe = _files.read_plan(plan)

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.invert(recipe, checkpoint)

    editing.edit(model, describe)
