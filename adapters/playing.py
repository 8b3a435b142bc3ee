"""Our graph beside a framework's own predictions: what the adapters that play have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.adapters import Parity, code_from_here
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.normaliser import Normaliser
from surgery.envs.step import alive
from surgery.errors import ArgumentError, Refused, SurgeryError, first_line
from surgery.verify.outputs import runtime

if TYPE_CHECKING:
    import gymnasium

    Env = gymnasium.Env[Any, Any]

LIMIT = 1e-5
"""Largest difference of a continuous action, as a share of its range or of 1."""
MOST_STEPS = 3000
"""Of an episode."""
_HEADS = ("q_values", "action", "mean", "logits")
"""Which kind of output says what is done, the first before the others."""


class Graph:
    """A graph that is asked step by step, and carries its recurrent state.

    Attributes:
      head: the output that says what is done. kind: of that output.
    """

    def __init__(self, checkpoint: Checkpoint, *, normalised: bool = False) -> None:
        """Args: normalised: whether observations come as the contract's normaliser makes them."""
        self._run = runtime(checkpoint.model)
        ports, values = checkpoint.interface.inputs, {str(v.name): v for v in checkpoint.model.graph.inputs}
        self._types = {name: v.dtype.numpy() if v.dtype else np.float32 for name, v in values.items()}
        seen = {port.name for port in ports if port.kind == "observation"}
        self._unseen = {name: _zeros(v.shape) for name, v in values.items() if name not in seen}
        self._normalisers = (
            {} if normalised else {name: Normaliser.of(checkpoint.environment, name) for name in seen}
        )
        self._next = checkpoint.interface.states()
        kinds = {port.kind: port.name for port in checkpoint.interface.outputs if port.kind != "other"}
        self.kind = next((kind for kind in _HEADS if kind in kinds), "")
        self.head = kinds.get(self.kind) or checkpoint.interface.outputs[0].name
        self.reset()

    def reset(self) -> None:
        """Forget."""
        self._fed = dict(self._unseen)

    def ask(self, observation: Array | Mapping[str, Array]) -> Array:
        """What it says of n observations: (n, …) of the head."""
        return self.outputs(observation)[self.head]

    def outputs(self, observation: Array | Mapping[str, Array]) -> Mapping[str, Array]:
        """All that it says of n observations (n, …), by name."""
        named = observation if isinstance(observation, Mapping) else {"observation": observation}
        feeds = {name: self._feed(name, x) for name, x in named.items()}
        found: Mapping[str, Array] = self._run({**self._fed, **feeds})
        self._fed |= {name: found[after] for name, after in self._next.items()}
        return found

    def _feed(self, name: str, observation: Array) -> Array:
        normaliser = self._normalisers.get(name)
        x = observation if normaliser is None else normaliser(observation)
        return np.asarray(x, self._types[name])


def _zeros(shape: Any) -> Array:  # noqa: ANN401
    return np.zeros([1, *(n if isinstance(n, int) else 1 for n in list(shape or ())[1:])], np.float32)


@contextmanager
def loading(framework: str, path: Path) -> Iterator[None]:
    """Say it in one line if the framework cannot load a file: of another version, or of classes that are not here.

    Raises:
      Refused.
    """
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:  # whatever a framework makes of such a file
        raise Refused(
            f"{framework} cannot load {path}: {first_line(error, typed=True)}"[:300],
            hint="see whether it loads there by itself; or leave out --check",
        ) from error


@dataclass
class Tally:
    """What was seen so far; becomes a `Parity`.

    Attributes:
      size: what differences of actions are divided by (see `scale`); None: actions are choices, which differ or not.
      assumed: see `Parity`.
    """

    environment: str
    size: Array | None
    assumed: tuple[str, ...] = ()
    returns: list[float] = field(default_factory=list)
    steps: int = 0
    differing: int = 0
    largest: float = 0.0

    def add(self, ours: Array, theirs: Array) -> None:
        """Count one step at which both wanted an action."""
        if self.size is None:
            far = float(not np.array_equal(ours, theirs))
        else:
            far = float((np.abs(ours - theirs) / self.size).max())
        self.steps, self.differing = self.steps + 1, self.differing + (not far <= LIMIT)
        self.largest = max(self.largest, far)

    def parity(self) -> Parity:
        """What came of it."""
        return Parity(
            self.environment, tuple(self.returns), self.steps, self.differing, self.largest, self.assumed
        )


