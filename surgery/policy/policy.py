"""The policy: scores of actions, and actions drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, GraphError, shape_text
from surgery.interface import Environment
from surgery.policy import backends
from surgery.policy.feeds import (
    ObservationPort,
    StatePort,
    mask_inputs,
    observation_port,
    state_ports,
)
from surgery.policy.heads import TEMPERATURE, Head, Kind, find
from surgery.torch.failures import no_gpu
from surgery.torch.travel import moved

Mode = Literal["greedy", "sample", "epsilon"]
Backend = Literal["auto", "torch", "onnxruntime"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Policy:
    """A network that is asked for actions; made by `load`.

    Attributes:
      head: the output that is asked, and what its numbers are.
      temperature: what scores are divided by before a softmax.
      backend: what runs the graph, `torch` or `onnxruntime`.
    """

    head: Head
    temperature: float
    backend: str
    device: torch.device
    _observation: ObservationPort
    _states: tuple[StatePort, ...]
    _masks: dict[str, tuple[torch.dtype, int]]
    _run: backends.Run
    _carried: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def _forbidden(self) -> torch.Tensor | None:
        """(A,) bool, made once: a number that travels to a device waits for it."""
        allowed = self.head.allowed
        return None if allowed is None else ~torch.tensor(allowed, device=self.device)

    @cached_property
    def _support(self) -> torch.Tensor | None:
        """(atoms,)"""
        return None if self.head.support is None else torch.tensor(self.head.support, device=self.device)

    @cached_property
    def _legal(self) -> dict[str, torch.Tensor]:
        """What goes into each input that is a mask, (1, width)."""
        rows = {name: self.head.allowed or (True,) * width for name, (_, width) in self._masks.items()}
        return {
            name: torch.tensor([row], device=self.device).to(self._masks[name][0])
            for name, row in rows.items()
        }

    @property
    def kind(self) -> Kind:
        return self.head.kind

    @property
    def actions(self) -> int:
        return self.head.actions

    @property
    def recurrent(self) -> bool:
        return bool(self._states)

    @property
    def at_once(self) -> int | None:
        """How many environments it can play at once; None: any number."""
        return next((state.fixed for state in self._states), None)

    def scores(self, observation: Array | torch.Tensor) -> torch.Tensor:
        """What the network says about each action; a recurrent one goes on from its last call.

        Args:
          observation: (n, …) as the environment gives them.

        Returns:
          (n, actions) float32: Q-values (the expected ones of a distribution), logits, or 1 for the action that was
          named and 0 for the others. Forbidden actions have -inf: probability 0.

        Raises:
          ArgumentError: observations of another shape.
        """
        x = self._observation.feed(observation, self.device)
        count = len(observation)
        outputs = self._ask(x, count, observation.ndim - 1)
        scores = self._read(outputs[self.head.output], count)
        return scores if self._forbidden is None else scores.masked_fill(self._forbidden, -torch.inf)

    def act(
        self,
        observation: Array | torch.Tensor,
        *,
        mode: Mode = "greedy",
        epsilon: float = 0.0,
        generator: np.random.Generator,
    ) -> Array:
        """Actions for n observations.

        Args:
          observation: (n, …) as the environment gives them.
          mode: `greedy`: the best action, the first of equals; `sample`: from softmax(scores / temperature);
            `epsilon`: greedy, or with probability `epsilon` any allowed action.
          epsilon: that probability.
          generator: of all that is random.

        Returns:
          (n,) int64

        Raises:
          ArgumentError: observations of another shape. GraphError: the network gives NaN.
        """
        return self.choose(self.scores(observation), mode=mode, epsilon=epsilon, generator=generator)

    def choose(
        self,
        given: torch.Tensor,
        *,
        mode: Mode = "greedy",
        epsilon: float = 0.0,
        generator: np.random.Generator,
    ) -> Array:
        """Actions (n,) from what `scores` gave; arguments and errors as of `act`."""
        scores = given.cpu().numpy()
        if np.isnan(scores).any():
            raise GraphError(
                f"output '{self.head.output}' is NaN for some observations", hint="its training has diverged"
            )
        if mode == "sample":
            # The largest of log p + Gumbel noise is distributed as p.
            return np.asarray((scores / self.temperature + generator.gumbel(size=scores.shape)).argmax(-1))
        actions = np.asarray(scores.argmax(-1))
        if mode == "greedy":
            return actions
        allowed = np.flatnonzero(self.head.allowed or np.ones(self.actions))
        random = generator.choice(allowed, len(actions))
        return np.where(generator.random(len(actions)) < epsilon, random, actions)

    def reset(self, mask: Array | None = None) -> None:
        """Forget the recurrent state of environments that start an episode.

        Args:
          mask: (n,) bool; None: all.
        """
        if mask is None:
            self._carried.clear()
        elif self._carried and mask.any():
            rows = moved(mask, self.device)
            for state in self._states:
                self._carried[state.input] = state.cleared(self._carried[state.input], rows)

    def check(self, observation_shape: tuple[int, ...]) -> None:
        """Refuse an environment whose observations the network does not take.

        Raises:
          ArgumentError.
        """
        shape = observation_shape
        if self._observation.last and len(shape) > 1:
            shape = (*shape[1:], shape[0])
        self._observation.check(shape)

    def _ask(self, x: torch.Tensor, count: int, ndim: int) -> backends.Tensors:
        size = self._observation.batch(ndim)
        if size is None or size == count:
            return self._once(x, count)
        if self._states:
            raise ArgumentError(
                f"the graph takes batches of {size}, and its state is of as many environments: got {count}",
                hint=f"play {size} environments at once, or export it with a free batch",
            )
        # A graph with a fixed batch: as many calls as it takes, the last one filled up.
        parts = []
        for first in range(0, count, size):
            part = x[first : first + size]
            filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            parts.append(self._once(filled.contiguous(), size))
        return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}

    def _once(self, x: torch.Tensor, count: int) -> backends.Tensors:
        feeds = {self._observation.name: x}
        for name, row in self._legal.items():
            feeds[name] = row.expand(count, -1).contiguous()
        for state in self._states:
            known = self._carried.get(state.input)
            if known is not None and known.shape[state.batch] != count:
                raise ArgumentError(
                    f"{count} observations, but the recurrent state is of {known.shape[state.batch]}",
                    hint="forget it first: policy.reset()",
                )
            feeds[state.input] = state.zeros(count, self.device) if known is None else known
        outputs = self._run(feeds)
        self._carried = {state.input: outputs[state.output] for state in self._states}
        return outputs

    def _read(self, output: torch.Tensor, count: int) -> torch.Tensor:
        """The output as scores (n, actions)."""
        head = self.head
        wide = head.kind in ("atom_logits", "quantiles")
        wanted = count * (1 if head.kind == "action" else head.actions)
        if output.numel() % wanted or (not wide and output.numel() != wanted):
            raise ArgumentError(
                f"output '{head.output}' gives {shape_text(output.shape)} for {count} observations: no {head.kind}",
                hint=f"say what it is: surgery annotate MODEL --output {head.output}:quantiles -o OUT",
            )
        if head.kind == "action":
            return torch.nn.functional.one_hot(output.reshape(count).long(), head.actions).float()
        if wide:
            spread = output.reshape(count, head.actions, -1).float()
            support = self._support
            return spread.mean(-1) if support is None else (spread.softmax(-1) * support).sum(-1)
        return output.reshape(count, head.actions).float()


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "cpu",
    environment: Environment | None = None,
    temperature: float | None = None,
    output: str | None = None,
    backend: Backend = "auto",
    note: Callable[[str], None] = lambda _: None,
) -> Policy:
    """A checkpoint as a policy.

    Args:
      checkpoint: whose interface says what its inputs and outputs are.
      device: where it runs, `cpu`, `cuda` or `cuda:N`.
      environment: a contract to play by instead of the checkpoint's own.
      temperature: of a softmax over its scores; None: 1 for logits, 0.1 for values.
      output: the output to ask; None: the only one that can be a policy.
      backend: what runs it; `auto`: onnxruntime on a CPU, torch on a GPU, and the other one where that cannot.
      note: told what should be said once: that it does not run where it was asked to.

    Raises:
      Refused: the actions are continuous.
      UnknownName: no such output.
      ArgumentError: no output can be a policy, several can, or inputs that nothing says how to feed.
    """
    if environment is not None:
        checkpoint = checkpoint.replace(environment=environment)
    if temperature is not None and not temperature > 0:
        raise ArgumentError(f"a temperature is more than 0, got {temperature}")
    head = find(checkpoint, output)
    observation, states = observation_port(checkpoint), state_ports(checkpoint)
    place = _device(device)
    if backend == "torch":
        name, run = "torch", backends.checked_module(checkpoint, place)
    elif backend == "onnxruntime":
        name, run = "onnxruntime", backends.in_runtime(checkpoint, place, note=note)
    else:
        name, run = backends.best(checkpoint, place, note=note)
    return Policy(
        head,
        TEMPERATURE[head.kind] if temperature is None else temperature,
        name,
        place,
        observation,
        states,
        mask_inputs(checkpoint),
        run,
    )


def _device(name: str) -> torch.device:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        place = torch.device(chosen)
    except RuntimeError as error:
        raise ArgumentError(f"there is no device '{name}'", hint="cpu, cuda, cuda:N or auto") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise no_gpu()
    if place.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=place)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ArgumentError(f"there is no device '{name}'", hint="cpu, cuda, cuda:N or auto") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"there is no device '{name}', only {torch.cuda.device_count()} of them",
            hint="they are counted from cuda:0",
        )
    return place
