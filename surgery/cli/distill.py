"""`surgery distill`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _options, _training


@click.command("distill", short_help="Distill a model into another architecture.")
@_options.file_argument("teacher")
@click.option(
    "--to",
    "architecture",
    metavar="ARCH",
    required=True,
    help="Architecture of the student (surgery list architectures).",
)
@click.option(
    "--method",
    metavar="NAME",
    default="qdagger",
    show_default=True,
    help="Distillation method (surgery list methods).",
)
@click.option(
    "--head",
    type=click.Choice(["q", "dueling", "c51", "qr", "rainbow"]),
    default="q",
    show_default=True,
    help="Output of the student: values, dueling values, C51 or QR-DQN distributions, or all of Rainbow.",
)
@click.option("--noisy", is_flag=True, help="Explore by noisy dense layers instead of random actions.")
@click.option(
    "--teacher-replay",
    metavar="FILE.npz",
    type=_options.FILE,
    help="Recorded transitions of the teacher; by default it plays to collect them.",
)
@_training.options
def command(
    *,
    teacher: Path,
    architecture: str,
    method: str,
    head: str,
    noisy: bool,
    teacher_replay: Path | None,
    training: _training.Training,
) -> None:
    """Distill a trained model into a new network of any architecture, by playing (QDagger and others).

    The teacher is a black box that outputs values, logits, distributions or actions. It is evaluated first. The run
    directory holds student.onnx, config.json, metrics.jsonl, TensorBoard files and checkpoints. Run the same command
    again to resume.

    \b
    Example:
      surgery distill breakout.onnx --to impala -o runs/breakout
      surgery distill breakout.onnx --to impala --method kickstarting --frames 2000000 -o runs/kick
      surgery distill agent.onnx --to mlp-64-64 --head rainbow -o runs/rainbow
      surgery distill agent.onnx --to lstm-128 -o runs/remembers
    """
    _training.library()
    from surgery.distill import plan_distill

    with training.output.step(f"reading {teacher}"):
        checkpoint = surgery.load(teacher, optimizer=False)
        job = plan_distill(
            checkpoint,
            architecture,
            training.folder,
            environment=training.contract(checkpoint),
            method=method,
            options=training.options(head=head, noisy=noisy),
            teacher_replay=teacher_replay,
        )
    _training.carry_out(job, training.output, dry_run=training.dry_run)
