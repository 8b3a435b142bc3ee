"""NumPy's arrays in signatures."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""Of any type and shape; docstrings say which."""

Arrays = dict[str, Array]
"""By name."""
