"""OpenAI Five's surgery table in small: an agent is changed six times during training, without playing any differently.

A recurrent policy learns CartPole from parts of the state. Between rounds of training it gets more observations, twice
the memory and more observations again; an observation that has become constant is retired; two actions and a layer are
added. Right after every surgery it plays the same games: same seeds, same actions, same returns. Training continues
from the optimizer state that the surgery carried over, without warm-up (OpenAI, arXiv:1912.06680, table 1).

    python examples/openai_five.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from recurrent_cartpole import SENSOR, play, train

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.architectures import new
from surgery.interface import PortPatch
from surgery.torch import to_module

SURGERIES: dict[str, Callable[[surgery.Checkpoint], surgery.Plan]] = {
    "more observations": lambda c: surgery.extend(c, [NewObservation("observation", 1, 2, ("spin",))]),
    "double the LSTM": lambda c: surgery.widen(c, widths={"lstm": 64}),
    "still more": lambda c: surgery.extend(c, [NewObservation("observation", 1, 1, ("velocity",))]),
    "retire the sensor": lambda c: surgery.retire(c, [Retired("observation", "sensor", SENSOR)]),
    "two new actions": lambda c: surgery.extend(c, actions=[NewAction("logits", 2, labels=("l", "r"))]),
    "insert a layer": lambda c: surgery.deepen(c, "encoder"),
}


@dataclass
class Outcome:
    """What a surgery did: whether the games stayed the same, and their mean lengths in training, round by round."""

    name: str
    same: bool
    change: float
    before: list[float]
    after: list[float]

    def __str__(self) -> str:
        lengths = f"{np.mean(self.before[-5:]):.0f}, then {np.mean(self.after[:5]):.0f}"
        games = "same games" if self.same else "OTHER GAMES"
        return f"{self.name:18} {games} · max |Δ| {self.change:.1e} · steps survived {lengths}"


def same_games(before: surgery.Checkpoint, after: surgery.Checkpoint, seed: int = 77) -> bool:
    """Whether two agents do the same from the same starts, for as long."""
    with torch.no_grad():
        old, new_ = (play(to_module(checkpoint), checkpoint, seed) for checkpoint in (before, after))
    return np.array_equal(old.actions, new_.actions) and np.array_equal(old.alive, new_.alive)


def main(rounds: int = 30, seed: int = 0) -> tuple[surgery.Checkpoint, list[Outcome]]:
    """Train, operate, compare, train on; the last checkpoint's lineage tells the story."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # matrices are small: more threads would only wait for each other
    start = new("lstm-32", observation=(3,), actions=2, head="actor-critic", seed=seed)
    features = PortPatch(labels=("position", "angle", "sensor"))
    start = surgery.annotate(start, inputs={"observation": features}, environment="CartPole-v1")
    checkpoint, before = train(start, rounds, seed)
    outcomes = []
    for k, (name, operation) in enumerate(SURGERIES.items()):
        result = surgery.apply(operation(checkpoint), checkpoint)
        same = same_games(checkpoint, result.checkpoint)
        checkpoint, after = train(result.checkpoint, rounds, seed + 100_000 * (k + 1))
        outcomes.append(Outcome(name, same, result.report.max_abs_error, before, after))
        before = after
    return checkpoint, outcomes


if __name__ == "__main__":
    last, found = main()
    print(*found, sep="\n")
    print(" → ".join(step.operation for step in last.lineage))
