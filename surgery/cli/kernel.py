"""`surgery kernel`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _files, _options
from surgery.cli._output import Output
from surgery.errors import ArgumentError


def _sizes(
    ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> dict[str, int | tuple[int, ...]]:
    """`LAYER=N` or `LAYER=NxM …` as a mapping."""
    sizes: dict[str, int | tuple[int, ...]] = {}
    for word in words:
        layer, equals, text = word.rpartition("=")
        numbers = text.split("x")
        if not (equals and layer and all(number.isdecimal() for number in numbers)):
            raise click.BadParameter(f"'{word}' is not LAYER=N or LAYER=NxM", ctx, parameter)
        if layer in sizes:
            raise click.BadParameter(f"layer '{layer}' is given twice", ctx, parameter)
        sizes[layer] = int(text) if len(numbers) == 1 else tuple(int(number) for number in numbers)
    return sizes


@click.command("kernel", short_help="Grow the kernels of convolutions, exactly.")
@_options.file_argument("model")
@click.option(
    "--size", "sizes", metavar="LAYER=N", multiple=True, callback=_sizes, help="New size of a layer's kernel."
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
    sizes: dict[str, int | tuple[int, ...]],
    seed: int,
    observations: Path | None,
    no_verify: bool,
    dry_run: bool,
    target: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Grow kernels so that the outputs stay the same: the new taps are zero, and padding grows with them.

    \b
    Example:
      surgery kernel agent.onnx --size network.4=5 -o larger.onnx
      surgery kernel agent.onnx --size conv1=3x5 --size conv2=5 -o larger.onnx
    """
    if not sizes:
        raise ArgumentError("no kernel to grow", hint="give at least one --size LAYER=N")
    proof = _edits.Proof(not no_verify, _files.read_observations(observations), seed)
    _edits.edit(
        model,
        target,
        lambda checkpoint: surgery.grow_kernel(checkpoint, sizes),
        proof,
        output,
        force=force,
        dry_run=dry_run,
    )
