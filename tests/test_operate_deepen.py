"""New layers in a module that is being trained: in their place, in the optimizer, and with no bit changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import surgery
from surgery.errors import Refused
from surgery.torch import from_module, operate
from surgery.torch.live import layers as operate_layers
from surgery.torch.live import outputs as operate_outputs
from tests.live_models import Agent, everything, loss_of, same, wider


class Block(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.inner = nn.Linear(units, units)

    def forward(self, x):
        return x + self.inner(torch.tanh(x))


class Residual(nn.Module):
    """Blocks in a list, an activation that is one object for all, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.stem = nn.ReLU(), nn.Linear(5, 6)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.middle, self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.middle(x))
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return self.head(x)


class Steps(nn.Module):
    """A recurrent layer that starts at zero in every call, and a head on all steps or on the last."""

    def __init__(self, kind: type[nn.RNNBase], *, last: bool = False, **how: Any) -> None:
        super().__init__()
        self.memory, self.head, self.last = kind(5, 6, **how), nn.Linear(6, 3), last

    def forward(self, x):
        y, _ = self.memory(x)
        return self.head(y[:, -1] if self.last else y)


class Entities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.embed(x).mean(1))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def capped() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Hardtanh(0.0, 3.0), nn.Linear(7, 3, bias=False))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
FRAMES = torch.randn(4, 3, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SEQUENCES = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
ATTENTION = [f"{part}.{t}" for part in ("query", "key", "value") for t in ("weight", "bias")] + [
    "project.weight"
]
CELL = [f"cell.{t}_{side}_l0" for t in ("weight", "bias") for side in ("ih", "hh")] + ["project.weight"]


@dataclass(frozen=True)
class Row:
    """A module, the layer to deepen behind, and where the new tensors are then."""

    make: Callable[[], nn.Module]
    after: str
    new: list[str]
    how: dict[str, Any] = field(default_factory=dict)
    x: torch.Tensor = X


ROWS = {
    "in a sequence, in the place of its activation": Row(plain, "0", ["1.1.weight", "1.1.bias"]),
    "one behind the other": Row(plain, "2", ["3.1.weight", "3.1.bias", "3.3.weight", "3.3.bias"], {"count": 2}),
    "at the end of a sequence": Row(
        plain, "4", ["5.alpha", "5.fc1.weight", "5.fc1.bias", "5.fc2.weight", "5.fc2.bias"], {"kind": "rezero"}
    ),
    "a branch in a sequence": Row(
        plain, "0", [f"1.1.fc{k}.{t}" for k in (1, 2) for t in ("weight", "bias")], {"kind": "residual", "width": 9}
    ),
    "batch norms in a branch": Row(
        plain, "2",
        [f"3.1.{p}.{t}" for p in ("fc1", "bn1", "fc2", "bn2") for t in ("weight", "bias")]
        + [f"3.1.bn{k}.running_{t}" for k in (1, 2) for t in ("mean", "var")],
        {"kind": "batchnorm"},
    ),
    "before an activation in the code": Row(Agent, "fc", ["fc2.1.weight", "fc2.1.bias"], x=FRAMES),
    "a convolution before an activation in the code": Row(
        Agent, "conv2", ["conv3.1.weight", "conv3.1.bias"], {"kernel": 5}, FRAMES
    ),
    "before the only reader": Row(
        Agent, "conv1", [f"conv3.conv{k}.{t}" for k in (1, 2) for t in ("weight", "bias")], {"kind": "residual"}, FRAMES
    ),
    "behind a block of a list": Row(
        Residual, "blocks.0", [f"blocks.0.deeper.fc{k}.{t}" for k in (1, 2) for t in ("weight", "bias")]
    ),
    "an activation that is called elsewhere, too": Row(Residual, "middle", ["middle2.1.weight", "middle2.1.bias"],
                                                       {"kind": "identity"}),
    "behind a layer in the middle of a sequence": Row(
        capped, "0", [f"0.deeper.fc{k}.{t}" for k in (1, 2) for t in ("weight", "bias")]
    ),
    "attention over entities": Row(
        Entities, "embed", [f"embed.2.{name}" for name in ATTENTION], {"kind": "attention", "heads": 2}, SEQUENCES
    ),
    "two of attention": Row(
        Entities, "embed", [f"embed.{k}.{name}" for k in (2, 3) for name in ATTENTION],
        {"kind": "attention", "count": 2}, SEQUENCES,
    ),
    "a cell behind an LSTM, batch first": Row(
        lambda: Steps(nn.LSTM, batch_first=True, last=True), "memory", [f"memory2.{name}" for name in CELL],
        {"kind": "recurrent", "width": 4}, SEQUENCES,
    ),
    "two cells behind a GRU of two layers": Row(
        lambda: Steps(nn.GRU, num_layers=2), "memory", [f"memory2.{k}.{name}" for k in (0, 1) for name in CELL],
        {"kind": "recurrent", "count": 2}, SEQUENCES,
    ),
    "a branch behind an LSTM": Row(
        lambda: Steps(nn.LSTM), "memory", [f"memory2.fc{k}.{t}" for k in (1, 2) for t in ("weight", "bias")],
        {"kind": "residual"}, SEQUENCES,
    ),
}  # fmt: skip


def trained(net: nn.Module, x: torch.Tensor) -> torch.optim.Optimizer:
    """Two groups with their own rates; the last parameter is in the second."""
    *first, last = net.parameters()
    optimizer = torch.optim.Adam([{"params": first, "lr": 1e-2}, {"params": [last], "lr": 2e-2}])
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(net, x, seed).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def ready(row: Row) -> tuple[nn.Module, torch.Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net, x = row.make().double(), row.x
    optimizer = trained(net, x)
    return net.eval(), x, optimizer


@pytest.mark.parametrize("name", ROWS)
def test_a_new_layer_changes_no_bit_and_learns(name):
    row = ROWS[name]
    net, x, optimizer = ready(row)
    target = copy.deepcopy(net).requires_grad_(False)
    before, old = net(x), dict(net.named_parameters())
    loss_of(net, x).backward()
    gradients = {key: p.grad.clone() for key, p in old.items()}
    optimizer.zero_grad()

    done = operate(net, optimizer, x, lambda c: surgery.deepen(c, row.after, **row.how), also=[target])

    now = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert set(done.layers.values()) == set(row.new) and set(row.new) <= set(now)
    assert all(now[key] is p for key, p in old.items()), "old parameters keep their names and identity"
    after, beside = net(x), target(x)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(beside, before, rtol=0, atol=0)
    loss_of(net, x).backward()
    for key, gradient in gradients.items():
        torch.testing.assert_close(old[key].grad, gradient, rtol=1e-12, atol=1e-14)
    assert not any(p.requires_grad for p in target.parameters())
    fresh = [now[key] for key in row.new if isinstance(now[key], nn.Parameter)]
    assert any(bool(p.grad.any()) for p in fresh), "something in the new layer learns at once"
    members = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert {id(p) for p in fresh} <= members[0]
    assert not any(p in optimizer.state for p in fresh)
    optimizer.step()
    assert {float(optimizer.state[p]["step"]) for p in fresh} == {1.0}
    assert {float(optimizer.state[p]["step"]) for p in old.values()} == {4.0}
    _survives(net, x)


def _survives(net: nn.Module, x: torch.Tensor) -> None:
    """Copied, saved and loaded again, it computes the same, and the copy has its own layers."""
    wanted = net(x)
    twin = copy.deepcopy(net)
    torch.testing.assert_close(twin(x), wanted)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), wanted)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    torch.testing.assert_close(net(x), wanted)


