"""`surgery extend`"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _edits, _options

if TYPE_CHECKING:
    from surgery.ops.actions import Kind, NewAction
    from surgery.ops.extend import NewObservation

_REQUEST = re.compile(r"(?P<input>[^+=]+)\+(?P<count>\d+)(@(?P<at>\d+))?(=(?P<labels>.+))?")


def _observations(
    ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> list[NewObservation]:
    """`INPUT+K[@AT][=NAME,…] …`"""
    from surgery.ops.extend import NewObservation

    found = []
    for word in words:
        match = _REQUEST.fullmatch(word)
        if match is None:
            raise click.BadParameter(
                f"'{word}' is not INPUT+K, INPUT+K@AT or INPUT+K@AT=NAME,…", ctx, parameter
            )
        labels = tuple(match["labels"].split(",")) if match["labels"] else ()
        at = None if match["at"] is None else int(match["at"])
        found.append(NewObservation(match["input"], int(match["count"]), at, labels))
    return found


def _actions(
    ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> list[tuple[str, int, tuple[str, ...]]]:
    """`OUTPUT+K[=NAME,…] …`"""
    found = []
    for word in words:
        match = _REQUEST.fullmatch(word)
        if match is None or match["at"] is not None:
            raise click.BadParameter(f"'{word}' is not OUTPUT+K or OUTPUT+K=NAME,…", ctx, parameter)
        labels = tuple(match["labels"].split(",")) if match["labels"] else ()
        found.append((match["input"], int(match["count"]), labels))
    return found


def _start(ctx: click.Context, parameter: click.Parameter, word: str) -> tuple[str, float, str | None]:
    """`never`, `mean`, `zero`, `split:J` or `logit:X`."""
    kind, colon, number = word.partition(":")
    if kind == "split" and number:
        return kind, 0.0, number
    try:
        bias = float(number) if colon else 0.0
    except ValueError:
        bias = math.nan
    if (
        kind not in ("never", "mean", "zero", "logit")
        or bool(colon) != (kind == "logit")
        or not math.isfinite(bias)
    ):
        raise click.BadParameter(f"'{word}' is not never, mean, zero, split:J or logit:X", ctx, parameter)
    return kind, bias, None


@click.command("extend", short_help="Add observations and actions, exactly.")
@_options.file_argument("model")
@click.option(
    "--observation",
    "requests",
    metavar="INPUT+K[@AT][=NAME,…]",
    multiple=True,
    callback=_observations,
    help="Insert K features or channels into an input, before feature AT (default: at the end).",
)
@click.option(
    "--action",
    "actions",
    metavar="OUTPUT+K[=NAME,…]",
    multiple=True,
    callback=_actions,
    help="Append K actions to an output.",
)
@click.option(
    "--new-action",
    "start",
    metavar="START",
    default="never",
    show_default=True,
    callback=_start,
    help="How a new action starts: never (mean of the old ones, and masked), mean, zero, split:J (shares J's "
    "probability), or logit:X.",
)
@_edits.options
def command(
    *,
    model: Path,
    requests: list[NewObservation],
    actions: list[tuple[str, int, tuple[str, ...]]],
    start: tuple[Kind, float, str | None],
    editing: _edits.Editing,
) -> None:
    """Add observations and actions without changing the policy on the old ones.

    Weights that read new observations start at zero, as does their optimizer state, and learn from the first step. If
    an input has several feature axes, name the axis: observation[1]+2. If an input holds numbers of rows of an
    embedding, such as the last action, the embedding gets more rows. Values of old actions stay; the result reports how
    often the policy would choose a new one. If an output is the number of the chosen action, the new actions are added
    to the values it was chosen from. What the graph computes from all actions together, such as probabilities, changes.

    \b
    Example:
      surgery extend agent.onnx --observation observation+2 -o more.onnx
      surgery extend agent.onnx --observation observation+1@0 -o more.onnx
      surgery extend agent.onnx --observation observation+2@4=wind,fuel -o more.onnx
      surgery extend agent.onnx --action q_values+2 -o more.onnx
      surgery extend agent.onnx --action logits+1=JUMP --new-action logit:-5 -o more.onnx
      surgery extend agent.onnx --action logits+1=LEAP --new-action split:JUMP -o more.onnx
    """

    def describe(checkpoint: surgery.Checkpoint) -> surgery.Plan:
        return surgery.extend(checkpoint, requests, _new(actions, start))

    editing.edit(model, describe)


def _new(
    actions: list[tuple[str, int, tuple[str, ...]]], start: tuple[Kind, float, str | None]
) -> list[NewAction]:
    from surgery.ops.actions import NewAction

    return [NewAction(name, count, start[0], start[1], labels, start[2]) for name, count, labels in actions]
