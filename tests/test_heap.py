"""What a step frees is there for the next one, and not asked of the system again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from surgery.distill.heap import keep_freed_memory
keep_freed_memory()
def step():
    some = [np.ones(900_000, np.float32) for _ in range(5)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = step()
for _ in range(20):
    after = step()
print((after - before) // 20)
"""


def faults(**environment: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_a_step_has_freed_is_kept_for_the_next():
    assert faults() < 100  # of about 4,400 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_an_allocator_that_the_environment_has_set_up_is_left_alone():
    assert faults(MALLOC_MMAP_THRESHOLD_="100000") > 3000
