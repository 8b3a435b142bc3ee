"""Agents as they are exported for use: what chooses, draws, squashes or counts actions is part of the graph.

Each row is a network of a few units, exported by PyTorch's own exporters; `mlagents` is laid out as ML-Agents does it
(names of inputs and outputs, constants beside the actions, masks with -1e8), `sb3` as the documentation of
Stable-Baselines3 shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.zoo import quiet

BATCH = 3
Answer = Callable[..., object]


@dataclass(frozen=True)
class Row:
    """A network with one hidden layer or two, and what its graph does with their results.

    Attributes:
      outputs: their names. answer: (network, its inputs) -> what is exported.
      heads: sizes by name. inputs: the widths of the inputs by name.
    """

    outputs: tuple[str, ...]
    answer: Answer
    heads: Mapping[str, int]
    inputs: Mapping[str, int]


class Net(nn.Module):
    """A body and its heads, each called as the row says."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        torch.manual_seed(1)
        first = next(iter(row.inputs.values()))
        self.body = nn.Sequential(nn.Linear(first, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(6, size) for name, size in row.heads.items()})
        self.log_std = nn.Parameter(torch.tensor([-0.5, -0.25]))
        self.register_buffer("mean", 0.1 * torch.arange(first, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor([2.0, 3.0]))
        self.register_buffer("version_number", torch.tensor([3.0]))
        self.register_buffer("memory_size", torch.tensor([0.0]))
        self.register_buffer("branches", torch.tensor([[3.0, 2.0]]))
        self.answer = row.answer

    def head(self, name: str, x: Tensor) -> Tensor:
        made: Tensor = self.heads[name](self.body(x))
        return made

    def forward(self, *inputs: Tensor) -> object:
        return self.answer(self, *inputs)


def _values(net: Net, x: Tensor) -> object:
    q = net.head("q", x)
    return q, q.argmax(1)


def _chosen(net: Net, x: Tensor) -> object:
    return net.head("q", (x - net.mean) / 1.5).argmax(-1)


def _best(net: Net, x: Tensor) -> object:
    q = net.head("q", x)
    best = q.argmax(-1, keepdim=True)
    return q, best, q.gather(-1, best)


def _worth(net: Net, x: Tensor) -> object:
    q = net.head("q", x)
    return q, q.amax(1)


def _behind_the_best(net: Net, x: Tensor) -> object:
    """Dueling as Wang et al. 2016 have it first: by the largest advantage, not by their mean."""
    advantages = net.head("a", x)
    return net.head("v", x) + advantages - advantages.max(1, keepdim=True).values


def _top(net: Net, x: Tensor) -> object:
    value, best = net.head("q", x).topk(1, -1)
    return value, best.squeeze(-1)


def _dueling(net: Net, x: Tensor) -> object:
    a = net.head("a", x)
    q = net.head("v", x) + a - a.mean(-1, keepdim=True)
    return q, q.argmax(-1)


def _policy(net: Net, x: Tensor) -> object:
    logits = net.head("pi", x)
    return logits, torch.softmax(logits, -1), net.head("v", x)


def _probable(net: Net, x: Tensor) -> object:
    return torch.softmax(net.head("pi", x), -1)


def _sb3(net: Net, x: Tensor) -> object:
    logits = net.head("pi", x)
    logits = logits - logits.logsumexp(dim=-1, keepdim=True)
    actions = torch.softmax(logits, -1).argmax(dim=1)
    return actions, net.head("v", x), logits.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)


def _entropy(net: Net, x: Tensor) -> object:
    logits = net.head("pi", x)
    likely = torch.log_softmax(logits, -1)
    return logits, -(likely.exp() * likely).sum(-1)


def _drawn(net: Net, x: Tensor) -> object:
    logits = net.head("pi", x)
    return logits, torch.multinomial(torch.softmax(logits, -1), 1)


