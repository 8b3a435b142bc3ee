"""Playing a checkpoint: the policy and the environments that its contract asks for, put together and checked."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs import make
from surgery.envs.actions import Box, Discrete
from surgery.envs.step import Envs
from surgery.errors import ArgumentError
from surgery.evaluate.episodes import Episodes, play
from surgery.evaluate.scores import recorded_scores
from surgery.interface import Environment

if TYPE_CHECKING:
    from surgery.policy import Mode, Policy

MOST_AT_ONCE = 16
LAYOUT = """the network has channels first: --env-setting 'preprocessing={"layout":"CHW"}'"""


@contextlib.contextmanager
def on_device() -> Iterator[None]:
    """Turn a failure of the GPU in this context into an error with the reason.

    Raises:
      RunFailed: it failed.
    """
    try:
        yield
    except RuntimeError:
        if "torch" not in sys.modules:  # and no GPU in use
            raise
        from surgery.torch.failures import ELSEWHERE, explained

        with explained(ELSEWHERE):
            raise


@dataclass(frozen=True)
class Measured:
    """What was played, by which contract, and how.

    Attributes:
      contract: completed.
      mode: how actions were chosen.
      random: (count, generator) -> what random play does.
      seconds: that the playing took.
      notes: what had to be said of the policy.
    """

    episodes: Episodes
    contract: Environment
    mode: str
    random: Callable[[int, np.random.Generator], Array]
    seconds: float
    notes: tuple[str, ...]


def measure(
    checkpoint: Checkpoint,
    contract: Environment,
    *,
    mode: str | None = None,
    episodes: int,
    seed: int,
    num_envs: int | None = None,
    device: str = "cpu",
    seen: Callable[[Array], Array] = lambda observation: observation,
    progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Play whole episodes.

    Args:
      checkpoint: the model.
      contract: what it plays by.
      mode: `greedy`, `sample`, `epsilon:E`; None: as the first recorded score, or by kind of output.
      episodes: how many.
      seed: of environments and actions.
      num_envs: environments at once; None: as many as episodes, up to 16.
      device: what the network runs on.
      seen: what the policy is shown of observations (n, …).
      progress: told how many episodes are done.

    Raises:
      As `surgery.policy.load`, `surgery.envs.make` and `fits`.
    """
    from surgery.policy import load

    if episodes < 1:
        raise ArgumentError(f"at least one episode is needed, got {episodes}")
    notes: list[str] = []
    policy = load(checkpoint, device=device, environment=contract, note=notes.append, host=True)
    chosen = _mode(checkpoint, policy) if mode is None else mode
    choose, epsilon = parsed(chosen)
    count = policy.at_once or num_envs or min(episodes, MOST_AT_ONCE)
    envs = make(contract, count, seed=seed, training=False)
    generator = np.random.default_rng(seed)

    def act(observation: Array) -> Array:
        return policy.act(seen(observation), mode=choose, epsilon=epsilon, generator=generator)

    try:
        fits(checkpoint, policy, envs)
        start = time.perf_counter()
        played = play(envs, act, episodes, ended=policy.reset, progress=progress)
        seconds = time.perf_counter() - start
        return Measured(played, envs.contract, chosen, policy.law.random, seconds, tuple(notes))
    finally:
        envs.close()


def fits(checkpoint: Checkpoint, policy: Policy, envs: Envs) -> None:
    """Prepare a policy for environments; refuse those that it does not fit, with the command that makes it fit.

    Actions beyond those of the environment are allowed as long as the contract forbids them.

    Raises:
      ArgumentError.
    """
    where = {"model": checkpoint.path or "in memory", "environment": envs.contract.id}
    model = checkpoint.path or "MODEL"
    adapt = f"surgery adapt {model} --env {envs.contract.id} -o OUT"
    try:
        policy.law = policy.head.law(envs.takes, policy.temperature)
    except ArgumentError as error:
        hint = (
            error.hint
            or "choose an environment with such actions, or say what the output is: surgery annotate"
        )
        raise ArgumentError(f"{envs.contract.id}: {error.message}", where=where, hint=hint) from error
    try:
        policy.meet(envs.observation_shape, envs.parts)
    except ArgumentError as error:
        hint = LAYOUT if _channels_elsewhere(policy, envs) else adapt
        raise ArgumentError(f"{envs.contract.id}: {error.message}", where=where, hint=hint) from error
    if not isinstance(envs.takes, Discrete | Box):
        return
    surplus = policy.actions - envs.actions
    names = "" if envs.action_meanings is None else f" ({', '.join(envs.action_meanings)})"
    if surplus < 0:
        raise ArgumentError(
            f"output '{policy.head.output}' has {policy.actions} actions, the environment {envs.actions}{names}",
            where=where,
            hint=f"surgery extend {model} --action {policy.head.output}+{-surplus} -o OUT, or {adapt}",
        )
    allowed = policy.head.allowed or (True,) * policy.actions
    if surplus and any(allowed[envs.actions :]):
        which = (
            f"say which they are: surgery annotate {model} --env-setting 'action_set=[…]' -o OUT, or {adapt}"
        )
        raise ArgumentError(
            f"output '{policy.head.output}' has {policy.actions} actions, the environment only {envs.actions}{names}",
            where=where,
            hint=which
            if policy.head.scored
            else "no edit removes an action: play the environment that it was trained for",
        )


def _channels_elsewhere(policy: Policy, envs: Envs) -> bool:
    """Whether the network would take what the environment shows, were its last axis the first one."""
    shape = envs.observation_shape
    parts = [replace(part, shape=_turned(part.shape)) for part in envs.parts]
    turned = (_turned(shape), parts)
    if turned == (shape, list(envs.parts)):
        return False
    try:
        policy.meet(*turned)
    except ArgumentError:
        return False
    return True


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The last of three axes as the first."""
    return (*shape[-1:], *shape[:-1]) if len(shape) == 3 else shape


def _mode(checkpoint: Checkpoint, policy: Policy) -> str:
    modes = [one.mode for one in recorded_scores(checkpoint.environment) if not one.settings]
    played = [mode for mode in modes if mode != "random"]
    return played[0] if played else "sample" if policy.draws else "greedy"


def parsed(mode: str) -> tuple[Mode, float]:
    """The mode, and ε."""
    name, _, amount = mode.partition(":")
    if mode == "greedy":
        return "greedy", 0.0
    if mode == "sample":
        return "sample", 0.0
    try:
        epsilon = float(amount)
    except ValueError:
        epsilon = -1.0
    if name != "epsilon" or not 0 <= epsilon <= 1:
        raise ArgumentError(
            f"'{mode}' is not a way to choose actions", hint="greedy, sample, or epsilon:E with 0 ≤ E ≤ 1"
        )
    return "epsilon", epsilon
