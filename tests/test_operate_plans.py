"""Plans of every kind carried out on a live module: what comes of it is what comes of the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.torch import from_module, operate
from tests.live_models import everything, loss_of, same, wider

NAMED = {"input_names": ["observation"], "output_names": ["logits"]}


def mlp() -> nn.Sequential:
    """Unit 2 of the first layer is dead, and units 0 and 1 of the second are the same."""
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0.0, -0.5
        net[2].weight[1], net[2].bias[1] = net[2].weight[0], net[2].bias[0]
        net[4].weight[:, 1] = net[4].weight[:, 0]
    return net


def cnn() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1, padding_mode="zeros"), nn.ReLU(), nn.Conv2d(4, 3, 3, 2, "valid"), nn.Flatten(),
        nn.Linear(27, 3),
    )  # fmt: skip
    return net.double()


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
FRAMES = torch.randn(3, 2, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HELD = X.clone()
HELD[:, 1] = 0.5


def longer(x: torch.Tensor) -> torch.Tensor:
    """With two features more, in front of the third one."""
    more = torch.randn(len(x), 2, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    return torch.cat([x[:, :2], more, x[:, 2:]], 1)


@dataclass(frozen=True)
class Row:
    """A plan, and what the new network computes of what the old one did.

    Attributes:
      plan: made from the checkpoint. make: the module. x: what both are compared on.
      moved: the new network's inputs. kept: the old part of its outputs.
      attributes: what modules say of themselves afterwards.
    """

    plan: Callable[[surgery.Checkpoint], surgery.Plan]
    attributes: dict[str, Any]
    make: Callable[[], nn.Module] = mlp
    x: torch.Tensor = X
    moved: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    kept: Callable[[torch.Tensor], torch.Tensor] = lambda y: y
    exact: bool = True


ROWS = {
    "narrow, a dead unit": Row(lambda c: surgery.narrow(c, widths={"0": 6}), {"0.out_features": 6, "2.in_features": 6}),
    "narrow, a unit twice": Row(lambda c: surgery.narrow(c, widths={"2": 5}), {"2.out_features": 5}),
    "narrow, measured": Row(lambda c: surgery.narrow(c, widths={"2": 3}, by="l2"), {"4.in_features": 3}, exact=False),
    "retire": Row(
        lambda c: surgery.retire(c, [Retired("observation", 1, 0.5)]), {"0.in_features": 4}, x=HELD,
        moved=lambda x: x[:, [0, 2, 3, 4]],
    ),
    "reorder": Row(
        lambda c: surgery.reorder(c, {"observation": [4, 3, 2, 1, 0]}), {"0.in_features": 5}, moved=lambda x: x.flip(1)
    ),
    "extend observations": Row(
        lambda c: surgery.extend(c, [NewObservation("observation", 2, at=2)]), {"0.in_features": 7}, moved=longer
    ),
    "extend actions": Row(
        lambda c: surgery.extend(c, (), [NewAction("logits", 2, "zero")]), {"4.out_features": 5},
        kept=lambda y: y[:, :3],
    ),
    "permute": Row(lambda c: surgery.permute(c, {"0": [6, 5, 4, 3, 2, 1, 0]}), {"0.out_features": 7}),
    "larger kernels": Row(
        lambda c: surgery.grow_kernel(c, {"0": 5, "2": 5}),
        {"0.kernel_size": (5, 5), "0.padding": (2, 2), "2.kernel_size": (5, 5), "2.padding": (1, 1)}, cnn, FRAMES,
    ),
    "from a file": Row(
        lambda c: surgery.Plan.from_json(surgery.widen(c, widths={"0": 9}, seed=4).to_json()), {"0.out_features": 9}
    ),
}  # fmt: skip


def trained(row: Row) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = row.make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    for seed in range(2):
        optimizer.zero_grad()
        loss_of(net, row.x, seed).backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("name", ROWS)
def test_what_comes_of_the_module_is_what_comes_of_the_file(name):
    row = ROWS[name]
    net, optimizer = trained(row)
    target = copy.deepcopy(net)
    checkpoint = from_module(
        net, example_inputs=row.x, optimizer=optimizer, input_names=["observation"], output_names=["logits"]
    )
    plan = row.plan(checkpoint)
    wanted = surgery.apply(plan, checkpoint).checkpoint
    before, identities = net(row.x), [id(p) for p in net.parameters()]

    done = operate(net, optimizer, row.x, row.plan, also=[target], export_options=NAMED)

    assert [id(p) for p in net.parameters()] == identities
    for key, parameter in net.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), wanted.tensors[key].numpy(), err_msg=key)
        for slot, members in wanted.optimizer.slots.items():
            found = optimizer.state[parameter][slot].numpy()
            np.testing.assert_array_equal(found, members[key].numpy(), err_msg=f"{slot} of {key}")
        assert float(optimizer.state[parameter]["step"]) == 2.0
    for path, value in row.attributes.items():
        owner, _, attribute = path.rpartition(".")
        assert getattr(net.get_submodule(owner), attribute) == value
        assert getattr(target.get_submodule(owner), attribute) == value
    assert (done.difference <= 1e-12) is row.exact
    if row.exact:
        moved = row.moved(row.x)
        torch.testing.assert_close(row.kept(net(moved)), before, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(row.kept(target(moved)), before, rtol=1e-12, atol=1e-12)
    optimizer.zero_grad()
    loss_of(net, row.moved(row.x)).backward()
    optimizer.step()


def test_what_was_widened_is_narrowed_again():
    net, optimizer = trained(ROWS["permute"])
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
    done = operate(net, optimizer, X, wider(factor=2, init="net2net"), export_options=NAMED)
    operate(net, optimizer, X, lambda c: surgery.invert(done.plan, c), export_options=NAMED)
    torch.testing.assert_close(
        (net.state_dict(), optimizer.state_dict()["state"]), before, rtol=1e-14, atol=1e-16
    )


def test_a_kernel_that_would_need_one_sided_padding_is_refused():
    net = cnn()
    before = everything(net)
    with pytest.raises(Refused, match="pads both sides alike"):
        operate(net, None, FRAMES, lambda c: surgery.grow_kernel(c, {"0": 4}))
    assert same(everything(net), before)


COPIES = {"target.": "online."}


class Together(nn.Module):
    """A network and its target in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = (
            nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(2)
        )

    def forward(self, x):
        return self.online(x), self.target(x)


