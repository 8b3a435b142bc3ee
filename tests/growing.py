"""Networks in the middle of their training, and their widened twins with state and optimizer, without a file.

small = grow("mlp", "adam", widths={"0": 7}, init="net2net")
train(small.net, small.old, ...)          the small network goes on
train(small.twin, small.new, ...)         the widened one does
small.distance()                          how far they are apart
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

import surgery
from surgery.edits.arithmetic import axis_maps, edit_weight
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.optimizer import SCALARS, OptimizerState, ParamGroup
from surgery.port_kinds import infer

Widths = Mapping[str, int]


def mlp(widths: Widths) -> nn.Module:
    a, b = widths.get("0", 6), widths.get("2", 5)
    return nn.Sequential(nn.Linear(4, a), nn.Tanh(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 1))


def normed(widths: Widths) -> nn.Module:
    a, b = widths.get("0", 6), widths.get("3", 5)
    return nn.Sequential(
        nn.Linear(4, a), nn.LayerNorm(a), nn.Tanh(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 1)
    )


def cnn(widths: Widths) -> nn.Module:
    a, b, c = widths.get("0", 3), widths.get("2", 2), widths.get("5", 4)
    return nn.Sequential(
        nn.Conv2d(2, a, 3), nn.ReLU(), nn.Conv2d(a, b, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9 * b, c), nn.Tanh(),
        nn.Linear(c, 2),
    )  # fmt: skip


class Recurrent(nn.Module):
    """An LSTM over three steps from a zero state."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        hidden = widths.get("lstm", 5)
        self.lstm, self.head = nn.LSTM(4, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


NETS: Mapping[str, tuple[Callable[[Widths], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)), "normed": (normed, (4,)), "cnn": (cnn, (2, 6, 6)), "lstm": (Recurrent, (3, 4)),
}  # fmt: skip

_NODES: Mapping[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.Linear: ("Gemm", {"transB": 1}),
    nn.Conv2d: ("Conv", {}),
    nn.LayerNorm: ("LayerNormalization", {"axis": -1}),
    nn.ReLU: ("Relu", {}),
    nn.Tanh: ("Tanh", {}),
    nn.Flatten: ("Flatten", {}),
}


def graph(net: nn.Module, shape: tuple[int, ...]) -> ModelProto:
    """The network in float64, with torch's parameter names."""
    nodes = _unrolled() if isinstance(net, Recurrent) else _chain(net)
    made = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("h0", TensorProto.DOUBLE, ["batch", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.DOUBLE, ["batch", None])],
        [
            *(numpy_helper.from_array(value.double().numpy(), name) for name, value in net.state_dict().items()),
            *(numpy_helper.from_array(np.array(k), f"at{k}") for k in range(3)),
        ],
    )  # fmt: skip
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _chain(net: nn.Module) -> list[NodeProto]:
    nodes = []
    for name, module in net.named_children():
        kind, attributes = _NODES[type(module)]
        weights = [f"{name}.{key}" for key, _ in module.named_parameters()]
        nodes.append(helper.make_node(kind, [f"h{name}", *weights], [f"h{int(name) + 1}"], **attributes))
    return nodes


def _unrolled() -> list[NodeProto]:
    nodes, make = [], helper.make_node
    for t in range(3):
        weights = ["lstm.weight_ih_l0", "lstm.bias_ih_l0"]
        nodes += [
            make("Gather", ["h0", f"at{t}"], [f"x{t}"], axis=1),
            make("Gemm", [f"x{t}", *weights], [f"a{t}"], transB=1),
        ]
        if t:
            weights = ["lstm.weight_hh_l0", "lstm.bias_hh_l0"]
            nodes += [make("Gemm", [f"s{t - 1}", *weights], [f"r{t}"], transB=1)]
        nodes += [
            make("Add", [f"a{t}", f"r{t}" if t else "lstm.bias_hh_l0"], [f"z{t}"]),
            make("Split", [f"z{t}"], [f"{gate}{t}z" for gate in "ifgo"], axis=1, num_outputs=4),
            *(make("Sigmoid" if gate != "g" else "Tanh", [f"{gate}{t}z"], [f"{gate}{t}"]) for gate in "ifgo"),
            make("Mul", [f"i{t}", f"g{t}"], [f"ig{t}"]),
        ]  # fmt: skip
        cell = f"ig{t}"
        if t:
            nodes += [
                make("Mul", [f"f{t}", f"c{t - 1}"], [f"fc{t}"]),
                make("Add", [f"fc{t}", cell], [f"c{t}"]),
            ]
        else:
            nodes += [make("Identity", [cell], ["c0"])]
        nodes += [make("Tanh", [f"c{t}"], [f"tc{t}"]), make("Mul", [f"o{t}", f"tc{t}"], [f"s{t}"])]
    return [*nodes, make("Gemm", ["s2", "head.weight", "head.bias"], ["y"], transB=1)]


