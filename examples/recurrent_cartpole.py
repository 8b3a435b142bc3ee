"""A recurrent policy on CartPole, seen through named features; trained by policy gradient with a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import onnx_ir as ir
import torch

import surgery
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.torch import to_module

FEATURES = {"position": 0, "velocity": 1, "angle": 2, "spin": 3}  # anything else is a deprecated sensor
STEPS, GAMES, SENSOR, RATE = 100, 8, 0.5, 0.01


@dataclass
class Games:
    """Games side by side, time first: (steps, games) each."""

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
    named, adam = dict(module.named_parameters()), torch.optim.Adam(module.parameters(), lr=RATE)
    resume(checkpoint, named, adam)
    for k in range(rounds):
        games = play(module, checkpoint, seed + 1000 * k, greedy=False)
        alive = torch.tensor(games.alive)
        left = alive.flip(0).cumsum(0).flip(0) / STEPS  # every step survived is worth as much
        gain = -games.chosen * (left - games.values.detach()) + (games.values - left) ** 2
        adam.zero_grad()
        ((gain * alive).sum() / alive.sum()).backward()
        adam.step()
        lengths.append(float(games.alive.sum(0).mean()))
    return stored(checkpoint, named, adam), lengths


def resume(
    checkpoint: surgery.Checkpoint, named: dict[str, torch.nn.Parameter], adam: torch.optim.Adam
) -> None:
    """Give the optimizer what the checkpoint remembers; a layer that has just been inserted has nothing yet."""
    state = checkpoint.optimizer
    for name in state.parameters if state else ():
        slots = {slot: torch.tensor(members[name].numpy()) for slot, members in state.slots.items()}
        adam.state[named[name]] = {"step": torch.tensor(float(state.steps[name])), **slots}


def stored(
    checkpoint: surgery.Checkpoint, named: dict[str, torch.nn.Parameter], adam: torch.optim.Adam
) -> surgery.Checkpoint:
    """The checkpoint with what was learned, optimizer state included."""
    model = checkpoint.model.clone()
    for name, parameter in named.items():
        model.graph.initializers[name].const_value = ir.tensor(parameter.detach().numpy().copy(), name=name)
    slots = {
        slot: {name: ir.tensor(adam.state[p][slot].numpy().copy()) for name, p in named.items()}
        for slot in ("exp_avg", "exp_avg_sq")
    }
    hyper = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}
    steps = {name: float(adam.state[p]["step"]) for name, p in named.items()}
    state = OptimizerState("adam", slots, steps, (ParamGroup(tuple(named), hyper),))
    return checkpoint.replace(model=model, optimizer=state)
