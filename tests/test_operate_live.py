"""Surgery on a module and its optimizer in mid-training: everything follows, or nothing has changed."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import numpy as np
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
from surgery.torch import from_module, grow_states, operate, operate_groups, operate_journal, operate_outputs
from tests import zoo


@pytest.fixture(autouse=True, scope="module")
def _one_registry():
    """The exporter reads its table of operators anew for every export: half of the time of these tests."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry as registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


class Agent(nn.Module):
    """A small actor-critic on images, sizes taken from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, 3)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8 * 9, 12)
        self.policy, self.value = nn.Linear(12, 4), nn.Linear(12, 1)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.norm(self.conv2(F.relu(self.conv1(frames)))))
        x = F.relu(self.fc(x.flatten(1)))
        return self.policy(x), self.value(x)


FRAMES = torch.randn(4, 3, 11, 11, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


X = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))


def trained(net: nn.Module, optimizer: torch.optim.Optimizer, x: Any = FRAMES, steps: int = 3) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        loss_of(net, x, seed).backward()
        optimizer.step()


def loss_of(net: nn.Module, x: Any, seed: int = 0) -> torch.Tensor:
    results = net(*x) if isinstance(x, tuple) else net(x)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(seed)
    return sum(((y - torch.randn(y.shape[1:], generator=generator)) ** 2).mean() for y in results)


def agent(make=torch.optim.Adam, **settings) -> tuple[Agent, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Agent()
    optimizer = make(net.parameters(), **{"lr": 1e-2, **settings})
    trained(net, optimizer)
    return net, optimizer


def everything(*owners: Any) -> dict[str, Any]:
    """A deep picture of modules and optimizers: tensors by value and identity, attributes, groups, state."""
    picture: dict[str, Any] = {}
    for at, owner in enumerate(owners):
        if isinstance(owner, nn.Module):
            for path, module in owner.named_modules():
                plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | tuple | str)}
                picture[f"{at}.{path}"] = plain
            for name, tensor in [*owner.named_parameters(), *owner.named_buffers()]:
                grad = tensor.grad.clone() if tensor.is_leaf and tensor.grad is not None else None
                picture[f"{at}:{name}"] = (id(tensor), tensor.data_ptr(), tensor.detach().clone(), grad)
        elif isinstance(owner, torch.optim.Optimizer):
            picture[f"{at} state"] = copy.deepcopy(owner.state_dict())
            picture[f"{at} params"] = [[id(p) for p in group["params"]] for group in owner.param_groups]
        else:
            picture[f"{at} schedule"] = copy.deepcopy(owner.state_dict())
    return picture


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_module_its_target_and_its_optimizer_grow_together():
    net, optimizer = agent()
    target = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(0.9)
    net.eval(), target.eval()
    before, behind = net(FRAMES), target(FRAMES)
    identities = [id(p) for p in net.parameters()]
    operation = operate(net, optimizer, FRAMES, widths={"conv2": 16, "fc": 20}, also=[target])
    assert (net.conv2.out_channels, net.norm.num_features, net.fc.in_features) == (16, 16, 144)
    assert (net.fc.out_features, net.policy.in_features, net.value.in_features) == (20, 20, 20)
    assert net.norm.running_var.shape == target.norm.running_var.shape == (16,)
    torch.testing.assert_close(net(FRAMES), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(target(FRAMES), behind, rtol=1e-5, atol=1e-6)
    assert [id(p) for p in net.parameters()] == identities
    assert all(p is q for p, q in zip(net.parameters(), optimizer.param_groups[0]["params"], strict=True))
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    assert operation.proof is not None and operation.proof.ok
    assert operation.attributes["fc.in_features"] == (72, 144)
    assert operation.slots == 2 * 8
    trained(net, optimizer)


def test_the_live_result_is_that_of_the_file():
    """The same plan on the exported checkpoint gives the same tensors and the same slots."""
    net, optimizer = agent()
    checkpoint = from_module(net, example_inputs=FRAMES, optimizer=optimizer)
    plan = surgery.widen(checkpoint, widths={"conv1": 9, "fc": 20}, seed=3)
    wanted = surgery.apply(plan, checkpoint).checkpoint
    operate(net, optimizer, FRAMES, plan=surgery.Plan.from_json(plan.to_json()))
    found = from_module(net, example_inputs=FRAMES, optimizer=optimizer)
    for name in dict(net.named_parameters()):
        np.testing.assert_array_equal(found.tensors[name].numpy(), wanted.tensors[name].numpy(), err_msg=name)
    for slot, members in wanted.optimizer.slots.items():
        for name, tensor in members.items():
            np.testing.assert_array_equal(found.optimizer.slots[slot][name].numpy(), tensor.numpy())
    assert found.optimizer.steps == wanted.optimizer.steps


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_copies_and_the_recipe_continue_the_same_trajectory(make):
    settings = {"momentum": 0.9} if make is torch.optim.SGD else {"eps": 1e-3, "weight_decay": 1e-2}
    torch.manual_seed(0)
    net = mlp().double()
    optimizer = make(net.parameters(), lr=1e-2, **settings)
    trained(net, optimizer, X.double())
    small = copy.deepcopy(net)
    slow = make(small.parameters(), lr=1e-2, **settings)
    slow.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.97) for each in (optimizer, slow)]
    operation = operate(
        net, optimizer, X.double(), factor=2, init="net2net", follow_recipe=True, schedulers=schedules[:1]
    )
    assert operation.regrouped and len(optimizer.param_groups) > 1
    for seed in range(20):
        for each, opt, schedule in ((net, optimizer, schedules[0]), (small, slow, schedules[1])):
            opt.zero_grad()
            loss_of(each, X.double(), seed).backward()
            opt.step()
            schedule.step()
    torch.testing.assert_close(net(X.double()), small(X.double()), rtol=1e-11, atol=1e-12)


def test_hooks_references_and_live_graphs_survive():
    net = mlp()
    seen, accumulated = [], []
    weight = net[2].weight
    weight.register_hook(lambda grad: seen.append(grad.shape))
    weight.register_post_accumulate_grad_hook(lambda p: accumulated.append(p.grad.shape))
    held = [weight, net[0].weight]
    alive = loss_of(net, X)  # a graph of the old sizes that nobody has let go
    loss_of(net, X).backward()
    operate(net, None, X, widths={"0": 9, "2": 8})
    assert weight.grad is None
    loss_of(net, X).backward()
    assert seen[-1] == accumulated[-1] == weight.grad.shape == (8, 9)
    assert held[0] is net[2].weight and held[1] is net[0].weight
    del alive


def test_tied_parameters_and_shared_modules_stay_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.again = self.middle

        def forward(self, x):
            return self.last(torch.relu(self.again(torch.relu(self.middle(torch.relu(self.first(x)))))))

    net = Twice()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    before = net(X)
    operate(net, optimizer, X, widths={"first": 9})
    assert net.again is net.middle and net.middle.weight.shape == (9, 9)
    torch.testing.assert_close(net(X), before)
    trained(net, optimizer, X)


def test_what_companions_share_with_the_model_is_changed_once():
    trunk = nn.Linear(5, 6)
    actor, critic = (nn.Sequential(trunk, nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic[2].parameters()])
    trained(actor, optimizer, X)
    before = actor(X), critic(X)
    operate(actor, optimizer, X, widths={"0": 10}, also=[critic], init="net2net")
    assert trunk.weight.shape == (10, 5) and critic[2].weight.shape == (3, 10)
    torch.testing.assert_close((actor(X), critic(X)), before)


def test_recurrent_states_of_rollouts_grow():
    net = zoo.module("lstm_policy").requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters())
    inputs = tuple(
        torch.from_numpy(x) for x in zoo.sample("lstm_policy", 3, np.random.default_rng(0)).values()
    )
    with torch.no_grad():
        *_, h, c = net(*inputs)
        before = net(inputs[0], h, c)
    named = {"output_names": list(zoo.NETS["lstm_policy"].outputs)}
    operation = operate(net, optimizer, inputs, widths={"lstm": 17}, export_options=named)
    assert net.lstm.hidden_size == 17
    states = grow_states(operation, {"h": h, "c": c})
    assert states["h"].shape == (1, 3, 17)
    with torch.no_grad():
        after = net(inputs[0], states["h"], states["c"])
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after[2][..., :13], before[2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="'h' has 5 units"):
        grow_states(operation, {"h": h[..., :5]})


def test_observations_and_actions_are_extended_in_place():
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    before = net(X)
    names = {"input_names": ["observation"], "output_names": ["logits"]}

    def longer(checkpoint):
        return surgery.extend(
            checkpoint, [surgery.NewObservation("observation", 2)], [surgery.NewAction("logits", 1)]
        )

    operate(net, optimizer, X, plan=longer, export_options=names)
    assert net[0].in_features == 7 and net[4].out_features == 4
    after = net(torch.cat([X, torch.randn(8, 2)], 1))
    torch.testing.assert_close(after[:, :3], before)
    trained(net, optimizer, torch.cat([X, torch.randn(8, 2)], 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_is_compiled_once_more():
    torch._dynamo.reset()
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    before = compiled(X)
    compiled(X)
    operate(compiled, optimizer, X, widths={"0": 9})
    for _ in range(3):
        torch.testing.assert_close(compiled(X), before)
    assert counter.frame_count == 2


@pytest.mark.parametrize("kind", ["sequential", "one cycle", "plateau"])
def test_schedules_go_on_when_groups_are_split(kind):
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    trained(net, optimizer, X)
    rates = torch.optim.lr_scheduler
    schedule = {
        "sequential": lambda: rates.SequentialLR(
            optimizer, [rates.LinearLR(optimizer, 0.5, 1.0, 3), rates.CosineAnnealingLR(optimizer, 9)], [4]
        ),
        "one cycle": lambda: rates.OneCycleLR(optimizer, 0.1, 20),
        "plateau": lambda: rates.ReduceLROnPlateau(optimizer, patience=0),
    }[kind]()
    first = optimizer.param_groups[0]["lr"]
    operate(net, optimizer, X, factor=2, init="net2net", follow_recipe=True, schedulers=[schedule])
    ratios = [group["lr"] / first for group in optimizer.param_groups]
    assert sorted(set(np.round(ratios, 9))) == [0.5, 1.0]
    for at in range(8):
        trained(net, optimizer, X, steps=1)
        schedule.step(*([1.0 + at] if kind == "plateau" else []))
        now = [group["lr"] for group in optimizer.param_groups]
        np.testing.assert_allclose(now, np.array(ratios) * now[ratios.index(1.0)])


FAULTS = {
    "while tensors are set": (operate_journal, "_set", 4),
    "while attributes are set": (operate_journal.Journal, "attribute", 2),
    "while state is set": (operate_journal.Journal, "item", 3),
    "while groups are split": (operate_groups, "_extend", 1),
    "while outputs are compared": (operate_outputs.Runner, "compare", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failure_everything_is_as_it_was(fault, monkeypatch):
    torch.manual_seed(0)
    net, target = (nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)) for _ in range(2))
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loss_of(net, X).backward()
    owners = (net, target, optimizer, schedule)
    before = everything(*owners)
    holder, name, at = FAULTS[fault]
    calls, original = [], getattr(holder, name)

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) == at:
            raise RuntimeError("injected")
        return original(*arguments, **keywords)

    monkeypatch.setattr(holder, name, failing)
    how = {"factor": 2, "init": "net2net", "also": [target], "schedulers": [schedule], "follow_recipe": True}
    with pytest.raises(RuntimeError, match="injected"):
        operate(net, optimizer, X, prove=False, **how)
    monkeypatch.undo()
    assert same(everything(*owners), before)
    trained(net, optimizer, X)


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


class Unseen(nn.Module):
    """Noise that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.fc.sigma = nn.Parameter(torch.full((6, 5), 0.1))

    def forward(self, x):
        weight = self.fc.weight + self.fc.sigma if self.training else self.fc.weight
        return self.head(torch.relu(F.linear(x, weight, self.fc.bias)))


