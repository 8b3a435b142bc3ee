"""What the benchmarks of training share: two trained DQN agents, their environments, and training that goes on.

The agents are those of examples/teachers; whatever is compared starts from their weights, target networks and real
optimizer state. Every run with the same seed sees the same initial replay, environment seeds and minibatch order.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import minatar
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

import surgery
from surgery.optimizer import OptimizerState

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"


class CartPole:
    """CartPole-v1: four numbers, two actions, at most 500 steps."""

    limit = 500

    def __init__(self, seed: int) -> None:
        self._env = gymnasium.make("CartPole-v1", max_episode_steps=self.limit)
        self._seed: int | None = seed

    def reset(self) -> np.ndarray:
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None
        return observation

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return observation, float(reward), terminated, truncated


class Breakout:
    """MinAtar Breakout: 4×10×10, three actions, sticky actions 0.1; cut off after 1,000 steps."""

    limit = 1000

    def __init__(self, seed: int) -> None:
        self._env = minatar.Environment("breakout", sticky_action_prob=0.1)
        self._env.seed(seed)

    def reset(self) -> np.ndarray:
        self._env.reset()
        self._steps = 0
        return self._observation()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        reward, terminated = self._env.act((0, 1, 3)[action])
        self._steps += 1
        return self._observation(), float(reward), bool(terminated), self._steps >= self.limit

    def _observation(self) -> np.ndarray:
        return np.ascontiguousarray(self._env.state().transpose(2, 0, 1), np.float32)


@dataclass(frozen=True)
class Task:
    """An agent, its environment, and how it was trained."""

    name: str
    agent: str
    env: Callable[[int], CartPole | Breakout]
    network: Callable[[Mapping[str, int]], nn.Module]
    batch: int
    target_every: int
    episodes: int


def _mlp(widths: Mapping[str, int]) -> nn.Module:
    a, b = widths.get("network.0", 120), widths.get("network.2", 84)
    net = nn.Module()
    net.network = nn.Sequential(nn.Linear(4, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2))
    return net


def _cnn(widths: Mapping[str, int]) -> nn.Module:
    a, b = widths.get("network.0", 16), widths.get("network.3", 128)
    net = nn.Module()
    net.network = nn.Sequential(
        nn.Conv2d(4, a, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * a, b), nn.ReLU(), nn.Linear(b, 3)
    )
    return net


TASKS = {
    "cartpole": Task("cartpole", "cartpole-dqn", CartPole, _mlp, 128, 250, 10),
    "minatar": Task("minatar", "minatar-breakout-dqn", Breakout, _cnn, 64, 250, 20),
}


@dataclass(frozen=True)
class Agent:
    """A network, its target, and what its optimizer remembers."""

    online: surgery.Checkpoint
    target: surgery.Checkpoint

    @staticmethod
    def load(task: Task) -> Agent:
        path = TEACHERS / f"{task.agent}.onnx"
        online = surgery.attach(surgery.load(path), path.with_suffix(".pt"))
        weights = torch.load(path.with_suffix(".pt"), weights_only=True)["target"]
        model = online.model.clone()
        for name, value in model.graph.initializers.items():
            if name in weights:
                value.const_value = ir.tensor(weights[name].numpy(), name=name)
        return Agent(online, online.replace(model=model, optimizer=None))

    def apply(self, plan: surgery.Plan) -> Agent:
        """The same plan on both networks; the online one is proved."""
        online, target = surgery.apply(plan, self.online), surgery.apply(plan, self.target, verify=False)
        return Agent(online.checkpoint, target.checkpoint)


def network(task: Task, checkpoint: surgery.Checkpoint) -> nn.Module:
    """The module with the weights of a checkpoint, of whatever widths."""
    tensors = {
        name: torch.tensor(t.numpy()) for name, t in checkpoint.tensors.items() if name.startswith("network.")
    }
    widths = {
        name.removesuffix(".bias"): len(value) for name, value in tensors.items() if name.endswith(".bias")
    }
    net = task.network(widths)
    net.load_state_dict(tensors)
    return net


def optimizer_of(
    net: nn.Module,
    kind: Callable[..., torch.optim.Optimizer],
    state: OptimizerState | None,
    **settings: object,
) -> torch.optim.Optimizer:
    """An optimizer with the state of a checkpoint, or a fresh one; its groups are those of the state."""
    weights = dict(net.named_parameters())
    if state is None:
        return kind(list(weights.values()), **settings)
    known = ("lr", "betas", "eps", "alpha", "momentum", "centered", "weight_decay", "amsgrad")
    groups = [
        {
            **{k: v for k, v in group.hyper.items() if k in known},
            "params": [weights[n] for n in group.parameters],
        }
        for group in state.groups
    ]
    made = kind(groups, **settings)
    for name, weight in weights.items():
        slots = {slot: torch.tensor(m[name].numpy()) for slot, m in state.slots.items() if name in m}
        if slots:
            made.state[weight] = {"step": torch.tensor(float(state.steps[name])), **slots}
    return made


class Replay:
    """Transitions in a ring."""

    def __init__(self, capacity: int, shape: Sequence[int]) -> None:
        self._arrays = [np.zeros((capacity, *s), d) for s, d in (
            (shape, "f4"), ((), "i8"), ((), "f4"), (shape, "f4"), ((), "f4"))]  # fmt: skip
        self.size = self._next = 0

    def add(self, *transition: object) -> None:
        for array, value in zip(self._arrays, transition, strict=True):
            array[self._next] = value
        capacity = len(self._arrays[0])
        self._next, self.size = (self._next + 1) % capacity, min(self.size + 1, capacity)

    def sample(self, count: int, rng: np.random.Generator) -> list[Tensor]:
        rows = rng.integers(0, self.size, count)
        return [torch.as_tensor(array[rows]) for array in self._arrays]


def q_values(net: nn.Module, observation: Tensor) -> Tensor:
    return net.network(observation)


def td_loss(net: nn.Module, target: nn.Module, batch: Sequence[Tensor], gamma: float = 0.99) -> Tensor:
    """The squared TD error of DQN."""
    observation, action, reward, following, done = batch
    with torch.no_grad():
        goal = reward + gamma * (1 - done) * q_values(target, following).max(1).values
    chosen = q_values(net, observation).gather(1, action[:, None]).squeeze(1)
    return (chosen - goal).square().mean()


class Actor:
    """Plays ε-greedily and fills a replay."""

    def __init__(self, task: Task, replay: Replay, seed: int, epsilon: float) -> None:
        self._env, self._replay, self._rng = task.env(seed), replay, np.random.default_rng(seed)
        self._epsilon, self._observation = epsilon, self._env.reset()

    @torch.no_grad()
    def step(self, net: nn.Module) -> None:
        values = q_values(net, torch.as_tensor(self._observation)[None])
        action = int(values.argmax())
        if self._rng.random() < self._epsilon:
            action = int(self._rng.integers(values.shape[1]))
        following, reward, terminated, truncated = self._env.step(action)
        self._replay.add(self._observation, action, reward, following, terminated)
        self._observation = self._env.reset() if terminated or truncated else following


@torch.no_grad()
def evaluate(task: Task, net: nn.Module, seed: int) -> float:
    """The mean return of greedy episodes."""
    envs = [task.env(seed + k) for k in range(task.episodes)]
    observations, totals, running = [env.reset() for env in envs], [0.0] * len(envs), list(range(len(envs)))
    while running:
        actions = (
            q_values(net, torch.as_tensor(np.stack([observations[k] for k in running]))).argmax(1).tolist()
        )
        left = []
        for k, action in zip(running, actions, strict=True):
            observations[k], reward, terminated, truncated = envs[k].step(action)
            totals[k] += reward
            if not (terminated or truncated):
                left.append(k)
        running = left
    return statistics.fmean(totals)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95% bootstrap interval over seeds."""
    array = np.array(values, float)
    if not len(array) or not np.isfinite(array).all():
        return (math.nan,) * 3
    draws = np.random.default_rng(seed).choice(array, (4000, len(array))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(array.mean()), float(low), float(high)


def cell(values: Sequence[float], digits: int = 3) -> str:
    """`mean [low, high]`"""
    mean, low, high = interval(values)
    return f"{mean:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"
