"""Attention that divides by the root of its own head size: files with wider heads compute what they did, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import Refused
from surgery.operate import preview
from surgery.storage import check_savable
from surgery.torch import from_module
from surgery_adapters.writeback.attention import KEY, scores_of

FEATURES, ENTITIES, HEADS = 6, 5, 2


class Attending(nn.Module):
    """Queries, keys and values of their own matrices; how they are mixed is the row's"""

    def __init__(self, size: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.size, width = size, HEADS * size
        self.q, self.k, self.v = (nn.Linear(FEATURES, width, bias=bias) for _ in range(3))
        self.o, self.head = nn.Linear(width, FEATURES), nn.Linear(FEATURES, 3)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        batch, count = observation.shape[:2]
        parts = (
            f(observation).view(batch, count, HEADS, self.size).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        mixed = self.mixed(*parts).transpose(1, 2).reshape(batch, count, HEADS * self.size)
        return self.head((observation + self.o(mixed)).mean(1))

    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v)


class WithoutBias(Attending):
    def __init__(self, size: int = 4) -> None:
        super().__init__(size, bias=False)


class Divided(Attending):
    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.size), -1) @ v


class Before(Attending):
    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax((q * self.size**-0.5) @ k.transpose(-2, -1), -1) @ v


class Unscaled(Attending):
    """Nothing that has to do with the head size"""

    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


class Tempered(Attending):
    """A number that may have to do with the head size"""

    def mixed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(0.3 * (q @ k.transpose(-2, -1)), -1) @ v


class Fused(nn.Module):
    """One matrix for queries, keys and values: its rows are told apart"""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size, width = size, HEADS * size
        self.qkv = nn.Linear(FEATURES, 3 * width)
        self.o, self.head = nn.Linear(width, FEATURES), nn.Linear(FEATURES, 3)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        batch, count = observation.shape[:2]
        made = self.qkv(observation).view(batch, count, 3, HEADS, self.size).permute(2, 0, 3, 1, 4)
        mixed = (
            scaled_dot_product_attention(made[0], made[1], made[2]).transpose(1, 2).reshape(batch, count, -1)
        )
        return self.head((observation + self.o(mixed)).mean(1))


class Chunked(Fused):
    """One matrix, cut in three: as in nanoGPT"""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        batch, count = observation.shape[:2]
        made = (
            part.view(batch, count, HEADS, -1).transpose(1, 2)
            for part in self.qkv(observation).chunk(3, dim=-1)
        )
        mixed = scaled_dot_product_attention(*made, is_causal=True).transpose(1, 2).reshape(batch, count, -1)
        return self.head((observation + self.o(mixed)).mean(1))


class Multihead(nn.Module):
    """PyTorch's own layer; the stream is as wide as all heads together"""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, width), nn.Linear(width, 3)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(observation))
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


@dataclass(frozen=True)
class Row:
    """How heads are widened, and the same code with wider ones.

    Attributes:
      make: the network. wide: the same with wider heads.
      factor: by which its queries grow, √(d′/d); 1 where the code has a number.
      weight: of the queries. rows: how many of it are queries, after the edit. init: of the new units.
    """

    make: Callable[[], nn.Module]
    wide: Callable[[], nn.Module]
    factor: float = math.sqrt(7 / 4)
    weight: str = "q.weight"
    rows: int = 14
    init: str = "zero"


ROWS: Mapping[str, Row] = {
    "scaled_dot_product_attention": Row(Attending, lambda: Attending(7)),
    "without biases": Row(WithoutBias, lambda: WithoutBias(7)),
    "divided behind the product": Row(Divided, lambda: Divided(7), init="net2net"),
    "multiplied before it": Row(Before, lambda: Before(7)),
    "not scaled": Row(Unscaled, lambda: Unscaled(7), 1.0),
    "one matrix": Row(Fused, lambda: Fused(7), weight="qkv.weight"),
    "one matrix, cut in three": Row(Chunked, lambda: Chunked(7), weight="qkv.weight"),
    "nn.MultiheadAttention": Row(
        Multihead, lambda: Multihead(16), math.sqrt(2), "attention.in_proj_weight", 16
    ),
}


