"""`surgery apply`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _files, _options
from surgery.cli._output import Output
from surgery.errors import ArgumentError, SurgeryError


@click.command("apply", short_help="Apply a plan to one or more models.")
@_options.file_argument("plan", metavar="PLAN.json")
@_options.file_argument("models", metavar="MODEL...", many=True)
@_options.output_file()
@click.option(
    "--output-dir", "folder", metavar="DIR", type=_options.FILE, help="Folder to write many models into."
)
@_options.seed
@_options.observations
@_options.no_verify
@_options.dry_run
@_options.force
@_options.reported
def command(
    *,
    plan: Path,
    models: tuple[Path, ...],
    target: Path | None,
    folder: Path | None,
    seed: int,
    observations: Path | None,
    no_verify: bool,
    dry_run: bool,
    force: bool,
    output: Output,
) -> None:
    """Apply a plan to one or more models.

    PLAN.json is what an edit prints with --dry-run --json, or - for standard input. One plan fits all
    networks of the same shape: the online and the target network, past opponents.

    \b
    Example:
      surgery widen agent.onnx --factor 2 --dry-run --json > plan.json
      surgery apply plan.json agent.onnx target.onnx --output-dir wide/
    """
    recipe = _files.read_plan(plan)
    if dry_run:
        output.show(_edits.plan_report(recipe), recipe.describe)
        return
    targets = _targets(models, target, folder, force=force)
    proof = _edits.Proof(not no_verify, _files.read_observations(observations), seed)
    done = []
    for model, path in zip(models, targets, strict=True):
        try:
            result = _edits.carry_out(recipe, surgery.load(model), path, proof, output, force=force)
        except SurgeryError as error:
            raise error.within(model=model) from None
        done.append((_edits.edit_report(result, path), _edits.edit_text(result, path)))
    reports, texts = zip(*done, strict=True)
    output.show(reports[0] if folder is None else {"results": reports}, lambda: "\n".join(texts))


def _targets(
    models: tuple[Path, ...], target: Path | None, folder: Path | None, *, force: bool
) -> list[Path]:
    """Where each model's result goes.

    Raises:
      ArgumentError: not exactly one of `-o` and `--output-dir`, or two results would have one name.
    """
    if (target is None) == (folder is None):
        raise ArgumentError("say where to write", hint="-o OUT for one model, --output-dir DIR for many")
    if folder is None:
        if len(models) > 1:
            raise ArgumentError(f"cannot write {len(models)} models to one file", hint="use --output-dir DIR")
        return [_files.check_target(target, models, force=force)]
    if not folder.is_dir():
        raise ArgumentError(f"there is no folder '{folder}'", hint=f"mkdir -p {folder}")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"two of the models are called '{name}'", hint="apply it to one at a time")
    return [_files.check_target(folder / name, models, force=force) for name in names]
