"""A widened network trains as the small one would have, until it is told not to; float64, ≤ 1e-12 after 200 updates."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from surgery.edits.arithmetic import axis_maps
from surgery.errors import ArgumentError, PlanMismatch, Refused, SurgeryError, UnknownName
from surgery.torch import Trajectory, break_symmetry, follow, operate
from tests.growing import Derived, Pair, grow, train
from tests.live_models import wider

STEPS, LIMIT = 80, 1e-12
Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: Mapping[str, Make] = {
    "sgd nesterov decay": lambda p: torch.optim.SGD(
        p, lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.01
    ),
    "adam amsgrad decay": lambda p: torch.optim.Adam(p, lr=3e-3, eps=1e-3, amsgrad=True, weight_decay=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, eps=1e-3, weight_decay=0.1),
    "rmsprop centered momentum decay": lambda p: torch.optim.RMSprop(
        p, lr=1e-3, alpha=0.95, eps=1e-2, centered=True, momentum=0.5, weight_decay=0.02
    ),
    "rmsprop, root inside": lambda p: RMSpropTFLike(p, lr=1e-3, alpha=0.95, eps=1e-4, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02, eps=1e-2, weight_decay=0.01, lr_decay=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=3e-3, eps=1e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=3e-3, eps=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=3e-3, eps=1e-3, weight_decay=0.1, decoupled_weight_decay=True),
    "adam, derived": lambda p: Derived(p, lr=3e-3, eps=1e-3),
}
PLANS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mlp, doubled": ("mlp", {"factor": 2}),
    "mlp, mixed counts": ("mlp", {"widths": {"0": 7, "2": 8}}),
    "mlp, unequal shares": ("mlp", {"factor": 1.5, "shares": "unequal"}),
    "layer norm, and mixed counts": ("normed", {"widths": {"0": 12, "3": 7}}),
    "conv, flatten": ("cnn", {"factor": 1.6}),
    "lstm": ("lstm", {"widths": {"lstm": 8}}),
}


def pair(plan: str, optimizer: str, **more: Any) -> Pair:
    name, how = PLANS[plan]
    return grow(name, OPTIMIZERS[optimizer], init="net2net", **how, **more)


EVERYWHERE = ("sgd nesterov decay", "adamw", "rmsprop centered momentum decay")
ROWS = [(p, o) for p in PLANS for o in OPTIMIZERS if o in EVERYWHERE or p == "mlp, mixed counts"]


@pytest.mark.parametrize(("plan", "optimizer"), ROWS)
def test_the_trajectory_is_that_of_the_small_network(plan: str, optimizer: str) -> None:
    both = pair(plan, optimizer)
    follow(both.new, both.twin, both.plan)
    steps = 200 if optimizer == "adamw" else STEPS
    train(both.net, both.old, steps, seed=2)
    train(both.twin, both.new, steps, seed=2)
    assert both.distance() <= LIMIT


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_it_the_trajectory_is_another(optimizer: str) -> None:
    both = pair("mlp, mixed counts", optimizer)
    train(both.net, both.old, STEPS, seed=2)
    train(both.twin, both.new, STEPS, seed=2)
    assert both.distance() > 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd nesterov decay"])
def test_gradients_are_clipped_by_the_norm_that_the_small_network_has(optimizer: str) -> None:
    both = pair("conv, flatten", optimizer, clip=0.2)
    trajectory, norms = follow(both.new, both.twin, both.plan), []
    train(both.net, both.old, 60, seed=2, clip=lambda: nn.utils.clip_grad_norm_(both.net.parameters(), 0.2))
    train(both.twin, both.new, 60, seed=2, clip=lambda: norms.append(trajectory.clip_grad_norm_(0.2)))
    assert max(norms) > 0.2
    assert both.distance() <= LIMIT
    other = pair("conv, flatten", optimizer, clip=0.2)
    follow(other.new, other.twin, other.plan)
    train(
        other.net, other.old, 60, seed=2, clip=lambda: nn.utils.clip_grad_norm_(other.net.parameters(), 0.2)
    )
    train(
        other.twin, other.new, 60, seed=2, clip=lambda: nn.utils.clip_grad_norm_(other.twin.parameters(), 0.2)
    )
    assert other.distance() > 1e-6


def test_gradients_are_clipped_by_value_as_in_the_small_network() -> None:
    both = pair("mlp, mixed counts", "sgd nesterov decay")
    trajectory = follow(both.new, both.twin, both.plan)
    train(both.net, both.old, 60, seed=2, clip=lambda: nn.utils.clip_grad_value_(both.net.parameters(), 0.01))
    train(both.twin, both.new, 60, seed=2, clip=lambda: trajectory.clip_grad_value_(0.01))
    assert both.distance() <= LIMIT


def test_schedules_and_groups_need_no_change() -> None:
    name, how = PLANS["mlp, mixed counts"]

    def make(p: Any) -> torch.optim.Optimizer:
        weights = list(p)
        return torch.optim.Adam(
            [{"params": weights[:2], "lr": 1e-3}, {"params": weights[2:], "lr": 4e-3}], eps=1e-3
        )

    both = grow(name, make, init="net2net", **how)
    follow(both.new, both.twin, both.plan)
    for net, optimizer in ((both.net, both.old), (both.twin, both.new)):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        train(net, optimizer, 100, seed=2, clip=lambda s=schedule, o=optimizer: _advance(o, s))
    assert both.distance() <= LIMIT


def _advance(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer._opt_called = True  # the schedule advances before the update here, for both alike
    schedule.step()


def test_names_may_be_those_of_a_compiled_module() -> None:
    both = pair("mlp, mixed counts", "adamw")
    wrapped = [(f"_orig_mod.{name}", weight) for name, weight in both.twin.named_parameters()]
    assert set(follow(both.new, wrapped, both.plan).tracked) == {
        name for name, _ in both.twin.named_parameters()
    } - {"4.bias"}
    train(both.net, both.old, 50, seed=2)
    train(both.twin, both.new, 50, seed=2)
    assert both.distance() <= LIMIT


def test_single_precision_stays_within_its_own_rounding() -> None:
    both = pair("mlp, mixed counts", "adam amsgrad decay", dtype=torch.float32)
    follow(both.new, both.twin, both.plan)
    train(both.net, both.old, STEPS, seed=2)
    train(both.twin, both.new, STEPS, seed=2)
    assert both.distance() <= 2e-5


def test_what_does_not_move_keeps_its_last_bit() -> None:
    """Shares of a third and a fifth: weights are divided and multiplied every step, and return where they were."""
    both = grow(
        "mlp", lambda p: torch.optim.SGD(p, lr=0.0), factor=5 / 3, init="net2net", dtype=torch.float32
    )
    before = copy.deepcopy(both.twin.state_dict())
    follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, 20, seed=2)
    assert all(torch.equal(before[name], value) for name, value in both.twin.state_dict().items())


def test_gradients_are_the_callers_again_after_the_step() -> None:
    both = pair("mlp, mixed counts", "adamw")
    follow(both.new, both.twin, both.plan)
    both.twin(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    held = [(weight.grad, weight.grad.clone()) for weight in both.twin.parameters()]
    both.new.step()
    for weight, (grad, value) in zip(both.twin.parameters(), held, strict=True):
        assert weight.grad is grad
        assert torch.equal(grad, value)


def test_saved_state_is_that_of_the_widened_network_and_loads_again() -> None:
    both = pair("mlp, mixed counts", "adam amsgrad decay")
    plain = copy.deepcopy(both.new.state_dict()["state"])
    trajectory = follow(both.new, both.twin, both.plan)
    torch.testing.assert_close(both.new.state_dict()["state"], plain, rtol=1e-14, atol=0)
    train(both.twin, both.new, 50, seed=2)
    saved, weights = copy.deepcopy(both.new.state_dict()), copy.deepcopy(both.twin.state_dict())
    train(both.twin, both.new, 50, seed=3)
    after = copy.deepcopy(both.twin.state_dict())
    both.twin.load_state_dict(weights)
    both.new.load_state_dict(saved)
    train(both.twin, both.new, 50, seed=3)
    torch.testing.assert_close(both.twin.state_dict(), after, rtol=1e-11, atol=1e-13)
    both.new.load_state_dict(saved)
    trajectory.detach()
    torch.testing.assert_close(both.new.state_dict()["state"], saved["state"], rtol=1e-14, atol=0)


RESUMED: Mapping[str, tuple[dict[str, Any], Callable[[Trajectory], None]]] = {
    "new entries": ({"widths": {"0": 9}, "init": "zero"}, lambda trajectory: None),
    "held still": ({"widths": {"0": 9}, "init": "zero"}, lambda trajectory: trajectory.settle(10)),
    "let in": ({"widths": {"0": 9}, "init": "zero"}, lambda trajectory: trajectory.settle(10, ramp=True)),
    **{
        how: ({"factor": 2, "init": "net2net"}, functools.partial(break_symmetry, space="0", how=how))
        for how in ("reset", "zero", "shares")
    },
}


@pytest.mark.parametrize("what", RESUMED)
def test_a_run_that_is_resumed_goes_on_as_one_that_was_not(what: str) -> None:
    widening, change = RESUMED[what]
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-3), **widening)
    trajectory = follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, 3, seed=2)
    change(trajectory)
    train(both.twin, both.new, 4, seed=3)
    again = copy.deepcopy(both.twin)
    optimizer = torch.optim.Adam(again.parameters())
    resumed = follow(optimizer, again, both.plan)
    optimizer.load_state_dict(copy.deepcopy(both.new.state_dict()))
    resumed.load_state_dict(copy.deepcopy(trajectory.state_dict()))
    for net, each in ((both.twin, both.new), (again, optimizer)):
        train(net, each, 20, seed=4)
    torch.testing.assert_close(again.state_dict(), both.twin.state_dict(), rtol=1e-11, atol=1e-13)


def test_a_space_that_is_released_changes_nothing_of_the_state_of_the_widened_network() -> None:
    both = pair("mlp, doubled", "adamw")
    trajectory = follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, 3, seed=2)
    before = copy.deepcopy(both.new.state_dict()["state"])
    trajectory.release("0")
    torch.testing.assert_close(both.new.state_dict()["state"], before, rtol=1e-14, atol=0)


def test_after_detaching_the_optimizer_is_a_plain_one() -> None:
    both, other = (pair("mlp, mixed counts", "adamw") for _ in range(2))
    follow(both.new, both.twin, both.plan).detach()
    train(both.twin, both.new, 50, seed=2)
    train(other.twin, other.new, 50, seed=2)
    torch.testing.assert_close(both.twin.state_dict(), other.twin.state_dict(), rtol=1e-10, atol=1e-12)


# --- mixed precision ---


def scaled(
    net: nn.Module, optimizer: torch.optim.Optimizer, clip: Callable[[], Any] | None, autocast: bool
) -> None:
    """Forty updates under a gradient scaler, one of which overflows; gradients are unscaled before they are clipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10)
    dtype = next(net.parameters()).dtype
    for seed in range(40):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = net(x)
        scaler.scale((y - x.sum(1, keepdim=True)).square().mean()).backward()
        if seed == 7:
            next(net.parameters()).grad[0, 0] = torch.inf
        if clip is not None:
            scaler.unscale_(optimizer)
            clip()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 256.0 / 2 * 2**3