def trained(net: nn.Module, x: torch.Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(2):
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def widths(checkpoint: surgery.Checkpoint) -> dict[str, int]:
    """Heads of 7 instead of 4 numbers; of PyTorch's layer everything twice as wide."""
    spaces = checkpoint.analysis.spaces
    if "attention.in_proj_weight" in checkpoint.tensors:
        return {s.name: 2 * s.size for s in spaces if s.widenable and s.size != HEADS}
    return {s.name: 7 for s in spaces if s.widenable and s.size == 4}


@pytest.mark.parametrize("name", ROWS)
def test_wider_heads_compute_the_same_in_the_code_that_divides_by_their_size(tmp_path, name):
    row = ROWS[name]
    torch.manual_seed(0)
    net, x = row.make().eval(), torch.randn(9, ENTITIES, FEATURES)
    optimizer = trained(net, x)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    module = f"tests.test_attention_files:{type(net).__name__}"
    before = surgery.load(tmp_path / "x.pt", reading=Reading(module=module, observation=(ENTITIES, FEATURES)))
    assert bool(before.source.get(KEY)) == (row.factor != 1.0)
    result = surgery.apply(surgery.widen(before, widths=widths(before), init=row.init), before)
    result.save(tmp_path / "wide.pt")
    content = torch.load(tmp_path / "wide.pt", weights_only=True)
    wide = row.wide()
    wide.load_state_dict(content["model"])
    torch.testing.assert_close(wide.eval()(x), net(x), atol=1e-5, rtol=1e-4)
    again = torch.optim.Adam(wide.parameters())
    again.load_state_dict(content["optimizer"])
    _slots_follow(result.checkpoint, wide, again, row)


def _slots_follow(
    after: surgery.Checkpoint, wide: nn.Module, optimizer: torch.optim.Optimizer, row: Row
) -> None:
    """Queries are larger by the factor, their mean gradients smaller by it, and those of squares by its square."""
    parameters = dict(wide.named_parameters())
    powers = {"": 1, "exp_avg": -1, "exp_avg_sq": -2}
    for name, parameter in parameters.items():
        stem = row.weight.rpartition(".")[0]
        scaled = name in (row.weight, f"{stem}.bias", row.weight.replace("weight", "bias"))
        for slot, exponent in powers.items():
            now = (optimizer.state[parameter][slot] if slot else parameter.detach()).numpy()
            held = (after.optimizer.slots[slot][name] if slot else after.tensors[name]).numpy().copy()
            if scaled:
                held[: row.rows] *= row.factor**exponent
            np.testing.assert_allclose(now, held, rtol=1e-5, atol=1e-12)


def test_more_heads_need_no_other_queries(tmp_path):
    torch.manual_seed(0)
    net = Attending().eval()
    torch.save(net.state_dict(), tmp_path / "x.pt")
    module = "tests.test_attention_files:Attending"
    before = surgery.load(tmp_path / "x.pt", reading=Reading(module=module, observation=(ENTITIES, FEATURES)))
    spaces = before.analysis.spaces
    heads = {s.name: 3 for s in spaces if s.widenable and s.size == HEADS}
    surgery.apply(surgery.widen(before, widths=heads), before).save(tmp_path / "wide.pt")
    wide = torch.load(tmp_path / "wide.pt", weights_only=True)
    assert torch.equal(wide["q.weight"][:8], net.state_dict()["q.weight"])


def test_the_way_over_a_graph_in_a_file_is_the_same(tmp_path, capsys):
    torch.manual_seed(0)
    net, x = Attending().eval(), torch.randn(3, ENTITIES, FEATURES)
    torch.save(net.state_dict(), tmp_path / "x.pt")
    graph, wide, back = (str(tmp_path / name) for name in ("a.onnx", "w.onnx", "w.pt"))
    words = ["--module", "tests.test_attention_files:Attending", "--observation", f"{ENTITIES},{FEATURES}"]
    assert main(["convert", str(tmp_path / "x.pt"), *words, "-o", graph]) == 0, capsys.readouterr().err
    width = [f"{name}={size}" for name, size in widths(surgery.load(graph)).items()]
    assert main(["widen", graph, *[w for pair in width for w in ("--width", pair)], "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(tmp_path / "x.pt"), "-o", back]) == 0, capsys.readouterr().err
    after = Attending(7).eval()
    after.load_state_dict(torch.load(back, weights_only=True))
    torch.testing.assert_close(after(x), net(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("module", [None, "tests.test_attention_files:Tempered"])
def test_what_the_code_makes_of_another_head_size_is_not_guessed(tmp_path, module):
    """A graph that someone else exported, whose number may be the code's; a number that is not 1/√d."""
    torch.manual_seed(0)
    net = (Tempered if module else Attending)().eval()
    torch.save(net.state_dict(), tmp_path / "x.pt")
    if module:
        before = surgery.load(
            tmp_path / "x.pt", reading=Reading(module=module, observation=(ENTITIES, FEATURES))
        )
    else:
        before = from_module(net, example_inputs=torch.randn(2, ENTITIES, FEATURES))
    assert [scores.size for scores in scores_of(before)] == [4]
    plan = surgery.widen(before, widths=widths(before))
    with pytest.raises(Refused, match="may compute"):
        check_savable(lambda: preview(plan, before), before, tmp_path / "wide.pt", like=tmp_path / "x.pt")
    wide = surgery.apply(plan, before).checkpoint
    with pytest.raises(Refused, match="may compute"):
        surgery.save(wide, tmp_path / "wide.pt", like=tmp_path / "x.pt")
    assert not (tmp_path / "wide.pt").exists()
