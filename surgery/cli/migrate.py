"""`surgery migrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from surgery.cli import _edits, _options, _routes
from surgery.errors import ArgumentError


@click.command("migrate", short_help="Take a network to another architecture, exactly.")
@_options.file_argument("model")
@click.option("--to", "architecture", metavar="ARCH", required=True,
              help="A named architecture with modifiers, FILE.toml:NAME, or another model's file.")  # fmt: skip
@click.option(
    "--route",
    type=click.Choice(["exact", "sidecar"]),
    default="exact",
    show_default=True,
    help="By edits; or as a new network beside the old one, whatever the family.",
)
@click.option(
    "--init",
    type=click.Choice(["auto", "zero", "net2net"]),
    default="auto",
    show_default=True,
    help="New units: random with zero outgoing weights, or copies.",
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
    """Take a network to another architecture by edits that keep its outputs, optimizer state included.

    The layers of the model are found in its graph and compared with those of the target, one by one: they grow, their
    kernels grow, and new layers are put in that change nothing at first. If there is no such route the exit status is
    1, and the reasons are given layer by layer; with --or-distill a new network of that architecture is taught by
    playing instead (`surgery distill`; the run lies in OUT.run). `--route sidecar` puts an untrained network of the
    architecture beside the old one, with the same outputs at first (`surgery sidecar`): that goes from any family to
    any other. `surgery list architectures` has the names.

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
                "a side-car has no plan, and is always exact and proved", hint="leave the other options out"
            )
        _routes.beside(
            model, editing.target, architecture, editing.proof, editing.output, force=editing.force
        )
        return
    _routes.travel(model, architecture, editing, init=init, play=play)
