"""RMSProp → Adam in the middle of training: the MinAtar agent, whose centered RMSProp is real.

    python benchmarks/optimizer_swap.py --seeds 5

Against RMSProp that simply goes on (same weights, same minibatches): how well E[g²] is known at the first step, where
the weights are after 1, 10 and 100 updates, and what fine-tuning makes of loss and return. "Fresh" arms start Adam
without state, "carried" ones with `surgery.swap_optimizer`. Writes results/optimizer-swap.json and prints the tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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
    td_loss,
)

RESULTS = Path(__file__).parent / "results"
NOMINAL = {"lr": 2.5e-4, "eps": 1e-8}
DOPAMINE = {"lr": 6.25e-5, "eps": 1.5e-4}
"""Dopamine's settings of Adam on Atari, against lr 2.5e-4 of its RMSProp."""
AWAY = (1, 10, 100)
PLAYED = (100, 300, 1000)

Make = Callable[[nn.Module, Agent], torch.optim.Optimizer]


def _carried(**options: float) -> Make:
    def make(net: nn.Module, agent: Agent) -> torch.optim.Optimizer:
        swap = surgery.swap_optimizer(agent.online, to="adam", **options)
        return optimizer_of(net, torch.optim.Adam, swap.checkpoint.optimizer)

    return make


def _fresh_at_our_settings(net: nn.Module, agent: Agent) -> torch.optim.Optimizer:
    state = surgery.swap_optimizer(agent.online, to="adam").checkpoint.optimizer
    assert state is not None
    return optimizer_of(net, torch.optim.Adam, state.replace(slots={}, steps={}))


ARMS: Mapping[str, Make] = {
    "RMSProp goes on": lambda net, agent: optimizer_of(net, torch.optim.RMSprop, agent.online.optimizer),
    "fresh Adam, lr 2.5e-4, ε 1e-8": lambda net, agent: optimizer_of(net, torch.optim.Adam, None, **NOMINAL),
    "fresh Adam, lr 6.25e-5, ε 1.5e-4": lambda net, agent: optimizer_of(
        net, torch.optim.Adam, None, **DOPAMINE
    ),
    "fresh Adam, our lr and ε": _fresh_at_our_settings,
    "carried, lr 2.5e-4, ε 1e-8": _carried(**NOMINAL),
    "carried, lr 6.25e-5, ε 1.5e-4": _carried(**DOPAMINE),
    "carried, matched": _carried(),
    "carried, ε 1e-8, matched": _carried(eps=1e-8),
}


def squares_known(
    agent: Agent, net: nn.Module, target: nn.Module, batches: list[list[Tensor]]
) -> dict[str, float]:
    """Mean |log √v̂ / √E[g²]| at the first step, where E[g²] is taken from other batches; where it is not negligible."""
    weights, gradients = dict(net.named_parameters()), []
    for batch in batches:
        gradients.append(torch.autograd.grad(td_loss(net, target, batch), list(weights.values())))
    truth = {
        name: torch.stack([g[k] for g in gradients[1:]]).square().mean(0) for k, name in enumerate(weights)
    }
    first = dict(zip(weights, gradients[0], strict=True))
    state = surgery.swap_optimizer(agent.online, to="adam").checkpoint.optimizer
    assert state is not None
    errors: dict[str, list[Tensor]] = {"fresh": [], "carried": []}
    for name, true in truth.items():
        step, old = state.steps[name], torch.tensor(state.slots["exp_avg_sq"][name].numpy())
        known = (0.999 * old + 0.001 * first[name].square()) / (1 - 0.999 ** (step + 1))
        alive = (true > 1e-6 * true.max()) & (first[name] != 0)
        for arm, found in (("fresh", first[name].square()), ("carried", known)):
            errors[arm].append((found[alive] / true[alive]).log().abs() / 2)
    return {arm: float(torch.cat(parts).mean()) for arm, parts in errors.items()}


