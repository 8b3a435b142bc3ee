"""Inputs that models are compared on reach all that an input can choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.interface import PortPatch
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.verify import verify

ROWS = 40


def embedding(graph: GraphBuilder, number: ir.Value, table: np.ndarray) -> ir.Value:
    return graph.op("Gather", graph.parameter("table", table), number, axis=0)


def cast_and_flattened(graph: GraphBuilder, number: ir.Value, table: np.ndarray) -> ir.Value:
    number = graph.op("Reshape", graph.op("Cast", number, to=6), graph.constant([-1]))
    return graph.op("Gather", graph.parameter("table", table), number, axis=0)


def one_hot(graph: GraphBuilder, number: ir.Value, table: np.ndarray) -> ir.Value:
    places = graph.op("OneHot", number, graph.constant(ROWS), graph.constant([0.0, 1.0], "float32"), axis=-1)
    return graph.op("MatMul", places, graph.parameter("table", table))


def compared(graph: GraphBuilder, number: ir.Value, table: np.ndarray) -> ir.Value:
    column = graph.op("Unsqueeze", number, graph.constant([-1]))
    places = graph.op("Cast", graph.op("Equal", column, graph.constant(range(ROWS))), to=1)
    return graph.op("MatMul", places, graph.parameter("table", table))


def beside_padding(graph: GraphBuilder, number: ir.Value, table: np.ndarray) -> ir.Value:
    """Row 0 stands for nothing, and is masked."""
    mask = graph.op("Cast", graph.op("Not", graph.op("Equal", number, graph.constant(0))), to=1)
    return graph.op("Mul", embedding(graph, number, table), graph.op("Unsqueeze", mask, graph.constant([-1])))


FORMS = {form.__name__: form for form in (embedding, cast_and_flattened, one_hot, compared, beside_padding)}


def chooses(form: Callable[..., ir.Value], table: np.ndarray) -> surgery.Checkpoint:
    graph = GraphBuilder("chooses")
    graph.output(form(graph, graph.input("number", (), "int64"), table), "q_values", (3,))
    model = graph.model()
    return surgery.Checkpoint(model, infer(model))


@pytest.mark.parametrize("form", FORMS)
def test_every_row_of_a_table_is_compared(form: str) -> None:
    table = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)
    before = chooses(FORMS[form], table)
    drawn = probes(before, 2000, 0)["number"]
    assert set(drawn.tolist()) == set(range(ROWS))
    wrong = table.copy()
    wrong[2:] += 1
    assert verify(before, chooses(FORMS[form], table)).ok
    assert not verify(before, chooses(FORMS[form], wrong)).ok


def test_a_declared_range_counts_and_a_number_that_chooses_nothing_is_0_or_1() -> None:
    before = chooses(embedding, np.zeros((ROWS, 3), np.float32))
    declared = surgery.annotate(before, inputs={"number": PortPatch(low=0.0, high=4.0)})
    assert set(probes(declared, 500, 0)["number"].tolist()) == set(range(5))
    graph = GraphBuilder("adds")
    number = graph.op("Cast", graph.input("number", (3,), "int64"), to=1)
    graph.output(graph.op("Relu", number), "q_values", (3,))
    model = graph.model()
    assert set(probes(surgery.Checkpoint(model, infer(model)), 500, 0)["number"].reshape(-1).tolist()) == {
        0,
        1,
    }
