"""The HTML of a drawing: inline SVG, style and script; nothing is fetched, and no name becomes markup."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise

from surgery.draw.boxes import GAP, HEAD, LINE, PADDING, Box, Chain, Chip, Diagram, diagram, verdict
from surgery.draw.layers import Placement, Point, place
from surgery.errors import some_text
from surgery.graph.spaces import Analysis, Space

GOLDEN = 137.508  # degrees: hues of neighbours in any number of spaces are far apart


def draw(analysis: Analysis, *, title: str) -> str:
    """A page that shows a graph from top to bottom, the axes of every tensor coloured by their spaces.

    Args:
      analysis: of the graph; its nodes that only compute shapes are left out.
      title: of the page.

    Returns:
      HTML that loads nothing and runs its own script only.
    """
    shown = diagram(analysis)
    placement = place(
        [(box.width, box.height) for box in shown.boxes],
        [(link.source, link.target, link.value) for link in shown.links],
        [k for k, box in enumerate(shown.boxes) if box.late],
    )
    style, script = _resource("page.css"), _resource("page.js")
    # names in the page are escaped; should one slip through, the browser still runs this script alone
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>",
            f"<style>{style}{_hues(analysis.spaces)}</style>",
            '<style id="highlight"></style></head><body>',
            *_legend(analysis.spaces, shown, title),
            '<main id="graph">',
            *_picture(shown, placement, analysis.spaces),
            "</main>",
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def _resource(name: str) -> str:
    return files("surgery.draw").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return b64encode(sha256(script.encode()).digest()).decode()


def _text(text: str) -> str:
    """Escaped for element content and quoted attributes; what no reader can see becomes visible."""
    return html.escape(
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def _hues(spaces: Sequence[Space]) -> str:
    return "".join(f'[data-k="{k}"]{{--h:{k * GOLDEN % 360:.0f}}}' for k in range(len(spaces)))


# ---- the legend ---------------------------------------------------------------------------------------------


def _legend(spaces: Sequence[Space], shown: Diagram, title: str) -> Iterator[str]:
    free = [k for k, space in enumerate(spaces) if space.widenable]
    stuck = [k for k, space in enumerate(spaces) if space.hidden and not space.widenable]
    ports = [k for k, space in enumerate(spaces) if not space.hidden and not space.widenable]
    nodes = sum(box.kind in ("node", "opaque") for box in shown.boxes)
    yield f'<nav id="legend"><h1>{_text(title)}</h1>'
    yield f"<p>{nodes:,} nodes · {shown.folded:,} of shape arithmetic left out</p>"
    yield (
        '<p class="tools"><input id="filter" type="search" placeholder="find a space" aria-label="find a space">'
        '<button id="smaller" title="smaller">−</button><button id="larger" title="larger">+</button>'
        '<button id="fit" title="as wide as the window">fit</button></p>'
    )
    for heading, group in (("can grow", free), ("frozen", stuck), ("interface", ports)):
        if group:
            yield f"<h2>{heading} <small>{len(group)}</small></h2>"
            yield from (_entry(k, spaces[k]) for k in group)
    yield (
        '<p class="key"><span class="swatch fixed"></span>a fixed size: batch, space, kernel, one unit<br>'
        '<span class="swatch stuck fixed"></span>frozen, and in no parameter</p>'
        '<p class="key">Click a space to pin it, again to go to its next place; Esc lets it go.</p></nav>'
    )


def _entry(k: int, space: Space) -> str:
    names = " = ".join([space.name, *space.aliases])
    stuck = "" if space.widenable else " stuck"
    return (
        f'<button class="space" data-k="{k}" title="{_text(_places(space))}">'
        f'<span class="swatch{stuck}"></span><b>{_text(names)}</b> <i>{space.size:,}</i>'
        f"<small>{_text(verdict(space))}</small></button>"
    )


def _places(space: Space) -> str:
    """Where the space occurs, as a tooltip: the first places of each role."""
    lines = []
    for makes, word in ((True, "made by"), (False, "read by")):
        found = [f"{axis.tensor}[{axis.axis}]" for axis in space.axes if axis.makes == makes]
        lines += [f"{word} {some_text(found, 8)}"] if found else []
    return "\n".join(lines)


# ---- the picture --------------------------------------------------------------------------------------------


def _picture(shown: Diagram, placement: Placement, spaces: Sequence[Space]) -> Iterator[str]:
    width, height = round(placement.width), round(placement.height)
    yield (
        f'<svg id="picture" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="the graph"><defs>'
        '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0V6" class="hatch"/></pattern></defs><g class="links">'
    )
    for link, route in zip(shown.links, placement.routes, strict=True):
        yield f'<path d="{_curve(route)}"><title>{_text(link.value)}</title></path>'
    yield "</g>"
    for box, corner in zip(shown.boxes, placement.corners, strict=True):
        yield from _box(box, corner, spaces)
    yield "</svg>"


def _curve(points: Sequence[Point]) -> str:
    """Through all points, upright at each."""
    parts = [f"M{points[0][0]:.0f} {points[0][1]:.0f}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        if round(x) == round(to_x):
            parts.append(f"V{to_y:.0f}")
        else:
            bend = (y + to_y) / 2
            parts.append(f"C{x:.0f} {bend:.0f} {to_x:.0f} {bend:.0f} {to_x:.0f} {to_y:.0f}")
    return "".join(parts)


def _box(box: Box, corner: Point, spaces: Sequence[Space]) -> Iterator[str]:
    inside = "".join(f" b{k}" for k in sorted(box.spaces))
    yield f'<g class="box {box.kind}{inside}" transform="translate({corner[0]:.0f} {corner[1]:.0f})">'
    yield (
        f'<rect class="frame" width="{box.width:.0f}" height="{box.height:.0f}" rx="6"/>'
        f"<title>{_text(box.hint)}</title>"
        f'<text class="operator" x="{PADDING}" y="15">{_text(box.title)}</text>'
        f'<text class="path" x="{PADDING}" y="29">{_text(box.path)}</text>'
    )
    for k, row in enumerate(box.rows):
        y = HEAD + k * LINE
        label = f"<title>{_text(row.hint)}</title>{_text(row.label)}"
        yield f'<text class="name" x="{PADDING}" y="{y + 12:.0f}">{label}</text>'
        x = PADDING + (box.indent if row.label or len(box.rows) > 1 else 0)
        for chain in row.axes:
            yield _chain(chain, (x, y), spaces)
            x += chain.width + GAP
    yield "</g>"


def _chain(chain: Chain, corner: Point, spaces: Sequence[Space]) -> str:
    x, parts = corner[0], []
    for chip in chain.chips:
        parts.append(_chip(chip, (x, corner[1]), spaces))
        x += chip.width
    return f"<g><title>{_text(chain.hint)}</title>{''.join(parts)}</g>"


def _chip(chip: Chip, corner: Point, spaces: Sequence[Space]) -> str:
    x, y = corner
    middle = f'x="{x + chip.width / 2:.1f}" y="{y + 12:.0f}"'
    if chip.kind == "sign":
        return f'<text class="sign" {middle}>{chip.text}</text>'
    shape = f'x="{x:.1f}" y="{y:.0f}" width="{chip.width:.1f}" height="16" rx="3"'
    stuck = chip.kind == "frozen" or (chip.space is not None and not spaces[chip.space].widenable)
    hatch = f'<rect {shape} fill="url(#hatch)"/>' if stuck else ""
    key = "" if chip.space is None else f' data-k="{chip.space}"'
    text = f"<text {middle}>{_text(chip.text)}</text>" if chip.text else ""
    return f'<g class="chip"{key}><rect {shape}/>{hatch}{text}</g>'
