"""`surgery kernel`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _options
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
@_edits.options
def command(
    *,
    model: Path,
    sizes: dict[str, int | tuple[int, ...]],
    editing: _edits.Editing,
) -> None:
    """Grow kernels so that the outputs stay the same: the new taps are zero, and padding grows with them.

    \b
    Example:
      surgery kernel agent.onnx --size network.4=5 -o larger.onnx
      surgery kernel agent.onnx --size conv1=3x5 --size conv2=5 -o larger.onnx
    """
    if not sizes:
        raise ArgumentError("no kernel to grow", hint="give at least one --size LAYER=N")
    editing.edit(model, lambda checkpoint: surgery.grow_kernel(checkpoint, sizes))