def test_copies_inside_the_module_are_edited_alike_with_the_same_random_numbers():
    net = Together().double()
    optimizer = torch.optim.Adam(net.online.parameters())
    before = net(X)
    done = operate(
        net,
        optimizer,
        X,
        lambda c: surgery.widen(c.replace(copies=COPIES), widths={"online.0": 9}, seed=3),
    )
    assert {c.space for c in done.plan.changes} == {"online.0", "target.0"}
    torch.testing.assert_close(net(X), before, rtol=1e-12, atol=1e-12)
    fresh = [part[0].weight[6:] / part[0].weight[6:].norm() for part in (net.online, net.target)]
    torch.testing.assert_close(*fresh)  # each in the spread of its own tensor


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.again = self.middle
        self.tail = nn.Linear(6, 6)
        self.tied = self.tail

    def forward(self, x):
        x = torch.relu(self.again(torch.relu(self.middle(torch.relu(self.first(x))))))
        return self.last(torch.relu(self.tail(x)))


@pytest.mark.parametrize("name", ["tail", "tied"])
def test_a_part_is_known_by_all_its_names(name):
    net = Twice()
    x = X.float()
    before = net(x)
    operate(net, None, x, wider(widths={name: 9}))
    assert net.tail is net.tied and net.tail.out_features == 9
    torch.testing.assert_close(net(x), before)


def test_a_part_under_two_names_at_once_is_refused():
    with pytest.raises(ArgumentError, match="given twice"):
        operate(Twice(), None, X.float(), wider(widths={"tail": 9, "tied": 8}))
    with pytest.raises(UnknownName):
        operate(Twice(), None, X.float(), wider(widths={"toil": 9}))


def test_names_of_a_recognised_architecture_are_taken():
    net = nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(3136, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    operate(net, None, torch.zeros(2, 4, 84, 84), wider(widths={"fc": 24}), prove=False)
    assert net[7].out_features == net[9].in_features == 24
