"""The teacher as a black box: scores of observations, actions, and what it must have in common with the student.

It is asked once for every observation, when the environment shows it, and what it says is kept in the replay: it never
changes, so an answer holds as long as its transition does. That is an eighth of the work of asking it for every example
of every batch (batches of 32 every 4 steps). It is also what makes teachers with a memory as good as others: they are
asked in the order of the game, with the state that they would have had in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery import policy as policies
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.distill.checks import check_model
from surgery.errors import ArgumentError
from surgery.evaluate import fits
from surgery.interface import Environment

if TYPE_CHECKING:
    import torch

    from surgery.envs import Envs


class Teacher:
    """A trained policy that is only asked, in the order of the game.

    Args:
      checkpoint: any network with discrete actions: values, logits, distributions, or actions only.
      environment: where it plays; replaces the contract that it carries.
      device: `cpu` or `cuda`.
      note: told what should be said once.

    Raises:
      ArgumentError: its outputs are no policy. Refused: as `check_model`.
    """

    def __init__(
        self, checkpoint: Checkpoint, environment: Environment, *, device: str,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.checkpoint = checkpoint
        mask = checkpoint.environment.settings.get("action_mask")
        self.environment = environment if mask is None else environment.with_settings(action_mask=mask)
        check_model(checkpoint)
        self._policy = policies.load(checkpoint, environment=self.environment, device=device, note=note)
        self._usable = self._policy.actions

    @property
    def temperature(self) -> float:
        """τ by kind of output: 0.1 for values as in QDagger, 1 for logits."""
        return self._policy.temperature

    @property
    def remembers(self) -> bool:
        """Whether it has a state, so that it must see every observation of an episode."""
        return self._policy.recurrent

    @property
    def only_acts(self) -> bool:
        """Whether it gives actions and no scores."""
        return self._policy.kind == "action"

    def scores(self, observation: Array | torch.Tensor) -> torch.Tensor:
        """(n, A) of the next observations as the environment gives them; actions that it lacks, and the contract
        forbids, are left out. One with a memory goes on from the call before."""
        scores: torch.Tensor = self._policy.scores(observation)
        return scores[:, : self._usable]

    def choose(self, scores: torch.Tensor, generator: np.random.Generator) -> Array:
        """Actions (n,) as it was trained to act: drawn from logits, else the best."""
        mode: Any = "sample" if self._policy.draws else "greedy"
        return self._policy.choose(scores, mode=mode, generator=generator)

    def forget(self, begins: Array | None = None) -> None:
        """Its memory of environments (n,) bool in which an episode begins; None: of all."""
        self._policy.reset(begins)

    def label(self, observation: Array, begins: Array) -> torch.Tensor:
        """`scores`, after forgetting where an episode begins: for recorded transitions."""
        self.forget(begins)
        return self.scores(observation)

    def check(self, envs: Envs) -> None:
        """Refuse an environment with other actions or observations.

        Raises:
          ArgumentError: names the command that would make it fit.
        """
        fits(self.checkpoint, self._policy, envs)
        if self._policy.at_once not in (None, envs.num_envs):
            raise ArgumentError(
                f"the teacher's state is for {self._policy.at_once} environments, the run has {envs.num_envs}",
                hint=f"--envs {self._policy.at_once}, or export the teacher with a free batch",
            )
        self._usable = envs.actions
