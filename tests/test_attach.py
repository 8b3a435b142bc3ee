"""Optimizer state is bound to the right names, for every optimizer and layout, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from surgery.adapters import find, installed
from surgery.attach import align, attach, bind
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.optimizer import momentum_product
from surgery.parameter_order import unique_order
from surgery.storage import load, save
from surgery.tensors import equal
from tests.small_models import mlp, write
from tests.test_pytorch_files import same


def _net() -> nn.Module:
    """The network of `small_models.mlp`, with its weights."""
    net = nn.Module()
    net.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in mlp().graph.initializer}
    net.load_state_dict(weights)
    return net


KINDS: Mapping[str, tuple[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd momentum": ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    "adam": ("adam", lambda p: torch.optim.Adam(p)),
    "adam decay": ("adam", lambda p: torch.optim.Adam(p, weight_decay=0.1)),
    "amsgrad": ("adam", lambda p: torch.optim.Adam(p, amsgrad=True)),
    "tensor lr": ("adam", lambda p: torch.optim.Adam(p, lr=torch.tensor(0.5), capturable=False)),
    "adamw": ("adamw", lambda p: torch.optim.AdamW(p)),
    "radam": ("radam", lambda p: torch.optim.RAdam(p)),
    "nadam": ("nadam", lambda p: torch.optim.NAdam(p)),
    "adamax": ("adamax", lambda p: torch.optim.Adamax(p)),
    "rmsprop": ("rmsprop", lambda p: torch.optim.RMSprop(p)),
    "rmsprop full": ("rmsprop", lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True)),
    "adagrad": ("adagrad", lambda p: torch.optim.Adagrad(p)),
    "adadelta": ("adadelta", lambda p: torch.optim.Adadelta(p)),
}


def trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer with state of several steps; the network's weights are left as they are."""
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    net.load_state_dict(kept)
    return optimizer


