"""Pickles as trees: what is written again makes the objects that the original makes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from surgery_adapters.containers.pickle_tree import parse
from surgery_adapters.containers.pickle_writer import dump

BIAS = 3


def _counting() -> Callable[[int], int]:
    """A function that calls itself, with a global and a default: it is pickled before its state is."""

    def count(n: int, step: int = 2) -> int:
        return BIAS if n <= 0 else 1 + count(n - step)

    return count


def _class() -> type[Any]:
    class Own:
        size = 5

        def grown(self) -> int:
            return self.size + BIAS

    return Own


def test_functions_and_classes_pickled_by_value_keep_their_globals_and_attributes():
    """cloudpickle gives them their state by a call whose result it drops, and many settings hold such functions."""
    cloudpickle = pytest.importorskip("cloudpickle")
    here = __import__(__name__, fromlist=["BIAS"])
    cloudpickle.register_pickle_by_value(here)
    try:
        content = cloudpickle.dumps({"count": _counting(), "own": _class(), "also": (_counting(),)})
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    again = dump(parse(content))
    assert dump(parse(again)) == again
    found = pickle.loads(again)
    assert found["count"](4) == 2 + BIAS == found["also"][0](4)
    assert found["own"]().grown() == 5 + BIAS
