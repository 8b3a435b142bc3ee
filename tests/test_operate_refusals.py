"""What live surgery refuses, in words and with everything as it was; and what it takes although it is unusual."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.errors import (
    ArgumentError,
    ClaimFailed,
    GraphError,
    PlanMismatch,
    Refused,
    SurgeryError,
    UnknownName,
)
from surgery.torch import from_module, operate
from surgery.torch.live import outputs as operate_outputs
from tests.live_models import FRAMES, X, everything, loss_of, mlp, same, trained, wider


class Heads(nn.Module):
    """What only other methods compute, as in CleanRL."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(5, 3)

    def act(self, x):
        return self.actor(x)


class Hard(nn.Module):
    """A size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(3, 6, 3, 2), "fc": nn.Linear(150, 4)})

    def forward(self, x):
        return self.inner["fc"](torch.relu(self.inner["conv"](x)).reshape(-1, 150))


class Sized(Hard):
    """The same in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = 150

    def forward(self, x):
        return self.inner["fc"](torch.relu(self.inner["conv"](x)).reshape(-1, self.flat))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(x) if float(x.sum()) > 0 else x


class Choices(nn.Module):
    """Several choices at once, from one layer that is split by their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.fc, self.heads = (3, 4, 2), nn.Linear(5, 8), nn.Linear(8, 9)

    def forward(self, x):
        return self.heads(torch.relu(self.fc(x))).split(self.sizes, -1)


class Unseen(nn.Module):
    """Noise that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.fc.sigma = nn.Parameter(torch.full((6, 5), 0.1))

    def forward(self, x):
        weight = self.fc.weight + self.fc.sigma if self.training else self.fc.weight
        return self.head(torch.relu(F.linear(x, weight, self.fc.bias)))


class Normed(nn.Module):
    """The ε of its normaliser is a default of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return self.head(nn.functional.layer_norm(self.fc(x), self.scale.shape, self.scale, self.shift))


class Lion(torch.optim.Optimizer):
    """An optimizer that nobody has heard of."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 1e-3})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["trend"] = torch.ones_like(parameter)


