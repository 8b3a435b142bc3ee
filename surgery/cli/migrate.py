"""`surgery migrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from surgery.cli import _edits, _options, _routes
from surgery.errors import ArgumentError


@click.command("migrate", short_help="Change a network into another architecture, exactly.")
@_options.file_argument("model")
@click.option("--to", "architecture", metavar="ARCH", required=True,
              help="A named architecture with modifiers, FILE.toml:NAME, or another model's file.")  # fmt: skip
@click.option(
    "--route",
    type=click.Choice(["exact", "sidecar"]),
    default="exact",
    show_default=True,
    help="Exact edits, or a new network of any family beside the old one.",
)
@click.option(
    "--init",
    type=click.Choice(["auto", "zero", "net2net"]),
    default="auto",
    show_default=True,
    help="New units: zero outgoing weights, or copies (net2net).",
)
@_routes.fallback
@_edits.options
def command(
    *,
    model: Path,
    architecture: str,
    route: Literal["exact", "sidecar"],
    init: Literal["auto", "zero", "net2net"],
    play: _routes.Play | None,
    editing: _edits.Editing,
) -> None:
    """Change a network into another architecture by edits that keep its outputs; the optimizer state follows.

    The layers found in the graph are compared with those of the target, one by one. Layers and kernels grow, and new
    layers are inserted that change nothing at first. If there is no exact route, the exit status is 1 and each layer in
    the way is listed with the reason. `surgery list architectures` lists the names.

    If no exact route exists: --or-distill distills into a new network of that architecture (`surgery distill`, with the
    run directory OUT.run). `--route sidecar` puts an untrained network of any family beside the old one, with the same
    outputs at first (`surgery sidecar`).

    \b
    Example:
      surgery migrate agent.onnx --to nature-x2 -o larger.onnx
      surgery migrate agent.onnx --to impala-x2-b3 --dry-run
      surgery migrate agent.onnx --to other.onnx -o like-other.onnx
      surgery migrate agent.onnx --to impala --route sidecar -o both.onnx
      surgery migrate agent.onnx --to impala --or-distill --frames 2000000 -o student.onnx
    """
    if route == "sidecar":
        if play or editing.dry_run or not editing.proof.verify or init != "auto":
            raise ArgumentError(
                "a sidecar has no plan, and is always exact and proved", hint="leave the other options out"
            )
        _routes.beside(
            model, editing.target, architecture, editing.proof, editing.output, force=editing.force
        )
        return
    _routes.travel(model, architecture, editing, init=init, play=play)
