"""Environments whose failures are errors that say what to do, not tracebacks of other libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from surgery.arrays import Array
from surgery.distill.interrupt import Stopped
from surgery.envs import Envs, Step
from surgery.errors import RunFailed, SurgeryError, first_line
from surgery.torch.failures import is_of_device


class Guarded:
    """The same environments (`Envs`); what they throw when they are reset or stepped becomes a `RunFailed`."""

    def __init__(self, envs: Envs) -> None:
        self._envs = envs
        self.num_envs, self.actions, self.stacked = envs.num_envs, envs.actions, envs.stacked
        self.observation_shape, self.observation_dtype = envs.observation_shape, envs.observation_dtype
        self.action_meanings, self.contract = envs.action_meanings, envs.contract
        self.parts, self.takes = envs.parts, envs.takes

    def reset(self) -> Array:
        with alive(self.contract.id):
            return self._numbers(self._envs.reset())

    def step(self, actions: Array) -> Step:
        return self.begin(actions)()

    def begin(self, actions: Array) -> Callable[[], Step]:
        with alive(self.contract.id):
            begun = self._envs.begin(actions)
        return partial(self._ended, begun)

    def _ended(self, begun: Callable[[], Step]) -> Step:
        with alive(self.contract.id):
            step = begun()
        if not np.isfinite(step.reward).all():
            raise RunFailed(f"the environment {self.contract.id} gave a reward that is not a number")
        self._numbers(step.next_observation)
        self._numbers(step.observation)  # another one where an episode begins
        return step

    def _numbers(self, observation: Array) -> Array:
        """What would be kept in the replay, and make every loss that it is drawn for no number."""
        if observation.dtype.kind == "f" and not np.isfinite(observation).all():
            raise RunFailed(f"the environment {self.contract.id} gave an observation that is not a number")
        return observation

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a dead one cannot be closed, and the reason has been told
            self._envs.close()


@contextlib.contextmanager
def alive(name: str | None) -> Iterator[None]:
    """Turn what an environment raises in this context into an error that says what to do; a GPU's errors pass.

    Raises:
      RunFailed: it threw something.
    """
    try:
        yield
    except (SurgeryError, Stopped):
        raise
    except Exception as error:  # environments are anyone's code
        if is_of_device(error):
            raise
        raise RunFailed(
            f"the environment {name} failed: {first_line(error, typed=True)}",
            hint="repeat the command to continue from the last checkpoint",
        ) from error
