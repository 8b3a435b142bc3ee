"""What the tests of live surgery share: a small network, its training, a picture of everything that could change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import surgery

FRAMES = torch.randn(4, 3, 11, 11, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


X = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))


class Agent(nn.Module):
    """A small actor-critic on images: activations in the code, sizes taken from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, 3)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8 * 9, 12)
        self.policy, self.value = nn.Linear(12, 4), nn.Linear(12, 1)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.norm(self.conv2(F.relu(self.conv1(frames)))))
        x = F.relu(self.fc(x.flatten(1)))
        return self.policy(x), self.value(x)


def wider(**how: Any) -> Callable[[surgery.Checkpoint], surgery.Plan]:
    return lambda checkpoint: surgery.widen(checkpoint, **how)


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
