"""New actions that come gradually: the share of episodes that may use them goes from 0 to 100 per cent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from surgery.arrays import Array
from surgery.errors import ArgumentError
from surgery.interface import Environment


class AnnealActions(gymnasium.Wrapper[Any, int, Any, int]):
    """Forbids new actions in all episodes at first, and in none at last.

        env = AnnealActions(env, checkpoint.environment, episodes=10_000, seed=0)

    Whether an episode may use them is drawn when it begins, with probability k / episodes for the k-th. What may be
    taken is in `info["action_mask"]` after every reset and step, and `action_masks()` (the convention of maskable
    policies) gives it, too.

    Args:
      env: any environment with discrete actions.
      contract: whose `action_mask` says which actions are new (false); or the mask itself, a boolean per action.
      episodes: after which all may use them; 0 allows them at once.
      seed: of the draw.
      instead: the action that is taken for one that is forbidden, for agents that know no masks; None refuses it.

    Raises:
      ArgumentError: actions that are not discrete, a mask of another length or for several outputs, no action left.

    References:
      OpenAI. Dota 2 with Large Scale Deep Reinforcement Learning. 2019 (arXiv:1912.06680), appendix B: the share of
      games with a new rule goes from 0 to 100 per cent; if skill drops, anneal more slowly.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        contract: Environment | Sequence[bool],
        *,
        episodes: int,
        seed: int,
        instead: int | None = None,
    ) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ArgumentError(f"only discrete actions can be annealed, these are {type(space).__name__}")
        self._mask = _mask(contract, int(space.n))
        if episodes < 0:
            raise ArgumentError(f"{episodes} episodes", hint="a whole number, 0 or more")
        if instead is not None and not (0 <= instead < space.n and self._mask[instead]):
            raise ArgumentError(f"action {instead} is forbidden or does not exist", hint="name an old action")
        self._episodes, self._instead = episodes, instead
        self._rng = np.random.default_rng(seed)
        self._begun = 0
        self._free = False

    @property
    def share(self) -> float:
        """The probability with which the next episode may use the new actions."""
        return 1.0 if self._begun >= self._episodes else self._begun / self._episodes

    def action_masks(self) -> Array:
        """Which actions may be taken now; boolean, shape (actions,)."""
        return np.ones_like(self._mask) if self._free else self._mask.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; `seed` is the environment's own."""
        self._free = bool(self._rng.random() < self.share)
        self._begun += 1
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "action_mask": self.action_masks()}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action; a forbidden one is replaced by `instead`.

        Raises:
          ArgumentError: it is forbidden, and nothing is to be done instead.
        """
        if not self._free and not self._mask[int(action)]:
            if self._instead is None:
                raise ArgumentError(
                    f"action {int(action)} may not be taken in this episode",
                    hint="choose by info['action_mask'], or give an action to take instead=…",
                )
            action = self._instead
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "action_mask": self.action_masks()}


def _mask(contract: Environment | Sequence[bool], actions: int) -> Array:
    """The old actions, as a boolean mask."""
    allowed: Any = contract
    if isinstance(contract, Environment):
        known = contract.settings.get("action_mask")
        allowed = next(iter(known.values())) if isinstance(known, Mapping) and len(known) == 1 else known
        if not isinstance(allowed, Sequence):
            raise ArgumentError(
                "the contract has no action mask of one output",
                hint="give the mask itself, or make one with: surgery extend --action … --new-action never",
            )
    mask = np.array(allowed, bool)
    if mask.shape != (actions,) or not mask.any():
        raise ArgumentError(
            f"a mask of {mask.size} actions, {int(mask.sum())} allowed, for {actions} actions"
        )
    return mask