def scale(space: gymnasium.Space[Any]) -> Array | None:
    """What differences of continuous actions are divided by: their range, or 1; None for choices."""
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box):
        return None
    return np.maximum(1.0, np.where(np.isfinite(space.high), np.abs(space.high), 1.0))


def make(environment: str, shape: tuple[int, ...], actions: int) -> Env:
    """An environment that fits a network.

    Args:
      environment: gymnasium's id. Images of a game of ALE are grey, 84×84, with its frames stacked first or last.
      shape: of an observation. actions: how many there are to choose from, or directions to move in.

    Raises:
      ArgumentError: no such environment, or one that does not fit.
    """
    import gymnasium

    with found(environment):
        env = _stacked(environment, shape) if is_game(environment) and len(shape) == 3 else None
        env = env or gymnasium.make(environment)
    return fitting(env, environment, shape, actions)


@contextmanager
def found(environment: str) -> Iterator[None]:
    """Where an environment is made, of `MODULE:ID` too. Raises: ArgumentError: there is no such environment."""
    import gymnasium

    try:
        with code_from_here():
            yield
    except (gymnasium.error.Error, ImportError) as error:
        raise ArgumentError(f"there is no environment '{environment}' here: {error}") from error


def fitting(env: Env, environment: str, shape: tuple[int, ...] | None, actions: int) -> Env:
    """An environment, if it fits a network.

    Args:
      shape: of an observation; None where it is no array. actions: see `make`.

    Raises:
      ArgumentError: it does not; it is closed then.
    """
    seen, choices = env.observation_space.shape, _count(env.action_space)
    if seen != shape or choices != actions:
        env.close()
        raise ArgumentError(
            f"the file does not fit {environment}: it takes observations {shape} and gives {actions} actions, the "
            f"environment has {seen} and {choices}"
        )
    return env


def play(
    env: Env,
    wanted: Callable[[Array], Array],
    ours: Callable[[Array], Array],
    tally: Tally,
    episodes: int,
    seed: int,
) -> Parity:
    """Play whole episodes by the framework's actions, asking both at every step; the environment is closed then.

    Args:
      wanted: what the framework does on one observation. ours: what the graph does.
      tally: where it is counted. seed: of the environment, once.
    """
    with closing(env):
        for number in range(episodes):
            with alive(tally.environment):
                observation, _ = env.reset(seed=seed if number == 0 else None)
            total = 0.0
            for _ in range(MOST_STEPS):
                action = wanted(np.asarray(observation))
                tally.add(ours(np.asarray(observation)), action)
                with alive(tally.environment):
                    observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                if terminated or truncated:
                    break
            tally.returns.append(total)
    return tally.parity()


def is_game(environment: str) -> bool:
    """Whether gymnasium's id is one of a game of ALE; they are then registered."""
    named = "NoFrameskip" in environment or environment.startswith("ALE/")
    if named:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
    return named


def _stacked(environment: str, shape: tuple[int, ...]) -> Env:
    """A game as (frames, 84, 84), or (84, 84, frames) where that is the shape."""
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformObservation

    settings: dict[str, Any] = {"frameskip": 1} if environment.startswith("ALE/") else {}
    env = FrameStackObservation(AtariPreprocessing(gymnasium.make(environment, **settings)), min(shape))
    if shape[0] == min(shape):
        return env
    last: Any = gymnasium.spaces.Box(0, 255, (84, 84, min(shape)), dtype=np.dtype("uint8").type)
    return TransformObservation(env, lambda frames: np.moveaxis(frames, 0, -1), last)


def _count(space: gymnasium.Space[Any]) -> int | None:
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    return int(np.prod(space.shape)) if isinstance(space, gymnasium.spaces.Box) else None
