"""`surgery compare`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgery.cli import _files, _options
from surgery.cli._output import Output, section, table
from surgery.errors import number_text

if TYPE_CHECKING:
    from surgery.compare import Comparison, Interval


@click.command("compare", short_help="Compare runs: curves, interquartile means, intervals.")
@_options.file_argument("runs", metavar="RUN...", many=True)
@click.option(
    "--by",
    metavar="WHAT",
    default="method",
    show_default=True,
    help="Group by method, folder, architecture, head, any setting, or several: method,n_step.",
)
@click.option(
    "--scale", metavar="SCALE", help="teacher, human or none; by default the first that every game has."
)
@click.option(
    "--at",
    metavar="FRAMES",
    type=click.IntRange(min=0),
    help="Compare after this many frames instead of at the end.",
)
@_options.seed
@_options.output_file()
@_options.force
@_options.reported
def command(
    *,
    runs: tuple[Path, ...],
    by: str,
    scale: str | None,
    at: int | None,
    seed: int,
    target: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Compare runs of `distill` and `finetune`, or folders of runs, as a table and as a plot.

    Scores are normalised per game. The table shows interquartile means with 95% stratified bootstrap intervals. The
    plot is written to OUT, a .png, .svg or .html file.

    \b
    Example:
      surgery compare runs/qdagger-* runs/scratch-* -o comparison.png
      surgery compare runs --by method,n_step --at 1000000 --json
    """
    from surgery.compare import compare, figure

    if target is not None:
        figure.check_kind(target)
        _files.check_target(target, [], force=force)
    with output.step("comparing"):
        done = compare(runs, by=by, scale=scale, at=at, seed=seed)
        text = _text(done)
        if target is not None:
            figure.write(done, text, target, force=force)
    written = None if target is None else str(target)
    output.show(
        {**done.to_json(), "output": written},
        lambda: text if written is None else f"{text}\n\nwrote {written}",
    )


def _text(done: Comparison) -> str:
    from surgery.compare.figure import LABELS

    best = done.groups[0].name
    chances = {one.than: one.probability for one in done.improvements if one.better == best}
    rows = [
        (
            group.name,
            len(group.runs),
            number_text(group.iqm.value),
            _bounds(group.iqm),
            number_text(group.mean.value),
            _bounds(group.mean),
            "" if group.name == best else f"{chances[group.name].value:.2f}",
            "" if group.name == best else _bounds(chances[group.name]),
        )
        for group in done.groups
    ]
    heads = ("", "runs", "IQM", "95%", "mean", "95%", f"P({best} better)", "95%")
    games = ", ".join(done.games)
    lines = [f"{games} · after {done.at:,} frames · {LABELS[done.scale]}", table(heads, rows)]
    if done.scale != "none":
        lines.append(
            section(
                "scale",
                "\n".join(
                    f"{game}: 0 is {number_text(zero)}, 1 is {number_text(one)}"
                    for game, (zero, one) in done.references.items()
                ),
            )
        )
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])


def _bounds(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{number_text(interval.low)} … {number_text(interval.high)}"
