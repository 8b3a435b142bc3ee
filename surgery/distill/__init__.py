"""Reincarnation: a trained policy as a teacher of any other architecture (QDagger and its rivals), and fine-tuning.

job = plan_distill(teacher, "impala", Path("runs/breakout"), environment=teacher.environment)
outcome = execute(job)                              # resumes where it was
"""

from surgery.distill.journal import Status
from surgery.distill.methods import METHODS, Method
from surgery.distill.run import Options, Outcome, execute, plan_distill, plan_finetune
from surgery.distill.session import Job
from surgery.distill.settings import Settings

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