AMP = {
    "plain": (lambda p: torch.optim.AdamW(p, lr=3e-3, eps=1e-3, weight_decay=0.1), True),
    "fused": (lambda p: torch.optim.Adam(p, lr=3e-3, eps=1e-3, fused=True), False),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-2, momentum=0.5), True),
}


@pytest.mark.parametrize("case", AMP)
def test_a_gradient_scaler_changes_nothing(case: str) -> None:
    make, clipped = AMP[case]
    both = grow("mlp", make, init="net2net", widths={"0": 7, "2": 8})
    trajectory = follow(both.new, both.twin, both.plan)
    clip = (lambda: nn.utils.clip_grad_norm_(both.net.parameters(), 0.2)) if clipped else None
    scaled(both.net, both.old, clip, autocast=False)
    scaled(
        both.twin, both.new, (lambda: trajectory.clip_grad_norm_(0.2)) if clipped else None, autocast=False
    )
    assert both.distance() <= LIMIT


@pytest.mark.parametrize("case", AMP)
def test_a_step_that_overflows_counts_for_no_new_entry(case: str) -> None:
    both = grow("mlp", AMP[case][0], init="zero", widths={"0": 7, "2": 8})
    trajectory = follow(both.new, both.twin, both.plan)
    scaled(both.twin, both.new, None, autocast=False)
    counts = [tracked.counts for tracked in trajectory.tracked.values() if tracked.counts is not None]
    assert {float(n) for each in counts for n in each.unique() if torch.isfinite(n)} == {39.0}
    assert all(bool(torch.isfinite(weight).all()) for weight in both.twin.parameters())


