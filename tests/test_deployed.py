"""Agents that were exported for use are proved as far as what they choose from, not what they chose."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import surgery
from surgery.verify.choices import comparable
from tests import deployed

CASES = pytest.mark.parametrize(("name", "style"), deployed.CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")


def _damaged(checkpoint: surgery.Checkpoint) -> surgery.Checkpoint:
    """With the weights of one unit of its last layer moved by a thousandth."""
    model = checkpoint.model.clone()
    weight = next(
        value for name, value in model.graph.initializers.items() if "heads" in name and "weight" in name
    )
    array = weight.const_value.numpy().copy()
    array[0] += 1e-3
    weight.const_value = ir.tensor(array, name=weight.name)
    return checkpoint.replace(model=model)


@CASES
@pytest.mark.parametrize("operation", ["widen", "deepen"])
def test_hidden_layers_grow_and_the_proof_is_complete(
    folder: Path, name: str, style: str, operation: str
) -> None:
    """In float64 too, whatever the graph draws; a new layer changes the order of nodes, and so the draws."""
    checkpoint = surgery.load(deployed.export(name, style, folder))
    plan = (
        surgery.widen(checkpoint, factor=2, init="net2net") if operation == "widen"
        else surgery.deepen(checkpoint, after=["body.0"])
    )  # fmt: skip
    report = surgery.apply(plan, checkpoint).report
    assert report is not None and report.ok
    assert "not evaluated" not in report.check("outputs, float64").detail


@CASES
def test_a_wrong_weight_is_seen_though_the_same_actions_are_chosen(
    folder: Path, name: str, style: str
) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    report = surgery.verify(checkpoint, _damaged(checkpoint))
    assert not report.check("outputs, float32").ok
    assert not report.check("outputs, float64").ok


@pytest.mark.parametrize("style", deployed.STYLES)
@pytest.mark.parametrize(("name", "shown"), [
    ("values", []), ("drawn", ["scores of action"]), ("chosen", ["scores of action"]), ("gaussian", []),
])  # fmt: skip
def test_what_choices_are_made_from_is_compared_too(
    folder: Path, name: str, style: str, shown: list[str]
) -> None:
    (model,) = comparable(surgery.load(deployed.export(name, style, folder)))
    assert [value.name for value in model.model.graph.outputs][len(deployed.ROWS[name].outputs) :] == shown


def test_the_constants_of_a_format_and_its_masks_are_known_for_what_they_are(folder: Path) -> None:
    interface = surgery.load(deployed.export("mlagents", "torchscript", folder)).interface
    assert [port.kind for port in interface.inputs] == ["observation", "mask"]
    assert [port.kind for port in interface.outputs] == ["other", "other", "action", "other", "action"]
