"""Atari games through ale-py's `AtariVectorEnv`, whose emulators and preprocessing run in C++ threads.

Its observations are those of gymnasium's `AtariPreprocessing` and `FrameStackObservation`, bit for bit. What it
does otherwise is not taken:

- Its default clips rewards; ours are the game's own.
- It marks the loss of a life, if asked, by a termination without a reset, beside a `final_obs` that was never
  written. It is not asked: a loss is read off the number of lives.
- `final_obs` is written only where an episode has ended, and is read nowhere else.
- After the end of an episode `lives` are those of the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import ActionSpace, Discrete
from surgery.envs.contract import action_set, chosen, flag, number, preprocessing
from surgery.envs.parts import Part
from surgery.envs.step import Ledger, Step, seeds
from surgery.errors import missing
from surgery.interface import Environment


class AtariEnvs:
    """`Envs` of one ROM; see `surgery.envs.make`."""

    def __init__(
        self, rom: str, contract: Environment, num_envs: int, *, seed: int, training: bool, threads: int
    ) -> None:
        self._env, available = _vector_env(rom, contract, num_envs, threads)
        actions = chosen(contract, available)
        self._seeds = seeds(seed, num_envs)
        self._index = np.array([available.index(action) for action in actions], np.int64)
        self._life_loss = training and flag(contract, "terminal_on_life_loss")
        self._ledger = Ledger(num_envs)
        self._lives = np.zeros(num_envs, np.int32)
        self._started = False
        self.num_envs = num_envs
        self.observation_shape: tuple[int, ...] = self._env.single_observation_space.shape
        self.observation_dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.takes: ActionSpace = Discrete(actions)
        self.actions = self.takes.size
        self.action_meanings: tuple[str, ...] | None = _names(actions)
        self.stacked = True
        self.parts: tuple[Part, ...] = ()
        self.contract = contract.with_settings(action_set=actions)

    def reset(self) -> Array:
        # Seeds are given once: again, they would repeat the same episodes.
        observation, info = self._env.reset(seed=None if self._started else self._seeds)
        self._started = True
        self._lives = info["lives"].copy()
        self._ledger.clear()
        return cast(Array, observation)

    def step(self, actions: Array) -> Step:
        return self.begin(actions)()

    def begin(self, actions: Array) -> Callable[[], Step]:
        self._env.send(self._index[actions])
        return self._received

    def _received(self) -> Step:
        observation, reward, terminated, truncated, info = self._env.recv()
        over = terminated | truncated
        reached = observation
        if over.any():
            reached = observation.copy()
            reached[over] = info["final_obs"][over]
        lives = info["lives"]
        # Some games show no life left for a few frames before they are over: those frames are no second end.
        lost = ~over & (lives < self._lives) & (lives > 0)
        self._lives = lives.copy()
        return Step(
            observation=observation,
            next_observation=reached,
            reward=reward.astype(np.float32),
            terminated=terminated | lost if self._life_loss else terminated,
            truncated=truncated,
            finished=self._ledger.add(reward, over),
        )

    def close(self) -> None:
        self._env.close()


def _vector_env(rom: str, contract: Environment, num_envs: int, threads: int) -> tuple[Any, tuple[int, ...]]:
    """The environments, and the emulator's number of each of their actions."""
    try:
        import ale_py
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode
    except ImportError as error:
        raise missing("ale-py", "rl") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    frame_skip = int(number(contract, "frame_skip"))
    frames = cast("Mapping[str, int]", preprocessing(contract))

    def build(full: bool) -> tuple[Any, tuple[int, ...]]:
        env = AtariVectorEnv(
            rom,
            num_envs,
            num_threads=threads,
            max_num_frames_per_episode=int(number(contract, "max_episode_steps")) * frame_skip,
            repeat_action_probability=number(contract, "sticky_actions"),
            full_action_space=full,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=frames["height"],
            img_width=frames["width"],
            grayscale=bool(frames["grayscale"]),
            stack_num=int(number(contract, "frame_stack")),
            frameskip=frame_skip,
            maxpool=flag(contract, "max_pool"),
            noop_max=int(number(contract, "noop_max")),
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            use_fire_reset=flag(contract, "fire_reset"),
        )
        return env, tuple(action.value for action in env.ale.get_action_set())

    env, available = build(flag(contract, "full_action_space"))
    if set(action_set(contract) or ()) <= set(available):
        return env, available
    env.close()
    return build(True)


def _names(actions: tuple[int, ...]) -> tuple[str, ...]:
    from ale_py import Action

    return tuple(Action(action).name for action in actions)