def test_under_autocast_the_trajectory_stays_within_its_own_rounding() -> None:
    """Half a weight is as exact in bfloat16 as the whole: doubled layers follow; without the rule they go elsewhere."""
    distances = []
    for following in (True, False):
        both = grow("mlp", AMP["plain"][0], init="net2net", factor=2, dtype=torch.float32)
        if following:
            follow(both.new, both.twin, both.plan)
        for net, optimizer in ((both.net, both.old), (both.twin, both.new)):
            scaled(net, optimizer, None, autocast=True)
        distances.append(both.distance())
    assert distances[0] <= 2e-3
    assert distances[1] > 10 * distances[0]


# --- new entries ---


@pytest.mark.parametrize(("name", "widths"), [("mlp", {"0": 9, "2": 7}), ("lstm", {"lstm": 8})])
@pytest.mark.parametrize("optimizer", EVERYWHERE)
def test_old_entries_go_on_exactly_while_new_ones_are_held_still(
    name: str, widths: dict[str, int], optimizer: str
) -> None:
    both = grow(name, OPTIMIZERS[optimizer], widths=widths, init="zero")
    trajectory = follow(both.new, both.twin, both.plan)
    trajectory.settle(1000)
    train(both.net, both.old, 100, seed=2)
    train(both.twin, both.new, 100, seed=2)
    for key, tracked in trajectory.tracked.items():
        wanted, old = originals(both, key, lambda weight: weight.detach(), tracked)
        assert np.abs(tracked.weight.detach().numpy() - wanted)[old].max() <= LIMIT * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mlp", {"widths": {"0": 9, "2": 7}, "init": "zero"}),
        ("normed", {"widths": {"0": 8}, "init": "zero"}),
        ("cnn", {"factor": 1.6, "init": "net2net", "shares": "unequal"}),
    ],
)
def test_the_state_is_that_of_the_small_network(name: str, how: dict[str, Any]) -> None:
    """The scale of a normaliser, too, which a growth by no whole multiple rescales: its slots are the old ones."""
    both = grow(name, OPTIMIZERS["adam amsgrad decay"], **how)
    for key, tracked in follow(both.new, both.twin, both.plan).tracked.items():
        for slot in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            wanted, old = originals(both, key, lambda weight, s=slot: both.old.state[weight][s], tracked)
            found = both.new.state[tracked.weight][slot].numpy()
            np.testing.assert_allclose(found[old], wanted[old], rtol=1e-13, atol=1e-300)


