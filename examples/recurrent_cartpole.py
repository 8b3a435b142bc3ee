"""A recurrent policy on CartPole with named features, trained by policy gradient with a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

import surgery
from surgery.torch import from_module, load_optimizer, to_module

FEATURES = {"position": 0, "velocity": 1, "angle": 2, "spin": 3}  # anything else is a deprecated sensor
STEPS, GAMES, SENSOR, RATE = 100, 8, 0.5, 0.01


@dataclass
class Games:
    """Parallel games, time first: (steps, games) each."""

    actions: np.ndarray
    alive: np.ndarray
    chosen: torch.Tensor  # log-probabilities of the actions
    values: torch.Tensor


def see(states: np.ndarray, features: tuple[str, ...]) -> np.ndarray:
    """What the agent is shown of the true states, (games, 4) -> (games, features)."""
    shown = [states[:, FEATURES[f]] if f in FEATURES else np.full(GAMES, SENSOR) for f in features]
    return np.stack(shown, 1).astype(np.float32)


def play(module: torch.nn.Module, checkpoint: surgery.Checkpoint, seed: int, *, greedy: bool = True) -> Games:
    """Play until all games are over; actions that the contract forbids are not taken."""
    features = checkpoint.interface.input("observation").labels
    mask = checkpoint.environment.settings.get("action_mask")
    forbidden = ~torch.tensor(mask["logits"]) if mask else torch.tensor(False)
    envs = [gymnasium.make("CartPole-v1") for _ in range(GAMES)]
    states = np.stack([env.reset(seed=seed + k)[0] for k, env in enumerate(envs)])
    memory = [torch.zeros(GAMES, v.shape[1]) for v in checkpoint.model.graph.inputs[1:]]
    generator, alive, steps = torch.Generator().manual_seed(seed), np.ones(GAMES, bool), []
    while alive.any() and len(steps) < STEPS:
        logits, value, *memory = module(torch.tensor(see(states, features)), *memory)
        logs = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
        taken = logs.argmax(-1) if greedy else torch.multinomial(logs.exp(), 1, generator=generator)[:, 0]
        steps.append((taken.numpy() * alive, alive.copy(), logs.gather(1, taken[:, None])[:, 0], value[:, 0]))
        for k in np.flatnonzero(alive):  # the new actions do what the old ones do
            states[k], _, over, *_ = envs[k].step(int(taken[k]) % 2)
            alive[k] = not over
    actions, lives, chosen, values = zip(*steps, strict=True)
    return Games(np.stack(actions), np.stack(lives), torch.stack(chosen), torch.stack(values))


def train(checkpoint: surgery.Checkpoint, rounds: int, seed: int) -> tuple[surgery.Checkpoint, list[float]]:
    """Train on, from the checkpoint's optimizer state; and the mean length of the games of each round."""
    module, lengths = to_module(checkpoint), []
    adam = torch.optim.Adam(module.parameters(), lr=RATE)
    if checkpoint.optimizer is not None:
        load_optimizer(checkpoint.optimizer, adam, module)
    for k in range(rounds):
        games = play(module, checkpoint, seed + 1000 * k, greedy=False)
        alive = torch.tensor(games.alive)
        left = alive.flip(0).cumsum(0).flip(0) / STEPS  # every step survived is worth the same
        gain = -games.chosen * (left - games.values.detach()) + (games.values - left) ** 2
        adam.zero_grad()
        ((gain * alive).sum() / alive.sum()).backward()
        adam.step()
        lengths.append(float(games.alive.sum(0).mean()))
    return from_module(module, checkpoint, optimizer=adam), lengths
