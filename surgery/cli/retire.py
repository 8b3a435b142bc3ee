"""`surgery retire`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _options
from surgery.errors import UnknownName


@click.command("retire", short_help="Remove constant observations, exactly.")
@_options.file_argument("model")
@click.option(
    "--observation",
    "features",
    metavar="INPUT.FEATURE=VALUE",
    multiple=True,
    callback=_options.constants,
    help="A feature, by name or number, and its constant value; repeatable.",
)
@_edits.options
def command(
    *,
    model: Path,
    features: dict[str, float],
    editing: _edits.Editing,
) -> None:
    """Remove observations that are constant from now on.

    Their contribution is added to the biases after them, so the policy is unchanged wherever they hold that constant.

    \b
    Example:
      surgery retire agent.onnx --observation observation.wind=0 -o less.onnx
      surgery retire agent.onnx --observation observation.3=0.5 --observation observation.4=1 -o less.onnx
    """

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.retire(checkpoint, [_retired(checkpoint, *feature) for feature in features.items()])

    editing.edit(model, describe)


def _retired(checkpoint: surgery.Checkpoint, feature: str, value: float) -> surgery.Retired:
    """INPUT.FEATURE taken apart: names of inputs and features may hold dots."""
    names = [port.name for port in checkpoint.interface.inputs]
    for name in sorted(names, key=len, reverse=True):
        if feature.startswith(f"{name}."):
            return surgery.Retired(name, feature.removeprefix(f"{name}."), value)
    axis, _, last = feature.rpartition(".")
    if axis.endswith("]"):  # one axis of several: observation[1].2
        return surgery.Retired(axis, last, value)
    raise UnknownName("input", feature.partition(".")[0], names)