def check(state: object, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every slot and step that the optimizer has is bound to its parameter's name, bit for bit."""
    for name, parameter in net.named_parameters():
        for slot, value in optimizer.state[parameter].items():
            if slot == "step":
                assert state.steps[name] == float(value)
            elif slot == "mu_product":
                assert momentum_product(state.steps[name], state.group(name).hyper) == float(value)
            elif value is not None:
                assert same(state.slots[slot][name], value), (slot, name)


@pytest.fixture
def graph(tmp_path) -> Checkpoint:
    return load(write(mlp(), tmp_path / "graph.onnx"))


@pytest.mark.parametrize("what", KINDS)
def test_state_of_every_optimizer_is_bound_and_saved(tmp_path, graph, what):
    kind, make = KINDS[what]
    net = _net()
    optimizer = trained(net, make(net.parameters()))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    attached = attach(graph, tmp_path / "c.pt")
    save(attached, tmp_path / "out.onnx")
    again = load(tmp_path / "out.onnx")
    for found in (attached.optimizer, again.optimizer):
        assert found.kind == kind
        check(found, net, optimizer)
        assert found.parameters == tuple(name for name, _ in net.named_parameters())
        assert found.groups[0].hyper["lr"] == float(optimizer.param_groups[0]["lr"])
    assert again.lineage[-1].operation == "attach"
    assert again.lineage[-1].parents == (graph.digest(),)


LAYOUTS: Mapping[str, Callable[[dict, dict], dict]] = {
    "model": lambda model, optimizer: {"model": model, "optimizer": optimizer},
    "model and target": lambda model, optimizer: {
        "target": {k: v + 1 for k, v in model.items()},
        "model": model,
        "optimizer": optimizer,
    },
    "state dicts": lambda model, optimizer: {
        "model_state_dict": model,
        "optimizer_state_dict": optimizer,
        "iter": 3,
    },
    "lightning": lambda model, optimizer: {"state_dict": model, "optimizer_states": [optimizer], "epoch": 1},
    "nested": lambda model, optimizer: {"networks": {"actor": model}, "optimizers": {"actor": optimizer}},
    "prefix": lambda model, optimizer: {
        "model": {f"policy.{k}": v for k, v in model.items()},
        "optimizer": optimizer,
    },
    "parallel": lambda model, optimizer: {
        "model": {f"module.{k}": v for k, v in model.items()},
        "o": optimizer,
    },
    "compiled": lambda model, optimizer: {
        "model": {f"net._orig_mod.{k.removeprefix('net.')}": v for k, v in model.items()},
        "optimizer": optimizer,
    },
    "short names": lambda model, optimizer: {
        "model": {k.removeprefix("net."): v for k, v in model.items()},
        "optimizer": optimizer,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_common_layouts_and_prefixes_are_found(tmp_path, graph, layout):
    net = _net()
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    torch.save(LAYOUTS[layout](dict(net.state_dict()), optimizer.state_dict()), tmp_path / "c.pt")
    binding = bind(graph, tmp_path / "c.pt")
    check(binding.state, net, optimizer)
    assert not binding.dropped
    assert not binding.stateless


def test_groups_are_bound_by_shape_where_that_tells(tmp_path, graph):
    net = _net()
    weights = [p for p in net.parameters() if p.ndim == 2]
    biases = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = trained(net, torch.optim.AdamW(groups))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    state = bind(graph, tmp_path / "c.pt").state
    check(state, net, optimizer)
    assert [group.parameters for group in state.groups] == [
        ("net.0.weight", "net.2.weight"),
        ("net.0.bias", "net.2.bias"),
    ]
    assert [group.hyper["weight_decay"] for group in state.groups] == [0.1, 0.0]


def test_names_in_the_file_are_used_and_an_order_can_be_given(tmp_path, graph):
    net = _net()
    named = list(net.named_parameters())[::-1]
    for given, order in ((named, None), ([p for _, p in named], [name for name, _ in named])):
        optimizer = trained(net, torch.optim.Adam(given))
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
        for state in (
            bind(graph, tmp_path / "c.pt", order=order).state,
            attach(graph, tmp_path / "c.pt", order=order).optimizer,
        ):
            check(state, net, optimizer)
    with pytest.raises(ArgumentError, match="do not fit"):
        bind(graph, tmp_path / "c.pt")
    with pytest.raises(ArgumentError, match="order gives 1 names"):
        bind(graph, tmp_path / "c.pt", order=["net.0.bias"])


def test_buffers_and_second_names_are_no_parameters(tmp_path, graph):
    net = _net()
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    weights = net.state_dict()
    model = {
        "norm.running_mean": torch.ones(8),
        "alias": weights["net.0.weight"],
        "count": torch.tensor(3),
        **weights,
    }
    # The first name of a shared tensor is the one that the optimizer's order is about.
    model = {"norm.running_mean": model.pop("norm.running_mean"), **weights, **model}
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    check(bind(graph, tmp_path / "c.pt").state, net, optimizer)


def test_what_only_one_side_has_is_reported(tmp_path, graph):
    net = _net()
    net.critic = nn.Linear(8, 1)
    net.net[2].bias.requires_grad_(False)
    optimizer = trained(net, torch.optim.Adam(p for p in net.parameters() if p.requires_grad))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    binding = bind(graph, tmp_path / "c.pt")
    assert binding.dropped == ("critic.weight", "critic.bias")
    assert binding.stateless == ("net.2.bias",)
    assert attach(graph, tmp_path / "c.pt").lineage[-1].summary["dropped"] == binding.dropped


def test_one_optimizer_for_two_networks_is_bound(tmp_path, graph):
    policy, value = _net(), nn.Linear(8, 1)
    both = nn.ModuleList([policy, value])
    optimizer = trained(both, torch.optim.Adam(both.parameters()))
    content = {
        "policy": policy.state_dict(),
        "value": value.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "c.pt")
    binding = bind(graph, tmp_path / "c.pt")
    check(binding.state, policy, optimizer)
    assert binding.dropped == ("value.weight", "value.bias")


def test_one_of_two_optimizers_is_chosen_by_name(tmp_path, graph):
    nets = {"actor": _net(), "critic": _net()}
    with torch.no_grad():
        nets["critic"].net[0].bias += 1
    optimizers = {name: trained(net, torch.optim.Adam(net.parameters())) for name, net in nets.items()}
    content = {name: net.state_dict() for name, net in nets.items()}
    content |= {f"{name}_optimizer": optimizer.state_dict() for name, optimizer in optimizers.items()}
    torch.save(content, tmp_path / "c.pt")
    binding = bind(graph, tmp_path / "c.pt")
    assert (binding.network, binding.optimizer) == ("actor", "actor_optimizer")
    assert bind(graph, tmp_path / "c.pt", optimizer="critic_optimizer").optimizer == "critic_optimizer"
    for wrong in ({"network": "actr"}, {"optimizer": "actor_optimiser"}):
        with pytest.raises(UnknownName, match=r"actr|actor_optimiser"):
            bind(graph, tmp_path / "c.pt", **wrong)
    with pytest.raises(ArgumentError, match=r"not those of 'critic'.*net\.0\.bias"):
        bind(graph, tmp_path / "c.pt", network="critic")


def _file(tmp_path: Path, change: Callable[[dict, dict], dict]) -> Path:
    net = _net()
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    torch.save(change(dict(net.state_dict()), optimizer.state_dict()), tmp_path / "c.pt")
    return tmp_path / "c.pt"


def _without(key: str) -> Callable[[dict, dict], dict]:
    def change(model: dict, optimizer: dict) -> dict:
        for group in optimizer["param_groups"]:
            del group[key]
            group["weight_decay"] = 0.1
        return {"model": model, "optimizer": optimizer}

    return change


def _wrong_slot(model: dict, optimizer: dict) -> dict:
    optimizer["state"][0]["exp_avg_sq"] = torch.ones(3)
    return {"model": model, "optimizer": optimizer}


MISMATCHES = {
    "no optimizer state": (lambda model, optimizer: model, ArgumentError),
    "no parameter of the graph": (
        lambda model, optimizer: {"m": {"q": torch.ones(1)}, "o": optimizer},
        ArgumentError,
    ),
    "weights are not those": (
        lambda model, optimizer: {"m": {k: v + 1 for k, v in model.items()}, "o": optimizer},
        ArgumentError,
    ),
    "several optimizers": (
        lambda model, optimizer: {"m": model, "a": optimizer, "b": optimizer},
        ArgumentError,
    ),
    "the exp_avg_sq of": (_wrong_slot, ArgumentError),
    "Adam's or AdamW's": (_without("decoupled_weight_decay"), Refused),
    "do not fit": (
        lambda model, optimizer: {
            "m": model,
            "o": optimizer | {"param_groups": [optimizer["param_groups"][0] | {"params": [3, 2, 1, 0]}]},
        },
        ArgumentError,
    ),
}


@pytest.mark.parametrize("says", MISMATCHES)
def test_files_that_do_not_belong_together_are_refused(tmp_path, graph, says):
    change, error = MISMATCHES[says]
    path = _file(tmp_path, change)
    with pytest.raises(error, match=says) as caught:
        bind(graph, path)
    assert "c.pt" in str(caught.value.where.get("checkpoint", "c.pt"))


def test_the_kind_can_be_said_where_the_file_does_not(tmp_path, graph):
    path = _file(tmp_path, _without("decoupled_weight_decay"))
    assert bind(graph, path, kind="adamw").state.kind == "adamw"
    assert attach(graph, path, kind="adamw").optimizer.kind == "adamw"


def test_optimizers_without_a_rule_are_refused(tmp_path, graph):
    for make in (torch.optim.Rprop, torch.optim.ASGD):
        net = _net()
        optimizer = trained(net, make(net.parameters()))
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
        with pytest.raises(Refused, match="no rule"):
            bind(graph, tmp_path / "c.pt")


def test_trained_agents_get_their_optimizer_back(teachers, tmp_path):
    for name, kind in (("cartpole-dqn", "adam"), ("minatar-breakout-dqn", "rmsprop")):
        attached = attach(load(teachers / f"{name}.onnx"), teachers / f"{name}.pt")
        theirs = torch.load(teachers / f"{name}.pt", weights_only=True)
        assert attached.optimizer.kind == kind
        for number, parameter in enumerate(theirs["model"]):
            for slot, value in theirs["optimizer"]["state"][number].items():
                if slot != "step":
                    assert same(attached.optimizer.slots[slot][parameter], value)


ORDERS = {
    "one group": ([[(2,), (3,)]], [(2,), (3,)], [[0, 1]]),
    "unknown shapes": ([[None, None]], [(2,), (3,)], [[0, 1]]),
    "left over": ([[(3,)]], [(2,), (3,)], [[1]]),
    "two groups": ([[(3,)], [(2,)]], [(2,), (3,)], [[1], [0]]),
    "interleaved": ([[(2, 2), (2, 2)], [(2,), (2,)]], [(2, 2), (2,), (2, 2), (2,)], [[0, 2], [1, 3]]),
    "wrong order": ([[(3,), (2,)]], [(2,), (3,)], None),
    "too many": ([[(3,), (2,)]], [(2,)], None),
    "nothing": ([[]], [(2,)], [[]]),
}


@pytest.mark.parametrize("what", ORDERS)
def test_an_order_is_found_if_there_is_one(what):
    groups, shapes, wanted = ORDERS[what]
    assert unique_order(groups, shapes) == wanted


AMBIGUOUS = {
    "left over of one shape": ([[(2,)]], [(2,), (2,)]),
    "groups of one shape": ([[(2,)], [(2,)]], [(2,), (2,)]),
    "unknown shapes": ([[None], [None]], [(2,), (3,)]),
    "very many groups": ([[None]] * 40, [(2,)] * 40),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_an_order_that_is_not_the_only_one_is_refused(what):
    with pytest.raises(Refused, match=r"more than one order|too many") as caught:
        unique_order(*AMBIGUOUS[what])
    assert "order=" in (caught.value.hint or "")


def test_a_thousand_parameters_are_ordered():
    shapes = [(n % 7,) for n in range(2000)]
    assert unique_order([shapes], shapes) == [list(range(2000))]


def test_names_are_aligned_by_one_prefix():
    assert align(["a.w", "a.b"], ["x.a.w", "x.a.b", "y.a.w"]) == {"a.w": "x.a.w", "a.b": "x.a.b"}
    assert align(["m.a.w"], ["a.w"]) == {"m.a.w": "a.w"}
    assert align(["w"], ["b"]) == {}


def test_the_adapter_is_found_by_its_entry_point(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "c.anything")
    assert "pytorch" in installed()
    assert find(tmp_path / "c.anything")[0] == "pytorch"


def _model_of(tensor: torch.Tensor) -> ModelProto:
    model = mlp()
    model.graph.initializer.append(ir.to_proto(ir.tensor(tensor.contiguous().numpy(), name="conv.weight")))
    return model


def test_state_in_another_memory_layout_is_bound(tmp_path):
    net = nn.Module()
    net.conv = nn.Conv2d(3, 4, 2, bias=False).to(memory_format=torch.channels_last)
    graph = load(write(_model_of(net.conv.weight.detach()), tmp_path / "g.onnx"))
    optimizer = torch.optim.Adam(net.parameters())
    net.conv.weight.grad = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    before = net.conv.weight.detach().clone()
    optimizer.step()
    with torch.no_grad():
        net.conv.weight.copy_(before)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    attached = attach(graph, tmp_path / "c.pt")
    check(attached.optimizer, net, optimizer)
    save(attached, tmp_path / "out.onnx")
    again = load(tmp_path / "out.onnx").optimizer
    for slot in ("exp_avg", "exp_avg_sq"):
        assert equal(again.slots[slot]["conv.weight"], attached.optimizer.slots[slot]["conv.weight"])
