"""Carrying out a plan holds one result at a time, and beside it only blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.edits import arithmetic as edits
from surgery.edits import execute
from surgery.ops.widen import Init
from surgery.port_kinds import infer
from tests.small_models import wrap

WIDTH = 512


def _wide_model() -> surgery.Checkpoint:
    """Three square layers, 1 MiB each; one of them stored transposed."""
    from onnx import helper

    rng = np.random.default_rng(0)
    sizes = {"a": (WIDTH, 4), "b": (WIDTH, WIDTH), "c": (WIDTH, WIDTH), "d": (WIDTH, WIDTH), "e": (2, WIDTH)}
    weights = {f"{name}.weight": rng.standard_normal(size, dtype="f4") for name, size in sizes.items()}
    nodes = [
        helper.make_node("Gemm", [source, f"{name}.weight"], [target], transB=int(name != "c"))
        for source, name, target in zip(("x", *"hijk"), sizes, (*"hijk", "y"), strict=True)
    ]
    model = ir.from_proto(wrap(nodes, weights))
    return surgery.Checkpoint(model, infer(model))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_an_edited_tensor_costs_itself_and_a_few_blocks(
    init: Init, double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "KEEP_LIMIT", 0)
    monkeypatch.setattr(edits, "BLOCK", 1 << 15)
    before = _wide_model()
    plan = surgery.widen(before, factor=2, init=init)
    after = execute.execute(plan, before, double=double)
    largest = 4 * WIDTH * WIDTH * (8 if double else 4)
    tracemalloc.start()
    try:
        for tensor in after.tensors.values():
            tensor.numpy()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest <= peak <= 1.4 * largest
