"""`surgery optimizer`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._edits import unheld
from surgery.cli._output import Output, section, table

if TYPE_CHECKING:
    from surgery.json_values import Json
    from surgery.ops.swap_optimizer import Match, Swap


def _setting(word: str) -> tuple[str, Json]:
    """A value is a number, true, false, or numbers with commas between them."""
    name, _, text = word.partition("=")
    value = json.loads(f"[{text}]" if "," in text else text)
    if not name or value is None or isinstance(value, str | dict):
        raise ValueError
    return name, value


_settings = _options.by_name(_setting, "NAME=VALUE, with true, false, a number, or numbers between commas")


@click.command("optimizer", short_help="Swap the optimizer and convert its state.")
@_options.file_argument("model")
@click.option("--to", metavar="KIND", required=True, help="The new optimizer: adam, adamw, rmsprop or sgd.")
@click.option(
    "--set",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_settings,
    help="A setting of the new optimizer, as named in PyTorch.",
)
@click.option(
    "--was",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_settings,
    help="A fact about the old optimizer that the file lacks: eps_inside_root, buffer_holds_lr, starts_at_one.",
)
@click.option(
    "--match",
    type=click.Choice(["tensor", "all", "none"]),
    help="Match learning rates per tensor, one for all (default for framework files), or not (default with lr).",
)
@click.option(
    "--gradients",
    metavar="FILE.npz",
    type=_options.FILE,
    help="Gradients to measure on, one per batch, by parameter name; by default drawn from the state.",
)
@_options.seed
@_options.dry_run
@_options.output_file()
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    to: str,
    options: dict[str, Json],
    was: dict[str, Json],
    match: Match | None,
    gradients: Path | None,
    seed: int,
    dry_run: bool,
    target: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Swap the optimizer of a checkpoint; the weights stay, bit for bit.

    The new state is computed from the gradient statistics in the old one. The learning rate of each tensor is chosen so
    that a gradient moves it as far as before, summed over this and all later updates: its reach. The table compares the
    reach and the first update of both optimizers, by length (new over old) and angle.

    \b
    Example:
      surgery optimizer agent.onnx --to adam -o adam.onnx
      surgery optimizer agent.onnx --to adam --set lr=6.25e-5 --set eps=1.5e-4 -o adam.onnx
      surgery optimizer agent.onnx --to adamw --set betas=0.9,0.99 --match all -o adamw.onnx
      surgery optimizer agent.onnx --to adam --was eps_inside_root=true --was starts_at_one=true -o adam.onnx
    """
    path = None if dry_run else _files.check_target(target, [model], force=force)
    real = _files.read_observations(gradients)
    with output.step(f"reading {model}"):
        checkpoint = surgery.load(model)
        swap = surgery.swap_optimizer(
            checkpoint, to, match=match, was=was, gradients=real, seed=seed, **options
        )
        note = unheld(lambda: swap.checkpoint, checkpoint, model, target)
    if path is not None:
        with output.step(f"writing {path}"):
            swap.save(path, force=force)
    output.show(_report(swap, path, note), lambda: _text(swap, path, note))


def _report(swap: Swap, path: Path | None, note: str | None) -> dict[str, object]:
    state = swap.checkpoint.optimizer
    groups = [
        {"parameters": list(group.parameters), "hyper": dict(group.hyper)}
        for group in (state.groups if state else ())
    ]
    return {
        "output": None if path is None else str(path),
        "claim": "identical",
        **swap.report.to_json(),
        "groups": groups,
        "notes": [] if note is None else [note],
    }


def _text(swap: Swap, path: Path | None, note: str | None) -> str:
    report = swap.report
    line = f"{report.summary()}{f' · wrote {path}' if path else ''}"
    measured = "real gradients" if report.measured == "gradients" else "gradients drawn from the state"
    shown = [(row.name, row.lr, row.gain, row.direction, row.step, row.cosine) for row in report.tensors]
    rows = [[name, *("–" if x is None else f"{x:.3g}" for x in numbers)] for name, *numbers in shown]
    headings = ("tensor", "lr", "reach", "cosine", "first step", "cosine")
    notes = {
        f"new against old, on {measured}": table(headings, rows),
        "carried": "\n".join(report.carried),
        "not carried": "\n".join(report.lost),
        "notes": note or "",
    }
    return "\n".join([line, *(section(title, body) for title, body in notes.items() if body)])
