"""`surgery diff`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _options
from surgery.cli._output import Output


@click.command("diff", short_help="Show what differs between two models.")
@_options.file_argument("before")
@_options.file_argument("after")
@_options.reported
def command(*, before: Path, after: Path, output: Output) -> None:
    """Show what differs between two models: graph, tensors, optimizer state, meaning.

    Exit status 0 whatever the difference is; whether they compute the same is for `surgery verify` to say.

    \b
    Example:
      surgery diff agent.onnx wide.onnx
    """
    difference = surgery.diff(surgery.load(before), surgery.load(after))
    output.show(difference.to_json(), difference.describe)
