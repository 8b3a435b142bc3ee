"""Comparing runs: learning curves and final scores with intervals, as one should with a handful of seeds.

comparison = compare([Path("runs/qdagger-0"), Path("runs/scratch-0")])
print(comparison.groups[0].iqm)
"""

from surgery.compare.comparison import Comparison, Group, Improvement, compare
from surgery.compare.runs import Run, read_run
from surgery.compare.statistics import Interval, bootstrap, iqm, probability_of_improvement, profile

__all__ = [
    "Comparison",
    "Group",
    "Improvement",
    "Interval",
    "Run",
    "bootstrap",
    "compare",
    "iqm",
    "probability_of_improvement",
    "profile",
    "read_run",
]