def originals(
    both: Pair, name: str, what: Callable[[Any], Any], tracked: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Something of the small network's parameter, copied to where its copies are; and where these are."""
    array = what(dict(both.net.named_parameters())[name]).numpy()
    for k, axis in enumerate(axis_maps(tracked.edit.axes, both.plan.edits)):
        array = array if axis is None else np.take(array, axis.source, axis=k)
    fresh = tracked.factors.fresh
    return array, np.ones(array.shape, bool) if fresh is None else ~fresh.broadcast_to(array.shape).numpy()


def next_losses(make: Make) -> tuple[float, float, float]:
    """The mean loss of the next 10 updates: of the small network, of the widened one, and with counts of its own."""
    both = grow("mlp", make, before=1500, widths={"0": 96, "2": 80}, init="zero", seed=3)
    twin = copy.deepcopy(both.twin)
    counted = make(twin.parameters())
    counted.load_state_dict(copy.deepcopy(both.new.state_dict()))
    follow(counted, twin, both.plan)
    runs = ((both.net, both.old), (both.twin, both.new), (twin, counted))
    kept, plain, own = (sum(train(net, optimizer, 10, seed=5)) / 10 for net, optimizer in runs)
    return kept, plain, own


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_counts_of_their_own_keep_new_entries_from_overshooting(kind: str) -> None:
    makes: Mapping[str, Make] = {
        "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.5e-3),
    }
    kept, plain, counted = next_losses(makes[kind])
    assert plain > 1.8 * kept
    assert counted < 1.25 * kept


def test_young_entries_step_as_in_a_fresh_adam_and_old_ones_as_before() -> None:
    """Beside a fresh Adam on the same gradients: new entries do what it does, old ones do not."""
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-3), widths={"0": 9}, init="zero")
    other = copy.deepcopy(both.twin)
    fresh = torch.optim.Adam(other.parameters(), lr=1e-3)
    trajectory = follow(both.new, both.twin, both.plan)
    start = copy.deepcopy(both.twin.state_dict())
    for step in range(3):
        x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for weight, twin in zip(both.twin.parameters(), other.parameters(), strict=True):
            weight.grad, twin.grad = None, None
        both.twin(x).square().sum().backward()
        for weight, twin in zip(both.twin.parameters(), other.parameters(), strict=True):
            twin.grad = weight.grad.clone()
        both.new.step()
        fresh.step()
    for name, tracked in trajectory.tracked.items():
        mask = tracked.factors.fresh.broadcast_to(tracked.weight.shape)
        there = dict(other.named_parameters())[name]
        torch.testing.assert_close(tracked.weight[mask], there[mask], rtol=1e-9, atol=1e-12)
        moved = (tracked.weight - start[name])[~mask].abs().mean()
        assert (tracked.weight - there)[~mask].abs().mean() > 0.05 * moved
        assert (tracked.counts[mask] == 3).all()
        assert torch.isinf(tracked.counts[~mask]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_young_entries_of_rmsprop_step_by_squares_that_know_their_age(momentum: float) -> None:
    lr, alpha, eps = 1e-3, 0.9, 1e-3
    both = grow(
        "mlp",
        lambda p: torch.optim.RMSprop(p, lr=lr, alpha=alpha, eps=eps, momentum=momentum),
        widths={"0": 9},
        init="zero",
    )
    trajectory = follow(both.new, both.twin, both.plan)
    wanted = {name: [t.weight.detach().clone(), 0.0, 0.0] for name, t in trajectory.tracked.items()}
    for n in range(1, 5):
        both.twin.zero_grad()
        both.twin(torch.randn(8, 4, dtype=torch.float64)).square().sum().backward()
        for name, (weight, squares, buffer) in wanted.items():
            gradient = trajectory.tracked[name].weight.grad.clone()
            squares = alpha * squares + (1 - alpha) * gradient.square()
            buffer = momentum * buffer + gradient / ((squares / (1 - alpha**n)).sqrt() + eps)
            wanted[name] = [weight - lr * buffer, squares, buffer]
        both.new.step()
    for name, tracked in trajectory.tracked.items():
        mask = tracked.factors.fresh.broadcast_to(tracked.weight.shape)
        torch.testing.assert_close(tracked.weight[mask], wanted[name][0][mask], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("decay", "steps", "dtype"), [(0.6, 40, torch.float64), (0.95, 330, torch.bfloat16)], ids=str
)
def test_entries_grow_up(decay: float, steps: int, dtype: torch.dtype) -> None:
    both = grow(
        "mlp", lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.5, decay)), widths={"0": 9}, init="zero"
    )
    both.twin.to(dtype)
    both.new.load_state_dict(both.new.state_dict())
    trajectory = follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, steps, seed=2)
    assert all(tracked.counts is None for tracked in trajectory.tracked.values())


