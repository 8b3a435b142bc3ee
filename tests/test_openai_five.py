"""The example that replays OpenAI Five's surgeries: after every one the same games, and training goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    import openai_five

    yield openai_five
    for name in ("openai_five", "recurrent_cartpole"):
        sys.modules.pop(name, None)


def test_the_agent_plays_the_same_games_after_every_surgery_and_trains_on(example) -> None:
    last, outcomes = example.main(rounds=4)
    assert [outcome.name for outcome in outcomes] == list(example.SURGERIES)
    assert all(outcome.same for outcome in outcomes), [o.name for o in outcomes if not o.same]
    assert all(outcome.change < 1e-5 for outcome in outcomes)
    operations = ["new", "extend", "widen", "extend", "retire", "extend", "deepen"]
    assert [step.operation for step in last.lineage] == operations
    assert all(step.witness["ok"] for step in last.lineage[1:])
    assert last.interface.input("observation").labels == ("position", "velocity", "angle", "spin")
    # the optimizer has lived through all of it: its oldest parameters count every update
    assert last.optimizer is not None and last.optimizer.steps["lstm.bias"] == 7 * 4
    for outcome in outcomes:
        assert np.mean(outcome.after) > 0.6 * np.mean(outcome.before), outcome
