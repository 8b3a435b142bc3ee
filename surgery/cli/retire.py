"""`surgery retire`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _files, _options
from surgery.cli._output import Output
from surgery.errors import ArgumentError, UnknownName


def _features(
    ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> list[tuple[str, float]]:
    """`INPUT.FEATURE=VALUE …`"""
    found = []
    for word in words:
        feature, equals, number = word.rpartition("=")
        try:
            found.append((feature, float(number)))
        except ValueError:
            equals = ""
        if not (equals and "." in feature):
            raise click.BadParameter(f"'{word}' is not INPUT.FEATURE=VALUE", ctx, parameter)
    return found


@click.command("retire", short_help="Take constant observations out, exactly.")
@_options.file_argument("model")
@click.option(
    "--observation",
    "features",
    metavar="INPUT.FEATURE=VALUE",
    multiple=True,
    callback=_features,
    help="A feature, by name or number, and the constant that it holds from now on.",
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
    features: list[tuple[str, float]],
    seed: int,
    observations: Path | None,
    no_verify: bool,
    dry_run: bool,
    target: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Take observations that are constant out of a model: what they contribute is added to the biases behind
    them, so that the policy stays the same wherever they hold that constant.

    \b
    Example:
      surgery retire agent.onnx --observation observation.wind=0 -o less.onnx
      surgery retire agent.onnx --observation observation.3=0.5 --observation observation.4=1 -o less.onnx
    """
    proof = _edits.Proof(not no_verify, _files.read_observations(observations), seed)

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.retire(checkpoint, [_retired(checkpoint, *feature) for feature in features])

    _edits.edit(model, target, describe, proof, output, force=force, dry_run=dry_run)


def _retired(checkpoint: surgery.Checkpoint, feature: str, value: float) -> surgery.Retired:
    """INPUT.FEATURE taken apart: names of inputs and features may hold dots."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ArgumentError(f"'{feature}' cannot be retired at {value}", hint="a finite number")
    names = [port.name for port in checkpoint.interface.inputs]
    for name in sorted(names, key=len, reverse=True):
        if feature.startswith(f"{name}."):
            return surgery.Retired(name, feature.removeprefix(f"{name}."), value)
    axis, _, last = feature.rpartition(".")
    if axis.endswith("]"):  # one axis of several: observation[1].2
        return surgery.Retired(axis, last, value)
    raise UnknownName("input", feature.partition(".")[0], names)
