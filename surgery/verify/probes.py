"""Inputs to compare two models on; see `surgery.probes`."""

from surgery.probes import Arrays as Arrays
from surgery.probes import probes as probes

__all__ = ["Arrays", "probes"]
