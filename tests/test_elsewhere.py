"""Learning on another device than the host's, without one: the same numbers, nothing in the wrong place, no wait.

What a GPU has beside places is not here: pinned memory, streams, graphs, its own kernels and random numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.elsewhere_rows import rows

QUICK = (
    "dqn adam conservative", "dqn rmsprop margin", "qr adam imitate", "rainbow adam imitate alone", "lstm adam imitate",
    "run jsrl",
)  # fmt: skip
"""SURGERY_ALL_DEVICE_ROWS=1 takes all of them: half a minute."""
TAKEN = tuple(rows()) if os.environ.get("SURGERY_ALL_DEVICE_ROWS") else QUICK


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    command = [sys.executable, "-m", "tests.elsewhere_rows", *TAKEN]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("row", TAKEN)
def test_another_device_learns_what_the_cpu_learns_and_is_not_waited_for(found: dict[str, str], row: str):
    assert found[row] == ""
