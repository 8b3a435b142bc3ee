"""Where boxes stand: layers from top to bottom, few crossings, short and mostly straight links.

The steps of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures" (1981):
longest-path layers, an order within each layer by barycentres, coordinates. A link that passes a layer has a point
in it; all links of one value share their points. Coordinates are isotonic regressions: the nearest places to where
the neighbours are, without overlap.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

ACROSS = 26.0  # between two boxes of a layer
BESIDE = 12.0  # between a link and whatever is beside it
DOWN = 34.0  # between two layers
WIDE = 1500.0  # of a layer that late boxes fill
FAR = 40  # layers that a link may pass before it is drawn straight
SWEEPS = 8

Edge = tuple[int, int, str]
"""Source box, target box, value."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """Where everything is.

    Attributes:
      corners: box -> its upper left corner.
      routes: link -> the points that it passes, from top to bottom.
      width, height: of everything.
    """

    corners: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


def place(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], late: Collection[int]) -> Placement:
    """Place boxes.

    Args:
      sizes: width and height of each box, in topological order.
      edges: links between them; what runs against the order is drawn, but does not count.
      late: boxes that stand just above their first reader, not as high as they can.
    """
    layer = _layers([width for width, _ in sizes], edges, late)
    net = _Net(sizes, edges, layer)
    _order(net)
    centres = _coordinates(net)
    return _placed(net, edges, centres)


def _layers(widths: Sequence[float], edges: Sequence[Edge], late: Collection[int]) -> list[int]:
    """The longest path from the top; then late boxes as low as they can stand, where there is room."""
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for source, target, _ in edges:
        if source < target:
            above[target].append(source)
            below[source].append(target)
    layer = [0] * len(widths)
    for k in range(len(widths)):
        layer[k] = 1 + max((layer[j] for j in above[k]), default=-1)
    used: dict[int, float] = {}
    for k in sorted(set(range(len(widths))) - set(late)):
        used[layer[k]] = used.get(layer[k], 0.0) + widths[k]
    for k in sorted(late, reverse=True):
        lowest = min((layer[j] for j in below[k]), default=layer[k] + 1) - 1
        while used.get(lowest, 0.0) > 0 and used[lowest] + widths[k] > WIDE:
            lowest -= 1
        layer[k] = lowest
        used[lowest] = used.get(lowest, 0.0) + widths[k]
    top = min(layer, default=0)
    return [row - top for row in layer]


class _Net:
    """Boxes, and the points of links that pass layers, as nodes whose links join neighbouring layers.

    Attributes:
      widths, heights: of every node; points have none.
      layer: layer of every node.
      rows: the nodes of every layer, from left to right.
      up, down: neighbours in the layers above and below.
      chains: (source, value) -> the points of the value, layer by layer.
    """

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], layer: list[int]) -> None:
        self.boxes = len(sizes)
        self.widths, self.heights = [w for w, _ in sizes], [h for _, h in sizes]
        self.layer = list(layer)
        self.rows: list[list[int]] = [[] for _ in range(max(layer, default=0) + 1)]
        self.chains: dict[tuple[int, str], list[int]] = {}
        for k, row in enumerate(layer):
            self.rows[row].append(k)
        self.up: list[list[int]] = [[] for _ in sizes]
        self.down: list[list[int]] = [[] for _ in sizes]
        for source, target, value in edges:
            if 0 < layer[target] - layer[source] <= FAR:
                self._join(self._reach(source, value, layer[target] - 1), target)

    def _reach(self, source: int, value: str, row: int) -> int:
        """The node of a value in a layer: its box, or a point, with all points on the way."""
        chain = self.chains.setdefault((source, value), [source])
        while self.layer[chain[-1]] < row:
            point, last = len(self.layer), chain[-1]
            self.layer.append(self.layer[last] + 1)
            self.widths.append(0.0)
            self.heights.append(0.0)
            self.up.append([])
            self.down.append([])
            self.rows[self.layer[point]].append(point)
            self._join(last, point)
            chain.append(point)
        return chain[row - self.layer[source]]

    def _join(self, upper: int, lower: int) -> None:
        self.down[upper].append(lower)
        self.up[lower].append(upper)


def _order(net: _Net) -> None:
    """Sort every layer by the mean position of its neighbours, down and up, and keep the best order seen."""
    best, fewest = [list(row) for row in net.rows], _crossings(net)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        neighbours = net.up if downwards else net.down
        for row in net.rows if downwards else reversed(net.rows):
            place = _positions(net, neighbours, row)
            row.sort(key=place.__getitem__)
        count = _crossings(net)
        if count < fewest:
            best, fewest = [list(row) for row in net.rows], count
    net.rows = best


def _positions(net: _Net, neighbours: list[list[int]], row: list[int]) -> dict[int, float]:
    """Barycentre of every node of a layer; without neighbours a node stays where it is, relatively."""
    others = {net.layer[other] for node in row for other in neighbours[node]}
    index = {node: k for other in others for k, node in enumerate(net.rows[other])}
    scale = max(index.values(), default=0) / max(len(row) - 1, 1)
    return {
        node: sum(index[other] for other in neighbours[node]) / len(neighbours[node])
        if neighbours[node]
        else k * scale
        for k, node in enumerate(row)
    }


def _crossings(net: _Net) -> int:
    """Pairs of links between neighbouring layers that cross: inversions of their lower ends."""
    total = 0
    for upper, lower in pairwise(net.rows):
        index = {node: k for k, node in enumerate(lower)}
        seen: list[int] = []
        for node in upper:
            ends = [index[other] for other in net.down[node]]
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _coordinates(net: _Net) -> list[float]:
    """Centre of every node: down, up, and at last between both neighbours."""
    centres = [0.0] * len(net.layer)
    for row in net.rows:
        for node, offset in zip(row, _offsets(net, row), strict=True):
            centres[node] = offset
    for sweep in range(SWEEPS + 2):
        sides = [[net.up], [net.down], [net.up, net.down]][2 if sweep >= SWEEPS else sweep % 2]
        for row in net.rows if sweep % 2 == 0 else reversed(net.rows):
            wanted = [_mean([centres[o] for side in sides for o in side[n]], centres[n]) for n in row]
            for node, centre in zip(row, _apart(wanted, _offsets(net, row)), strict=True):
                centres[node] = centre
    left = min((c - w / 2 for c, w in zip(centres, net.widths, strict=True)), default=0.0)
    return [centre - left + ACROSS for centre in centres]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _offsets(net: _Net, row: Sequence[int]) -> list[float]:
    """Centres of a layer whose nodes stand as near to each other as they may, the first at 0."""
    out = [0.0] if row else []
    for left, right in pairwise(row):
        gap = ACROSS if left < net.boxes and right < net.boxes else BESIDE
        out.append(out[-1] + (net.widths[left] + net.widths[right]) / 2 + gap)
    return out


def _apart(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The nearest centres (least squares) that keep the distances: pool adjacent violators."""
    blocks: list[tuple[float, int]] = []  # mean, members
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, members = blocks.pop()
            mean = (mean * count + other * members) / (count + members)
            count += members
        blocks.append((mean, count))
    places = [mean for mean, count in blocks for _ in range(count)]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


