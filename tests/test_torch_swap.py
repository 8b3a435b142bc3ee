"""The swap of a live optimizer: training goes on, and what cannot be carried over is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from surgery.errors import ArgumentError, Refused
from surgery.ops.swap_optimizer import SwapReport
from surgery.torch import swap_optimizer


def trained(make: Any, steps: int = 300, **settings: Any) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    optimizer = make(net.parameters(), **settings)
    train(net, optimizer, steps, seed=1)
    return net, optimizer


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        batch = torch.randn(32, 6, generator=generator, dtype=torch.float64)
        noise = 0.1 * torch.randn(32, 2, generator=generator, dtype=torch.float64)
        loss = (net(batch) - batch[:, :2] * batch[:, 2:4] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_adamw_without_decay_goes_on_exactly_as_adam() -> None:
    net, adam = trained(torch.optim.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-4, amsgrad=True)
    other = copy.deepcopy(net)
    again = torch.optim.Adam(other.parameters())
    again.load_state_dict(adam.state_dict())
    adamw = swap_optimizer(adam, "adamw")
    assert type(adamw) is torch.optim.AdamW
    train(net, adamw, 100, seed=2)
    train(other, again, 100, seed=2)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=0)


@pytest.mark.parametrize("to", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.RMSprop, {"lr": 3e-3, "alpha": 0.95, "eps": 1e-2, "centered": True}),
        (torch.optim.RMSprop, {"lr": 1e-3, "alpha": 0.95, "momentum": 0.6, "eps": 1e-3}),
        (RMSpropTFLike, {"lr": 3e-3, "alpha": 0.95, "eps": 1e-3}),
    ],
    ids=["centered", "momentum", "TensorFlow's"],
)
def test_training_goes_on_as_under_the_old_optimizer(make: Any, settings: dict[str, Any], to: str) -> None:
    """The loss of the next 60 updates stays within a tenth of what the old optimizer itself reaches."""
    net, old = trained(make, **settings)
    start = copy.deepcopy(net.state_dict())
    reports: list[SwapReport] = []
    new = swap_optimizer(old, to, named_parameters=net.named_parameters(), report=reports.append)
    swapped = train(net, new, 60, seed=3)
    net.load_state_dict(start)
    kept = train(net, old, 60, seed=3)
    assert sum(swapped) == pytest.approx(sum(kept), rel=0.1)
    (report,) = reports
    assert [row.name for row in report.tensors] == [name for name, _ in net.named_parameters()]
    assert report.measured == "gradients"
    assert all(row.gain == pytest.approx(1) for row in report.tensors)


def test_groups_keep_their_own_settings_and_schedulers_their_start() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    old = torch.optim.RMSprop(
        [
            {"params": net[0].parameters(), "lr": 1e-3, "weight_decay": 0.01, "initial_lr": 2e-3},
            {"params": net[2].parameters(), "lr": 4e-3, "maximize": False, "initial_lr": 4e-3},
        ]
    )
    train(net, old, 50, seed=1)
    new = swap_optimizer(old, "adam", match="all", eps=1e-6)
    assert [len(group["params"]) for group in new.param_groups] == [2, 2]
    first, second = new.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.01, 0.0)
    assert first["lr"] / second["lr"] == pytest.approx(1 / 4)
    assert first["initial_lr"] == pytest.approx(2 * first["lr"])
    rates = [group["lr"] for group in new.param_groups]
    scheduler = torch.optim.lr_scheduler.StepLR(new, 6, last_epoch=5)
    train(net, new, 5, seed=2)
    assert scheduler.get_last_lr() == pytest.approx([rate / 10 for rate in rates])


@pytest.mark.parametrize("given", ["to the old optimizer", "to the swap"])
def test_groups_of_their_own_say_which_parameter_they_hold(given: str) -> None:
    net, _ = trained(torch.optim.RMSprop, steps=0, lr=0.01)
    ours = net.parameters() if given == "to the swap" else net.named_parameters()
    old = torch.optim.RMSprop(ours, lr=0.01)
    train(net, old, 20, seed=1)
    named = net.named_parameters() if given == "to the swap" else None
    groups = swap_optimizer(old, "adam", named_parameters=named).state_dict()["param_groups"]
    assert [name for group in groups for name in group["param_names"]] == [
        n for n, _ in net.named_parameters()
    ]


def test_the_old_optimizer_is_left_as_it_is() -> None:
    net, old = trained(torch.optim.RMSprop, steps=5)
    before = copy.deepcopy(old.state_dict())
    new = swap_optimizer(old, "adam")
    train(net, new, 5, seed=2)
    torch.testing.assert_close(old.state_dict()["state"], before["state"], rtol=0, atol=0)


def test_a_parameter_that_was_never_updated_starts_afresh() -> None:
    _, old = trained(torch.optim.RMSprop, steps=20)
    extra = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    old.add_param_group({"params": [extra]})
    new = swap_optimizer(old, "adam")
    assert extra not in new.state
    extra.grad = torch.ones(3, dtype=torch.float64)
    new.step()
    assert extra in new.state


class Mine(torch.optim.Adam):
    """Somebody's own."""


def test_unknown_classes_are_refused_by_name() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(Refused, match="optimizer class 'Mine'"):
        swap_optimizer(Mine([weight]), "sgd", lr=0.1)
    with pytest.raises(Refused, match="'nadam': its momentum"):
        swap_optimizer(torch.optim.NAdam([weight]), "sgd", lr=0.1)
    with pytest.raises(Refused, match="no 'eps_inside_root'"):
        swap_optimizer(torch.optim.SGD([weight]), "rmsprop", lr=0.1, eps_inside_root=True)
    with pytest.raises(ArgumentError, match="that the model does not have"):
        swap_optimizer(
            torch.optim.SGD([weight]), "adam", named_parameters=nn.Linear(2, 2).named_parameters(), lr=1.0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_in_the_precision_of_its_parameter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 3).to(dtype)
    old = torch.optim.RMSprop(net.parameters(), centered=True, lr=1e-3)
    for _ in range(5):
        net(torch.randn(4, 6).to(dtype)).square().sum().backward()
        old.step()
    new = swap_optimizer(old, "adam")
    for weight in net.parameters():
        state = new.state[weight]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == dtype
        assert (state["step"].dtype, float(state["step"])) == (torch.float32, 5.0)
        wanted = old.state[weight]["square_avg"].double() / (1 - 0.99**5)
        torch.testing.assert_close(
            state["exp_avg_sq"].double() / (1 - 0.999**5), wanted, rtol=0.02, atol=1e-12
        )
    new.step()