def test_parameters_join_the_group_of_the_layer_before_them():
    net, x, optimizer = ready(ROWS["at the end of a sequence"])
    first = optimizer.param_groups[0]
    first["params"] = [p for p in first["params"] if p is not net[4].weight]
    optimizer.add_param_group({"params": [net[4].weight], "lr": 5.0})
    operate(net, optimizer, x, lambda c: surgery.deepen(c, "4", kind="residual"))
    assert {id(p) for p in net[5].parameters()} <= {id(p) for p in optimizer.param_groups[2]["params"]}


@pytest.mark.parametrize("whole", [True, False])
def test_layers_behind_a_frozen_one_are_frozen_and_named(whole):
    net = plain().to(X.dtype)
    net[0].requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters() if whole else net[2:].parameters())
    done = operate(net, optimizer, X, lambda c: surgery.deepen(c, ["0", "2"], kind="residual"))
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad} - {"0.weight", "0.bias"}
    assert len(frozen) == 4 and set(done.untrained) == frozen
    assert f"not trained, like the layer before: {done.untrained[0]}" in done.describe()


def test_the_state_fits_an_optimizer_of_the_same_class_with_the_layer_written_in():
    """PyTorch numbers state by place, and compares no shapes: the places are those of the module's parameters."""
    other, net = nn.Linear(5, 5, bias=False, dtype=X.dtype), plain().to(X.dtype)
    optimizer = torch.optim.Adam([*other.parameters(), *net.parameters()])
    loss_of(net, X).backward()
    optimizer.step()
    operate(net, optimizer, X, lambda c: surgery.deepen(c, "0"))
    again = [*other.parameters(), *net.parameters()]
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, again))
    fresh = torch.optim.Adam(again)
    fresh.load_state_dict(optimizer.state_dict())
    assert {p: s["exp_avg"].shape for p, s in fresh.state.items()} == {p: p.shape for p in optimizer.state}


