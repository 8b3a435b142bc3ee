"""Property tests: the same examples every time, and no failure because the machine is busy."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

STEADY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