@pytest.mark.parametrize("ramp", [False, True])
def test_new_entries_can_be_held_still_for_a_while(ramp: bool) -> None:
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-3), widths={"0": 9}, init="zero")
    trajectory = follow(both.new, both.twin, both.plan)
    trajectory.settle(10, ramp=ramp)
    start = {name: t.weight.detach().clone() for name, t in trajectory.tracked.items()}
    moved = []
    for _ in range(14):
        train(both.twin, both.new, 1, seed=2)
        masks = {name: t.factors.fresh.broadcast_to(t.weight.shape) for name, t in trajectory.tracked.items()}
        change = [(t.weight.detach() - start[n])[masks[n]] for n, t in trajectory.tracked.items()]
        moved.append(max(float(part.abs().max()) for part in change))
        assert all((t.weight - start[n])[~masks[n]].abs().max() > 0 for n, t in trajectory.tracked.items())
    assert moved[0] == 0
    assert (moved[8] > 0) == ramp
    assert moved[13] > 2e-3


# --- the break dial ---


def gap(both: Pair, name: str = "0.weight") -> float:
    """How far copies in the first layer have parted: the largest distance of two that were one."""
    (edit,) = (edit for edit in both.plan.spaces if edit.space == "0")
    weight = dict(both.twin.named_parameters())[name].detach()
    pairs = [
        (i, j) for i, j in itertools.combinations(range(edit.after), 2) if edit.source[i] == edit.source[j]
    ]
    return max(float((weight[i] - weight[j]).norm() / weight[i].norm()) for i, j in pairs)


