"""Any gymnasium id, one environment after the other in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import ActionSpace, Discrete, action_space
from surgery.envs.contract import MAX_STEPS, made_by_gymnasium, number, preprocessing
from surgery.envs.normaliser import Normaliser
from surgery.envs.parts import Part, parts_of
from surgery.envs.step import Ledger, Step, seeds
from surgery.errors import ArgumentError, missing, shape_text
from surgery.interface import Environment

if TYPE_CHECKING:
    import gymnasium


class SingleEnvs:
    """`Envs` of one gymnasium id; see `surgery.envs.make`.

    Observations that are no arrays (discrete, tuples, dictionaries) are flattened, discrete ones to one-hot vectors.
    Images are given channels first if the contract's preprocessing states a `layout`, else as they are. Vectors are
    normalised if the contract has a `normaliser`.
    """

    def __init__(self, contract: Environment, num_envs: int, *, seed: int) -> None:
        made = [_wrapped(contract) for _ in range(num_envs)]
        self._envs = [env for env, _ in made]
        self._seeds: list[int | None] = [int(one) for one in seeds(seed, num_envs)]
        space: Any = self._envs[0].observation_space
        self.takes: ActionSpace = action_space(contract, self._envs[0].action_space)
        self._ledger = Ledger(num_envs)
        self._observations = np.empty((num_envs, *space.shape), space.dtype)
        self.num_envs = num_envs
        self.observation_shape: tuple[int, ...] = space.shape
        self.observation_dtype: np.dtype[Any] = space.dtype
        self.parts = made[0][1]
        self.actions = self.takes.size
        self.action_meanings: tuple[str, ...] | None = None
        self.stacked = contract.settings.get("frame_stack", 1) != 1
        spec = self._envs[0].spec
        limit = None if spec is None else spec.max_episode_steps
        self.contract = contract.with_settings(max_episode_steps=limit or MAX_STEPS)
        if isinstance(self.takes, Discrete):
            self.contract = self.contract.with_settings(action_set=self.takes.numbers)

    def reset(self) -> Array:
        for k in range(self.num_envs):
            self._reset(k)
        self._ledger.clear()
        return self._observations.copy()

    def step(self, actions: Array) -> Step:
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for k, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            self._observations[k], gained, terminated[k], truncated[k], _ = env.step(self.takes.taken(action))
            reward[k] = float(gained)
        over = terminated | truncated
        successor = self._observations.copy()
        for ended in np.flatnonzero(over):
            self._reset(int(ended))
        finished = self._ledger.add(reward, over)
        return Step(
            observation=self._observations.copy() if over.any() else successor,
            next_observation=successor,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            finished=finished,
        )

    def begin(self, actions: Array) -> Callable[[], Step]:
        return partial(self.step, actions)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _reset(self, k: int) -> None:
        # A seed is given once: again, it would repeat the same episode.
        self._observations[k], _ = self._envs[k].reset(seed=self._seeds[k])
        self._seeds[k] = None


def _wrapped(contract: Environment) -> tuple[gymnasium.Env[Any, Any], tuple[Part, ...]]:
    """One environment, wrapped as the contract says, and the parts that its observations were flattened from."""
    try:
        from gymnasium import spaces, wrappers
    except ImportError as error:
        raise missing("gymnasium", "rl") from error
    env = _registered(contract)
    settings = contract.settings
    if "layout" in preprocessing(contract):
        env = _channels_first(env)
    parts: tuple[Part, ...] = ()
    if not isinstance(env.observation_space, spaces.Box):
        parts = parts_of(env.observation_space)
        env = wrappers.FlattenObservation(env)
    if settings.get("sticky_actions", 0):
        env = wrappers.StickyAction(env, repeat_action_probability=number(contract, "sticky_actions"))
    if settings.get("frame_stack", 1) != 1:
        padding = "zero" if preprocessing(contract).get("padding") == "zero" else "reset"
        env = wrappers.FrameStackObservation(env, int(number(contract, "frame_stack")), padding_type=padding)
    return _normalised(env, contract, parts), parts


def _normalised(
    env: gymnasium.Env[Any, Any], contract: Environment, parts: tuple[Part, ...]
) -> gymnasium.Env[Any, Any]:
    """The environment as the contract's statistics normalise what it shows, if it has any."""
    normaliser = Normaliser.whole(contract, parts)
    if normaliser is None:
        return env
    from gymnasium import spaces, wrappers

    shape = env.observation_space.shape or ()
    if shape != normaliser.mean.shape:
        raise ArgumentError(
            f"the contract's normaliser has {len(normaliser.mean)} features, {contract.id} shows {shape_text(shape)}",
            hint="surgery annotate MODEL --env-setting normaliser=null -o OUT",
        )
    bound = np.broadcast_to(np.asarray(normaliser.clip, np.float32), shape)
    return wrappers.TransformObservation(env, normaliser, spaces.Box(-bound, bound, shape, np.float32))


def _registered(contract: Environment) -> gymnasium.Env[Any, Any]:
    import gymnasium

    given = contract.settings.get("max_episode_steps")
    with made_by_gymnasium(contract):
        spec = gymnasium.spec(str(contract.id))
        limit = (
            spec.max_episode_steps or MAX_STEPS
            if given is None
            else int(number(contract, "max_episode_steps"))
        )
        return gymnasium.make(str(contract.id), max_episode_steps=limit, disable_env_checker=True)


def _channels_first(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Images, also those in a dictionary, with their channels first."""
    from gymnasium import spaces, wrappers

    space = env.observation_space
    if isinstance(space, spaces.Dict) and any(_is_image(part) for part in space.values()):
        images = {key for key, part in space.items() if _is_image(part)}
        moved = {key: _moved(part) if key in images else part for key, part in space.items()}
        return wrappers.TransformObservation(
            env,
            lambda seen: {k: np.moveaxis(x, -1, 0) if k in images else x for k, x in seen.items()},
            spaces.Dict(list(moved.items())),
        )
    if not _is_image(space):
        raise ArgumentError(
            f"observations of shape {shape_text(space.shape or ())} have no layout", hint="remove 'layout'"
        )
    return wrappers.TransformObservation(env, lambda image: np.moveaxis(image, -1, 0), _moved(space))


def _is_image(space: gymnasium.Space[Any]) -> bool:
    return space.shape is not None and len(space.shape) == 3


def _moved(space: Any) -> gymnasium.spaces.Box:  # noqa: ANN401
    from gymnasium.spaces import Box

    low, high = (np.moveaxis(bound, -1, 0) for bound in (space.low, space.high))
    return Box(low, high, dtype=space.dtype.type)