def _placed(net: _Net, edges: Sequence[Edge], centres: Sequence[float]) -> Placement:
    tops, bottoms, y = list[float](), list[float](), DOWN / 2
    for row in net.rows:
        tops.append(y)
        bottoms.append(y + max((net.heights[node] for node in row), default=0.0))
        y = bottoms[-1] + DOWN
    corners = tuple((centres[k] - net.widths[k] / 2, tops[net.layer[k]]) for k in range(net.boxes))
    middles = [_middle(net, edge, centres, tops, bottoms) for edge in edges]
    starts, ends = _starts(net, edges, centres), _ends(net, edges, centres, middles)
    routes = []
    for k, (source, target, _) in enumerate(edges):
        first = (starts[k], corners[source][1] + net.heights[source])
        routes.append((first, *middles[k], (ends[k], corners[target][1])))
    width = max((c + w / 2 for c, w in zip(centres, net.widths, strict=True)), default=0.0) + ACROSS
    return Placement(corners, tuple(routes), width, y - DOWN / 2)


def _middle(
    net: _Net, edge: Edge, centres: Sequence[float], tops: Sequence[float], bottoms: Sequence[float]
) -> tuple[Point, ...]:
    """The points of a link in the layers between its ends."""
    source, target, value = edge
    span = net.layer[target] - net.layer[source]
    passed = net.chains[source, value][1:span] if 0 < span <= FAR else []
    return tuple(
        (centres[point], y) for point in passed for y in (tops[net.layer[point]], bottoms[net.layer[point]])
    )


def _starts(net: _Net, edges: Sequence[Edge], centres: Sequence[float]) -> list[float]:
    """Where links leave their boxes: each result has its place, in order."""
    values: dict[int, dict[str, None]] = {}
    for source, _, value in edges:
        values.setdefault(source, {})[value] = None
    place = {
        (source, value): _spread(centres[source], net.widths[source], k, len(own))
        for source, own in values.items()
        for k, value in enumerate(own)
    }
    return [place[source, value] for source, _, value in edges]


def _ends(
    net: _Net, edges: Sequence[Edge], centres: Sequence[float], middles: Sequence[Sequence[Point]]
) -> list[float]:
    """Where links enter their boxes: side by side, from left to right as they come."""
    arriving: dict[int, list[tuple[float, int]]] = {}
    for k, (source, target, _) in enumerate(edges):
        before = middles[k][-1][0] if middles[k] else centres[source]
        arriving.setdefault(target, []).append((before, k))
    out = [0.0] * len(edges)
    for target, links in arriving.items():
        for place, (_, k) in enumerate(sorted(links)):
            out[k] = _spread(centres[target], net.widths[target], place, len(links))
    return out


def _spread(centre: float, width: float, place: int, count: int) -> float:
    return centre + width * 0.7 * ((place + 1) / (count + 1) - 0.5)
