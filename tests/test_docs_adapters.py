"""The adapter in the documentation is one: it is run as it stands."""

from __future__ import annotations

import re
import types
from pathlib import Path

import numpy as np

import surgery
from surgery import adapters

DOCUMENT = Path(__file__).parent.parent / "docs" / "adapters.md"


def test_the_adapter_in_the_docs_reads_widens_and_writes(tmp_path, monkeypatch):
    [code] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 55
    module = types.ModuleType("surgery_adapter")
    exec(compile(code, str(DOCUMENT), "exec"), module.__dict__)
    monkeypatch.setattr(adapters, "installed", lambda: {"mine": module})
    rng = np.random.default_rng(0)
    arrays = {
        "layer0.weight": rng.standard_normal((6, 4)), "layer0.bias": np.zeros(6),
        "layer1.weight": rng.standard_normal((2, 6)), "layer1.bias": np.zeros(2),
    }  # fmt: skip
    with (tmp_path / "a.mine").open("wb") as file:
        np.savez(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    before = surgery.load(tmp_path / "a.mine")
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "b.mine")
    after = surgery.load(tmp_path / "b.mine")
    assert surgery.verify(before, after).ok
    assert after.tensors["layer0.weight"].shape == (12, 4)
