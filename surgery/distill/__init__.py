"""Reincarnation: a trained policy as a teacher of any other architecture (QDagger and its rivals), and fine-tuning.

    job = plan_distill(teacher, "impala", Path("runs/breakout"), environment=teacher.environment)
    outcome = execute(job)                              # goes on where it was, if it was

Names are imported on first use: what methods there are can be asked without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.distill.job import Job as Job
    from surgery.distill.journal import Status as Status
    from surgery.distill.methods import METHODS as METHODS
    from surgery.distill.methods import Method as Method
    from surgery.distill.plan import Options as Options
    from surgery.distill.plan import plan_distill as plan_distill
    from surgery.distill.plan import plan_finetune as plan_finetune
    from surgery.distill.run import Outcome as Outcome
    from surgery.distill.run import execute as execute
    from surgery.distill.settings import Settings as Settings

_HOMES = {
    "METHODS": "methods",
    "Job": "job",
    "Method": "methods",
    "Options": "plan",
    "Outcome": "run",
    "Settings": "settings",
    "Status": "journal",
    "execute": "run",
    "plan_distill": "plan",
    "plan_finetune": "plan",
}

__all__ = [
    "METHODS",
    "Job",
    "Method",
    "Options",
    "Outcome",
    "Settings",
    "Status",
    "execute",
    "plan_distill",
    "plan_finetune",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery.distill' has no attribute '{name}'")
    return getattr(import_module(f"surgery.distill.{_HOMES[name]}"), name)
