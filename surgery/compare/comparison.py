"""Runs side by side: grouped, put on one scale, and compared where all of them have got to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from surgery.arrays import Array
from surgery.compare.runs import Run, find_runs, read_run
from surgery.compare.statistics import Games, Interval, bootstrap, iqm, probability_of_improvement, profile
from surgery.errors import ArgumentError
from surgery.evaluate.baselines import random_and_human
from surgery.json_values import Json

SCALES = ("teacher", "human", "none")
References = Mapping[str, tuple[float, float]]
"""Game -> the returns that are 0 and 1 on its scale."""


@dataclass(frozen=True)
class Group:
    """The runs of one method.

    Attributes:
      name: the method, or what else they were grouped by.
      runs: all of them.
      iqm: interquartile mean of the scores at the frames where the comparison is made.
      mean: of the same scores.
      frames: (k,) of the curve.
      curve: (k, 3) interquartile mean and its interval.
      profile: (t, 3) share of the runs above each of the comparison's thresholds, and its interval.
    """

    name: str
    runs: tuple[Run, ...]
    iqm: Interval
    mean: Interval
    frames: Array
    curve: Array
    profile: Array


@dataclass(frozen=True)
class Improvement:
    """How likely a run of one group is better than one of another."""

    better: str
    than: str
    probability: Interval


@dataclass(frozen=True)
class Comparison:
    """All groups.

    Attributes:
      scale: what scores are: `teacher` or `human`: 0 random play, 1 that; `none`: returns.
      references: game -> (its 0, its 1).
      games: that all groups have.
      at: frames at which final scores are compared: the most that every run has taken.
      groups: the best first.
      improvements: for every ordered pair.
      thresholds: (t,) of the profiles.
      notes: what was left out, and what these numbers cannot say.
    """

    scale: str
    references: References
    games: tuple[str, ...]
    at: int
    groups: tuple[Group, ...]
    improvements: tuple[Improvement, ...]
    thresholds: Array
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        return {
            "scale": self.scale,
            "references": {game: list(pair) for game, pair in self.references.items()},
            "games": list(self.games),
            "frames": self.at,
            "groups": [_group_json(group) for group in self.groups],
            "improvements": [
                {"better": one.better, "than": one.than, "probability": one.probability.to_json()}
                for one in self.improvements
            ],
            "thresholds": self.thresholds.tolist(),
            "notes": list(self.notes),
        }


def compare(
    paths: Sequence[Path],
    *,
    by: str = "method",
    scale: str | None = None,
    at: int | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare run directories.

    Args:
      paths: run directories, or folders that hold them.
      by: what runs are grouped by: `method`, `folder` (the one that a run lies in), `architecture`, `head` or a setting
        of `config.json`, or several of these, separated by commas.
      scale: `teacher` or `human`: 0 is random play and 1 that; `none`: returns. None: the first that every game has.
      at: frames at which final scores are compared, without the runs that have not got there; None: the most that every
        run has taken.
      samples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      FileError, CorruptFile: a run that cannot be read.
      ArgumentError: two runs of one group with one game and seed, no game that all groups have, several games without
        a scale, frames that no run has reached.
    """
    runs, late, left_out = _read(paths, at)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run not in late:
            groups.setdefault(_label(run, by), []).append(run)
    for name, members in groups.items():
        _check_once(name, members)
    games, notes = _common(groups)
    chosen, references = _references(runs, games, scale)
    kept = {name: [run for run in members if run.game in games] for name, members in groups.items()}
    least = min(int(run.frames[-1]) for members in kept.values() for run in members)
    place = least if at is None else at
    final = {
        name: [one[:, 0] for one in _scores(members, references, np.array([place]))]
        for name, members in kept.items()
    }
    flat = np.concatenate([one for scores in final.values() for one in scores])
    low, high = min(0.0, float(flat.min())), float(flat.max())
    thresholds = np.linspace(low, high + 0.05 * (high - low) + 1e-9, 101)
    draws = {"samples": samples, "seed": seed}
    done = [
        _group(name, kept[name], references, scores, thresholds, **draws) for name, scores in final.items()
    ]
    done.sort(key=lambda group: -group.iqm.value)
    improvements = [
        Improvement(a.name, b.name, probability_of_improvement(final[a.name], final[b.name], **draws))
        for a, b in permutations(done, 2)
    ]
    return Comparison(
        chosen, references, games, place, tuple(done), tuple(improvements), thresholds,
        (*notes, *left_out, *_warnings(done, place)),
    )  # fmt: skip