@pytest.mark.parametrize("how", ["reset", "zero", "shares", "noise"])
def test_copies_part_when_they_are_told_to_and_the_function_stays(how: Any) -> None:
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-2), widths={"0": 9, "2": 10}, init="net2net")
    trajectory = follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, 50, seed=2)
    assert gap(both) < 1e-14
    x = torch.randn(32, 4, dtype=torch.float64)
    before = both.twin(x).detach()
    break_symmetry(trajectory, "0", how, strength=0.5, outputs=lambda: both.twin(x))
    change = float((both.twin(x).detach() - before).abs().max() / before.abs().max())
    assert (change < 1e-12) == (how != "noise")
    train(both.twin, both.new, 300, seed=3)
    assert gap(both) > (1e-6 if how == "shares" else 1e-2)
    other = dict(both.twin.named_parameters())["2.weight"].detach()
    (edit,) = (edit for edit in both.plan.spaces if edit.space == "2")
    assert torch.allclose(other[0], other[list(edit.source).index(0, 1)], rtol=1e-12)  # the dial is per layer


def test_the_dial_has_strengths() -> None:
    gaps = []
    for strength in (0.01, 0.2, 1.0):
        both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-2), widths={"0": 9}, init="net2net")
        break_symmetry(follow(both.new, both.twin, both.plan), "0", "reset", strength=strength)
        train(both.twin, both.new, 20, seed=3)
        gaps.append(gap(both))
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[0] < 0.2 * gaps[2]


def test_averaged_copies_cannot_start_anew_and_are_left_as_they_were() -> None:
    both = grow("normed", lambda p: torch.optim.Adam(p, lr=1e-2), widths={"0": 12}, init="net2net")
    trajectory = follow(both.new, both.twin, both.plan)
    before, x = copy.deepcopy(both.twin.state_dict()), torch.randn(8, 4, dtype=torch.float64)
    with pytest.raises(Refused, match="the outputs would change"):
        break_symmetry(trajectory, "0", "zero", outputs=lambda: both.twin(x))
    torch.testing.assert_close(both.twin.state_dict(), before, rtol=0, atol=0)
    break_symmetry(trajectory, "0", "reset", outputs=lambda: both.twin(x))


def test_plain_sgd_has_nothing_to_forget() -> None:
    both = grow("mlp", lambda p: torch.optim.SGD(p, lr=1e-2), widths={"0": 9}, init="net2net")
    trajectory = follow(both.new, both.twin, both.plan)
    with pytest.raises(Refused, match="no state of"):
        break_symmetry(trajectory, "0", "reset")
    break_symmetry(trajectory, "0", "shares")
    train(both.twin, both.new, 20, seed=3)
    assert gap(both) > 1e-4


