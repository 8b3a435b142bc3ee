"""`surgery finetune`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _options, _training


@click.command("finetune", short_help="Go on training a model by playing.")
@_options.file_argument("model")
@click.option(
    "--optimizer",
    type=click.Choice(["adam", "rmsprop"]),
    default="adam",
    show_default=True,
    help="State is carried on; that of another kind is swapped, as by surgery optimizer.",
)
@click.option(
    "--replay",
    metavar="FILE.npz",
    type=_options.FILE,
    help="Transitions of its training to begin with; else it plays first.",
)
@_training.options
def command(
    *,
    model: Path,
    optimizer: str,
    replay: Path | None,
    training: _training.Training,
) -> None:
    """Go on training a Q-network where it plays, at a lowered learning rate.

    Weights and optimizer state are carried on (`surgery attach` binds a framework's); exploration is at its end from
    the first step.

    \b
    Example:
      surgery finetune agent.onnx --env CartPole-v1 --frames 50000 -o runs/finetune
      surgery finetune agent.onnx --optimizer rmsprop --set final_rate=5e-5 -o runs/rmsprop
    """
    _training.library()
    from surgery.distill import plan_finetune

    with training.output.step(f"reading {model}"):
        checkpoint = surgery.load(model)
        job = plan_finetune(
            checkpoint,
            training.folder,
            environment=training.contract(checkpoint),
            optimizer=optimizer,
            options=training.options(),
            replay=replay,
        )
    had = checkpoint.optimizer.kind if checkpoint.optimizer else None
    if had is not None and had != optimizer:
        training.output.note(f"the state of {had} was turned into that of {optimizer}")
    _training.carry_out(job, training.output, dry_run=training.dry_run)