class Derived(torch.optim.Adam):
    """An optimizer whose step calls that of its base class: PyTorch then runs the hooks around both."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        torch.optim.Adam([torch.zeros(1)])  # a class gets its hooks with its first optimizer
        super().__init__(parameters, **settings)

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    known = {
        "SGD",
        "AdamW",
        "Adamax",
        "Adam",
        "Adagrad",
        "RMSprop",
        "RMSpropTFLike",
        "RAdam",
        "NAdam",
        "Adadelta",
    }
    return (
        next(base.__name__ for base in type(optimizer).__mro__ if base.__name__ in known)
        .lower()
        .removesuffix("tflike")
    )


def checkpoint(
    net: nn.Module, shape: tuple[int, ...], optimizer: torch.optim.Optimizer
) -> surgery.Checkpoint:
    """The network and its optimizer's state, nothing rounded."""
    model = ir.from_proto(graph(net, shape))
    names = {weight: name for name, weight in net.named_parameters()}
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    for weight, state in optimizer.state.items():
        for slot, value in state.items():
            if isinstance(value, torch.Tensor) and slot not in SCALARS:
                slots.setdefault(slot, {})[names[weight]] = ir.tensor(value.double().numpy().copy())
    state = OptimizerState(kind_of(optimizer), slots, {}, (ParamGroup(tuple(names.values())),))
    return surgery.Checkpoint(model, infer(model), optimizer=state)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    *,
    clip: Callable[[], object] | None = None,
) -> list[float]:
    """Regression on random numbers: the same batches for the same seed."""
    generator, losses = torch.Generator().manual_seed(seed), []
    shape = next(
        shape
        for make, shape in NETS.values()
        if shape[0] == _inputs(net)[0] and len(shape) == _inputs(net)[1]
    )
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        batch = torch.randn(16, *shape, generator=generator, dtype=torch.float64).to(dtype)
        loss = (net(batch) - batch.flatten(1)[:, :1].abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            clip()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _inputs(net: nn.Module) -> tuple[int, int]:
    first = next(net.parameters())
    return (3, 2) if isinstance(net, Recurrent) else (first.shape[1], first.dim() - 1)


@dataclass
class Pair:
    """A small network with its optimizer, and its widened twin with another."""

    net: nn.Module
    old: torch.optim.Optimizer
    twin: nn.Module
    new: torch.optim.Optimizer
    plan: Plan

    def distance(self) -> float:
        """How far the widened network is from the widening of the small one: the worst tensor, relative."""
        layouts = {tensor.name: tensor.axes for tensor in self.plan.tensors}
        there, worst = dict(self.twin.named_parameters()), 0.0
        for name, weight in self.net.named_parameters():
            maps = axis_maps(layouts[name], self.plan.edits) if name in layouts else []
            wanted = edit_weight(weight.detach().numpy(), maps, "donor", np.random.default_rng(0))
            gap = np.linalg.norm(there[name].detach().numpy() - wanted)
            worst = max(worst, float(gap / np.linalg.norm(wanted)))
        return worst


def grow(
    name: str,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    before: int = 20,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    clip: float | None = None,
    **how: Any,
) -> Pair:
    """A network that was trained for a while, and its twin, widened as `surgery.widen` is told to."""
    make, shape = NETS[name]
    torch.manual_seed(seed)
    net = make({}).to(dtype)
    old = make_optimizer(net.parameters())
    train(net, old, before, seed=1, clip=clip and (lambda: nn.utils.clip_grad_norm_(net.parameters(), clip)))
    start = checkpoint(net, shape, old)
    plan = surgery.widen(start, **how)
    after = execute(plan, start, double=dtype == torch.float64)
    twin = make({edit.space: edit.after for edit in plan.spaces}).to(dtype)
    twin.load_state_dict({name: torch.tensor(t.numpy()) for name, t in after.tensors.items() if "." in name})
    new = make_optimizer(twin.parameters())
    assert after.optimizer is not None
    weights = dict(net.named_parameters())
    for key, weight in twin.named_parameters():
        state = {
            slot: torch.tensor(m[key].numpy()).to(dtype)
            for slot, m in after.optimizer.slots.items()
            if key in m
        }
        step = {slot: copy.deepcopy(v) for slot, v in old.state[weights[key]].items() if slot in SCALARS}
        if state or step:
            new.state[weight] = {**step, **state}
    return Pair(net, old, twin, new, plan)
