"""`surgery diff`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _options
from surgery.cli._output import Output


@click.command("diff", short_help="Show the differences between two models.")
@_options.file_argument("before")
@_options.file_argument("after")
@_options.reported
def command(*, before: Path, after: Path, output: Output) -> None:
    """Show the differences between two models: graph, tensors, optimizer state, metadata.

    The exit status is 0 whether or not they differ; `surgery verify` tells whether they compute the same function.

    \b
    Example:
      surgery diff agent.onnx wide.onnx
    """
    difference = surgery.diff(surgery.load(before), surgery.load(after))
    output.show(difference.to_json(), difference.describe)
