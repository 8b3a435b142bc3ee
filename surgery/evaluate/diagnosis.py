"""Why a recorded score is not reached: one setting at a time is changed, and played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.contract import preprocessing
from surgery.errors import SurgeryError
from surgery.evaluate.evaluation import Evaluation
from surgery.evaluate.measure import measure, on_device
from surgery.evaluate.scores import Score, below
from surgery.interface import Environment, Interface
from surgery.json_values import Json
from surgery.policy.heads import find

MOST_SWAPS = 6
"""Actions of which every pair is exchanged: 15 pairs."""


@dataclass(frozen=True)
class Finding:
    """One change that was tried, and its score.

    Attributes:
      change: in words.
      score: with that change.
      reaches: whether it is the recorded score again.
    """

    change: str
    score: Score
    reaches: bool

    def to_json(self) -> dict[str, Json]:
        return {"change": self.change, **self.score.to_json(), "reaches": self.reaches}


@dataclass(frozen=True)
class _Trial:
    change: str
    contract: Environment
    mode: str
    seen: Callable[[Array], Array] = lambda observation: observation
    model: Checkpoint | None = None


@on_device()
def diagnose(
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    *,
    episodes: int = 10,
    seed: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Finding, ...]:
    """Play a model that does not reach its recorded score in other ways that it may have been trained with.

    Sticky actions, fire at reset, order of the stack, scale, each pair of actions exchanged, the range of continuous
    ones, action selection: one at a time, so that two mistakes at once are not found.

    Args:
      checkpoint: the model.
      evaluation: of it, with a recorded score.
      episodes: of each trial.
      seed: of each trial.
      device: what the network runs on.
      progress: told how many trials are done, and of how many.

    Returns:
      the best first; empty if there is nothing recorded to reach.

    Raises:
      RunFailed: the GPU failed.
    """
    known = evaluation.known
    if known is None:
        return ()
    trials, found = [*_trials(evaluation), *_ranges(checkpoint, evaluation)], []
    for k, trial in enumerate(trials, start=1):
        try:
            played = measure(
                trial.model or checkpoint,
                trial.contract,
                mode=trial.mode,
                episodes=episodes,
                seed=seed,
                device=device,
                seen=trial.seen,
            )
        except SurgeryError:
            continue  # a way in which it cannot be played is not how it was trained
        finally:
            progress(k, len(trials))
        score = Score.of(played.episodes.returns.tolist(), trial.mode, {}, None)
        better = score.mean > evaluation.mean
        found.append(Finding(trial.change, score, better and not below(score, known)))
    return tuple(sorted(found, key=lambda one: -one.score.mean))


def _trials(evaluation: Evaluation) -> Iterator[_Trial]:
    played, mode = evaluation.environment, evaluation.mode
    for chance in (0.0, 0.25):
        if played.settings.get("sticky_actions", 0.0) != chance:
            yield _Trial(f"sticky actions {chance:g}", played.with_settings(sticky_actions=chance), mode)
    if "fire_reset" in played.settings:
        fire = not played.settings["fire_reset"]
        words = "with fire at reset" if fire else "without fire at reset"
        yield _Trial(words, played.with_settings(fire_reset=fire), mode)
    if played.settings.get("frame_stack", 1) != 1:
        yield _Trial("stack order reversed: the newest frame first", played, mode, lambda x: x[:, ::-1])
    yield from _scales(evaluation)
    yield from _swaps(played, mode)
    for other in ("greedy", "sample", "epsilon:0.05"):
        if other != mode:
            yield _Trial(f"action selection {other}", played, other)


def _scales(evaluation: Evaluation) -> Iterator[_Trial]:
    played = evaluation.environment
    given = preprocessing(played)
    if "scale" in given:
        bare = {name: value for name, value in given.items() if name != "scale"}
        yield _Trial("without the scale", played.with_settings(preprocessing=bare), evaluation.mode)
    factor, words = (1 / 255, "÷ 255") if evaluation.episodes.high > 1 else (255.0, "× 255")
    scaled = {**given, "scale": factor}
    yield _Trial(f"observations {words}", played.with_settings(preprocessing=scaled), evaluation.mode)


def _swaps(played: Environment, mode: str) -> Iterator[_Trial]:
    actions = played.settings.get("action_set")
    if not isinstance(actions, tuple) or len(actions) > MOST_SWAPS:
        return
    for a, b in combinations(range(len(actions)), 2):
        swapped = list(actions)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield _Trial(
            f"outputs {a} and {b} exchanged: action_set {swapped}",
            played.with_settings(action_set=swapped),
            mode,
        )


def _ranges(checkpoint: Checkpoint, evaluation: Evaluation) -> Iterator[_Trial]:
    """Continuous actions in other units."""
    head = find(checkpoint)
    if head.scored:
        return
    port = checkpoint.interface.output(head.output)
    words, ends = (
        ("mapped from −1 … 1 to the environment's bounds", (-1.0, 1.0))
        if port.low is None
        else ("in the environment's own units, not mapped to its bounds", (None, None))
    )
    changed = replace(port, low=ends[0], high=ends[1])
    ports = tuple(changed if one is port else one for one in checkpoint.interface.outputs)
    model = checkpoint.replace(interface=Interface(checkpoint.interface.inputs, ports))
    yield _Trial(f"actions {words}", evaluation.environment, evaluation.mode, model=model)
