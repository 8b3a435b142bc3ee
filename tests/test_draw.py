"""The drawing of a graph: nothing is missing, nothing overlaps, and the file needs and runs nothing else."""

from __future__ import annotations

import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.aliases import recognised
from surgery.cli import main
from surgery.draw import draw
from surgery.draw.boxes import diagram
from surgery.draw.layers import place
from surgery.graph.labels import label
from surgery.graph.spaces import Analysis, analyse
from tests.rule_graphs import activation, model_of, row, weight
from tests.zoo import load

NETS = ["nature_dqn", "lstm_policy", "transformer", "densenet", "shared_encoder", "groupnorm_cnn"]
HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00]]>"


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module", params=NETS)
def analysis(request: pytest.FixtureRequest) -> Analysis:
    return analyse(load(request.param, "dynamo"))


def test_every_node_is_shown_or_counted_as_left_out(analysis):
    shown, page = diagram(analysis), Page(draw(analysis, title="net"))
    known = analysis.trace.facts.known
    computing = [n for n in analysis.model.graph if not all(value in known for value in n.outputs)]
    computing = [node for node in computing if node.op_type != "Constant"]
    assert all(f"node {label(node)} ({node.op_type})" in page.text for node in computing)
    constants = sum(node.op_type == "Constant" for node in analysis.model.graph)
    assert len(computing) + shown.folded + constants == len(analysis.model.graph)
    ports = [*analysis.model.graph.inputs, *analysis.model.graph.outputs]
    assert len(shown.boxes) == len(computing) + len(ports)


def test_every_space_has_an_entry_and_is_coloured_wherever_it_occurs(analysis):
    page = Page(draw(analysis, title="net"))
    keys = [
        attributes["data-k"] for tag, attributes in page.elements if tag == "g" and "data-k" in attributes
    ]
    entries = [a["data-k"] for tag, a in page.elements if tag == "button" and "data-k" in a]
    assert sorted(entries, key=int) == [str(k) for k in range(len(analysis.spaces))]
    for k, space in enumerate(analysis.spaces):
        assert space.name in page.text
        assert space.widenable or f"frozen: {space.reason}" in page.text
        assert keys.count(str(k)) >= len({axis.tensor for axis in space.axes})


def test_every_tensor_of_a_space_is_shown_with_its_layout(analysis):
    text = Page(draw(analysis, title="net")).text
    for space in analysis.spaces:
        assert all(f"{axis.tensor}[{axis.axis}] = {axis.layout[:200]}" in text for axis in space.axes)


def test_a_page_is_whole_and_needs_nothing_else(analysis):
    text = draw(analysis, title="net")
    page = Page(text)
    assert page.open == []
    assert "://" not in text
    assert set(re.findall(r"url\((.*?)\)", text)) == {"#hatch"}
    assert not any({"src", "href", "style"} & set(attributes) for _, attributes in page.elements)
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_a_hostile_name_stays_text():
    case = row("y = Relu(x)\nz = MatMul(y, w)", [], x=activation("N", 3), w=weight(3, 5))
    model = model_of(case, 20, np.random.default_rng(0))
    for k, node in enumerate(model.graph):
        node.name = f"{HOSTILE}{k}"
        node.outputs[0].name = f"{HOSTILE}value{k}"
    for value in [*model.graph.initializers.values()]:
        value.name = f"{HOSTILE}.{value.name}"
    for value in model.graph.inputs:
        value.name = f"{HOSTILE}{value.name}"
    text = draw(analyse(model), title=HOSTILE)
    page = Page(text)
    assert page.open == []
    assert "<script>alert" not in text
    assert "<script>alert(1)</script>\"'&" in page.text
    assert not {"\u202e", "\x00"} & set(text)
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"]


def test_what_is_frozen_is_hatched_and_says_why():
    case = row("y = Det(x)", [], x=activation(2, 5, 5))
    analysis = analyse(model_of(case, 20, np.random.default_rng(0)))
    text = draw(analysis, title="net")
    assert 'class="box opaque' in text
    assert "frozen: no rule for operator Det" in Page(text).text
    stuck = len(
        re.findall(r'<g class="chip" data-k="\d+"><rect [^>]*/><rect [^>]*fill="url\(#hatch\)"/>', text)
    )
    assert stuck == len(re.findall(r'<g class="chip" data-k="\d+">', text)) > 0