def test_what_networks_share_is_deepened_once():
    trunk = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    actor, critic = (nn.Sequential(trunk, nn.Linear(6, 3)) for _ in range(2))
    x = X.float()
    before = actor(x), critic(x)
    operate(actor, None, x, lambda c: surgery.deepen(c, "0.0"), also=[critic])
    assert len(trunk) == 4
    torch.testing.assert_close((actor(x), critic(x)), before, rtol=0, atol=0)


def test_a_deepened_module_is_operated_on_again():
    """Names in the module and in its next export agree, so that what was inserted can be widened."""
    net, x, optimizer = ready(ROWS["before an activation in the code"])
    before = net(x)
    operate(net, optimizer, x, lambda c: surgery.deepen(c, "fc"))
    loss_of(net, x).backward()
    optimizer.step()
    before = net(x)
    operate(net, optimizer, x, wider(widths={"fc2.1": 20}))
    assert net.fc2[1].out_features == net.policy.in_features == 20
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-12)
    assert set(from_module(net, example_inputs=x, optimizer=optimizer).optimizer.steps.values()) == {
        3.0,
        4.0,
        1.0,
    } - {3.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["in a sequence, in the place of its activation", "before an activation in the code"]
)
def test_a_compiled_module_is_compiled_once_more(name):
    torch._dynamo.reset()
    row = ROWS[name]
    net, x, optimizer = ready(row)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    before = compiled(x)
    operate(compiled, optimizer, x, lambda c: surgery.deepen(c, row.after))
    for _ in range(3):
        torch.testing.assert_close(compiled(x), before)
    assert counter.frame_count == 2
    with torch.no_grad():
        for p in list(net.parameters()):
            if id(p) in {id(q) for q in optimizer.param_groups[0]["params"][-2:]}:
                p.add_(0.1)
    torch.testing.assert_close(compiled(x), net(x))
    assert not torch.equal(net(x)[0], before[0])


class Several(nn.Module):
    """Code that takes the parts of a module otherwise than by calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc, self.head = nn.ReLU(), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.fc(x))
        return self.head(x) if isinstance(self.act, nn.ReLU) else self.head(torch.relu(self.fc(x[:, :5])))


REFUSALS = {
    "two readers in the code": (Agent, "fc", {"kind": "residual"}, "read by policy and value"),
    "a part that is called twice": (Residual, "shared", {"kind": "residual"}, "the layer before it 2 times"),
    "a recurrent state": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), "0", {"kind": "recurrent"}, "state"
    ),
    "code that looks at the part": (Several, "fc", {}, "does not compute what the plan says|cannot run"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_place_for_a_layer_is_refused_and_nothing_changes(case):
    make, after, how, words = REFUSALS[case]
    net, x, optimizer = ready(Row(make, after, [], x=FRAMES if make is Agent else X))
    before, modules = everything(net, optimizer), [id(m) for m in net.modules()]
    with pytest.raises(Refused, match=words) as caught:
        operate(net, optimizer, x, lambda c: surgery.deepen(c, after, **how))
    assert caught.value.hint
    assert same(everything(net, optimizer), before) and [id(m) for m in net.modules()] == modules


FAULTS = {
    "while layers are put in": (operate_layers.NewLayers, "_name", 1),
    "while the optimizer is told": (operate_layers.NewLayers, "join", 1),
    "while outputs are compared": (operate_outputs.Runner, "compare", 1),
}


@pytest.mark.parametrize("name", ["in a sequence, in the place of its activation", "before the only reader"])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failure_the_module_has_its_old_layers(fault, name, monkeypatch):
    holder, method, _ = FAULTS[fault]
    row = ROWS[name]
    net, x, optimizer = ready(row)
    before, wanted = everything(net, optimizer), net(x)
    shown = repr(net)

    def failing(*arguments, **keywords):
        raise RuntimeError("injected")

    monkeypatch.setattr(holder, method, failing)
    with pytest.raises(RuntimeError, match="injected"):
        operate(net, optimizer, x, lambda c: surgery.deepen(c, row.after, **row.how), prove=False)
    monkeypatch.undo()
    assert same(everything(net, optimizer), before) and repr(net) == shown
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=0)