def test_what_has_parted_is_not_shared_out_again() -> None:
    both = grow("mlp", lambda p: torch.optim.Adam(p, lr=1e-2), widths={"0": 9}, init="net2net")
    trajectory = follow(both.new, both.twin, both.plan)
    break_symmetry(trajectory, "0")
    train(both.twin, both.new, 5, seed=3)
    with pytest.raises(Refused, match="parted already"):
        break_symmetry(trajectory, "0", "zero")


# --- bad input ---


def refusals() -> list[tuple[str, type[SurgeryError], Callable[[Pair], object]]]:
    return [
        ("shape", PlanMismatch, lambda p: follow(p.old, p.net, p.plan)),
        ("trains no parameter", PlanMismatch, lambda p: follow(p.old, p.twin, p.plan)),
        (
            "optimizer 'LBFGS'",
            Refused,
            lambda p: follow(torch.optim.LBFGS(p.twin.parameters()), p.twin, p.plan),
        ),
        (
            "follows a trajectory already",
            ArgumentError,
            lambda p: [follow(p.new, p.twin, p.plan) for _ in "12"],
        ),
        ("closure", Refused, lambda p: (follow(p.new, p.twin, p.plan), p.new.step(lambda: 0.0))),
        ("unknown widened space", UnknownName, lambda p: break_symmetry(follow(p.new, p.twin, p.plan), "fc")),
        ("strength", ArgumentError, lambda p: break_symmetry(follow(p.new, p.twin, p.plan), "0", strength=2)),
        ("way to break", UnknownName, lambda p: break_symmetry(follow(p.new, p.twin, p.plan), "0", "x")),  # type: ignore[arg-type]
        ("steps to settle", ArgumentError, lambda p: follow(p.new, p.twin, p.plan).settle(0)),
    ]


@pytest.mark.parametrize(
    ("says", "error", "call"), refusals(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_followed_is_refused(
    says: str, error: type[SurgeryError], call: Callable[[Pair], object]
) -> None:
    with pytest.raises(error, match=says):
        call(pair("mlp, mixed counts", "adamw"))


def test_a_module_grows_twice_and_follows_the_small_one_for_as_long_as_it_is_told_to() -> None:
    """Surgery on the live module, without a file: the same trajectory, and a second growth only after detaching."""
    both = grow("mlp", OPTIMIZERS["adamw"], factor=2, init="net2net")
    wide = copy.deepcopy(both.net)
    optimizer = OPTIMIZERS["adamw"](wide.parameters())
    optimizer.load_state_dict(copy.deepcopy(both.old.state_dict()))
    x = torch.randn(4, 4, dtype=torch.float64)
    done = operate(wide, optimizer, x, wider(widths={"0": 7, "2": 8}, init="net2net"))
    trajectory = follow(optimizer, wide, done.plan)
    train(both.net, both.old, 100, seed=2)
    train(wide, optimizer, 100, seed=2)
    torch.testing.assert_close(wide(x), both.net(x), rtol=1e-11, atol=1e-12)
    with pytest.raises(ArgumentError, match="follows a trajectory"):
        operate(wide, optimizer, x, wider(widths={"0": 12}))
    trajectory.detach()
    again = follow(optimizer, wide, operate(wide, optimizer, x, wider(widths={"0": 12})).plan)
    torch.testing.assert_close(wide(x), both.net(x), rtol=1e-11, atol=1e-12)
    train(wide, optimizer, 5, seed=3)
    assert again.tracked["0.weight"].counts is not None


def test_a_step_that_failed_leaves_the_weights_of_before() -> None:
    both = pair("mlp, mixed counts", "adamw")
    follow(both.new, both.twin, both.plan)
    train(both.twin, both.new, 1, seed=2)
    before = copy.deepcopy(both.twin.state_dict())
    held = {weight: weight.grad for weight in both.twin.parameters()}
    both.new.param_groups[0]["betas"] = None
    with pytest.raises(TypeError):
        both.new.step()
    both.new.param_groups[0].update(betas=(0.9, 0.999), lr=0.0, weight_decay=0.0)
    for weight, grad in held.items():
        weight.grad = grad
    both.new.step()
    torch.testing.assert_close(both.twin.state_dict(), before, rtol=0, atol=0)
