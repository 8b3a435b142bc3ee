"""The policy: scores of actions, and actions drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.actions import ActionSpace
from surgery.errors import ArgumentError, GraphError, Refused, missing
from surgery.graph.choices import is_drawn
from surgery.interface import Environment
from surgery.policy.arrays import Arrays, Host, Read
from surgery.policy.cut import cut
from surgery.policy.feeds import StatePort, mask_inputs, observation_ports, state_ports
from surgery.policy.heads import Head, find
from surgery.policy.laws import Law
from surgery.policy.observed import Observations
from surgery.policy.runtime import on_host

Mode = Literal["greedy", "sample", "epsilon"]
Backend = Literal["auto", "torch", "onnxruntime"]
Run = Callable[[Mapping[str, Any]], dict[str, Any]]

if TYPE_CHECKING:
    import torch

    from surgery.envs.parts import Part


@dataclass
class Policy:
    """A network that is asked for actions; made by `load`.

    Attributes:
      head: the outputs that are asked, and what their numbers are.
      temperature: what scores are divided by before a softmax.
      backend: what runs the graph, `torch` or `onnxruntime`.
    """

    head: Head
    temperature: float
    backend: str
    arrays: Arrays
    _observations: Observations
    _states: tuple[StatePort, ...]
    _run: Run
    _carried: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _read(self) -> Read:
        return self.head.reader(self.arrays)

    @cached_property
    def _legal(self) -> dict[str, Any]:
        """What goes into each input that is a mask, (1, width), unless the environment shows one."""
        return {
            name: self.arrays.cast(self.arrays.take(np.array([self.head.allowed or (True,) * width])), dtype)
            for name, (dtype, width) in self._observations.masks.items()
        }

    @cached_property
    def law(self) -> Law:
        """How what the network says becomes actions, in the environment that was met last.

        Raises:
          ArgumentError: the actions are numbers, and no environment has been met.
        """
        return self.head.law(None, self.temperature)

    @property
    def kind(self) -> str:
        return self.head.kind

    @property
    def actions(self) -> int:
        return self.head.actions

    @property
    def draws(self) -> bool:
        """Whether it was trained to draw its actions, and is played so."""
        return self.head.draws

    @property
    def recurrent(self) -> bool:
        return bool(self._states)

    @property
    def at_once(self) -> int | None:
        """How many environments it can play at once; None: any number."""
        return next((state.fixed for state in self._states), None)

    def scores(self, observation: Array | torch.Tensor) -> Any:  # noqa: ANN401
        """What the network says about each action; a recurrent one goes on from its last call.

        Args:
          observation: (n, …) as the environment gives them; into several inputs a mapping of such arrays by input,
            or flattened, once the policy has seen by `meet` what the parts are.

        Returns:
          (n, actions) float32, a tensor, or NumPy's array if it was loaded with `host`: Q-values (the expected ones
          of a distribution), logits, logarithms of probabilities, or 1 for the action that was named and 0 for the
          others. Forbidden actions have -inf: probability 0.

        Raises:
          ArgumentError: observations of another shape. Refused: it gives no scores.
        """
        if not self.head.scored:
            raise Refused(f"output '{self.head.output}' gives {self.kind}, not scores of single actions")
        return self._said(observation)

    def _said(self, observation: Array | torch.Tensor) -> Any:  # noqa: ANN401
        given = self._observations.given(observation, self.arrays)
        count = len(next(iter(given.values())))
        return self._read(self._ask(given, count), count)

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
          mode: `greedy`: the best action, the first of equals, or the mean of numbers; `sample`: from
            softmax(scores / temperature), or from the normal distribution; `epsilon`: greedy, or with probability
            `epsilon` any allowed action.
          epsilon: that probability.
          generator: of all that is random.

        Returns:
          (n,) int64; numbers (n, …) as the environment takes them.

        Raises:
          ArgumentError: observations of another shape. GraphError: the network gives NaN.
          Refused: nothing says how it would draw its actions, or they have no bounds for ε.
        """
        return self.choose(self._said(observation), mode=mode, epsilon=epsilon, generator=generator)

    def choose(
        self,
        given: Any,  # noqa: ANN401
        *,
        mode: Mode = "greedy",
        epsilon: float = 0.0,
        generator: np.random.Generator,
    ) -> Array:
        """Actions (n,) from what `scores` gave; arguments and errors as of `act`."""
        said, law = self.arrays.host(given), self.law
        if np.isnan(said).any():
            raise GraphError(
                f"output '{self.head.output}' is NaN for some observations", hint="its training has diverged"
            )
        if mode == "sample":
            return law.sample(said, generator)
        actions = law.greedy(said)
        if mode == "greedy":
            return actions
        random = law.uniform(len(actions), generator)
        explores = generator.random(len(actions)) < epsilon
        return np.where(explores.reshape(-1, *[1] * (actions.ndim - 1)), random, actions)

    def reset(self, mask: Array | None = None) -> None:
        """Forget the recurrent state of environments that start an episode.

        Args:
          mask: (n,) bool; None: all.
        """
        if mask is None:
            self._carried.clear()
        elif self._carried and mask.any():
            rows = self.arrays.take(mask)
            for state in self._states:
                self._carried[state.input] = state.cleared(self._carried[state.input], rows, self.arrays)

    def meet(
        self,
        observation_shape: tuple[int, ...],
        parts: Sequence[Part] = (),
        takes: ActionSpace | None = None,
    ) -> None:
        """Check that the network fits an environment; from now on read its observations, and give its actions.

        Args:
          observation_shape: of one observation.
          parts: of a flattened one, which go to the inputs of their names.
          takes: what may be done there; None: as before.

        Raises:
          ArgumentError.
        """
        self._observations = self._observations.shown(observation_shape, parts)
        if takes is not None:
            self.law = self.head.law(takes, self.temperature)

    def _ask(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        size = self._observations.batch(given)
        if size is None or size == count:
            return self._once(given, count)
        if self._states:
            raise ArgumentError(
                f"the graph takes batches of {size} and keeps the state of {size} environments: got {count}",
                hint=f"play {size} environments at once, or export it with a free batch",
            )
        # A graph with a fixed batch: as many calls as it takes, the last one filled up.
        parts = []
        for first in range(0, count, size):
            part = {name: self.arrays.take(rows[first : first + size]) for name, rows in given.items()}
            parts.append(self._once({name: self._filled(rows, size) for name, rows in part.items()}, size))
        return {name: self.arrays.joined([part[name] for part in parts])[:count] for name in parts[0]}

    def _filled(self, rows: Any, size: int) -> Any:  # noqa: ANN401
        return self.arrays.joined([rows, self.arrays.repeated(rows[-1:], size - len(rows))])

    def _once(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        feeds = self._observations.feeds(given, self.arrays)
        for name, row in self._legal.items():
            feeds.setdefault(name, self.arrays.repeated(row, count))
        for state in self._states:
            known = self._carried.get(state.input)
            if known is not None and known.shape[state.batch] != count:
                raise ArgumentError(
                    f"{count} observations, but the recurrent state is for {known.shape[state.batch]}",
                    hint="forget it first: policy.reset()",
                )
            feeds[state.input] = state.zeros(count, self.arrays) if known is None else known
        outputs = self._run(feeds)
        self._carried = {state.input: outputs[state.output] for state in self._states}
        return outputs


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "cpu",
    environment: Environment | None = None,
    temperature: float | None = None,
    output: str | None = None,
    backend: Backend = "auto",
    note: Callable[[str], None] = lambda _: None,
    host: bool = False,
) -> Policy:
    """A checkpoint as a policy.

    Args:
      checkpoint: whose interface says what its inputs and outputs are.
      device: where it runs, `cpu`, `cuda`, `cuda:N` or `auto`.
      environment: a contract to play by instead of the checkpoint's own.
      temperature: of a softmax over its scores; None: 1 for logits, 0.1 for values. Of numbers there is none.
      output: the output to ask; None: the only one that can be a policy.
      backend: what runs it; `auto`: onnxruntime on a CPU, torch on a GPU, and the other one where that cannot.
      note: told what should be said once: that it does not run where it was asked to.
      host: whether NumPy's arrays will do for scores. Then a graph that onnxruntime runs on a CPU needs no PyTorch.

    Raises:
      UnknownName: no such output.
      ArgumentError: no output can be a policy, several can, or inputs that nothing says how to feed.
    """
    if environment is not None:
        checkpoint = checkpoint.replace(environment=environment)
    if temperature is not None and not temperature > 0:
        raise ArgumentError(f"a temperature is more than 0, got {temperature}")
    head = find(checkpoint, output)
    if temperature is not None and not head.scored:
        raise ArgumentError(f"a temperature is of scores, and output '{head.output}' gives {head.kind}")
    if is_drawn(checkpoint.value(head.output)):
        note(f"the graph draws '{head.output}' itself, whatever the mode is")
    ports = checkpoint.interface.outputs
    asked = [port for port in ports if port.name in head.outputs or port.kind == "state"]
    checkpoint = cut(checkpoint, checkpoint.interface.inputs, asked)
    observations = Observations(observation_ports(checkpoint), mask_inputs(checkpoint))
    states = state_ports(checkpoint)
    temperature = head.temperature if temperature is None else temperature
    if host and device == "cpu" and backend != "torch":
        try:
            run: Run = on_host(checkpoint)
            return Policy(head, temperature, "onnxruntime", Host(), observations, states, run)
        except GraphError:
            if backend == "onnxruntime":
                raise
    backends, tensors = _with_torch("backends"), _with_torch("tensors")
    place = tensors.device(device)
    if backend == "torch":
        name, run = "torch", backends.checked_module(checkpoint, place)
    elif backend == "onnxruntime":
        name, run = "onnxruntime", backends.in_runtime(checkpoint, place, note=note)
    else:
        name, run = backends.best(checkpoint, place, note=note)
    return Policy(head, temperature, name, tensors.Tensors(place), observations, states, run)


def _with_torch(part: str) -> Any:  # noqa: ANN401
    """A module of this package that needs PyTorch.

    Raises:
      MissingDependency.
    """
    try:
        return import_module(f"surgery.policy.{part}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing("torch", "torch") from error
