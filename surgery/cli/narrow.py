"""`surgery narrow`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _edits, _files, _options
from surgery.cli._output import Output

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
@_options.seed
@_options.observations
@_options.no_verify
@_options.dry_run
@_options.output_file()
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    widths: dict[str, int] | None,
    by: Score | None,
    seed: int,
    observations: Path | None,
    no_verify: bool,
    dry_run: bool,
    target: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Remove units so that the outputs stay the same: dead and constant ones are folded into biases, duplicates
    are merged, optimizer state included.

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
    recorded = _files.read_observations(observations)
    proof = _edits.Proof(not no_verify, recorded, seed)

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.narrow(checkpoint, widths=widths, by=by, observations=recorded, seed=seed)

    _edits.edit(model, target, describe, proof, output, force=force, dry_run=dry_run)
