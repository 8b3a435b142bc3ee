"""The recipe of param groups: training commutes with widening, for every optimizer, and not without the recipe."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

import surgery
from surgery.cli import main
from surgery.edits.arithmetic import axis_maps, edit_slot, edit_weight
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.optimizer import SCALARS, OptimizerState, ParamGroup, power
from surgery.port_kinds import infer
from surgery.recipe import recipe
from tests.small_models import array, wrap

BEFORE, AFTER = 20, 80
"""Updates before and after the surgery."""
LIMIT = 1e-12

OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "sgd momentum decay": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "sgd nesterov": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.003, "eps": 1e-3}),
    "adam amsgrad decay": (torch.optim.Adam, {"lr": 0.003, "eps": 1e-3, "amsgrad": True, "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, {"lr": 0.003, "eps": 1e-3, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.003, "eps": 1e-3, "weight_decay": 0.05}),
    "adamax": (torch.optim.Adamax, {"lr": 0.003, "eps": 1e-3, "weight_decay": 0.05}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.002, "eps": 1e-2}),
    "rmsprop centered momentum decay": (
        torch.optim.RMSprop,
        {"lr": 0.001, "alpha": 0.95, "eps": 1e-2, "centered": True, "momentum": 0.5, "weight_decay": 0.02},
    ),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.02, "eps": 1e-2, "weight_decay": 0.01, "lr_decay": 0.01}),
}  # fmt: skip


class RootInside(torch.optim.RMSprop):
    """RMSProp as TensorFlow has it: ε inside the root."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                square = state.setdefault("square_avg", torch.zeros_like(weight))
                square.mul_(group["alpha"]).addcmul_(weight.grad, weight.grad, value=1 - group["alpha"])
                weight.addcdiv_(weight.grad, (square + group["eps"]).sqrt(), value=-group["lr"])


def mlp(widths: Mapping[str, int]) -> nn.Sequential:
    """A value head of one output, whose bias is a single number, and a normaliser."""
    first, second = widths.get("0", 6), widths.get("3", 5)
    return nn.Sequential(
        nn.Linear(4, first), nn.LayerNorm(first), nn.Tanh(), nn.Linear(first, second), nn.ReLU(),
        nn.Linear(second, 1),
    )  # fmt: skip


