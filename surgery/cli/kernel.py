"""`surgery kernel`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _options
from surgery.errors import ArgumentError


def _size(word: str) -> tuple[str, int | tuple[int, ...]]:
    layer, _, text = word.rpartition("=")
    numbers = text.split("x")
    if not (layer and all(number.isdecimal() for number in numbers)):
        raise ValueError
    return layer, int(text) if len(numbers) == 1 else tuple(int(number) for number in numbers)


@click.command("kernel", short_help="Grow the kernels of convolutions, exactly.")
@_options.file_argument("model")
@click.option(
    "--size",
    "sizes",
    metavar="LAYER=N",
    multiple=True,
    callback=_options.by_name(_size, "LAYER=N or LAYER=NxM"),
    help="New kernel size of a layer; repeatable.",
)
@_edits.options
def command(
    *,
    model: Path,
    sizes: dict[str, int | tuple[int, ...]],
    editing: _edits.Editing,
) -> None:
    """Grow convolution kernels without changing the outputs: new taps are zero, and the padding grows with them.

    \b
    Example:
      surgery kernel agent.onnx --size network.4=5 -o larger.onnx
      surgery kernel agent.onnx --size conv1=3x5 --size conv2=5 -o larger.onnx
    """
    if not sizes:
        raise ArgumentError("no kernel to grow", hint="give at least one --size LAYER=N")
    editing.edit(model, lambda checkpoint: surgery.grow_kernel(checkpoint, sizes))
