"""`surgery finetune`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _options, _training


@click.command("finetune", short_help="Continue training a model by playing.")
@_options.file_argument("model")
@click.option(
    "--optimizer",
    type=click.Choice(["adam", "rmsprop"]),
    default="adam",
    show_default=True,
    help="Optimizer to train with; state of another kind is converted as by surgery optimizer.",
)
@click.option(
    "--replay",
    metavar="FILE.npz",
    type=_options.FILE,
    help="Recorded transitions to start with; by default it plays first.",
)
@_training.options
def command(
    *,
    model: Path,
    optimizer: str,
    replay: Path | None,
    training: _training.Training,
) -> None:
    """Continue training a Q-network by playing, at a lowered learning rate.

    Weights and optimizer state carry over (`surgery attach` adds that of a training checkpoint); exploration is at its
    final value from the first step.

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
        training.output.note(f"the optimizer state was converted from {had} to {optimizer}")
    _training.carry_out(job, training.output, dry_run=training.dry_run)
