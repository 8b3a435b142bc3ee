"""Evaluating a checkpoint: in its own environment, against what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from surgery.checkpoint import Checkpoint
from surgery.envs import make
from surgery.envs.contract import OF_THE_MODEL, game
from surgery.evaluate.baselines import SOURCE, normalised, random_and_human
from surgery.evaluate.causes import changed, likely_causes
from surgery.evaluate.episodes import Episodes, play
from surgery.evaluate.measure import MOST_AT_ONCE, Measured, measure, on_device
from surgery.evaluate.scores import Score, below, interval, recorded, recorded_scores
from surgery.interface import Environment
from surgery.json_values import Json


@dataclass(frozen=True)
class Baseline:
    """What random play reaches.

    Attributes:
      mean: return.
      source: `measured`, `recorded` in the contract, or where it is published.
      score: what was measured, if it was.
    """

    mean: float
    source: str
    score: Score | None = None


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
      environment: the contract that was played, with every setting stated.
      mode: how actions were chosen: `greedy`, `sample` or `epsilon:0.05`.
      seed: of environments and actions.
      episodes: returns and lengths.
      score: the same in short.
      seconds: that it took.
      random: what random play reaches.
      human: mean return of a person; None: not known.
      teacher: mean return of the teacher; None: not given.
      known: the score recorded for this action selection; None: there is none.
      causes: why it may be below that; empty if it is not.
      notes: what else one should know about these numbers.
    """

    environment: Environment
    mode: str
    seed: int
    episodes: Episodes
    score: Score
    seconds: float
    random: Baseline
    human: float | None
    teacher: float | None
    known: Score | None
    causes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def mean(self) -> float:
        return self.score.mean

    @property
    def confirmed(self) -> bool | None:
        """Whether the recorded score was reached; None: there is none."""
        return None if self.known is None else not below(self.score, self.known)

    @property
    def cut_off(self) -> str:
        """How many episodes were cut off, and where; empty if none was."""
        count, limit = self.episodes.truncated, self.environment.settings.get("max_episode_steps")
        if not count:
            return ""
        frames = cast(int, limit) * cast(int, self.environment.settings.get("frame_skip", 1))
        return f"{count} cut off after {limit:,} steps{f' ({frames:,} frames)' if frames != limit else ''}"

    def normalised(self, one: float | None) -> float | None:
        """The mean where random play is 0 and another score is 1; None where that is not known, or is 0 as well."""
        return None if one is None else normalised(self.mean, self.random.mean, one)

    def to_json(self) -> dict[str, Json]:
        bounds = interval(self.score)
        skip = self.environment.settings.get("frame_skip", 1)
        return {
            "environment": self.environment.to_json(),
            "mode": self.mode,
            "seed": self.seed,
            "mean_return": self.mean,
            "std": self.score.std,
            "interval": None if bounds is None else list(bounds),
            "episodes": self.score.episodes,
            "returns": self.episodes.returns.tolist(),
            "lengths": self.episodes.lengths.tolist(),
            "truncated": self.episodes.truncated,
            "limit": self.environment.settings.get("max_episode_steps"),
            "steps": self.episodes.steps,
            "frames": self.episodes.steps * cast(int, skip),
            "seconds": self.seconds,
            "random": {"mean": self.random.mean, "source": self.random.source},
            "human": self.human,
            "human_normalised": self.normalised(self.human),
            "teacher": self.teacher,
            "teacher_normalised": self.normalised(self.teacher),
            "recorded": None if self.known is None else self.known.to_json(),
            "confirmed": self.confirmed,
            "causes": list(self.causes),
            "notes": list(self.notes),
        }


