"""Methods of reincarnation against each other: one teacher, one student, a budget, several seeds.

    python benchmarks/reincarnation.py examples/teachers/minatar-breakout-dqn.onnx --to mlp-256-256 --frames 51587 \
        --methods qdagger scratch --seeds 0 1 2 3 4 --runs runs/minatar --out benchmarks/results/minatar-breakout.json

Every run is resumable and every result is kept: started again, what is finished is not repeated. Methods may carry
settings: `scratch:rate=0.00025:epsilon_decay=10000`. Students and teacher are measured at the end in the same games.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import surgery
from surgery.compare.statistics import bootstrap, iqm
from surgery.distill import Options, execute, plan_distill
from surgery.distill.acting import explore
from surgery.envs import make
from surgery.evaluate import at_random, play
from surgery.policy import load

EPISODES, EPSILON = 100, 0.001


def main() -> None:
    words = arguments()
    teacher = surgery.load(words.teacher)
    result = json.loads(words.out.read_text()) if words.out.exists() else about(words, teacher)
    for seed in words.seeds:
        for method in words.methods:
            name = f"{method}/{seed}"
            if name not in result["runs"]:
                result["runs"][name] = run(words, teacher, method, seed)
                words.out.write_text(json.dumps(result, indent=1) + "\n")
                print(name, result["runs"][name]["final"], flush=True)
    print(summary(result))


def summary(result: dict) -> str:
    """Scores by method: 0 random play, 1 the teacher; interquartile mean over seeds with its bootstrap interval."""
    zero, one = (float(np.mean(result[name])) for name in ("random_returns", "teacher_returns"))
    lines = [f"random {zero:.2f} · teacher {one:.2f} ({result['episodes']} games each)"]
    for method in dict.fromkeys(name.split("/")[0] for name in result["runs"]):
        runs = [found for name, found in result["runs"].items() if name.split("/")[0] == method]
        scores = np.array([(found["final"] - zero) / (one - zero) for found in runs])
        found = bootstrap([scores], iqm)
        sure = "" if found.low is None else f"{found.low:.2f} … {found.high:.2f}"
        cpu = np.mean([one["cpu_seconds"] for one in runs])
        cost = f"{runs[0]['updates']:,} updates  {cpu:.0f} CPU s"
        lines.append(f"{method:60s} {len(runs)} seeds  {found.value:.2f}  {sure}  {cost}")
    return "\n".join(lines)


def run(words: argparse.Namespace, teacher: surgery.Checkpoint, method: str, seed: int) -> dict:
    """One student: its learning curve, and what it is worth in the end."""
    name, *changes = method.split(":")
    given = {key: json.loads(value) for key, value in (change.split("=") for change in changes)}
    folder = words.runs / f"{method}-{seed}"
    job = plan_distill(
        teacher, words.to, folder, environment=teacher.environment, method=name,
        options=Options(frames=words.frames, seed=seed, device="cpu", changes=given),
    )  # fmt: skip
    begun = time.process_time()
    outcome = execute(job)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [
        {key: record.get(key) for key in ("frames", "updates", "return", "lambda")}
        for record in records
        if record["kind"] == "evaluation"
    ]
    final = measure(surgery.load(outcome.student), seed)
    return {
        "method": name, "settings": job.settings.to_json(), "curve": curve, "returns": final,
        "final": float(np.mean(final)), "frames": outcome.frames, "updates": outcome.updates,
        "cpu_seconds": round(time.process_time() - begun, 1), "wall_seconds": round(outcome.seconds, 1),
        "revision": revision(),
    }  # fmt: skip


def revision() -> str | None:
    """The commit that this script is of; None outside a repository."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def measure(student: surgery.Checkpoint, seed: int) -> list[float]:
    """True returns of whole games, nearly greedy."""
    policy, generator = load(student), np.random.default_rng([seed, 7])
    envs = make(student.environment, 10, seed=10_000 + seed, training=False)
    score = play(
        envs,
        lambda x: explore(policy.act(x, generator=generator), EPSILON, np.arange(envs.actions), generator),
        EPISODES,
    )
    envs.close()
    return list(score.returns)


def about(words: argparse.Namespace, teacher: surgery.Checkpoint) -> dict:
    """What was run where, and what the teacher and random play are worth in the same games."""
    envs = make(teacher.environment, 10, seed=10_000, training=False)
    generator = np.random.default_rng(7)
    chance = play(envs, at_random(np.arange(envs.actions), generator), EPISODES)
    envs.close()
    return {
        "command": " ".join(["python", *sys.argv]),
        "teacher": str(words.teacher), "student": words.to, "frames": words.frames,
        "environment": teacher.environment.to_json(),
        "teacher_returns": measure(teacher, 0), "random_returns": list(chance.returns),
        "episodes": EPISODES, "epsilon": EPSILON,
        "hardware": torch.cpu.get_capabilities().get("cpu_name", platform.processor()), "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "runs": {},
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--to", required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
