"""Episodes by Sample Factory's own network, recorded; run by an interpreter that has it, and imports nothing of ours.

    python episodes.py CHECKPOINT.pth CONFIG.json ENVIRONMENT EPISODES SEED MOST_STEPS OUT.npz

Its pins (numpy below 2) and ours do not go together, so that what it saw and did comes to us as a file.
(sample_factory/enjoy.py, 2.1)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from sample_factory.algo.utils.action_distributions import argmax_actions
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.model.model_utils import get_rnn_size

UNFIT = 4
"""Exit status: the environment does not exist, or the network does not fit it; the last line says it."""


def main(checkpoint: str, config: str, environment: str, *words: str) -> None:
    """Play, and write `seen/KEY`, `action`, `begins`, `returns` and, of choices, how many there are of each."""
    episodes, seed, most, target = int(words[0]), int(words[1]), int(words[2]), words[3]
    settings = configuration(config)
    try:
        env = made(environment, settings)
    except (gym.error.Error, ImportError) as error:
        unfit(f"there is no environment '{environment}' here: {error}")
    try:
        network, states = load(checkpoint, settings, env)
    except (RuntimeError, ValueError) as error:
        unfit(f"the file does not fit {environment}: {str(error).splitlines()[0]}")
    recorded = [episode(env, network, states, seed if k == 0 else None, most) for k in range(episodes)]
    steps = [step for steps, _ in recorded for step in steps]
    arrays: dict[str, Any] = {
        "action": np.stack([action for _, action in steps]),
        "begins": np.cumsum([0, *(len(steps) for steps, _ in recorded)])[:-1],
        "returns": np.array([total for _, total in recorded]),
        "choices": np.array(choices(env.action_space), int),
        **{f"seen/{key}": np.stack([seen[key] for seen, _ in steps]) for key in steps[0][0]},
    }
    np.savez(target, **arrays)


def configuration(config: str) -> Namespace:
    """The settings of an experiment."""
    saved = json.loads(Path(config).read_text(encoding="utf-8"))
    given = [f"--env={saved['env']}"]
    parser, _ = parse_sf_args(given)
    settings: Namespace = parse_full_cfg(parser, given)
    vars(settings).update({**saved, "device": "cpu"})
    return settings


def made(name: str, settings: Namespace) -> gym.Env[Any, Any]:
    """An environment by gymnasium's name, or a game by that of the framework's examples, `atari_…`."""
    with contextlib.suppress(ImportError):
        importlib.import_module("ale_py")  # which registers its games
    if not name.startswith("atari_"):
        return gym.make(name)
    from sf_examples.atari.atari_utils import ATARI_ENVS, make_atari_env

    if name not in {spec.name for spec in ATARI_ENVS}:
        raise gym.error.NameNotFound(f"sf_examples has no '{name}'")
    game: gym.Env[Any, Any] = make_atari_env(name, settings, None)
    return game


def load(checkpoint: str, settings: Namespace, env: gym.Env[Any, Any]) -> tuple[torch.nn.Module, int]:
    """The network of a checkpoint, and the size of its recurrent state."""
    seen = env.observation_space
    space = seen if isinstance(seen, gym.spaces.Dict) else gym.spaces.Dict({"obs": seen})
    network = create_actor_critic(settings, space, env.action_space).eval()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=False)["model"])
    return network, int(get_rnn_size(settings))


@torch.no_grad()
def episode(
    env: gym.Env[Any, Any], network: torch.nn.Module, size: int, seed: int | None, most: int
) -> tuple[list[Any], float]:
    """What was seen and done at every step by the most likely actions, and the return."""
    observation, _ = env.reset(seed=seed)
    states, steps, total = torch.zeros(1, size), [], 0.0
    for _ in range(most):
        seen = observation if isinstance(observation, dict) else {"obs": observation}
        batch = {key: torch.from_numpy(np.asarray(value)[None]) for key, value in seen.items()}
        said = network(prepare_and_normalize_obs(network, batch), states)
        states = said["new_rnn_states"]
        action = argmax_actions(network.action_distribution())[0].numpy()  # type: ignore[operator]
        steps.append(({key: np.array(value) for key, value in seen.items()}, action))
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            break
    return steps, total


def choices(space: gym.Space[Any]) -> list[int]:
    """How many there are in each part of an action; nothing of those that are no choices."""
    if isinstance(space, gym.spaces.Discrete):
        return [int(space.n)]
    parts = [choices(part) for part in space.spaces] if isinstance(space, gym.spaces.Tuple) else []
    return [part[0] for part in parts] if all(parts) else []


def unfit(reason: str) -> NoReturn:
    """Leave with a reason."""
    print(reason, file=sys.stderr)
    raise SystemExit(UNFIT)


if __name__ == "__main__":
    main(*sys.argv[1:])
