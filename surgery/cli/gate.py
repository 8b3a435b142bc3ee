"""`surgery gate`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output
from surgery.errors import ArgumentError


@click.command("gate", short_help="Show or set the gate of a sidecar.")
@_options.file_argument("model")
@click.option(
    "--to", "value", metavar="G", type=float, help="Set the gate: 0 is the old network, 1 the new one."
)
@_options.output_file()
@_options.force
@_options.reported
def command(*, model: Path, value: float | None, target: Path | None, force: bool, output: Output) -> None:
    """Show or set the gate of a network with a sidecar: how far it has moved from the old network to the new one.

    Setting the gate changes the outputs; training should move it gradually.

    \b
    Example:
      surgery gate both.onnx
      surgery gate both.onnx --to 1 -o handed-over.onnx
    """
    from surgery.sidecar import gate, set_gate

    if (value is None) != (target is None):
        raise ArgumentError("--to and -o belong together", hint="surgery gate MODEL --to G -o OUT")
    path = None if target is None else _files.check_target(target, [model], force=force)
    checkpoint = surgery.load(model)
    before = gate(checkpoint)
    if value is None or path is None:
        output.show({"gate": before}, lambda: f"{before:g}")
        return
    surgery.save(set_gate(checkpoint, value), path, force=force)
    report = {"output": str(path), "gate": value, "before": before}
    output.show(report, lambda: f"gate {before:g} → {value:g} · wrote {path}")