def displacement(agent: Agent, task: Task, batches: list[list[Tensor]], make: Make) -> dict[int, Tensor]:
    """Where the weights are after some updates on the same batches, as one vector."""
    net, target = network(task, agent.online), network(task, agent.target)
    optimizer, start = make(net, agent), nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    found = {}
    for update, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        td_loss(net, target, batch).backward()
        optimizer.step()
        if update in AWAY:
            found[update] = nn.utils.parameters_to_vector(net.parameters()).detach() - start
    return found


def finetune(agent: Agent, task: Task, begin: Replay, held: list[Tensor], make: Make, seed: int, updates: int
) -> dict[str, float]:  # fmt: skip
    """Loss on held-out transitions and greedy return while training goes on."""
    net, target, fixed = network(task, agent.online), network(task, agent.target), network(task, agent.target)
    optimizer, replay = make(net, agent), copy.deepcopy(begin)
    rng, actor = np.random.default_rng(seed + 1), Actor(task, replay, seed + 70_000, epsilon=0.1)
    with torch.no_grad():
        before = float(td_loss(net, fixed, held))
    found, worst = {}, 0.0
    for update in range(1, updates + 1):
        for _ in range(2):
            actor.step(net)
        optimizer.zero_grad()
        td_loss(net, target, replay.sample(task.batch, rng)).backward()
        optimizer.step()
        if update % task.target_every == 0:
            target.load_state_dict(copy.deepcopy(net.state_dict()))
        if update <= 100:
            with torch.no_grad():
                worst = max(worst, float(td_loss(net, fixed, held)) / before)
        if update in PLAYED:
            found[f"return at {update}"] = evaluate(task, net, 90_000 + 100 * seed)
    return {"worst loss ≤ 100": worst, **found}


def run(agent: Agent, task: Task, seed: int, updates: int) -> dict[str, dict[str, float]]:
    """All arms with one seed."""
    torch.manual_seed(seed)
    net, target = network(task, agent.online), network(task, agent.target)
    replay, other = Replay(20_000, (4, 10, 10)), Replay(1024, (4, 10, 10))
    for memory, steps, offset in ((replay, 5_000, 0), (other, 1024, 50_000)):
        actor = Actor(task, memory, seed + offset, epsilon=0.1)
        for _ in range(steps):
            actor.step(net)
    rng = np.random.default_rng(seed)
    held, batches = other.sample(1024, rng), [replay.sample(task.batch, rng) for _ in range(max(AWAY))]
    rows = {name: {} for name in ARMS}
    known = squares_known(agent, net, target, batches)
    wanted = displacement(agent, task, batches, ARMS["RMSProp goes on"])
    for name, make in ARMS.items():
        if "Adam" in name or "carried" in name:
            rows[name]["|log √v̂|"] = known["fresh" if "fresh" in name else "carried"]
        for update, moved in displacement(agent, task, batches, make).items():
            rows[name][f"cos {update}"] = float(torch.cosine_similarity(moved, wanted[update], dim=0))
            rows[name][f"norm {update}"] = float(moved.norm() / wanted[update].norm())
        rows[name] |= finetune(agent, task, replay, held, make, seed, updates)
    return rows


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """A row per arm, intervals over seeds."""
    columns = list(dict.fromkeys(key for rows in runs for row in rows.values() for key in row))
    lines = [("arm", *columns), ("---",) * (len(columns) + 1)]
    for name in ARMS:
        cells = [[rows[name][key] for rows in runs if key in rows[name]] for key in columns]
        lines.append((name, *(cell(values) if values else "–" for values in cells)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, begin = TASKS["minatar"], time.process_time()
    agent, runs = Agent.load(task), []
    RESULTS.mkdir(exist_ok=True)
    for seed in range(options.seeds):
        runs.append(run(agent, task, seed, options.updates))
        spent = round(time.process_time() - begin)
        record = {"seeds": seed + 1, "updates": options.updates, "torch": torch.__version__, "cpu_seconds": spent,
                  "runs": runs}  # fmt: skip
        (RESULTS / "optimizer-swap.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"\n{seed + 1} seeds, {spent} s\n{table(runs)}", flush=True)


if __name__ == "__main__":
    main()
