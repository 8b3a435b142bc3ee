"""What a model's inputs and outputs mean, guessed from their names and from the operators beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import onnx_ir as ir

from surgery.interface import Interface, Port

_STATE_WORDS = frozenset({"hidden", "cell", "state", "carry", "memory", "hx", "cx", "h", "c", "lstm", "gru"})
_MOVES = frozenset(
    {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Split", "Gather", "Concat"}
)
_INPUT_WORDS: Mapping[str, frozenset[str]] = {
    "mask": frozenset({"mask", "masks", "legal", "invalid"}),
    "observation": frozenset({"observation", "obs"}),
    "state": _STATE_WORDS,
}
_OUTPUT_WORDS: Mapping[str, frozenset[str]] = {
    "q_values": frozenset({"q", "qvalues", "qvalue", "qs"}),
    "probabilities": frozenset({"probs", "probabilities"}),
    "logits": frozenset({"logits", "logit", "policy", "pi"}),
    "value": frozenset({"value", "values", "v", "critic", "vf"}),
    "log_std": frozenset({"logstd", "logsigma", "std", "scale"}),
    "mean": frozenset({"mean", "mu", "loc"}),
    "state": _STATE_WORDS,
    "action": frozenset({"action", "actions"}),
}


def infer(model: ir.Model) -> Interface:
    """Guess what a model's inputs and outputs mean from their names; nothing is declared.

    Recurrent state has an input and an output; an input called `state` without such an output is an
    observation. Where names say nothing, it is what a recurrent operator starts with and what it ends with.
    """
    graph = model.graph
    initialised = set(graph.initializers)
    inputs = [value for value in graph.inputs if value.name not in initialised]
    kinds_in = {_name(value): _kind(_name(value), _INPUT_WORDS) for value in inputs}
    kinds_out = {
        _name(value): _kind_of_output(value) if _answers(value, inputs) else "other"
        for value in graph.outputs
    }
    first, last = _recurrent_state(graph)
    for kinds, found in ((kinds_in, first), (kinds_out, last)):
        kinds.update({name: "state" for name in found if first and last and kinds.get(name) == "other"})
    if "state" not in kinds_out.values():
        kinds_in = {name: "other" if kind == "state" else kind for name, kind in kinds_in.items()}
    unnamed = [name for name, kind in kinds_in.items() if kind == "other"]
    if "observation" not in kinds_in.values() and len(unnamed) == 1:
        kinds_in[unnamed[0]] = "observation"
    return Interface(
        tuple(Port(name, kind) for name, kind in kinds_in.items()),
        tuple(Port(name, kind) for name, kind in kinds_out.items()),
    )


def _recurrent_state(graph: ir.Graph) -> tuple[set[str], set[str]]:
    """The inputs that are the first state of a recurrent operator, the outputs that are its last one."""
    cells = [node for node in graph if node.op_type in ("LSTM", "GRU", "RNN")]
    first = _ends([value for node in cells for value in node.inputs[5:7] if value], _sources)
    last = _ends([value for node in cells for value in node.outputs[1:3]], _results)
    inputs, outputs = ({_name(value) for value in side} for side in (graph.inputs, graph.outputs))
    return first & inputs, last & outputs


def _answers(output: ir.Value, inputs: list[ir.Value]) -> bool:
    """Whether anything that goes in changes what comes out: the version number of a format is the answer to nothing."""

    def operands(value: ir.Value) -> list[ir.Value]:
        node = value.producer()
        if node is None:
            return []
        inner = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        return inputs if inner else [operand for operand in node.inputs if operand is not None]

    return not _ends([output], operands).isdisjoint(_name(value) for value in inputs)


def _ends(values: list[ir.Value], step: Callable[[ir.Value], list[ir.Value]]) -> set[str]:
    """The names of everything that some values come from, or go to."""
    found: set[str] = set()
    while values:
        value = values.pop()
        if _name(value) not in found:
            found.add(_name(value))
            values += step(value)
    return found


def _sources(value: ir.Value) -> list[ir.Value]:
    """What a value's elements were before an operator moved them."""
    node = value.producer()
    if node is None or node.op_type not in _MOVES:
        return []
    return [source for source in node.inputs[: None if node.op_type == "Concat" else 1] if source]


def _results(value: ir.Value) -> list[ir.Value]:
    """What an operator makes of a value by moving its elements."""
    return [
        result
        for node, operand in value.uses()
        if node.op_type in _MOVES and (operand == 0 or node.op_type == "Concat")
        for result in node.outputs
    ]


def _words(name: str) -> set[str]:
    parts = [part for part in "".join(c if c.isalnum() else " " for c in name.lower()).split() if part]
    stems = [part.rstrip("0123456789") for part in parts]
    return {*parts, *stems, *("".join(pair) for pair in pairwise(parts))}


def _kind(name: str, table: Mapping[str, frozenset[str]]) -> str:
    words = _words(name)
    return next((kind for kind, known in table.items() if words & known), "other")


def _kind_of_output(output: ir.Value) -> str:
    """By its name; a row that a softmax makes is one of probabilities, if nothing says that it holds logits."""
    node, kind, words = output.producer(), _kind(_name(output), _OUTPUT_WORDS), _words(_name(output))
    row = output.shape is not None and len(output.shape) == 2
    if kind == "probabilities":
        return kind if row and words.isdisjoint({"log", "logprobs"}) else "other"
    made = row and node is not None and node.op_type == "Softmax"
    policy = kind == "other" or (kind == "logits" and words.isdisjoint({"logits", "logit"}))
    return "probabilities" if made and policy else kind


def _name(value: ir.Value) -> str:
    return value.name or ""
