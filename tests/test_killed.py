"""Runs that are killed while they save, evaluate, play or learn, wherever it may be, and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import surgery
from tests.small_runs import lines

SCRIPT = """
import json, os, signal, sys, time
from functools import partial
from pathlib import Path
import numpy as np
import torch, torch._dynamo, torch.utils.tensorboard  # what a run imports when it begins: once, not in every child
torch.set_num_threads(1)
import surgery
from surgery.distill import Options, execute, learner, loop, plan_distill, session, store
from surgery.distill.progress import PHASES

teacher = surgery.load(sys.argv[1])

def run(folder, to, frames, save_seconds, changes, **given):
    options = Options(frames=frames, device=device, envs=4, save_seconds=save_seconds, changes=changes, **given)
    return execute(plan_distill(teacher, to, folder, environment=teacher.environment, options=options))

def begun(function):
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def kill_at(owner, name, call, after):
    function, count = getattr(owner, name), 0
    def killed(*args, **given):
        nonlocal count
        count += 1
        found = function(*args, **given) if after or count < call else None
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, killed)

def killed_at_chosen_calls(run):
    ends = {}
    for owner, name, call, after in (
        (learner.Learner, "update", 20, False),
        (session, "write_segment", 2, True),
        (os, "replace", 5, False),
        (loop, "play", 2, False),
        (session.Session, "export", 1, True),
        (store, "save", 2, True),
    ):
        ends[name] = ended(begun(lambda: (kill_at(owner, name, call, after), run())))
    return ends

def killed_at_random_moments(run, folder, seed):
    generator, ends, reached = np.random.default_rng(seed), [], []
    for _ in range(3):
        child = begun(run)
        time.sleep(generator.uniform(0.1, 0.8))
        os.kill(child, signal.SIGKILL)
        ends.append(ended(child))
        saved, problems = store.newest(folder)
        assert not problems, problems
        if saved:
            progress = saved.record["progress"]
            reached.append([PHASES.index(progress["phase"]), progress["updates"], progress["steps"]])
    return ends, reached

folder, seed, device = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
chosen = partial(run, folder / "chosen", "mlp-16", 1000, 0.05, {
    "evaluation_episodes": 2, "evaluation_steps": 60, "evaluate_every": 250, "offline_updates": 40,
    "teacher_data": 200, "prioritised": True})
random = partial(run, folder / "random", "gru-8", 1200, 0.02, {
    "evaluation_episodes": 2, "evaluate_every": 400, "offline_updates": 60, "teacher_data": 400,
    "unroll": 6, "burn_in": 2}, noisy=True)
ends, (more, reached) = killed_at_chosen_calls(chosen), killed_at_random_moments(random, folder / "random", seed)
print(json.dumps({
    "chosen": {"ends": ends, "updates": chosen().updates},
    "random": {"ends": more, "reached": reached, "frames": random().frames},
}))
"""
"""In one process, whose children are killed: each goes on from what the one before has left."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def told(teachers: Path, folder: Path) -> Mapping[str, Any]:
    return killed(teachers, folder, "cpu")


def killed(teachers: Path, folder: Path, device: str) -> Mapping[str, Any]:
    """How the runs ended that were killed, and those that were not."""
    seed = os.environ.get("SURGERY_KILL_SEED", "0")
    command = [sys.executable, "-c", SCRIPT, teachers / "cartpole-dqn.onnx", folder, seed, device]
    # else whoever asks before the fork whether there is a GPU forbids the children to use it
    asked = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=asked)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def test_killed_wherever_it_writes_nothing_is_lost_and_nothing_told_twice(
    told: Mapping[str, Any], folder: Path
):
    check_chosen(told, folder)


def check_chosen(told: Mapping[str, Any], folder: Path) -> None:
    ends = told["chosen"]["ends"]
    assert list(ends.values()) == [-9] * 6, ends
    found = lines(folder / "chosen")
    counts = [line["updates"] for line in found]
    assert counts == sorted(counts)
    assert counts[-1] == told["chosen"]["updates"]
    assert [line["frames"] for line in found if line["kind"] == "evaluation"] == [0, 252, 500, 752, 1000]
    assert [line["event"] for line in found if line["kind"] == "event"].count("measured") == 1
    trained = [(line["phase"], line["step"], line["updates"]) for line in found if line["kind"] == "train"]
    assert len(set(trained)) == len(trained)
    assert surgery.load(folder / "chosen" / "student.onnx").lineage
    assert not list((folder / "chosen").rglob("*.part"))


def test_killed_at_random_moments_it_goes_on_from_the_last_checkpoint(told: Mapping[str, Any], folder: Path):
    assert told["random"]["ends"].count(-9) >= 2
    reached = told["random"]["reached"]
    assert reached == sorted(reached)
    assert told["random"]["frames"] == 1200
    found = lines(folder / "random")
    assert [line["updates"] for line in found] == sorted(line["updates"] for line in found)
    assert [line["frames"] for line in lines(folder / "random", "evaluation")] == [0, 400, 800, 1200]
    assert surgery.load(folder / "random" / "student.onnx").lineage
    assert not list((folder / "random").rglob("*.part"))
