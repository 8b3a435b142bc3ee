"""Memory between two gradient steps: kept, since the next one takes as much again."""

from __future__ import annotations

import ctypes
import os

TRIM, MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's mallopt."""
KEPT, LARGEST = 1 << 30, 1 << 28


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB that is free, and take blocks of up to 256 MiB from it.

    By default it gives activations and gradients back to the system after every step, and the system hands them out
    again page by page, zeroed: that took a tenth of a gradient step of IMPALA. With another C library, or where the
    environment says how glibc's allocator works, nothing is done.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows has no such library, others no such function
        return
    mallopt(TRIM, KEPT)
    mallopt(MMAP, LARGEST)