class Lion(torch.optim.Optimizer):
    """An optimizer that nobody has heard of."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 1e-3})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["trend"] = torch.ones_like(parameter)


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


def on_two_devices() -> nn.Module:
    net = mlp()
    net[2].register_buffer("far", torch.zeros(3, device="meta"))
    return net


def quantised() -> nn.Module:
    net = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


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


REFUSALS = {
    "a weight that is computed": (pruned, lambda net: None, X, {"widths": {"0": 9}}, Refused, "undo that"),
    "one state for all": (mlp, lbfgs, X, {"widths": {"2": 9}}, Refused, "new LBFGS"),
    "quantised": (quantised, lambda net: None, X, {"widths": {"0": 9}}, Refused, "before the model is quantised"),
    "several devices": (on_two_devices, adam, X, {"widths": {"0": 9}}, Refused, "one device"),
    "a size in the code": (Hard, adam, FRAMES, {"widths": {"inner.conv": 9}}, Refused, "attributes="),
    "a module that branches": (Branching, adam, X, {"widths": {"fc": 9}}, GraphError, "torch.export"),
    "noise unseen": (Unseen, adam, X, {"widths": {"fc": 9}}, Refused, "training=True"),
    "no such space": (mlp, adam, X, {"widths": {"9": 9}}, UnknownName, "0"),
    "too narrow": (mlp, adam, X, {"widths": {"0": 3}}, ArgumentError, "narrower"),
    "others' optimizer": (mlp, lambda net: adam(mlp()), X, {"widths": {"0": 9}}, ArgumentError, "parameters()"),
    "no optimizer": (mlp, lambda net: "adam", X, {"widths": {"0": 9}}, ArgumentError, ""),
    "a class without rules": (mlp, lambda net: Lion(net.parameters()), X, {"widths": {"0": 9}}, Refused, "reset"),
    "sparse": (lambda: split(mlp()), lambda net: None, X, {"widths": {"0": 9}}, Refused, "dense"),
    "not a leaf": (lambda: computed(mlp()), lambda net: None, X, {"widths": {"0": 9}}, Refused, "owns"),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), adam, X, {"widths": {"0": 9}}, Refused,
        "remove",
    ),
    "data parallel": (lambda: nn.DataParallel(mlp()), adam, X, {"widths": {"0": 9}}, Refused, ".module"),
    "another companion": (mlp, adam, X, {"widths": {"0": 9}, "also": [nn.Linear(5, 3)]}, Refused, ""),
    "no numbers": (lambda: mlp().to("meta"), adam, X, {"widths": {"0": 9}}, Refused, ""),
    "wrong attribute": (mlp, adam, X, {"widths": {"0": 9}, "attributes": {"0.size": 1}}, UnknownName, ""),
    "two orders": (mlp, adam, X, {"widths": {"0": 9}, "plan": lambda c: None}, ArgumentError, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_follow_is_refused_in_words_and_nothing_changes(case):
    make, optimize, x, how, error, hint = REFUSALS[case]
    net = make()
    optimizer = optimize(net)
    if isinstance(optimizer, torch.optim.Optimizer) and net is not None and case == "a class without rules":
        optimizer.step()
    owners = [owner for owner in (net, optimizer) if isinstance(owner, nn.Module | torch.optim.Optimizer)]
    before = everything(*owners) if case not in ("no numbers", "sparse", "several devices") else None
    with pytest.raises(error) as caught:
        operate(net, optimizer, x, **how)
    assert isinstance(caught.value, SurgeryError)
    assert hint in (caught.value.hint or "") + caught.value.message
    assert before is None or same(everything(*owners), before)


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
    operate(net, optimizer, X, widths={"0" if make is strided else "first": 9})
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
        operate(net, None, FRAMES, widths={"inner.conv": 9})
    assert caught.value.where["module"] == "inner.fc (Linear)"
    operate(net, None, FRAMES, widths={"inner.conv": 9}, attributes={"flat": 225})
    torch.testing.assert_close(net(FRAMES), before)


def test_noise_of_training_follows_in_training_mode():
    net = Unseen()
    operate(net, adam(net), X, widths={"fc": 9}, training=True)
    assert net.fc.sigma.shape == (9, 5)
    net.train()(X)


def test_state_without_rules_is_dropped_on_request_and_reported():
    net = mlp()
    optimizer = Lion(net.parameters())
    optimizer.step()
    operation = operate(net, optimizer, X, widths={"0": 9}, reset_unknown=True)
    assert operation.not_carried == ("'trend' of Lion",)
    assert "not carried" in operation.describe()
    assert "trend" in optimizer.state[net[4].weight]
    assert "trend" not in optimizer.state[net[0].weight]


def test_parameters_of_other_networks_are_left_alone_and_counted():
    net, other = mlp(), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*net.parameters(), *other.parameters()])
    trained(net, optimizer, X)
    assert operate(net, optimizer, X, widths={"0": 9}).others == 2


def test_a_scaler_between_unscaling_and_update_is_refused():
    net, scaler = mlp(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = adam(net)
    scaler.scale(loss_of(net, X)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(ArgumentError, match="scaler"):
        operate(net, optimizer, X, widths={"0": 9}, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    operate(net, optimizer, X, widths={"0": 9}, scaler=scaler)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, X)).backward()
    scaler.step(optimizer)
    scaler.update()


def test_a_plan_for_another_network_does_not_fit():
    plan = surgery.widen(from_module(mlp(), example_inputs=X), widths={"0": 9})
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(PlanMismatch, match=r"0\.weight"):
        operate(net, adam(net), X, plan=plan)


def test_a_module_that_computes_otherwise_than_its_export_is_caught(monkeypatch):
    net = mlp()
    calls = []

    def outputs(self, grown=False):
        calls.append(grown)
        return {"y": net(X) + len(calls)}

    monkeypatch.setattr(operate_outputs.Runner, "outputs", outputs)
    before = everything(net)
    with pytest.raises(ClaimFailed, match="moves by"):
        operate(net, None, X, widths={"0": 9})
    assert same(everything(net), before)


WIDE = ["mobilenet", "groupnorm_cnn", "twin_critics"]


@pytest.mark.parametrize("name", WIDE)
def test_networks_of_the_zoo_grow_in_place(name):
    net = zoo.module(name).requires_grad_(True)
    inputs = tuple(torch.from_numpy(x) for x in zoo.sample(name, 3, np.random.default_rng(0)).values())
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-4, momentum=0.9)
    trained(net, optimizer, inputs, 2)
    net.eval()
    before = net(*inputs)
    operation = operate(net, optimizer, inputs, factor=2)
    torch.testing.assert_close(net(*inputs), before, rtol=2e-4, atol=2e-5)
    for path, (_, value) in operation.attributes.items():
        owner, _, attribute = path.rpartition(".")
        assert getattr(net.get_submodule(owner), attribute) == value
    trained(net, optimizer, inputs, 1)