class Sharpness(torch.optim.Optimizer):
    """An optimizer that leaves its steps to another one, of the same groups."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters(), {})
        self.base = torch.optim.Adam(net.parameters())
        self.param_groups = self.base.param_groups
        trained(net, self.base, X)


def split(net: nn.Module) -> nn.Module:
    net[2].weight = nn.Parameter(net[2].weight.to_sparse())
    return net


def computed(net: nn.Module) -> nn.Module:
    del net[2].weight
    net[2].weight_source = nn.Parameter(torch.randn(6, 7))
    net[2].weight = net[2].weight_source * 2  # no parameter, and no leaf
    net[2].register_buffer("kept", net[2].weight_source * 3)
    return net


def adam(net):
    return torch.optim.Adam(net.parameters())


def scheduled(net):
    """A group for each parameter, so that none has to be split, and a schedule."""
    optimizer = torch.optim.Adam([{"params": [parameter]} for parameter in net.parameters()])
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return optimizer


def on_two_devices() -> nn.Module:
    net = mlp()
    net[2].register_buffer("far", torch.zeros(3, device="meta"))
    return net


def quantised() -> nn.Module:
    net = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return nn.Sequential(torch.jit.script(mlp()))


def lbfgs(net: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.LBFGS(net.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss_of(net, X)
        value.backward()
        return value

    optimizer.step(loss)
    return optimizer


def pruned() -> nn.Module:
    net = mlp()
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    return net


NINE, DOUBLE = {"plan": wider(widths={"0": 9})}, {"plan": wider(factor=2)}
REFUSALS = {
    "a weight that is computed": (pruned, lambda net: None, X, NINE, Refused, "undo that"),
    "one state for all": (mlp, lbfgs, X, {"plan": wider(widths={"2": 9})}, Refused, "new LBFGS"),
    "quantised": (quantised, lambda net: None, X, NINE, Refused, "before the model is quantised"),
    "several devices": (on_two_devices, adam, X, NINE, Refused, "one device"),
    "a size in the code": (Hard, adam, FRAMES, {"plan": wider(widths={"inner.conv": 9})}, Refused, "attributes="),
    "a module that branches": (Branching, adam, X, {"plan": wider(widths={"fc": 9})}, GraphError, "torch.where"),
    "no forward": (Heads, adam, X, DOUBLE, GraphError, "def forward(self, x)"),
    "noise unseen": (Unseen, adam, X, {"plan": wider(widths={"fc": 9})}, Refused, "training=True"),
    "no such space": (mlp, adam, X, {"plan": wider(widths={"9": 9})}, UnknownName, "0"),
    "too narrow": (mlp, adam, X, {"plan": wider(widths={"0": 3})}, ArgumentError, "narrower"),
    "others' optimizer": (mlp, lambda net: adam(mlp()), X, NINE, ArgumentError, "parameters()"),
    "no optimizer": (mlp, lambda net: "adam", X, NINE, ArgumentError, ""),
    "a class without rules": (mlp, lambda net: Lion(net.parameters()), X, NINE, Refused, "reset"),
    "sparse": (lambda: split(mlp()), lambda net: None, X, NINE, Refused, "dense"),
    "not a leaf": (lambda: computed(mlp()), lambda net: None, X, NINE, Refused, "owns"),
    "parametrised by what has no rule": (
        lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(5, 4)), nn.Linear(4, 3)), adam, X,
        NINE, GraphError, "householder",
    ),
    "without sizes yet": (
        lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)), adam, X, NINE, Refused,
        "run the module",
    ),
    "a projected state": (
        lambda: nn.LSTM(5, 4, proj_size=2), adam, torch.randn(3, 2, 5), DOUBLE, GraphError, "proj_size",
    ),
    "an epsilon in the code": (Normed, adam, X, {"plan": wider(widths={"fc": 11})}, Refused, "'eps'"),
    "one width of attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), adam, torch.randn(2, 3, 8),
        {"plan": wider(widths={"self_attn[1]": 8})}, Refused, "heads × their size",
    ),
    "scripted": (scripted, adam, X, NINE, Refused, "script it again"),
    "data parallel": (lambda: nn.DataParallel(mlp()), adam, X, NINE, Refused, ".module"),
    "another companion": (mlp, adam, X, NINE | {"also": [nn.Linear(5, 3)]}, Refused, "same architecture"),
    "no numbers": (lambda: mlp().to("meta"), adam, X, NINE, Refused, ""),
    "wrong attribute": (mlp, adam, X, NINE | {"attributes": {"0.size": 1}}, UnknownName, ""),
    "no module": (lambda: len, lambda net: None, X, NINE, ArgumentError, "not a torch.nn.Module"),
    "no tensor": (mlp, adam, X.numpy(), NINE, ArgumentError, "a tensor"),
    "a width that is no number": (mlp, adam, X, {"plan": wider(widths={"0": 9.5})}, ArgumentError, "9.5"),
    "a plan that is a text": (mlp, adam, X, {"plan": "widen"}, ArgumentError, "not a plan"),
    "a function that makes no plan": (mlp, adam, X, {"plan": lambda c: None}, ArgumentError, "not a plan"),
    "a schedule of nothing": (mlp, adam, X, DOUBLE | {"schedulers": ["step"]}, ArgumentError, "not the schedule"),
    "a schedule that is not given": (
        mlp, scheduled, X, {"plan": wider(factor=2, init="net2net"), "follow_recipe": True}, ArgumentError,
        "schedulers=[…]",
    ),
    "a schedule by itself": (mlp, adam, X, DOUBLE | {"schedulers": object()}, ArgumentError, "schedulers=[…]"),
    "a companion by itself": (mlp, adam, X, NINE | {"also": mlp()}, ArgumentError, "also=[…]"),
    "an optimizer in another": (mlp, Sharpness, X, NINE, ArgumentError, "operate(model, optimizer.base, …)"),
    "an optimizer in something else": (mlp, lambda net: SimpleNamespace(it=adam(net)), X, NINE, ArgumentError, "wraps"),
    "a class of optimizers": (mlp, lambda net: torch.optim.Adam, X, DOUBLE, ArgumentError, "in use"),
    "other inputs": (mlp, adam, torch.zeros(4, 9), NINE, ArgumentError, "does not run on the ex"),
    "inputs that are no numbers": (mlp, adam, X * torch.nan, NINE, ArgumentError, "computes numbers"),
    "other types": (mlp, adam, X.double(), NINE, ArgumentError, "does not run on the example"),
    "a parameter's name": (
        mlp, adam, X, NINE | {"export_options": {"output_names": ["0.bias"]}}, ArgumentError, "0.bias_out",
    ),
    "widths without a verb": (mlp, adam, X, {"plan": {"0": 9}}, ArgumentError, "surgery.widen"),
}  # fmt: skip


UNSEEN = ("no numbers", "sparse", "several devices", "without sizes yet")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_follow_is_refused_in_words_and_nothing_changes(case):
    make, optimize, x, how, error, hint = REFUSALS[case]
    net = make()
    optimizer = optimize(net)
    if isinstance(optimizer, torch.optim.Optimizer) and net is not None and case == "a class without rules":
        optimizer.step()
    owners = [owner for owner in (net, optimizer) if isinstance(owner, nn.Module | torch.optim.Optimizer)]
    before = everything(*owners) if case not in UNSEEN else None
    generator = torch.get_rng_state()
    with pytest.raises(error) as caught:
        operate(net, optimizer, x, **how)
    assert isinstance(caught.value, SurgeryError)
    assert hint in (caught.value.hint or "") + caught.value.message
    assert torch.equal(torch.get_rng_state(), generator)
    assert before is None or same(everything(*owners), before)


def test_an_export_that_fails_writes_nothing(capfd):
    with pytest.raises(GraphError):
        from_module(Branching(), example_inputs=X)
    assert capfd.readouterr() == ("", "")


class Mixed(nn.Module):
    """Layers in two types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3).bfloat16()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).bfloat16()).float()


