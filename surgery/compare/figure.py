"""A comparison as a picture: learning curves, final scores with intervals, performance profiles."""

from __future__ import annotations

import html
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.compare.comparison import Comparison
from surgery.errors import ArgumentError, missing
from surgery.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".html")
LABELS = {"teacher": "score (0 random, 1 teacher)", "human": "score (0 random, 1 human)", "none": "return"}


def check_kind(path: Path) -> None:
    """Raises: ArgumentError: not a picture that is drawn."""
    if path.suffix not in KINDS:
        raise ArgumentError(
            f"'{path.name}' does not name a picture", hint=f"a name that ends in {', '.join(KINDS)}"
        )


def write(comparison: Comparison, table: str, path: Path, *, force: bool = False) -> None:
    """Draw a comparison.

    Args:
      table: its numbers as text, for a page.
      path: ends in `.png`, `.svg` or `.html`.

    Raises:
      ArgumentError, FileError: it cannot be written. MissingDependency: no matplotlib.
    """
    check_kind(path)
    figure = draw(comparison)
    with replacing([path], force=force) as (temporary,):
        if path.suffix == ".html":
            temporary.write_text(_page(comparison, table, figure), encoding="utf-8")
        else:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)


def draw(comparison: Comparison) -> Figure:
    """Raises: MissingDependency."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("matplotlib", "rl") from error
    figure = Figure(figsize=(13, 4), layout="constrained")
    curves, finals, profiles = figure.subplots(1, 3, width_ratios=[2, 1.2, 1.6])
    _curves(curves, comparison)
    _finals(finals, comparison)
    _profiles(profiles, comparison)
    return figure


def _curves(axes: Axes, comparison: Comparison) -> None:
    for k, group in enumerate(comparison.groups):
        colour = f"C{k}"
        axes.plot(group.frames, group.curve[:, 0], color=colour, label=f"{group.name} ({len(group.runs)})")
        axes.fill_between(group.frames, group.curve[:, 1], group.curve[:, 2], color=colour, alpha=0.2, lw=0)
    if comparison.scale != "none":
        axes.axhline(1, color="0.5", lw=0.8, ls="--")
    axes.set(xlabel="frames", ylabel=f"IQM of the {LABELS[comparison.scale]}", title="learning curves")
    axes.legend(frameon=False)


def _finals(axes: Axes, comparison: Comparison) -> None:
    names = [group.name for group in comparison.groups]
    for k, group in enumerate(comparison.groups):
        low, high = group.iqm.low, group.iqm.high
        if low is not None and high is not None:
            axes.plot([low, high], [k, k], color=f"C{k}", lw=8, alpha=0.4, solid_capstyle="butt")
        axes.plot([group.iqm.value], [k], "|", color=f"C{k}", ms=16, mew=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="IQM, 95% interval", title=f"after {comparison.at:,} frames")


def _profiles(axes: Axes, comparison: Comparison) -> None:
    for k, group in enumerate(comparison.groups):
        share, low, high = group.profile.T
        axes.plot(comparison.thresholds, share, color=f"C{k}")
        axes.fill_between(comparison.thresholds, low, high, color=f"C{k}", alpha=0.2, lw=0)
    axes.set(xlabel=f"{LABELS[comparison.scale]} τ", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    axes.set_title("performance profile")


def _page(comparison: Comparison, table: str, figure: Figure) -> str:
    picture = StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    title = "Comparison of " + ", ".join(group.name for group in comparison.groups)
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
            "<style>body{font:16px system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}"
            "svg{width:100%;height:auto}pre{overflow:auto}</style>",
            f"<h1>{html.escape(title)}</h1>",
            svg[svg.index("<svg") :],
            f"<pre>{html.escape(table)}</pre>",
            "</html>",
        ]
    )