@on_device()
def evaluate(
    checkpoint: Checkpoint,
    *,
    episodes: int = 30,
    environment: Environment | None = None,
    mode: str | None = None,
    seed: int = 0,
    teacher: float | None = None,
    measure_random: bool = False,
    num_envs: int | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Play a checkpoint, and compare its true returns with what is known.

    Args:
      checkpoint: whose contract says how it is played.
      episodes: how many, each to its end.
      environment: a contract to play instead of the checkpoint's own.
      mode: `greedy`, `sample` or `epsilon:E`; None: as the first recorded score, else greedy for values and sampled for
        logits.
      seed: of environments and actions.
      teacher: a mean return to normalise by, beside that of people.
      measure_random: play at random for as many episodes, also where the literature has a number.
      num_envs: environments at once; None: as many as episodes, up to 16.
      device: what the network runs on.
      progress: told how many episodes are done.

    Raises:
      ArgumentError, UnknownName, Refused, MissingDependency: as `surgery.policy.load` and `surgery.envs.make`; an
        environment that the network does not fit, with the command that makes it fit. RunFailed: the GPU failed.
    """
    own = checkpoint.environment
    measured = measure(
        checkpoint,
        own if environment is None else environment,
        mode=mode,
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        device=device,
        progress=progress,
    )
    contract, played, chosen = measured.contract, measured.episodes, measured.mode
    differ = changed(own, contract)
    known = recorded(checkpoint, chosen, differ)
    score = Score.of(played.returns.tolist(), chosen, differ, checkpoint.digest())
    fails = known is not None and below(score, known)
    return Evaluation(
        environment=contract,
        mode=chosen,
        seed=seed,
        episodes=played,
        score=score,
        seconds=measured.seconds,
        random=_random(checkpoint, measured, differ, episodes, seed, measure_random),
        human=_human(contract),
        teacher=teacher,
        known=known,
        causes=likely_causes(checkpoint, contract, known, chosen, played) if known and fails else (),
        notes=(*_notes(contract, chosen), *measured.notes),
    )


def record(checkpoint: Checkpoint, evaluation: Evaluation) -> Checkpoint:
    """The checkpoint with a measured score in its contract, in place of an older one of the same kind.

    A contract that names no environment takes over the one that was played, with all settings; one that names it is
    left as it is.
    """
    own = checkpoint.environment
    if own.id is None:
        mask = {name: own.settings[name] for name in OF_THE_MODEL if name in own.settings}
        own = evaluation.environment.with_settings(**mask)
    fresh = [evaluation.score]
    if evaluation.random.score is not None:
        fresh.append(evaluation.random.score)
    listed = list(recorded_scores(own))
    for new in fresh:
        place = next((k for k, one in enumerate(listed) if one.same_kind(new)), len(listed))
        listed[place : place + 1] = [new]  # the order stays: the first one says how the model is played
    scores = [score.to_json() for score in listed]
    return checkpoint.replace(environment=own.with_settings(scores=scores))


def _human(contract: Environment) -> float | None:
    pair = random_and_human(str(contract.id))
    return None if pair is None else pair[1]


def _random(
    checkpoint: Checkpoint,
    measured: Measured,
    differ: Mapping[str, Json],
    episodes: int,
    seed: int,
    anew: bool,
) -> Baseline:
    """Random play: as recorded, as published, or measured now, in this order; `anew`: measured in any case."""
    known, pair = recorded(checkpoint, "random", differ), random_and_human(str(measured.contract.id))
    if not anew and known is not None:
        return Baseline(known.mean, "recorded")
    if not anew and pair is not None:
        return Baseline(pair[0], SOURCE)
    envs = make(measured.contract, min(episodes, MOST_AT_ONCE), seed=seed + 1, training=False)
    generator = np.random.default_rng(seed + 1)
    try:
        played = play(envs, lambda seen: measured.random(len(seen), generator), episodes)
    finally:
        envs.close()
    score = Score.of(played.returns.tolist(), "random", differ, None)
    return Baseline(score.mean, "measured", score)


def _notes(contract: Environment, mode: str) -> tuple[str, ...]:
    settings = contract.settings
    still = game(contract).family == "atari" and not settings["sticky_actions"] and not settings["noop_max"]
    if still and mode == "greedy":
        return ("neither the game nor the policy is random: all episodes are the same",)
    return ()
