"""All numbers of a run, resolved: what a run directory records, and what a resumed run must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from surgery.distill.methods import Method, method_named
from surgery.errors import ArgumentError, UnknownName
from surgery.interface import Environment
from surgery.json_values import Json

PAPER = 2_500_000
"""Agent steps of the papers' online budget (10 M frames of Atari)."""
HEADS = ("q", "dueling", "c51", "qr", "rainbow")


@dataclass(frozen=True)
class Settings:
    """The numbers of a run. Periods and counts are agent steps unless they say otherwise.

    Attributes:
      method: its name.
      budget: agent steps to take online.
      skip: emulator frames in an agent step.
      seed: of all that is random.
      envs: environments stepped together.
      n_step: steps of a return.
      gamma: discount per step.
      double: whether the student chooses the action whose value the target network gives (arXiv:1509.06461).
      prioritised: whether replay follows priorities (arXiv:1511.05952, with Dopamine's exponents of one half).
      batch: transitions per gradient step; of a student with a memory, stretches of `unroll` of them.
      burn_in: steps before them that only bring a student's memory up to date; 0 without one.
      unroll: steps of a stretch that are learned from; 0 for students without a memory.
      update_period: agent steps per gradient step.
      target_period: agent steps between copies of the student to the target network; offline the same number of
        gradient steps (÷ update_period).
      learn_after: transitions before the first gradient step online.
      replay: transitions kept.
      teacher_data: transitions of the teacher to collect, where the method needs any.
      offline_updates: gradient steps before the online phase.
      cutoff: t₀ of λ; None: no cut-off.
      floor: what λ does not fall below before it.
      coefficient: of the auxiliary loss.
      temperature: the student's τ: its values are divided by it.
      teacher_temperature: the teacher's τ; None: 0.1 for values, 1 for logits.
      margin: of the large-margin loss.
      rate: learning rate at λ = 1.
      final_rate: learning rate at λ = 0.
      epsilon_end: exploration in the end.
      epsilon_decay: steps over which ε falls linearly from 1; 0: it is at its end at once.
      clip: largest reward that is learned from, None for whole rewards.
      evaluate_every: steps between evaluations, at which λ changes.
      evaluation_episodes: per evaluation.
      evaluation_epsilon: exploration while evaluated.
      evaluation_steps: of each environment in an evaluation; games that go on then count as they stand.
    """

    method: str
    budget: int
    skip: int
    seed: int
    envs: int
    n_step: int
    gamma: float
    double: bool
    prioritised: bool
    batch: int
    burn_in: int
    unroll: int
    update_period: int
    target_period: int
    learn_after: int
    replay: int
    teacher_data: int
    offline_updates: int
    cutoff: int | None
    floor: float
    coefficient: float
    temperature: float
    teacher_temperature: float | None
    margin: float
    rate: float
    final_rate: float
    epsilon_end: float
    epsilon_decay: int
    clip: float | None
    evaluate_every: int
    evaluation_episodes: int
    evaluation_epsilon: float
    evaluation_steps: int

    @staticmethod
    def scaled(
        method: Method,
        environment: Environment,
        *,
        frames: int,
        seed: int,
        envs: int,
        recurrent: bool = False,
    ) -> Settings:
        """The papers' numbers, scaled to a budget.

        Budgets, the offline phase, t₀, ε's decay, evaluations and what is collected are the same fractions of any
        budget; a million transitions are kept of a larger one. The target network's period shrinks with it as far as
        1,000 steps (the papers': 8,000), and learning begins no earlier than after 500 transitions (20,000). An
        evaluation takes 125,000 steps at most, at a smaller budget 1/20 of it, but always up to 2,500 in each
        environment.

        Students with a memory learn from stretches as in R2D2 (Kapturowski et al. 2019), half as long as there (20 + 40
        steps), 16 of them every 16 steps, which still is five times as many transitions per step as for others.

        Args:
          method: whose numbers.
          environment: its contract.
          frames: online budget in emulator frames.
          seed: of all that is random.
          envs: environments stepped together.
          recurrent: whether the student has a memory.

        Raises:
          ArgumentError: a budget below 1,000 agent steps.
        """
        skip = _skip(environment)
        budget = frames // skip
        if budget < 1000:
            raise ArgumentError(
                f"{frames:,} frames are {budget:,} agent steps: nothing is learned in under 1,000"
            )
        part = budget / PAPER
        period = 16 if recurrent else 4
        updates = round(method.offline * budget * 4 / period)
        return Settings(
            method=method.name,
            budget=budget,
            skip=skip,
            seed=seed,
            envs=envs,
            n_step=method.n_step,
            gamma=0.99,
            double=False,
            prioritised=False,
            batch=16 if recurrent else 32,
            burn_in=20 if recurrent else 0,
            unroll=40 if recurrent else 0,
            update_period=period,
            target_period=min(8000, max(1000, round(8000 * part))),
            learn_after=min(20_000, max(500, round(20_000 * part))),
            replay=min(1_000_000, max(10_000, budget)),
            teacher_data=min(1_000_000, round(method.offline * budget) or round(0.4 * budget))
            if method.collects
            else 0,
            offline_updates=updates,
            cutoff=None if method.cutoff is None else round(method.cutoff * budget),
            floor=method.floor,
            coefficient=method.coefficient,
            temperature=0.1,
            teacher_temperature=None,
            margin=1.0,
            rate=method.rate,
            final_rate=method.final_rate,
            epsilon_end=0.01,
            epsilon_decay=round(0.02 * budget) if method.explores else 0,
            clip=_clip(environment),
            evaluate_every=-(-budget // 10),
            evaluation_episodes=20,
            evaluation_epsilon=0.001,
            evaluation_steps=max(2500, budget // (20 * envs)),
        )

    def changed(self, changes: Mapping[str, object]) -> Settings:
        """The settings with some of them given by hand.

        Raises:
          UnknownName: a setting that does not exist.
          ArgumentError: a value that it cannot have.
        """
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise UnknownName("setting", name, known)
            if name in _DERIVED:
                raise ArgumentError(f"the setting '{name}' cannot be set by hand", hint=_DERIVED[name])
        done = replace(self, **{name: _like(name, value, self) for name, value in changes.items()})
        _check(done)
        return done

    @property
    def least(self) -> int:
        """Transitions without which no batch can be drawn."""
        stretch = self.n_step + (self.burn_in + 2 * self.unroll if self.unroll else 0)
        return self.batch + self.envs * stretch

    @property
    def alone(self) -> int | None:
        """Gradient steps that follow the cut-off of λ; None without one."""
        return None if self.cutoff is None else max(0, self.budget - self.cutoff) // self.update_period

    def rate_at(self, weight: float) -> float:
        """The learning rate at a λ, as in QDagger's released code: λ·rate + (1 − λ)·final_rate."""
        return weight * self.rate + (1 - weight) * self.final_rate

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def _skip(environment: Environment) -> int:
    skip = environment.settings.get("frame_skip", 1)
    return int(skip) if isinstance(skip, int) else 1


def _clip(environment: Environment) -> float | None:
    clip = environment.settings.get("reward_clip", False)
    return 1.0 if clip is True else float(clip) if isinstance(clip, int | float) and clip else None


_DERIVED = {
    "method": "choose it with --method, and the other settings follow",
    "skip": "it is what the environment does: --env-setting frame_skip=N",
}
_KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_OPTIONAL = {"cutoff", "teacher_temperature", "clip"}


def _like(name: str, value: object, settings: Settings) -> Any:  # noqa: ANN401
    """A value given by hand, in the type of the setting."""
    if value is None and name in _OPTIONAL:
        return None
    old = getattr(settings, name)
    wanted = type(old) if old is not None else int if name == "cutoff" else float
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ArgumentError(f"the setting '{name}' is {_KINDS[wanted]}, got {value!r}")
    return value


_LEAST = {
    **dict.fromkeys(("budget", "envs", "n_step", "batch", "update_period", "target_period", "replay"), 1),
    **dict.fromkeys(("evaluate_every", "evaluation_episodes", "evaluation_steps"), 1),
    **dict.fromkeys(("burn_in", "unroll"), 0),
    **dict.fromkeys(("learn_after", "teacher_data", "offline_updates", "epsilon_decay"), 0),
    **dict.fromkeys(("rate", "final_rate", "coefficient", "margin"), 0),
}


def _check(settings: Settings) -> None:
    method_named(settings.method)
    for name, bound in _LEAST.items():
        if getattr(settings, name) < bound:
            raise ArgumentError(f"the setting '{name}' is at least {bound}, got {getattr(settings, name)}")
    for name in ("gamma", "floor", "epsilon_end", "evaluation_epsilon"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ArgumentError(f"the setting '{name}' lies in 0 … 1, got {getattr(settings, name)}")
    for name in ("temperature", "teacher_temperature", "clip"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ArgumentError(f"the setting '{name}' is above 0, got {value}")
