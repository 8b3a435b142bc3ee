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
ALL = bool(os.environ.get("SURGERY_ALL_DEVICE_ROWS"))
"""All of them, and the tests of CUDA in its place: a minute."""
TAKEN = tuple(rows()) if ALL else QUICK
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    command = [sys.executable, "-m", "tests.elsewhere_rows", *TAKEN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("row", TAKEN)
def test_another_device_learns_what_the_cpu_learns_and_is_not_waited_for(found: dict[str, str], row: str):
    assert found[row] == ""


@pytest.mark.skipif(not ALL, reason="half a minute: SURGERY_ALL_DEVICE_ROWS=1")
def test_what_is_written_for_cuda_runs_as_it_is_written():
    """All but what the CPU cannot be: its RMSProp reads a rate that is a tensor, its LSTM needs what no tape keeps, its
    tensors do not say that they lie elsewhere, and processes that a test starts are not told of it."""
    not_here = "rmsprop or lstm or policy_there or is_refused or tf32 or killed or too_much or fails"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.spelled_cuda", "tests/test_cuda.py",
         "-k", f"not ({not_here})"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
