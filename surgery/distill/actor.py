"""A student at play: its best actions, and what it remembers of each environment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from surgery.arrays import Array
from surgery.distill.captured import Captured, Recorder

if TYPE_CHECKING:
    from surgery.distill.network import Network


class Actor:
    """Asks a network for actions in n environments, and carries its state from step to step.

    Args:
      network: with a memory or without; its weights may change meanwhile.
      noisy: whether noisy layers draw new noise at every step (exploration), or are without.
      recorder: records a step, to be replayed from then on, of networks without a memory; None: every step runs as it
        is.
      failed: told why, if that fails.
    """

    def __init__(
        self,
        network: Network,
        *,
        noisy: bool = False,
        recorder: Recorder | None = None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._network, self._noisy = network, noisy
        self._state: tuple[torch.Tensor, ...] = ()
        self._best: Callable[[torch.Tensor], torch.Tensor] = lambda seen: network.best(network(seen))
        if recorder is not None:
            self._best = Captured(self._best, recorder, what="a step of play", failed=failed)

    def silent(self) -> Actor:
        """The same student without the noise of noisy layers, and with a memory of its own; for as many environments,
        since what is recorded is recorded once."""
        other = copy.copy(self)
        other._noisy, other._state = False, ()
        return other

    def greedy(self, observation: Array) -> Array:
        """The best action (n,) for each of the next observations."""
        network = self._network
        with torch.no_grad():
            network.draw_noise() if self._noisy else network.silence()
            if network.states:
                output, self._state = network.step(network.there(observation), self.state(len(observation)))
                best = network.best(output)
            else:
                best = self._best(network.there(observation))
        return best.cpu().numpy()

    def state(self, count: int) -> tuple[torch.Tensor, ...]:
        """What is remembered of `count` environments; nothing at first."""
        if not self._state:
            self._state = self._network.blank(count)
        return self._state

    def remembered(self, count: int) -> torch.Tensor | None:
        """The state as one row of numbers per environment (count, S), as a replay keeps it; None without memory."""
        return self._network.packed(self.state(count)) if self._network.states else None

    def forget(self, begins: Array | None = None) -> None:
        """What is remembered of environments (n,) bool in which an episode begins; None: of all."""
        if begins is None:
            self._state = ()
        elif self._state and begins.any():
            self._state = self._network.cleared(self._state, self._network.there(begins))