def cnn(widths: Mapping[str, int]) -> nn.Sequential:
    """Two convolutions, of which the second has a single channel, and a flatten."""
    first, dense = widths.get("0", 3), widths.get("5", 4)
    return nn.Sequential(
        nn.Conv2d(2, first, 3), nn.ReLU(), nn.Conv2d(first, 1, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(9, dense), nn.Tanh(), nn.Linear(dense, 2),
    )  # fmt: skip


def chain(widths: Mapping[str, int]) -> nn.Sequential:
    """A convolution read by a dense layer through the flatten."""
    return nn.Sequential(
        nn.Conv2d(2, widths.get("0", 2), 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * widths.get("0", 2), 2)
    )


NETS: Mapping[str, tuple[Callable[[Mapping[str, int]], nn.Sequential], tuple[int, ...], dict[str, int]]] = {
    "mlp": (mlp, (4,), {"0": 18, "3": 10}),
    "cnn": (cnn, (2, 6, 6), {"0": 6, "5": 12}),
    "chain": (chain, (2, 6, 6), {"0": 6}),
}
"""Network -> maker, shape of an observation, new widths: multiples of 2 and 3."""

_NODES: Mapping[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.Linear: ("Gemm", {"transB": 1}),
    nn.Conv2d: ("Conv", {}),
    nn.LayerNorm: ("LayerNormalization", {"axis": -1}),
    nn.ReLU: ("Relu", {}),
    nn.Tanh: ("Tanh", {}),
    nn.Flatten: ("Flatten", {}),
}


def exported(net: nn.Sequential, shape: tuple[int, ...]) -> ModelProto:
    """The graph of a chain of modules, in float64 and with torch's parameter names."""
    nodes: list[NodeProto] = []
    for name, module in net.named_children():
        kind, attributes = _NODES[type(module)]
        weights = [f"{name}.{key}" for key, _ in module.named_parameters()]
        nodes.append(helper.make_node(kind, [f"h{name}", *weights], [f"h{int(name) + 1}"], **attributes))
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("h0", TensorProto.DOUBLE, ["batch", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.DOUBLE, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in state.items()],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def checkpoint(
    net: nn.Sequential, shape: tuple[int, ...], optimizer: torch.optim.Optimizer
) -> surgery.Checkpoint:
    """The network and its optimizer's state, nothing rounded."""
    model = ir.from_proto(exported(net, shape))
    names = {weight: name for name, weight in net.named_parameters()}
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    for weight, state in optimizer.state.items():
        for slot, value in state.items():
            if isinstance(value, torch.Tensor) and slot not in SCALARS:
                slots.setdefault(slot, {})[names[weight]] = ir.tensor(value.numpy().copy())
    kind = next(name for name in ("sgd", "adamw", "nadam", "adamax", "adam", "adagrad", "rmsprop")
                if name in {base.__name__.lower() for base in type(optimizer).__mro__})  # fmt: skip
    groups = [
        ParamGroup(
            tuple(names[weight] for weight in group["params"]),
            {key: value for key, value in group.items() if key != "params"}
            | {"eps_inside_root": isinstance(optimizer, RootInside)},
        )
        for group in optimizer.param_groups
    ]
    return surgery.Checkpoint(model, infer(model), optimizer=OptimizerState(kind, slots, {}, tuple(groups)))


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], steps: int, seed: int
) -> None:
    """Regression on random numbers: the same batches for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randn(16, *shape, generator=generator, dtype=torch.float64)
        loss = (net(batch) - batch.flatten(1)[:, :1].abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def wide_twin(
    make: Callable[[Mapping[str, int]], nn.Sequential], widths: Mapping[str, int], after: surgery.Checkpoint
) -> nn.Sequential:
    """A module with the weights of a widened checkpoint."""
    twin = make(widths).double()
    twin.load_state_dict({name: torch.tensor(tensor.numpy()) for name, tensor in after.tensors.items()})
    return twin


def resumed(
    twin: nn.Sequential,
    old: torch.optim.Optimizer,
    after: OptimizerState,
    groups: list[tuple[tuple[str, ...], Any]],
) -> torch.optim.Optimizer:
    """An optimizer for the twin with the widened state, and the given groups of names and settings."""
    weights = dict(twin.named_parameters())
    steps = {key: value for state in old.state.values() for key, value in state.items() if key in SCALARS}
    hyper = [{**settings, "params": [weights[name] for name in names]} for names, settings in groups]
    for group in hyper:
        group.pop("eps_inside_root", None)
    optimizer = type(old)(hyper)
    for name, weight in weights.items():
        state = {
            slot: torch.tensor(members[name].numpy())
            for slot, members in after.slots.items()
            if name in members
        }
        optimizer.state[weight] = {**copy.deepcopy(steps), **state}
    return optimizer


def distance(plan: Plan, small: nn.Module, wide: nn.Module) -> float:
    """How far the widened network is from the widening of the small one: the worst tensor, relative."""
    layouts = {tensor.name: tensor.axes for tensor in plan.tensors}
    there, worst = dict(wide.named_parameters()), 0.0
    for name, weight in small.named_parameters():
        maps = axis_maps(layouts[name], plan.edits) if name in layouts else []
        wanted = edit_weight(weight.detach().numpy(), maps, "donor", np.random.default_rng(0))
        gap = np.linalg.norm(there[name].detach().numpy() - wanted)
        worst = max(worst, float(gap / np.linalg.norm(wanted)))
    return worst


def prepared(name: str, optimizer: str, seed: int = 0) -> tuple[Any, ...]:
    """A network in the middle of its training, and the plan that widens it."""
    make, shape, widths = NETS[name]
    torch.manual_seed(seed)
    net = make({}).double()
    kind, settings = OPTIMIZERS.get(optimizer, (RootInside, {"lr": 0.002, "alpha": 0.9, "eps": 1e-4}))
    old = kind(net.parameters(), **settings)
    train(net, old, shape, BEFORE, seed=1)
    before = checkpoint(net, shape, old)
    plan = surgery.widen(before, widths=widths, init="net2net")
    return make, shape, widths, net, old, before, plan


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "rmsprop, root inside"])
@pytest.mark.parametrize("name", NETS)
def test_training_commutes_with_widening_under_the_recipe_and_only_under_it(
    name: str, optimizer: str
) -> None:
    make, shape, widths, net, old, before, plan = prepared(name, optimizer)
    after = execute(plan, before)
    state = after.optimizer
    assert state is not None
    found = recipe(plan, state)
    assert found.exact
    assert len(found.groups) <= 5
    assert sorted(name for group in found.groups for name in group.parameters) == sorted(state.parameters)
    groups = {
        True: [(group.parameters, group.hyper) for group in found.groups],
        False: [(group.parameters, group.hyper) for group in state.groups],
    }
    twins = {}
    for follows in (True, False):
        twins[follows] = wide_twin(make, widths, after)
        assert distance(plan, net, twins[follows]) == 0
        train(twins[follows], resumed(twins[follows], old, state, groups[follows]), shape, AFTER, seed=2)
    train(net, old, shape, AFTER, seed=2)
    assert distance(plan, net, twins[True]) <= LIMIT
    assert distance(plan, net, twins[False]) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_state_commutes_too(optimizer: str) -> None:
    """After 80 more updates every slot of the widened network is still the edit of the small one's."""
    make, shape, widths, net, old, before, plan = prepared("mlp", optimizer)
    after = execute(plan, before)
    twin = wide_twin(make, widths, after)
    groups = [(group.parameters, group.hyper) for group in recipe(plan, after.optimizer).groups]
    new = resumed(twin, old, after.optimizer, groups)
    train(twin, new, shape, AFTER, seed=2)
    train(net, old, shape, AFTER, seed=2)
    layouts = {tensor.name: tensor.axes for tensor in plan.tensors}
    small, kind = dict(net.named_parameters()), before.optimizer.kind
    for name, weight in twin.named_parameters():
        for slot in before.optimizer.slots:
            edited = axis_maps(layouts[name], plan.edits) if name in layouts else []
            wanted = edit_slot(old.state[small[name]][slot].numpy(), edited, power(kind, slot))
            np.testing.assert_allclose(new.state[weight][slot].numpy(), wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("setting", ["lr", "eps", "weight_decay"])
def test_no_factor_of_the_recipe_can_be_left_out(setting: str) -> None:
    make, shape, widths, net, old, before, plan = prepared("mlp", "adamw")
    after = execute(plan, before)
    groups = [
        (group.parameters, {**group.hyper, setting: OPTIMIZERS["adamw"][1][setting]})
        for group in recipe(plan, after.optimizer).groups
    ]
    twin = wide_twin(make, widths, after)
    train(twin, resumed(twin, old, after.optimizer, groups), shape, AFTER, seed=2)
    train(net, old, shape, AFTER, seed=2)
    assert distance(plan, net, twin) > 1e-3


def test_factors_of_a_layer_that_grows_on_both_sides() -> None:
    """In numbers: the input three times as wide, the output twice."""
    *_, plan = prepared("mlp", "adam")
    rows = {
        "sgd": {
            "0.weight": (3, 1, 1),
            "3.weight": (2 / 3, 1, 1),
            "5.weight": (1 / 2, 1, 1),
            "5.bias": (1, 1, 1),
        },
        "adam": {"0.weight": (1, 1 / 3, 1), "3.weight": (1 / 3, 1 / 2, 1), "3.bias": (1, 1 / 2, 1)},
    }
    for kind, wanted in rows.items():
        factors = _factors(plan, kind, {"lr": 0.1, "eps": 1e-8 if kind == "adam" else None})
        for name, row in wanted.items():
            assert factors[name] == pytest.approx(row)


DECAYS = {
    "sgd": {"0.weight": 1 / 3, "3.weight": 3 / 2, "5.weight": 2.0, "5.bias": 1.0},
    "adam": {"0.weight": 1 / 3, "3.weight": 3 / 2, "5.weight": 2.0, "5.bias": 1.0},
    "adamw": {"0.weight": 1.0, "3.weight": 3.0, "5.weight": 2.0, "5.bias": 1.0},
}


@pytest.mark.parametrize("kind", DECAYS)
def test_weight_decay_is_scaled_so_that_the_shrinking_stays(kind: str) -> None:
    *_, plan = prepared("mlp", "adam")
    factors = _factors(plan, kind, {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.01})
    assert {name: factors[name][2] for name in DECAYS[kind]} == pytest.approx(DECAYS[kind])


def _factors(plan: Plan, kind: str, hyper: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    names = tuple(f"{layer}.{part}" for layer in (0, 1, 3, 5) for part in ("weight", "bias"))
    found = recipe(plan, OptimizerState(kind, {}, {}, (ParamGroup(names, hyper),)))
    assert found.exact
    return {name: (g.lr, g.eps, g.weight_decay) for g in found.groups for name in g.parameters}


def test_values_are_the_settings_times_the_factors() -> None:
    *_, plan = prepared("mlp", "adam")
    hyper = {
        "lr": 0.1,
        "initial_lr": 0.2,
        "eps": 1e-8,
        "betas": (0.9, 0.99),
        "eps_inside_root": True,
        "maximize": False,
    }
    found = recipe(plan, OptimizerState("adam", {}, {}, (ParamGroup(("3.weight",), hyper),)))
    (group,) = found.groups
    assert group.hyper == {**hyper, "lr": 0.1 / 3, "initial_lr": 0.2 / 3, "eps": 1e-8 / 4}


REFUSALS: Mapping[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "fresh units": ({"factor": 2, "init": "zero"}, "adam", {}, "new units of '0' learn"),
    "mixed counts": ({"widths": {"0": 7}, "init": "net2net"}, "adam", {}, "copies some units more often"),
    "unequal shares": ({"factor": 2, "init": "net2net", "shares": "unequal"}, "adam", {}, "unequal shares"),
    "noise": ({"factor": 2, "init": "net2net", "noise": 0.1}, "adam", {}, "noisy"),
    "no rule": ({"factor": 2, "init": "net2net"}, "radam", {}, "no rule for 'radam'"),
    "buffer of steps": (
        {"factor": 2, "init": "net2net"}, "rmsprop", {"momentum": 0.9, "buffer_holds_lr": True}, "whole steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_where_there_is_no_recipe_it_says_why(what: str) -> None:
    widening, kind, hyper, says = REFUSALS[what]
    torch.manual_seed(0)
    net = cnn({}).double()
    before = checkpoint(net, (2, 6, 6), torch.optim.SGD(net.parameters()))
    plan = surgery.widen(before, **widening)
    names = tuple(name for name, _ in net.named_parameters())
    groups = ParamGroup(names[:1], {"lr": 0.1}), ParamGroup(names[1:], {"lr": 0.1, **hyper})
    found = recipe(plan, OptimizerState(kind, {}, {}, groups))
    assert (found.exact, found.groups) == (False, ())
    assert says in (found.reason or "")
    assert says in found.describe()


def test_a_tensor_that_reads_two_spaces_along_one_axis_needs_more_than_a_group() -> None:
    """Of a concatenation only one part grows: its columns are shared out, the others are not."""
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight"], ["a"], transB=1),
        helper.make_node("Gemm", ["x", "b.weight"], ["b"], transB=1),
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Gemm", ["ab", "c.weight"], ["y"], transB=1),
    ]
    model = ir.from_proto(
        wrap(nodes, {"a.weight": array(3, 4), "b.weight": array(5, 4), "c.weight": array(2, 8)})
    )
    before = surgery.Checkpoint(model, infer(model))
    state = OptimizerState("adam", {}, {}, (ParamGroup(("a.weight", "b.weight", "c.weight"), {"lr": 0.1}),))
    alone = surgery.widen(before, widths={"a": 6}, init="net2net")
    assert "'c.weight' would need different settings" in (recipe(alone, state).reason or "")
    assert recipe(surgery.widen(before, widths={"a": 6, "b": 10}, init="net2net"), state).exact
    without = OptimizerState("adam", {}, {}, (ParamGroup(("a.weight", "b.weight"), {"lr": 0.1}),))
    assert recipe(alone, without).exact


def test_a_recipe_prints_and_serialises() -> None:
    *_, before, plan = prepared("cnn", "adamw")
    found = recipe(plan, before.optimizer)
    assert json.loads(json.dumps(found.to_json()))["groups"][0]["factors"].keys() == {
        "lr",
        "eps",
        "weight_decay",
    }
    assert len(found.describe().splitlines()) == len(found.groups)
    assert "lr 0.0015 · eps 0.001 · weight_decay 0.2: 2.weight" in found.describe()


def test_widen_gives_the_recipe_as_json(
    teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, state = (teachers / f"cartpole-dqn.{kind}" for kind in ("onnx", "pt"))
    assert main(["attach", str(agent), str(state), "-o", str(tmp_path / "a.onnx"), "-q"]) == 0
    for init, exact in (("net2net", True), ("zero", False)):
        words = ["--factor", "2", "--init", init, "-o", str(tmp_path / f"{init}.onnx"), "--json"]
        assert main(["widen", str(tmp_path / "a.onnx"), *words]) == 0
        found = json.loads(capsys.readouterr().out)["recipe"]
        assert found["exact"] == exact == bool(found["groups"]) == (found["reason"] is None)
    assert main(["widen", str(agent), "--factor", "2", "-o", str(tmp_path / "b.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] is None