def _read(paths: Sequence[Path], at: int | None) -> tuple[list[Run], list[Run], list[str]]:
    """The runs that were evaluated, those of them that have not got to `at` frames, and notes on what is left out.

    Raises:
      ArgumentError: there is none.
    """
    folders = find_runs(paths)
    runs = [run for run in map(read_run, folders) if run is not None]
    if not runs:
        raise ArgumentError(
            f"none of the {len(folders)} runs has been evaluated yet", hint="wait for the first evaluation"
        )
    late = [run for run in runs if at is not None and run.frames[-1] < at]
    if len(late) == len(runs):
        raise ArgumentError(f"no run has taken {at:,} frames", hint="leave out --at, or give fewer frames")
    notes = []
    if len(runs) < len(folders):
        notes.append(f"{len(folders) - len(runs)} of {len(folders)} runs have not been evaluated yet")
    if late:
        named = ", ".join(str(run.folder) for run in late)
        notes.append(f"left out, as they have not taken {at:,} frames: {named}")
    return runs, late, notes


def _label(run: Run, by: str) -> str:
    return " ".join(_part(run, key) for key in by.split(","))


def _part(run: Run, key: str) -> str:
    if key == "method":
        return run.method
    if key == "folder":
        return run.folder.absolute().parent.name
    known = _groupable(run)
    if key not in known:
        raise ArgumentError(
            f"{run.folder} has no setting '{key}' to group by",
            hint=f"method, folder, {', '.join(sorted(known))}",
        )
    return f"{key}={known[key]}"


def _groupable(run: Run) -> dict[str, Json]:
    """What `config.json` says in one word, settings besides."""
    settings = run.config.get("settings")
    said = {**run.config, **(settings if isinstance(settings, Mapping) else {})}
    return {name: value for name, value in said.items() if not isinstance(value, Mapping | tuple | list)}


def _check_once(name: str, runs: Sequence[Run]) -> None:
    counts = Counter((run.game, run.seed) for run in runs)
    for (game, seed), count in counts.items():
        if count > 1:
            twice = [run for run in runs if (run.game, run.seed) == (game, seed)]
            by = ",".join(["method", *_differing(twice)[:3]])
            raise ArgumentError(
                f"{count} runs of '{name}' have seed {seed} of {game}: "
                + ", ".join(str(run.folder) for run in twice[:4]),
                hint=f"leave some out, or group by what differs: --by {by if ',' in by else 'folder'}",
            )


def _differing(runs: Sequence[Run]) -> list[str]:
    """What runs can be grouped by, without the digests of models."""
    places = [_groupable(run) for run in runs]
    names = dict.fromkeys(name for place in places for name in place if name not in ("teacher", "student"))
    return [name for name in names if any(place.get(name) != places[0].get(name) for place in places)]


def _common(groups: Mapping[str, Sequence[Run]]) -> tuple[tuple[str, ...], list[str]]:
    """The games that all groups have, and a note about the others."""
    sets = [{run.game for run in runs} for runs in groups.values()]
    games = tuple(sorted(set.intersection(*sets)))
    if not games:
        listed = "; ".join(
            f"{name}: {', '.join(sorted({run.game for run in runs}))}" for name, runs in groups.items()
        )
        raise ArgumentError(f"no game was played by all groups: {listed}")
    others = sorted(set.union(*sets) - set(games))
    return games, [f"left out, as not all groups played it: {', '.join(others)}"] if others else []