# ---- the layout ---------------------------------------------------------------------------------------------


def random_net(count: int, rng: np.random.Generator) -> tuple:
    sizes = [(float(w), float(h)) for w, h in rng.uniform(20, 200, (count, 2))]
    edges = [
        (int(source), target, f"v{source}")
        for target in range(1, count)
        for source in set(rng.integers(max(0, target - 30), target, rng.integers(0, 4)))
    ]
    late = set(rng.choice(count, count // 10, replace=False).tolist()) - {target for _, target, _ in edges}
    return sizes, edges, sorted(late)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_overlap_and_links_run_down_to_their_boxes(seed):
    rng = np.random.default_rng(seed)
    sizes, edges, late = random_net(60, rng)
    found = place(sizes, edges, late)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(found.corners, sizes, strict=True)]
    for one, other in itertools.combinations(boxes, 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        assert beside or one[3] <= other[1] or other[3] <= one[1]
    assert all(
        x >= 0 and y >= 0 and right <= found.width and low <= found.height for x, y, right, low in boxes
    )
    for (source, target, _), route in zip(edges, found.routes, strict=True):
        assert [y for _, y in route] == sorted(y for _, y in route)
        assert route[0][1] == boxes[source][3]
        assert route[-1][1] == boxes[target][1]
        assert boxes[source][0] < route[0][0] < boxes[source][2]
        assert boxes[target][0] < route[-1][0] < boxes[target][2]


def test_ladder_is_drawn_without_crossings():
    edges = [(k, k + 2, f"v{k}") for k in range(20)]
    found = place([(50.0, 20.0)] * 22, edges, [])
    assert all(len({round(x) for x, _ in route}) == 1 for route in found.routes)


def test_nothing_at_all_can_be_placed():
    assert place([], [], []).corners == ()


def test_fifteen_hundred_boxes_are_placed_in_less_than_five_seconds():
    sizes, edges, late = random_net(1500, np.random.default_rng(0))
    start = time.process_time()
    place(sizes, edges, late)
    assert time.process_time() - start < 5


# ---- surgery inspect --graph --------------------------------------------------------------------------------


@pytest.fixture
def model(teachers: Path, tmp_path: Path) -> Path:
    path = tmp_path / "agent.onnx"
    path.write_bytes((teachers / "breakout-ppo.onnx").read_bytes())
    return path


def test_inspect_writes_the_page_and_says_so(model, tmp_path, capsys):
    target = tmp_path / "out.html"
    assert main(["inspect", str(model), "--graph", str(target)]) == 0
    said = capsys.readouterr()
    assert "network.0" in said.out
    assert said.err == f"wrote {target}\n"
    checkpoint = surgery.load(model)
    _, analysis = recognised(checkpoint)
    page = target.read_text(encoding="utf-8")
    assert page == draw(analysis, title="agent.onnx") and "network.0 = conv1" in page
    assert {path.name for path in tmp_path.iterdir()} == {"agent.onnx", "out.html"}


def test_inspect_json_names_the_page(model, tmp_path, capsys):
    assert main(["inspect", str(model), "--json"]) == 0
    assert "graph" not in json.loads(capsys.readouterr().out)
    assert main(["inspect", str(model), "--graph", str(tmp_path / "out.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graph"] == str(tmp_path / "out.html")


def test_an_existing_page_is_replaced_with_force_only(model, tmp_path, capsys):
    target = tmp_path / "out.html"
    target.write_text("mine")
    assert main(["inspect", str(model), "--graph", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["inspect", str(model), "--graph", str(target), "--force"]) == 0
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_model_is_never_overwritten(model, capsys):
    before = model.read_bytes()
    assert main(["inspect", str(model), "--graph", str(model), "--force"]) == 2
    assert model.read_bytes() == before


def test_a_failed_write_leaves_the_old_page(model, tmp_path, monkeypatch):
    target = tmp_path / "out.html"
    target.write_text("mine")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["inspect", str(model), "--graph", str(target), "--force", "-q"]) == 2
    assert target.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"agent.onnx", "out.html"}
