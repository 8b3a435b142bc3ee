"""Runs with small budgets, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import surgery
from surgery.distill import METHODS, Job, Options, plan_distill

QUICK = {"evaluation_episodes": 2, "evaluate_every": 400, "offline_updates": 60, "teacher_data": 400}


def job_of(teacher: surgery.Checkpoint, folder: Path, *, method: str = "qdagger", **given: object) -> Job:
    head, seed, to = (
        str(given.pop("head", "q")),
        int(str(given.pop("seed", 0))),
        str(given.pop("to", "mlp-32")),
    )
    noisy = bool(given.pop("noisy", False))
    save_seconds = float(str(given.pop("save_seconds", 1000)))
    changes = {**QUICK, **given}
    if not METHODS[method].offline:
        changes.pop("offline_updates")
    options = Options(
        frames=1000, seed=seed, device="cpu", envs=4, head=head, noisy=noisy, changes=changes,
        save_seconds=save_seconds,
    )  # fmt: skip
    return plan_distill(teacher, to, folder, environment=teacher.environment, method=method, options=options)


def lines(folder: Path, kind: str | None = None) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy()) for name, tensor in surgery.load(path).tensors.items()}
