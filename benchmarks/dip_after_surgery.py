"""The dip after surgery: a trained agent is widened in the middle of its training, and trains on.

    python benchmarks/dip_after_surgery.py --task cartpole --seeds 5
    python benchmarks/dip_after_surgery.py --task minatar --seeds 5

All layers are doubled. What differs is what the optimizer is given, and whether new units are copies (net2net) or
fresh ones that nothing reads yet (zero). Measured against the same agent that trains on unwidened (same seed, same
replay, same minibatches): the TD loss on held-out transitions against one fixed target network, the change of the
Q-values there, and the return of greedy episodes. Writes results/dip-TASK.json and prints the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import surgery
from benchmarks.finetuning import (
    TASKS,
    Actor,
    Agent,
    Replay,
    Task,
    cell,
    evaluate,
    network,
    optimizer_of,
    q_values,
    td_loss,
)
from surgery.edits.arithmetic import SPREAD
from surgery.edits.axis_maps import axis_maps
from surgery.optimizer import OptimizerState
from surgery.torch import break_symmetry, follow, settle, warm_moments

RESULTS = Path(__file__).parent / "results"
CHECKS = (1, 3, 10, 30, 100, 200, 300, 500, 750, 1000, 2000)
PLAYED = (10, 100, 300, 500, 1000, 2000)
QUIET = 500
"""Steps at learning rate 0."""


def padded(plan: surgery.Plan, before: OptimizerState, after: OptimizerState) -> OptimizerState:
    """The usual shortcut: the old state where the old entries are, unscaled, zeros elsewhere, the old step count."""
    layouts = {tensor.name: tensor.axes for tensor in plan.tensors}
    slots = {}
    for slot, members in before.slots.items():
        slots[slot] = {}
        for name, old in members.items():
            if name not in layouts:
                slots[slot][name] = old
                continue
            new = np.zeros(after.slots[slot][name].shape.numpy(), np.float32)
            places = []
            for size, axis in zip(old.shape.numpy(), axis_maps(layouts[name], plan.edits), strict=True):
                # copies come behind the originals within every axis: the first occurrence of each is the old one
                places.append(
                    np.arange(size) if axis is None else np.unique(axis.source, return_index=True)[1]
                )
            new[np.ix_(*places)] = old.numpy()
            slots[slot][name] = ir.tensor(new)
    return after.replace(slots=slots)


class Arm:
    """One way to go on."""

    def __init__(self, init: str | None, how: str, scale: float = 1.0) -> None:
        self.init, self.how, self.scale = init, how, scale
        self.name = how if init is None else f"{init}: {how}" + (f", fill × {scale:g}" if scale != 1 else "")

    def start(
        self, task: Task, agent: Agent, replay: Replay, seed: int
    ) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """The network, its target and the optimizer, right after surgery."""
        if self.init is None:
            net = network(task, agent.online)
            return (
                net,
                network(task, agent.target),
                optimizer_of(net, torch.optim.Adam, agent.online.optimizer),
            )
        plan = surgery.widen(agent.online, factor=2, init=self.init, seed=seed)
        wide = agent.apply(plan)
        net, target = network(task, wide.online), network(task, wide.target)
        for each in (net, target):
            _rescale(each, plan, self.scale)
        state = wide.online.optimizer
        assert state is not None
        assert agent.online.optimizer is not None
        hyper = {key: value for key, value in state.groups[0].hyper.items() if key in ("lr", "eps", "betas")}
        if self.how == "fresh Adam":
            return net, target, optimizer_of(net, torch.optim.Adam, None, **hyper)
        if self.how in ("padded", "lr 0"):
            state = padded(plan, agent.online.optimizer, state)
        optimizer = optimizer_of(net, torch.optim.Adam, state)
        if self.how == "lr 0":
            settle(optimizer, QUIET)
        elif self.how in ("exact + rules", "own steps", "own steps, settled"):
            trajectory = follow(optimizer, net, plan)
            if self.init == "net2net" and self.how == "own steps":
                for edit in plan.spaces:
                    break_symmetry(trajectory, edit.space, "reset", seed=seed)
            if self.how == "own steps, settled":
                trajectory.settle(QUIET, ramp=True)
        elif self.how == "warm moments":
            rng = np.random.default_rng(seed)
            batches = [replay.sample(task.batch, rng) for _ in range(16)]
            warm_moments(optimizer, lambda batch: td_loss(net, target, batch), batches)
        return net, target, optimizer


def _rescale(net: nn.Module, plan: surgery.Plan, scale: float) -> None:
    """Random weights of fresh units with `scale` times the standard deviation of their tensor."""
    weights = dict(net.named_parameters())
    for tensor in plan.tensors:
        maps = axis_maps(tensor.axes, plan.edits)
        if tensor.fill == "random" and maps[0] is not None and maps[0].fresh_out.any():
            with torch.no_grad():
                weights[tensor.name][torch.as_tensor(maps[0].fresh_out)] *= scale / SPREAD


ARMS = [
    Arm(None, "unwidened"),
    *(Arm("net2net", how) for how in ("fresh Adam", "padded", "lr 0", "exact", "exact + rules", "own steps")),
    *(
        Arm("zero", how)
        for how in ("fresh Adam", "padded", "lr 0", "warm moments", "own steps", "own steps, settled")
    ),
    *(Arm("zero", how, scale) for scale in (0.1, 0.3, 3.0) for how in ("padded", "own steps")),
]


@dataclass(frozen=True)
class Beginning:
    """What all runs of one seed share."""

    replay: Replay
    held: list[torch.Tensor]
    values: torch.Tensor
    loss: float
    played: float

    @staticmethod
    def make(task: Task, agent: Agent, seed: int) -> Beginning:
        small, fixed = network(task, agent.online), network(task, agent.target)
        replay, held = Replay(20_000, _shape(agent)), Replay(1024, _shape(agent))
        for memory, steps, offset in ((replay, 5_000, 0), (held, 1024, 50_000)):
            actor = Actor(task, memory, seed + offset, epsilon=0.1)
            for _ in range(steps):
                actor.step(small)
        batch = held.sample(1024, np.random.default_rng(seed))
        with torch.no_grad():
            values, loss = q_values(small, batch[0]), float(td_loss(small, fixed, batch))
        return Beginning(replay, batch, values, loss, evaluate(task, small, 90_000 + 100 * seed))


def run(
    task: Task, arm: Arm, agent: Agent, begin: Beginning, seed: int, updates: int
) -> dict[str, dict[int, float]]:
    """One training run: what was measured after how many updates; −1 is before surgery."""
    torch.manual_seed(seed)
    fixed, replay = network(task, agent.target), copy.deepcopy(begin.replay)
    found: dict[str, dict[int, float]] = {
        "loss": {-1: begin.loss},
        "change": {},
        "return": {-1: begin.played},
    }

    @torch.no_grad()
    def measure(net: nn.Module, at: int) -> None:
        if at in (0, *CHECKS):
            found["loss"][at] = float(td_loss(net, fixed, begin.held))
            change = q_values(net, begin.held[0]) - begin.values
            found["change"][at] = float(change.square().mean().sqrt() / begin.values.std())
        if at in (0, *PLAYED):
            found["return"][at] = evaluate(task, net, 90_000 + 100 * seed)

    net, target, optimizer = arm.start(task, agent, replay, seed)
    measure(net, 0)
    rng, actor = np.random.default_rng(seed + 1), Actor(task, replay, seed + 70_000, epsilon=0.1)
    for update in range(1, updates + 1):
        for _ in range(2):
            actor.step(net)
        loss = td_loss(net, target, replay.sample(task.batch, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % task.target_every == 0:
            target.load_state_dict(copy.deepcopy(net.state_dict()))
        measure(net, update)
    return found


def _shape(agent: Agent) -> tuple[int, ...]:
    return tuple(int(d) for d in list(agent.online.model.graph.inputs[0].shape)[1:])


One = dict[str, dict[int, float]]
"""What was measured in one run: quantity -> update -> value."""
Runs = Mapping[str, list[One]]


def table(runs: Runs) -> str:
    """A row per arm: losses against the unwidened agent's at the same update, and returns."""
    head = ("arm", "worst loss ≤ 100", "worst loss", "loss from 500 on", "ΔQ at 10", "worst return ≤ 500",
            "mean return after")  # fmt: skip
    beside = runs.get("unwidened") or next(iter(runs.values()))
    columns: list[Callable[[One, One], float]] = [
        lambda r, u: max(_ratios(r, u, 1, 100)),
        lambda r, u: max(_ratios(r, u, 1, 10**9)),
        lambda r, u: float(np.exp(np.mean(np.log(_ratios(r, u, 500, 10**9) or [np.nan])))),
        lambda r, u: r["change"][10],
        lambda r, u: min(v for k, v in r["return"].items() if 0 < k <= 500),
        lambda r, u: float(np.mean([v for k, v in r["return"].items() if k > 0])),
    ]
    lines: list[Sequence[str]] = [head, ("---",) * len(head)]
    for name, found in runs.items():
        cells = [
            cell([column(one, other) for one, other in zip(found, beside, strict=True)]) for column in columns
        ]
        lines.append((name, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratios(one: One, other: One, first: int, last: int) -> list[float]:
    """Losses against those of another run of the same seed."""
    return [loss / other["loss"][at] for at, loss in one["loss"].items() if first <= at <= last]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="cartpole")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--arms", help="only arms whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, begin = TASKS[options.task], time.process_time()
    agent = Agent.load(task)
    if agent.online.optimizer is not None and agent.online.optimizer.kind != "adam":
        agent = Agent(surgery.swap_optimizer(agent.online, to="adam", match="all").checkpoint, agent.target)
    arms = [arm for arm in ARMS if not options.arms or options.arms in arm.name]
    runs: dict[str, list[dict[str, dict[int, float]]]] = {arm.name: [] for arm in arms}
    RESULTS.mkdir(exist_ok=True)
    for seed in range(options.seeds):
        beginning = Beginning.make(task, agent, seed)
        for arm in arms:
            runs[arm.name].append(run(task, arm, agent, beginning, seed, options.updates))
        record = {
            "task": task.name, "seeds": seed + 1, "updates": options.updates, "quiet": QUIET,
            "torch": torch.__version__, "cpu_seconds": round(time.process_time() - begin), "runs": runs,
        }  # fmt: skip
        (RESULTS / f"dip-{task.name}.json").write_text(json.dumps(_rounded(record)) + "\n")
        print(f"\n{seed + 1} seeds, {record['cpu_seconds']} s\n{table(runs)}", flush=True)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
