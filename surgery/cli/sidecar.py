"""`surgery sidecar`"""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import _edits, _files, _options, _routes
from surgery.cli._output import Output


@click.command("sidecar", short_help="Add a new network beside the old one, exactly.")
@_options.file_argument("model")
@click.argument("new", metavar="NEW")
@_options.seed
@_options.observations
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    new: str,
    seed: int,
    observations: Path | None,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Add a network of another family beside a trained one: y = (1 − g) · old(x) + new(x).

    NEW is a named architecture or another model (.onnx, or a framework's file). Its last layer is set to zero, so with
    g = 0 the outputs are those of MODEL, bit for bit. Your training moves the gate g (the tensor sidecar.gate) to 1;
    `surgery finish` then removes the old network.

    \b
    Example:
      surgery sidecar nature.onnx impala -o both.onnx
      surgery sidecar nature.onnx other.zip -o both.onnx
    """
    proof = _edits.Proof(True, _files.read_observations(observations), seed)
    _routes.beside(model, target, new, proof, output, force=force)
