"""Settling after surgery: steps of length zero, and moments from stored data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgery.errors import ArgumentError, Refused
from surgery.torch import follow, settle, warm_moments
from tests.growing import Derived, grow, train


def batches(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss_of(net: nn.Module) -> Any:
    return lambda batch: (net(batch) - batch[:, :1].abs()).square().mean()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


@pytest.mark.parametrize("make", [torch.optim.AdamW, Derived])
@pytest.mark.parametrize("ramp", [False, True])
def test_weights_rest_and_moments_do_not(ramp: bool, make: type[torch.optim.Adam]) -> None:
    net = small()
    optimizer = make(net.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=20)
    handle, moved = settle(optimizer, 5, ramp=ramp), []
    for step in range(7):
        before = [weight.detach().clone() for weight in net.parameters()]
        train(net, optimizer, 1, seed=step)
        schedule.step()
        moved.append(
            max(float((w.detach() - b).abs().max()) for w, b in zip(net.parameters(), before, strict=True))
        )
    assert moved[0] == 0
    assert [change > 0 for change in moved] == [(ramp and step > 0) or step > 4 for step in range(7)]
    assert handle.left == 0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 0.5 * 7 / 20))
    assert all(float(state["step"]) == 7 for state in optimizer.state.values())
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("stopped", [False, True])
def test_a_step_that_failed_keeps_no_rate_at_zero(stopped: bool) -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    handle = settle(optimizer, 2)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    failing = optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError):
        optimizer.step()
    failing.remove()
    if stopped:
        handle.stop()
    else:
        train(net, optimizer, 2, seed=0)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_settling_can_be_stopped() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    handle = settle(optimizer, 1000)
    handle.stop()
    before = copy.deepcopy(net.state_dict())
    train(net, optimizer, 1, seed=0)
    assert not torch.equal(before["0.weight"], net.state_dict()["0.weight"])
    with pytest.raises(ArgumentError):
        settle(optimizer, 0)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_fresh_optimizer_knows_the_squares_after_warming(make: Any) -> None:
    net, settings = small(), {"centered": True} if make is torch.optim.RMSprop else {"amsgrad": True}
    optimizer = make(net.parameters(), **settings)
    before, held = copy.deepcopy(net.state_dict()), torch.ones(6, 4, dtype=torch.float64)
    net[0].weight.grad = held
    filled = warm_moments(optimizer, loss_of(net), iter(batches(400)))
    assert filled == sum(weight.numel() for weight in net.parameters())
    assert net[0].weight.grad is held
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    fresh = batches(400, seed=9)
    for name, weight in net.named_parameters():
        square = torch.zeros_like(weight)
        for batch in fresh:
            square += torch.autograd.grad(loss_of(net)(batch), weight)[0].square() / len(fresh)
        state = optimizer.state[weight]
        slot, decay = ("square_avg", 0.99) if make is torch.optim.RMSprop else ("exp_avg_sq", 0.999)
        found = state[slot] / (1 - decay ** float(state["step"]))
        assert float((found / square).log().abs().mean()) < 0.2, name
    train(net, optimizer, 3, seed=2)


def test_only_what_has_no_history_is_filled() -> None:
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-3), widths={"0": 9}, init="zero")
    trajectory = follow(both.new, both.twin, both.plan)
    masks = {name: t.factors.fresh.broadcast_to(t.weight.shape) for name, t in trajectory.tracked.items()}
    old = {name: both.new.state[t.weight]["exp_avg_sq"].clone() for name, t in trajectory.tracked.items()}
    filled = warm_moments(both.new, loss_of(both.twin), batches(16), trajectory=trajectory)
    assert filled >= sum(int(mask.sum()) for mask in masks.values())
    for name, tracked in trajectory.tracked.items():
        new = both.new.state[tracked.weight]["exp_avg_sq"]
        assert torch.equal(new[~masks[name]], old[name][~masks[name]])
        # new units feed nothing yet: their own gradients are zero, those of the weights that read them are not
        assert (new[masks[name]] > 0).any() == (tracked.factors.read is not None)
    assert trajectory.tracked["2.weight"].counts is None


def test_everything_can_be_filled_in_the_coordinates_of_a_trajectory() -> None:
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-3), widths={"0": 7, "2": 8}, init="net2net")
    trajectory = follow(both.new, both.twin, both.plan)
    warm_moments(both.new, loss_of(both.twin), batches(8), which="all", trajectory=trajectory)
    warm_moments(both.old, loss_of(both.net), batches(8), which="all")
    train(both.net, both.old, 50, seed=2)
    train(both.twin, both.new, 50, seed=2)
    assert both.distance() <= 1e-12


def test_what_cannot_be_filled_is_refused() -> None:
    net = small()
    with pytest.raises(Refused, match="'sgd' has no mean of squares"):
        warm_moments(torch.optim.SGD(net.parameters()), loss_of(net), batches(1))
    with pytest.raises(ArgumentError, match="no batches"):
        warm_moments(torch.optim.Adam(net.parameters()), loss_of(net), [])
    with pytest.raises(ArgumentError, match="not finite"):
        warm_moments(
            torch.optim.Adam(net.parameters()), lambda batch: loss_of(net)(batch) * torch.inf, batches(1)
        )
