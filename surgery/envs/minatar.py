"""MinAtar's games (Young and Tian, 2019, arXiv:1903.03176), channels first: (channels, 10, 10), bool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import ActionSpace, Discrete
from surgery.envs.contract import chosen, flag, number
from surgery.envs.parts import Part
from surgery.envs.step import Ledger, Step, seeds
from surgery.errors import missing
from surgery.interface import Environment

MEANINGS = ("noop", "left", "up", "right", "down", "fire")


class MinAtarEnvs:
    """`Envs` of one game; see `surgery.envs.make`."""

    def __init__(self, name: str, contract: Environment, num_envs: int, *, seed: int) -> None:
        # MinAtar takes whatever ends this import for a missing package: Ctrl-C, too
        with suppress(ImportError):
            import_module("seaborn")
        try:
            from minatar import Environment as Game
        except ImportError as error:
            raise missing("minatar", "minatar") from error
        sticky, ramping = number(contract, "sticky_actions"), flag(contract, "difficulty_ramping")
        self._games = [Game(name, sticky, ramping) for _ in range(num_envs)]
        for one, its_seed in zip(self._games, seeds(seed, num_envs), strict=True):
            one.seed(int(its_seed))
        available = tuple(range(len(MEANINGS)))
        minimal = tuple(int(action) for action in self._games[0].minimal_action_set())
        self._actions = (
            chosen(contract, available)
            if "action_set" in contract.settings
            else (available if flag(contract, "full_action_space") else minimal)
        )
        self._limit = int(number(contract, "max_episode_steps"))
        self._age = np.zeros(num_envs, np.int64)
        self._ledger = Ledger(num_envs)
        self.num_envs = num_envs
        height, width, channels = self._games[0].state_shape()
        self.observation_shape: tuple[int, ...] = (channels, height, width)
        self.observation_dtype: np.dtype[Any] = np.dtype(bool)
        self.takes: ActionSpace = Discrete(self._actions)
        self.actions = self.takes.size
        self.action_meanings: tuple[str, ...] | None = tuple(MEANINGS[action] for action in self._actions)
        self.stacked = False
        self.parts: tuple[Part, ...] = ()
        self.contract = contract.with_settings(action_set=self._actions)

    def reset(self) -> Array:
        for one in self._games:
            one.reset()
        self._age[:] = 0
        self._ledger.clear()
        return self._observe()

    def step(self, actions: Array) -> Step:
        outcomes = [
            one.act(self._actions[action]) for one, action in zip(self._games, actions.tolist(), strict=True)
        ]
        reward = np.array([gained for gained, _ in outcomes], np.float32)
        terminated = np.array([ended for _, ended in outcomes], bool)
        self._age += 1
        truncated = ~terminated & (self._age >= self._limit)
        over = terminated | truncated
        reached = observation = self._observe()
        if over.any():
            for k in np.flatnonzero(over):
                self._games[k].reset()
            self._age[over] = 0
            observation = self._observe()
        finished = self._ledger.add(reward, over)
        return Step(observation, reached, reward, terminated, truncated, finished)

    def begin(self, actions: Array) -> Callable[[], Step]:
        return partial(self.step, actions)

    def close(self) -> None:
        self._games.clear()

    def _observe(self) -> Array:
        states = np.stack([one.state() for one in self._games])
        return np.ascontiguousarray(states.transpose(0, 3, 1, 2))