def _references(runs: Sequence[Run], games: Sequence[str], scale: str | None) -> tuple[str, References]:
    """The scale, and what is 0 and 1 on it in each game."""
    if scale is not None and scale not in SCALES:
        raise ArgumentError(f"scores are on one of the scales {', '.join(SCALES)}, got '{scale}'")
    found: dict[str, dict[str, tuple[float, float]]] = {"teacher": {}, "human": {}}
    for game in games:
        pair = random_and_human(game)
        if pair is not None:
            found["human"][game] = pair
        # Every run measures both for itself: one pair for all, or methods would be on scales of their own.
        zeros = [run.random for run in runs if run.game == game and run.random is not None]
        ones = [run.teacher for run in runs if run.game == game and run.teacher is not None]
        zero = float(np.mean(zeros)) if zeros else pair[0] if pair else None
        if ones and zero is not None and float(np.mean(ones)) != zero:
            found["teacher"][game] = (zero, float(np.mean(ones)))
    full = [name for name in ("teacher", "human") if len(found[name]) == len(games)]
    chosen = scale or (full[0] if full else "none")
    if chosen == "none":
        if len(games) > 1:
            raise ArgumentError(
                f"the returns of {len(games)} games cannot be averaged, and not all have a teacher or a human score",
                hint="compare one game, or runs that have measured a teacher",
            )
        return "none", dict.fromkeys(games, (0.0, 1.0))
    if chosen not in full:
        lacking = ", ".join(game for game in games if game not in found[chosen])
        raise ArgumentError(f"there is no {chosen} score of {lacking}", hint=f"--scale {(*full, 'none')[0]}")
    return chosen, found[chosen]


def _scores(runs: Sequence[Run], references: References, frames: Array) -> list[Array]:
    """Scores (runs, k) of each game after k numbers of frames."""
    found = []
    for game, (zero, one) in references.items():
        members = sorted((run for run in runs if run.game == game), key=lambda run: run.seed)
        found.append(np.stack([(run.at(frames) - zero) / (one - zero) for run in members]))
    return found


def _group(
    name: str, runs: Sequence[Run], references: References, final: Games, thresholds: Array, **draws: int
) -> Group:
    end = min(int(run.frames[-1]) for run in runs)
    frames = np.unique(np.concatenate([run.frames for run in runs]))
    frames = frames[(frames <= end) & (frames >= max(int(run.frames[0]) for run in runs))]
    scores = _scores(runs, references, frames)
    points = [bootstrap([one[:, k] for one in scores], iqm, **draws) for k in range(len(frames))]
    curve = np.array([[p.value if x is None else x for x in (p.value, p.low, p.high)] for p in points])
    return Group(
        name,
        tuple(runs),
        bootstrap(final, iqm, **draws),
        bootstrap(final, lambda x: np.asarray(x.mean(-1)), **draws),
        frames,
        curve,
        np.stack(profile(final, thresholds, **draws), axis=-1),
    )


def _warnings(groups: Sequence[Group], at: int) -> list[str]:
    notes = []
    unfinished = [run for group in groups for run in group.runs if run.budget and run.frames[-1] < run.budget]
    if unfinished:
        words = "run is" if len(unfinished) == 1 else "runs are"
        notes.append(f"{len(unfinished)} {words} not finished; all are compared after {at:,} frames")
    few = min(len(group.runs) for group in groups)
    if few < 3:
        notes.append(f"{few} run{'s' if few > 1 else ''} of a method: an interval from so few says little")
    return notes


def _group_json(group: Group) -> dict[str, Json]:
    return {
        "name": group.name,
        "runs": [
            {
                "folder": str(run.folder),
                "method": run.method,
                "game": run.game,
                "seed": run.seed,
                "frames": run.frames.tolist(),
                "returns": run.returns.tolist(),
                "seconds": run.seconds,
            }
            for run in group.runs
        ],
        "iqm": group.iqm.to_json(),
        "mean": group.mean.to_json(),
        "curve": {"frames": group.frames.tolist(), "iqm": group.curve.tolist()},
        "profile": group.profile.tolist(),
    }