def _masked(net: Net, x: Tensor, mask: Tensor) -> object:
    logits = torch.where(mask > 0, net.head("pi", x), torch.full((), -1e8))
    return logits, logits.argmax(-1)


def _gaussian(net: Net, x: Tensor) -> object:
    mean = net.head("mean", x)
    drawn = mean + torch.randn_like(mean) * net.log_std.exp()
    return torch.tanh(drawn) * net.scale, torch.clamp(mean, -3, 3) / 3


def _branch(logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.softmax(logits * allowed - 1e8 * (1 - allowed), -1)
    return torch.multinomial(scores, 1), scores.argmax(1, keepdim=True)


def _mlagents(net: Net, x: Tensor, masks: Tensor) -> object:
    first = _branch(net.head("branches_0", x), masks[:, :3])
    second = _branch(net.head("branches_1", x), masks[:, 3:])
    drawn, best = (torch.cat(pair, 1) for pair in zip(first, second, strict=True))
    return net.version_number, net.memory_size, drawn, net.branches, best


OBS = {"obs": 5}
ROWS: Mapping[str, Row] = {
    "values": Row(("q_values", "action"), _values, {"q": 3}, OBS),
    "chosen": Row(("action",), _chosen, {"q": 3}, OBS),
    "best": Row(("q_values", "action", "best"), _best, {"q": 3}, OBS),
    "worth": Row(("q_values", "value"), _worth, {"q": 3}, OBS),
    "behind": Row(("q_values",), _behind_the_best, {"v": 1, "a": 3}, OBS),
    "top": Row(("best", "action"), _top, {"q": 3}, OBS),
    "dueling": Row(("q_values", "action"), _dueling, {"a": 3, "v": 1}, OBS),
    "policy": Row(("logits", "probs", "value"), _policy, {"pi": 3, "v": 1}, OBS),
    "probable": Row(("policy",), _probable, {"pi": 3}, OBS),
    "sb3": Row(("actions", "values", "log_prob"), _sb3, {"pi": 3, "v": 1}, OBS),
    "entropy": Row(("logits", "entropy"), _entropy, {"pi": 3}, OBS),
    "drawn": Row(("logits", "action"), _drawn, {"pi": 3}, OBS),
    "masked": Row(("logits", "action"), _masked, {"pi": 3}, OBS | {"action_mask": 3}),
    "gaussian": Row(("continuous_actions", "deterministic"), _gaussian, {"mean": 2}, OBS),
    "mlagents": Row(
        ("version_number", "memory_size", "discrete_actions", "discrete_action_output_shape",
         "deterministic_discrete_actions"),
        _mlagents, {"branches_0": 3, "branches_1": 2}, {"obs_0": 5, "action_masks": 5},
    ),
}  # fmt: skip
STYLES = ("torchscript", "dynamo")
CASES = [(name, style) for name in ROWS for style in STYLES if (name, style) != ("mlagents", "dynamo")]
"""ML-Agents exports by tracing; what PyTorch's newer exporter makes of constant outputs is no file of anyone's."""


def export(name: str, style: str, folder: Path) -> Path:
    """The file of a row."""
    row, path = ROWS[name], folder / f"{name}-{style}.onnx"
    if path.exists():
        return path
    net, example = Net(row).eval(), tuple(torch.ones(BATCH, width) for width in row.inputs.values())
    names = {"input_names": list(row.inputs), "output_names": list(row.outputs)}
    with quiet():
        if style == "torchscript":
            free = {name: {0: "batch"} for name in row.inputs}
            torch.onnx.export(net, example, path, **names, dynamic_axes=free, opset_version=17, dynamo=False)  # type: ignore[arg-type]
        else:
            free = (tuple({0: torch.export.Dim("batch")} for _ in example),)
            torch.onnx.export(  # type: ignore[call-overload]
                net,
                example,
                path,
                **names,
                dynamic_shapes=free,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    return path
