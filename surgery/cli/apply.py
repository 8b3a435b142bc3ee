"""`surgery apply`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _edits, _files, _options
from surgery.cli._output import Output, plural
from surgery.errors import ArgumentError, FileError, SurgeryError


@click.command("apply", short_help="Apply a plan to one or more models.")
@_options.file_argument("plan", metavar="PLAN.json")
@_options.file_argument("models", metavar="MODEL...", many=True)
@_options.output_file()
@click.option(
    "--output-dir",
    "folder",
    metavar="DIR",
    type=_options.FILE,
    help="Output folder for several models; created if missing.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip models that this plan has already converted and verified.",
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
    resume: bool,
    seed: int,
    observations: Path | None,
    no_verify: bool,
    dry_run: bool,
    force: bool,
    output: Output,
) -> None:
    """Apply a plan to one or more models.

    PLAN.json is what an edit prints with --dry-run --json; - reads it from standard input. One plan fits all networks
    of the same graph: online and target network, past opponents. A folder stands for the models in it; --resume
    continues an interrupted run. A recording of observations (.npz: replay, rollouts) is converted to the new
    observations.

    \b
    Example:
      surgery widen agent.onnx --factor 2 --dry-run --json > plan.json
      surgery apply plan.json agent.onnx target.onnx --output-dir wide/
      surgery apply plan.json opponents/ --output-dir opponents-v2/ --resume
      surgery apply plan.json replay.npz -o replay-v2.npz
    """
    recipe = _files.read_plan(plan)
    if dry_run:
        output.show(_edits.plan_report(recipe), recipe.describe)
        return
    models = _expanded(models)
    targets = _targets(models, target, folder, force=force or resume)
    proof = _edits.Proof(not no_verify, _files.read_observations(observations), seed)
    done = []
    for model, path in zip(models, targets, strict=True):
        try:
            done.append(_one(recipe, model, path, proof, output, force=force, resume=resume))
        except SurgeryError as error:
            raise error.within(model=model) from None
    reports, texts = zip(*done, strict=True)
    output.show(reports[0] if folder is None else {"results": reports}, lambda: "\n".join(texts))


def _one(
    plan: surgery.Plan,
    model: Path,
    path: Path,
    proof: _edits.Proof,
    output: Output,
    *,
    force: bool,
    resume: bool,
) -> tuple[dict[str, object], str]:
    """The report of one model or recording, as an object and as text."""
    if model.suffix == ".npz":
        return _migrate(plan, model, path, output, force=force or resume)
    checkpoint = surgery.load(model)
    if resume and path.exists():
        if _done(plan, checkpoint, path):
            return {"output": str(path), "skipped": True}, f"{path} is there already, verified"
        if not force:
            raise FileError(
                f"'{path}' is not a verified result of this plan", hint="pass --force to replace it"
            )
    result = _edits.carry_out(plan, checkpoint, path, proof, output, force=force)
    return _edits.edit_report(result, path), _edits.edit_text(result, path)


def _done(plan: surgery.Plan, checkpoint: surgery.Checkpoint, path: Path) -> bool:
    from surgery.operate import is_result

    try:
        return is_result(plan, checkpoint, surgery.load(path))
    except SurgeryError:
        return False


def _migrate(
    plan: surgery.Plan, source: Path, path: Path, output: Output, *, force: bool
) -> tuple[dict[str, object], str]:
    from surgery.rollouts import migrate

    with output.step(f"migrating {source}"):
        found = migrate(plan, source, path, force=force)
    line = [f"{name}: {plural(count, 'observation')}" for name, count in found.arrays.items()]
    line += [f"{name} renumbered" for name in found.actions]
    line += (
        [f"in {found.lost:,} of them a retired feature did not have its constant value"] if found.lost else []
    )
    report = {"arrays": dict(found.arrays), "lost": found.lost, "renumbered": list(found.actions)}
    return {"output": str(path), **report}, " · ".join([*line, f"wrote {path}"])


def _expanded(models: tuple[Path, ...]) -> tuple[Path, ...]:
    """Folders as the models in them.

    Raises:
      ArgumentError: a folder without any.
    """
    found: list[Path] = []
    for model in models:
        several = model.is_dir() and not _files.native_folder(model)
        inside = sorted(model.glob("*.onnx")) if several else [model]
        if not inside:
            raise ArgumentError(f"there is no .onnx file in '{model}'")
        found += inside
    return tuple(found)


def _targets(
    models: tuple[Path, ...], target: Path | None, folder: Path | None, *, force: bool
) -> list[Path]:
    """Where each model's result goes.

    Raises:
      ArgumentError: not exactly one of `-o` and `--output-dir`, two results of one name, or DIR is a file.
    """
    if (target is None) == (folder is None):
        raise ArgumentError("say where to write", hint="-o OUT for one model, --output-dir DIR for many")
    if folder is None:
        if len(models) > 1:
            raise ArgumentError(f"cannot write {len(models)} models to one file", hint="use --output-dir DIR")
        return [_files.check_target(target, models, force=force)]
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"'{folder}' is not a folder")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"two of the models are called '{name}'", hint="apply it to one at a time")
    folder.mkdir(parents=True, exist_ok=True)
    return [_files.check_target(folder / name, models, force=force) for name in names]
