"""Episodes through Sample Factory's own network, in an interpreter that has it, and then through our graph.

Loading a checkpoint with the framework runs what it pickles: this is for files that are one's own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from surgery.adapters import Parity
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, MissingDependency, Refused
from surgery_adapters.playing import MOST_STEPS, Graph, Tally

INTERPRETER = "SAMPLE_FACTORY_PYTHON"
"""The environment variable that names an interpreter with Sample Factory in it."""
_UNFIT = 4
_HINT = (
    "python3 -m venv sf && sf/bin/pip install 'numpy<2' 'setuptools<81' sample-factory==2.1.1, and again with "
    f"{INTERPRETER}=sf/bin/python"
)


def parity(
    file: Path, config: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int
) -> Parity:
    """Play by the framework's most likely actions; see `surgery.adapters.Playing`.

    Args:
      file: the checkpoint. config: its settings.
    """
    recorded = _recorded(file, config, environment, episodes, seed)
    actions, begins = recorded["action"], set(recorded["begins"].tolist())
    choices: list[int] = recorded["choices"].tolist()
    graph, tally = Graph(checkpoint), Tally(environment, None if choices else np.ones(1))
    if not choices and graph.kind == "logits":
        raise ArgumentError(
            f"the actions of {environment} are numbers, and the file does not say that its outputs are their means "
            "and deviations",
            hint="say it: --head gaussian",
        )
    seen = {key.removeprefix("seen/"): value for key, value in recorded.items() if key.startswith("seen/")}
    names = [port.name for port in checkpoint.interface.inputs if port.kind == "observation"]
    if names == ["observation"] and len(seen) == 1:
        seen = {"observation": next(iter(seen.values()))}
    for step, action in enumerate(actions):
        if step in begins:
            graph.reset()
        said = graph.ask({name: value[step : step + 1] for name, value in seen.items()})[0]
        tally.add(_most_likely(said, choices).reshape(action.shape) if choices else said, action)
    tally.returns.extend(recorded["returns"].tolist())
    return tally.parity()


def _most_likely(logits: Array, choices: list[int]) -> Array:
    """Of each part of an action."""
    parts = np.split(logits, np.cumsum(choices)[:-1])
    return np.array([part.argmax() for part in parts])


def _recorded(file: Path, config: Path, environment: str, episodes: int, seed: int) -> dict[str, Array]:
    """What the framework saw and did: see `episodes.py`.

    Raises:
      MissingDependency: there is no interpreter with it. ArgumentError: the environment does not fit. Refused: it
        failed, in its words.
    """
    python = os.environ.get(INTERPRETER) or (
        sys.executable if importlib.util.find_spec("sample_factory") is not None else None
    )
    if python is None:
        raise MissingDependency("this plays in Sample Factory, which is not installed", hint=_HINT)
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        target = Path(folder) / "episodes.npz"
        script, given = Path(__file__).with_name("episodes.py"), (episodes, seed, MOST_STEPS, target)
        words = [python, script, file.absolute(), config.absolute(), environment, *given]
        try:
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        except OSError as error:
            raise MissingDependency(f"{INTERPRETER} names no interpreter: {error}", hint=_HINT) from error
        if done.returncode or not target.is_file():
            raise _failure(done, python)
        with np.load(target, allow_pickle=False) as held:
            return dict(held)


def _failure(done: subprocess.CompletedProcess[str], python: str) -> Exception:
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if done.returncode == _UNFIT:
        return ArgumentError(last)
    if last.startswith(("ModuleNotFoundError", "ImportError")):
        return MissingDependency(
            f"this plays in Sample Factory, which {python} does not have: {last}", hint=_HINT
        )
    return Refused(f"Sample Factory cannot play the file: {last}")
