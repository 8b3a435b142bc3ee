"""The list of operators: every rule speaks one vocabulary, and the page about them says what the registry says."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy as np
import pytest

from docs.generate import PAGE, operator_page
from surgery.cli import main
from surgery.graph import rules
from surgery.graph.operators import CLASSES, NO_RULE, clauses, operators
from surgery.graph.spaces import analyse
from surgery.graph.trace import Trace
from tests.rule_graphs import check_demands, check_row, model_of

KNOWN = {operator.name: operator for operator in operators()}


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_a_rule_speaks_in_clauses_of_known_classes(name):
    found = clauses(name, rules.RULES[name].axes)
    assert {clause.kind for clause in found} <= set(CLASSES)
    assert len({clause.which for clause in found}) == len(found)
    assert KNOWN[name].formula.endswith((".", "]", ")"))


@pytest.mark.parametrize(
    "axes", ["all pointwise", "k: contracted", "k: summary", "", "k: sum; ", "a: b: sum"]
)
def test_other_words_are_refused(axes):
    with pytest.raises(ValueError, match="Made: "):
        clauses("Made", axes)


EXACT = {
    "Relu": "any width",
    "Conv": "input channels of a group, batch, groups, output channels: any width; spatial axes, kernel: fixed",
    "LayerNormalization": "normalised axes: any width after linear layers, else whole multiples; "
    "other axes: any width",
    "Softmax": "normalised axis: fixed; other axes: any width",
    "ReduceL2": "reduced axes: any width, new units zero; other axes: any width",
    "Log": "any width (by copies, where it may not be finite)",
    "Reshape": "any width of each factor",
    "If": NO_RULE,
}


@pytest.mark.parametrize(("name", "exact"), EXACT.items())
def test_what_is_exact_follows_from_the_classes(name, exact):
    assert KNOWN[name].exact == exact


def test_a_limited_domain_is_said_of_just_the_operators_that_the_rules_limit(rng):
    """What the list says of `Log` and its kin is what the trace of a graph with them records."""
    from tests.rule_rows import ROWS

    limited = set()
    for case in ROWS:
        if case.free and len(case.nodes) == 1:
            trace: Trace = analyse(model_of(case, case.opsets[-1], rng)).trace
            limited |= {case.subject} if any(mode == "zero" for _, mode, _ in trace.limits) else set()
    assert limited == {name for name, operator in KNOWN.items() if "by copies" in operator.exact}


def test_operators_with_a_kernel_alone_are_listed_as_frozen():
    alone = {name for name, operator in KNOWN.items() if not operator.ruled}
    assert {"If", "Loop", "NonZero"} <= alone
    assert not alone & set(rules.RULES)
    assert all(KNOWN[name].evaluated for name in KNOWN)


def test_list_operators_says_axes_exactness_and_kernel(capsys):
    assert main(["list", "operators", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["operators"]}
    assert set(rows) == set(KNOWN)
    assert rows["Gemm"]["axes"] == "k: contraction; m, n: pointwise, zero and scale pass back"
    assert [found["kind"] for found in rows["Gemm"]["classes"]] == ["contraction", "pointwise"]
    assert (rows["Gemm"]["rule"], rows["Gemm"]["float64"], rows["Gemm"]["exact"]) == (True, True, "any width")
    assert (rows["Loop"]["rule"], rows["Loop"]["axes"]) == (False, "no rule")


def test_list_operators_is_a_table_for_people(capsys):
    assert main(["list", "operators"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "axes", "exact", "float64", "rule"]
    assert [line.split()[0] for line in lines[1:]] == sorted(KNOWN)


# ---- docs/operators.md --------------------------------------------------------------------------------------


def test_the_page_on_operators_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert operator_page(text) == text, "write it again: python docs/generate.py"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_page_names_every_operator(name):
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that the page's Python blocks define, with their rule in the registry."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for name, rule in names["RULES"].items():
        monkeypatch.setitem(rules.RULES, name, rule)
    return names


def test_the_example_of_the_page_is_ten_lines_and_says_its_axes(example):
    ((name, rule),) = example["RULES"].items()
    body = PAGE.read_text(encoding="utf-8").partition(f'@RULES("{name}"')[2].partition("```")[0]
    assert len(body.strip().splitlines()) <= 10
    assert [clause.kind for clause in clauses(name, rule.axes)] == ["frozen", "pointwise", "pointwise"]


@pytest.mark.parametrize("opset", [10, 20])
def test_the_example_of_the_page_passes_the_test_by_labels(example, opset, rng: np.random.Generator):
    analysis = check_row(example["ROW"], opset, rng)
    claimed = check_demands(analysis, example["ROW"].results, rng)
    assert claimed["y", 2] == 2
    assert claimed["y", 1] == 0


def test_the_verbs_that_the_page_explains_are_those_of_a_trace():
    named = set(re.findall(r"`t\.(\w+)[(.]", PAGE.read_text(encoding="utf-8")))
    assert {"axes", "put", "merge", "contract", "mix", "split", "cut", "literal", "use", "limits"} <= named
    assert named <= {*vars(Trace), *(field.name for field in fields(Trace))}
