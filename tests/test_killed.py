"""A run that is killed while it saves, evaluates or learns, at a chosen call of a chosen function, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import surgery

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import surgery
from surgery.distill import Options, execute, learner, loop, plan_distill, session, store

def run():
    teacher = surgery.load(sys.argv[1])
    options = Options(frames=1000, device="cpu", envs=4, save_seconds=0.05, changes={
        "evaluation_episodes": 2, "evaluation_steps": 60, "evaluate_every": 250, "offline_updates": 40,
        "teacher_data": 200, "prioritised": True})
    return execute(plan_distill(teacher, "mlp-16", Path(sys.argv[2]), environment=teacher.environment, options=options))

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

# Each goes on from what the one before has left; none lives on.
for owner, name, call, after in (
    (learner.Learner, "update", 20, False),
    (session, "write_segment", 2, True),
    (os, "replace", 5, False),
    (loop, "play_games", 2, False),
    (session.Session, "export", 1, True),
    (store, "save", 6, True),
):
    child = os.fork()
    if not child:
        kill_at(owner, name, call, after)
        run()
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print(run().updates)
"""


def test_killed_wherever_it_writes_nothing_is_lost_and_nothing_told_twice(teachers: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(teachers / "cartpole-dqn.onnx"), str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *killed, updates = done.stdout.splitlines()
    assert len(killed) == 6
    assert all(line.endswith(" -9") for line in killed), killed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [line["updates"] for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == int(updates)
    assert [line["frames"] for line in lines if line["kind"] == "evaluation"] == [0, 252, 500, 752, 1000]
    assert [line["event"] for line in lines if line["kind"] == "event"].count("measured") == 1
    trained = [(line["phase"], line["step"], line["updates"]) for line in lines if line["kind"] == "train"]
    assert len(set(trained)) == len(trained)
    assert surgery.load(tmp_path / "run" / "student.onnx").lineage
    assert not list(tmp_path.rglob("*.part"))
