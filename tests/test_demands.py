"""Attention of today: rotations by position, norms of queries and keys, all three in one weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.edits.arithmetic import axis_maps
from surgery.edits.execute import execute
from surgery.graph.spaces import Space
from surgery.torch import from_module, to_module

HEADS, SIZE, WIDTH = 2, 4, 8


class Attention(nn.Module):
    """Queries, keys and values in one weight, cut out of it in a way that a library of transformers has."""

    def __init__(self, cut: str, norm: Callable[[], nn.Module], rotated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.rotated = cut, rotated
        self.qkv, self.out, self.head = nn.Linear(5, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.norm_q, self.norm_k = norm(), norm()
        angle = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x)
        if self.cut == "unbind":
            q, k, v = qkv.reshape(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.cut == "heads":
            q, k, v = qkv.view(batch, length, HEADS, 3 * SIZE).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = (part.view(batch, length, HEADS, SIZE).transpose(1, 2) for part in qkv.split(WIDTH, -1))
        q, k = self.norm_q(q), self.norm_k(k)
        if self.rotated:
            q, k = self._rotate(q), self._rotate(k)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(SIZE)).softmax(-1)
        mixed = self.out((weights @ v).transpose(1, 2).reshape(batch, length, WIDTH))
        return self.head(mixed.relu()[:, -1])

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


BOTH = ("zero", "net2net")


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


CASES = {
    "rotated": (Attention("split", nn.Identity, True), BOTH),
    "in one": (Attention("unbind", nn.Identity, False), BOTH),
    "normalised": (Attention("heads", lambda: nn.LayerNorm(SIZE), True), ("net2net",)),
}
"""The initialisations with which the head size can grow."""


@pytest.mark.parametrize("name", CASES)
def test_the_size_of_heads_grows_exactly_and_what_is_new_learns(name: str) -> None:
    module, inits = CASES[name]
    optimizer = torch.optim.Adam(module.parameters())
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    module(x).square().sum().backward()
    optimizer.step()
    before = from_module(module, optimizer=optimizer, example_inputs=x)
    size = {SIZE, SIZE // 2}
    spaces = [space for space in surgery.analyse(before.model).spaces if space.hidden and space.size in size]
    grown = [space for space in spaces if any(axis.tensor == "qkv.weight" for axis in space.axes)]
    assert any(space.inits == inits for space in grown), [(s.name, s.inits, s.reason) for s in grown]
    _check_all(before, grown, x)


def _check_all(before: surgery.Checkpoint, grown: Sequence[Space], x: Tensor) -> None:
    for space in grown:
        for init in space.inits:
            plan = surgery.widen(before, widths={space.name: 2 * space.size}, init=init)
            assert surgery.apply(plan, before).report.ok  # outputs and slots
            if init == "zero":
                _check_learning(plan, before, x)


def test_queries_and_keys_of_length_one_would_start_at_zero_both_and_do_not_grow() -> None:
    before = from_module(Attention("split", Unit, False), example_inputs=torch.randn(4, 6, 5))
    space = next(s for s in surgery.analyse(before.model).spaces if s.size == SIZE and s.no_net2net)
    assert not space.widenable
    assert "stay so" in space.reason


def test_units_whose_readers_have_weights_of_length_one_learn() -> None:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    module = nn.Sequential(
        norm(nn.Linear(5, 6)), nn.ReLU(), norm(nn.Linear(6, 7)), nn.ReLU(), nn.Linear(7, 3)
    )
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    before = from_module(module, example_inputs=x)
    grown = [space for space in surgery.analyse(before.model).spaces if space.widenable]
    assert len(grown) == 2
    _check_all(before, grown, x)


def _check_learning(plan: surgery.Plan, before: surgery.Checkpoint, x: Tensor) -> None:
    after = to_module(execute(plan, before), dtype=torch.float64)
    after(x.double()).square().sum().backward()
    for tensor in plan.tensors:
        if tensor.name not in dict(after.named_parameters()):
            continue
        weight = after.get_parameter(tensor.name)
        for k, axis in enumerate(axis_maps(tensor.axes, plan.edits)):
            if axis is not None and weight.ndim > 1:
                fresh = np.flatnonzero(axis.fresh_in | axis.fresh_out)
                rows = torch.stack([weight.detach(), weight.grad]).movedim(k + 1, 0)[fresh]
                assert rows.flatten(1).any(1).all(), tensor.name


class SharedNoise(nn.Module):
    """A noisy layer whose noise is another layer's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 6)
        self.mu, self.sigma, self.noise = (nn.Parameter(torch.randn(3, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x).tanh()
        noisy = hidden @ (self.mu + self.sigma * self.noise).T
        return noisy.relu() + (hidden @ self.noise.T).tanh()


def test_a_product_is_not_scaled_by_both_of_its_factors() -> None:
    before = from_module(SharedNoise(), example_inputs=torch.randn(4, 5))
    assert before.analysis.by_name["layer"].inits
    for init in before.analysis.by_name["layer"].inits:
        plan = surgery.widen(before, widths={"layer": 9}, init=init)
        assert surgery.apply(plan, before).report.ok


class FirstHeadTwice(nn.Module):
    """Keys of one head, made by the weights that make the queries of the first of three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.value = nn.Linear(5, 6), nn.Linear(5, 2)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, 3, 2).transpose(1, 2)
        k = (x @ self.query.weight[:2].T)[:, None]
        v = self.value(x)[:, None]
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, 6))


def test_heads_are_added_behind_one_whose_size_is_asked_for_alone() -> None:
    before = from_module(FirstHeadTwice(), example_inputs=torch.randn(4, 6, 5))
    grown = [space for space in before.analysis.spaces if space.hidden and space.widenable]
    assert [space.size for space in grown] == [2, 2, 2]
    for factor in (1.5, 2):
        assert surgery.apply(surgery.widen(before, factor=factor, init="zero"), before).report.ok
    for space in grown:
        for init in space.inits:
            assert surgery.apply(surgery.widen(before, widths={space.name: 5}, init=init), before).report.ok


class Reading(nn.Module):
    """Units in rows and columns, weighed and summed; a bias stands in the way of what would make rows zero."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = read
        self.made, self.bias, self.weights = (
            nn.Linear(5, 6),
            nn.Parameter(torch.randn(2)),
            nn.Parameter(torch.randn(3, 2)),
        )
        self.out = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        units = self.made(x).relu().view(-1, 3, 2) + self.bias
        return self.out(self.read(units, self.weights)[:, None])


READINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at once": lambda x, w: (x * w).sum((1, 2)),
    "columns, then rows": lambda x, w: (x * w).sum(2).sum(1),
    "in one row": lambda x, w: (x * w).reshape(-1, 6).sum(1),
    "einsum": lambda x, w: torch.einsum("brc,rc->b", x, w),
    "matmul": lambda x, w: x.reshape(-1, 6) @ w.reshape(6),
}


@pytest.mark.parametrize("name", READINGS)
def test_rows_and_columns_that_are_summed_over_together_grow_together(name: str) -> None:
    before = from_module(Reading(READINGS[name]), example_inputs=torch.randn(4, 5))
    assert sum(space.hidden and space.widenable for space in before.analysis.spaces) == 2
    for init in BOTH:
        assert surgery.apply(surgery.widen(before, factor=2, init=init), before).report.ok


class Projected(nn.Module):
    """Units that are normalised, and read by a projection which nobody trains."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.out = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.again = again
        self.register_buffer("basis", torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        units = self.layer(x)
        return self.out(self.norm(units)) + (self.layer(-x) if self.again else units) @ self.basis


def test_units_that_are_normalised_and_read_by_a_table_grow() -> None:
    before = from_module(Projected(again=False), example_inputs=torch.randn(4, 5))
    assert before.analysis.by_name["layer"].inits == BOTH
    for init in BOTH:
        assert surgery.apply(surgery.widen(before, widths={"layer": 12}, init=init), before).report.ok


def test_new_units_are_not_the_mean_of_old_ones_where_others_need_zeros() -> None:
    before = from_module(Projected(again=True), example_inputs=torch.randn(4, 5))
    assert not before.analysis.by_name["layer"].inits


class LinearAttention(nn.Module):
    """Queries and keys through a ReLU in place of the softmax (Katharopoulos et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(5, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x).relu() @ (self.key(x).relu().transpose(1, 2) @ self.value(x))


def test_units_that_a_relu_would_keep_at_zero_are_copies() -> None:
    before = from_module(LinearAttention(), example_inputs=torch.randn(4, 6, 5))
    space, *_ = [
        s for s in before.analysis.spaces if s.hidden and "key.weight" in {axis.tensor for axis in s.axes}
    ]
    assert space.inits == ("net2net",)
    assert "has no slope" in str(space.no_zero)
    assert surgery.apply(surgery.widen(before, widths={space.name: 9}), before).report.ok


class KeysAreValues(nn.Module):
    """One projection for keys and values; what three heads of two units have found is added up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.out = nn.Linear(5, 6), nn.Linear(1, 2)
        self.both = nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.view(-1, 6, 3, 2).transpose(1, 2) for y in (self.query(x).tanh(), self.both(x), self.both(-x))
        )
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(-1, 6, 6).sum(-1, keepdim=True))


def test_a_share_that_values_expect_is_not_one_that_keys_of_the_same_weights_expect() -> None:
    before = from_module(KeysAreValues(), example_inputs=torch.randn(4, 6, 5))
    heads, size = (space for space in before.analysis.spaces if space.hidden)
    assert (heads.inits, size.inits) == (("zero",), BOTH)
    for space in (heads, size):
        for init in space.inits:
            plan = surgery.widen(before, widths={space.name: 2 * space.size}, init=init)
            assert surgery.apply(plan, before).report.ok


class Rolled(nn.Module):
    """Columns of a weight in another order, and then read as pairs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.out = nn.Parameter(torch.randn(5, 18)), nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        pairs = (x @ torch.cat([self.weight[:, 16:], self.weight[:, :16]], 1)).view(-1, 9, 2)
        return self.out(pairs.tanh().flatten(1))


def test_weights_may_be_divided_in_another_way_than_the_units_that_they_make() -> None:
    before = from_module(Rolled(), example_inputs=torch.randn(4, 5))
    for init in BOTH:
        assert surgery.apply(surgery.widen(before, factor=2, init=init), before).report.ok
