"""`surgery reorder`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _options


def _order(word: str) -> tuple[str, tuple[str, ...]]:
    name, _, features = word.partition("=")
    if not (name and features):
        raise ValueError
    return name, tuple(features.split(","))


@click.command("reorder", short_help="Reorder observations, exactly.")
@_options.file_argument("model")
@click.option(
    "--observation",
    "orders",
    metavar="INPUT=FEATURE,…",
    multiple=True,
    callback=_options.by_name(_order, "INPUT=FEATURE,FEATURE,…"),
    help="All features of an input, by name or number, in the new order.",
)
@_edits.options
def command(
    *,
    model: Path,
    orders: dict[str, tuple[str, ...]],
    editing: _edits.Editing,
) -> None:
    """Reorder the features of an input; weights, optimizer state, names and ranges follow.

    \b
    Example:
      surgery reorder agent.onnx --observation observation=velocity,angle,position -o same.onnx
      surgery reorder frames.onnx --observation observation[1]=3,2,1,0 -o newest_first.onnx
    """

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.reorder(checkpoint, orders)

    editing.edit(model, describe)