def strided() -> nn.Module:
    """Parameters that are not contiguous: transposed, and a view of a larger tensor."""
    net = mlp()
    net[0].weight = nn.Parameter(net[0].weight.detach().t().contiguous().t())
    net[2].weight = nn.Parameter(torch.randn(20, 9)[3:9, 1:8])
    return net


@pytest.mark.parametrize("make", [strided, Mixed])
def test_layouts_and_types_are_the_parameters_own(make):
    net = make()
    types, before = [p.dtype for p in net.parameters()], net(X)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    operate(net, optimizer, X, wider(widths={"0" if make is strided else "first": 9}))
    assert [p.dtype for p in net.parameters()] == types
    torch.testing.assert_close(
        net(X), before, rtol=2e-2 if make is Mixed else 1e-5, atol=1e-2 if make is Mixed else 1e-6
    )
    loss_of(net, X).backward()
    optimizer.step()


def test_a_size_in_an_attribute_can_be_given():
    net = Sized()
    before = net(FRAMES)
    with pytest.raises(Refused) as caught:
        operate(net, None, FRAMES, wider(widths={"inner.conv": 9}))
    assert caught.value.where["module"] == "inner.fc (Linear)"
    operate(net, None, FRAMES, wider(widths={"inner.conv": 9}), attributes={"flat": 225})
    torch.testing.assert_close(net(FRAMES), before)


def test_the_error_says_which_attributes_hold_an_old_size():
    net, named = Choices(), {"output_names": ["move", "build", "say"]}
    before = net(X)

    def more(checkpoint):
        return surgery.extend(checkpoint, actions=[surgery.NewAction("build", 1)])

    with pytest.raises(Refused, match="cannot run with its new sizes") as caught:
        operate(net, None, X, more, export_options=named)
    assert "attributes={'sizes': [3, 5, 2]}" in str(caught.value.hint)
    operate(net, None, X, more, export_options=named, attributes={"sizes": [3, 5, 2]})
    after = net(X)
    torch.testing.assert_close([after[0], after[1][:, :4], after[2]], list(before))


def test_noise_of_training_follows_in_training_mode():
    net = Unseen()
    operate(net, adam(net), X, wider(widths={"fc": 9}), training=True)
    assert net.fc.sigma.shape == (9, 5)
    net.train()(X)


def test_state_without_rules_is_dropped_on_request_and_reported():
    net = mlp()
    optimizer = Lion(net.parameters())
    optimizer.step()
    operation = operate(net, optimizer, X, wider(widths={"0": 9}), reset_unknown=True)
    assert operation.not_carried == ("'trend' of Lion",)
    assert "not carried" in operation.describe()
    assert "trend" in optimizer.state[net[4].weight]
    assert "trend" not in optimizer.state[net[0].weight]


@pytest.mark.parametrize("kind", ["Rprop", "ASGD", "Adafactor"])
def test_an_optimizer_without_rules_begins_anew_where_parameters_change(kind):
    net = mlp()
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=1e-3)
    trained(net, optimizer, X)
    kept = {slot: torch.as_tensor(value).clone() for slot, value in optimizer.state[net[4].bias].items()}
    operate(net, optimizer, X, wider(widths={"0": 9}), reset_unknown=True, prove=False)
    assert not optimizer.state[net[0].weight] and same(kept, optimizer.state[net[4].bias])
    trained(net, optimizer, X)


def test_parameters_of_other_networks_are_left_alone_and_counted():
    net, other = mlp(), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*net.parameters(), *other.parameters()])
    trained(net, optimizer, X)
    assert operate(net, optimizer, X, wider(widths={"0": 9})).others == 2


def test_a_plan_for_another_network_does_not_fit():
    plan = surgery.widen(from_module(mlp(), example_inputs=X), widths={"0": 9})
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(PlanMismatch, match=r"0\.weight"):
        operate(net, adam(net), X, plan)


def test_a_module_that_computes_otherwise_than_its_export_is_caught(monkeypatch):
    net = mlp()
    calls = []

    def outputs(self, grown=False):
        calls.append(grown)
        return {"y": net(X) + len(calls)}

    monkeypatch.setattr(operate_outputs.Runner, "outputs", outputs)
    before = everything(net)
    with pytest.raises(ClaimFailed, match="moves by"):
        operate(net, None, X, wider(widths={"0": 9}))
    assert same(everything(net), before)
