"""The teacher as a black box: scores of observations, actions, and what it must have in common with the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgery import policy as policies
from surgery.checkpoint import Checkpoint
from surgery.distill.acting import Array
from surgery.errors import Refused
from surgery.evaluate import fits
from surgery.interface import Environment

if TYPE_CHECKING:
    import torch

    from surgery.envs import Envs


class Teacher:
    """A trained policy that is only asked.

    Args:
      checkpoint: any network with discrete actions: values, logits, distributions, or actions only.
      environment: where it plays; replaces the contract that it carries.
      device: `cpu` or `cuda`.

    Raises:
      ArgumentError: its outputs are no policy.
      Refused: it is recurrent, or its actions are continuous.
    """

    def __init__(self, checkpoint: Checkpoint, environment: Environment, *, device: str) -> None:
        self.checkpoint = checkpoint
        mask = checkpoint.environment.settings.get("action_mask")
        settings = environment.settings if mask is None else {**environment.settings, "action_mask": mask}
        self.environment = Environment(environment.id, settings)
        self._policy = policies.load(checkpoint, environment=self.environment, device=device)
        self._usable = self._policy.actions
        if self._policy.recurrent:
            raise Refused(
                "the teacher is recurrent: what it says of a single observation drawn from a replay is not what it "
                "would have said in the game",
                hint="learn from a teacher without memory, or widen this one as it is: surgery widen",
            )

    @property
    def temperature(self) -> float:
        """τ by kind of output: 0.1 for values as in QDagger, 1 for logits."""
        return self._policy.temperature

    @property
    def only_acts(self) -> bool:
        """Whether it gives actions and no scores."""
        return self._policy.kind == "action"

    def scores(self, observation: Array | torch.Tensor) -> torch.Tensor:
        """(n, A) of observations as the environment gives them; actions that it lacks, and the contract forbids, are
        left out."""
        return self._policy.scores(observation)[:, : self._usable]

    def act(self, observation: Array, generator: np.random.Generator) -> Array:
        """Actions (n,) as it was trained to act: drawn from logits, else the best."""
        mode: Any = "sample" if self._policy.kind == "logits" else "greedy"
        return self._policy.act(observation, mode=mode, generator=generator)

    def check(self, envs: Envs) -> None:
        """Refuse an environment with other actions or observations.

        Raises:
          ArgumentError: names the command that would make it fit.
        """
        fits(self.checkpoint, self._policy, envs)
        self._usable = envs.actions
