"""`surgery adapt`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import surgery
from surgery.cli import _edits, _environment, _options
from surgery.errors import ArgumentError, SurgeryError, UnknownFormat
from surgery.files import check_readable
from surgery.json_values import loads

if TYPE_CHECKING:
    from surgery.description import SpaceDescription


@click.command("adapt", short_help="Fit a model to an environment whose spaces changed.")
@_options.file_argument("model")
@click.option(
    "--env", "environment", metavar="ID", help="The environment to fit; MODULE:ID imports MODULE first."
)
@click.option(
    "--after", metavar="NEW.json", type=_options.FILE, help="The new spaces as a file, instead of --env."
)
@click.option(
    "--before",
    metavar="OLD.json",
    type=_options.FILE,
    help="The spaces that the model was trained on, with names.",
)
@click.option(
    "--retire",
    "constants",
    metavar="INPUT.FEATURE=VALUE",
    multiple=True,
    callback=_options.constants,
    help="The constant to use for an observation that is gone; repeatable.",
)
@click.option(
    "--new-action",
    type=click.Choice(["never", "mean"]),
    default="never",
    show_default=True,
    help="New actions start at the mean of the old ones, and are masked at first (never) or not (mean).",
)
@click.option(
    "--unnamed", type=click.Choice(["append"]), help="Treat new features without names as appended."
)
@_edits.options
def command(
    *,
    model: Path,
    environment: str | None,
    after: Path | None,
    before: Path | None,
    constants: dict[str, float],
    new_action: Literal["never", "mean"],
    unnamed: Literal["append"] | None,
    editing: _edits.Editing,
) -> None:
    """Compare an environment's observation and action spaces with those of a model, and make the plan between them.

    New observations and actions are inserted, others are reordered, and observations that are gone are retired. A
    difference that no plan can express is refused, naming the part of the spaces.

    Features and actions are matched by name: those of the model (surgery annotate … labels=[…]) or of --before, and
    those of the environment (dictionary keys, observation_labels, get_action_meanings) or of --after.

    \b
    Example:
      surgery adapt agent.onnx --env MyGame-v2 -o v2.onnx
      surgery adapt agent.onnx --env MyGame-v2 --retire observation.wind=0 -o v2.onnx
      surgery adapt agent.onnx --before v1.json --after v2.json --dry-run --json > plan.json
    """
    if (environment is None) == (after is None):
        raise ArgumentError("say what to adapt to", hint="--env ID, or --after NEW.json")
    with editing.output.step("reading the spaces"):
        wanted = _from_environment(environment) if environment is not None else _read(after)
        current = None if before is None else _read(before)

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.adapt(
            checkpoint, wanted, current=current, new_action=new_action, constants=constants, unnamed=unnamed
        )

    editing.edit(model, describe)


def _from_environment(name: str) -> SpaceDescription:
    from surgery.envs.description import describe

    return describe(_environment.imported(name))


def _read(path: Path | None) -> SpaceDescription:
    from surgery.description import SpaceDescription

    assert path is not None
    check_readable(path)
    try:
        return SpaceDescription.from_json(loads(path.read_text(encoding="utf-8"), "space description"))
    except UnicodeDecodeError as error:
        raise UnknownFormat(f"{path} is no space description: it is not text") from error
    except SurgeryError as error:
        raise error.within(file=path) from None
