"""A model of Keras as a graph, from its configuration: nothing is executed, and every variable keeps its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import CorruptFile, Refused
from surgery.graph.facts import Facts
from surgery.tensors import shape_of
from surgery_adapters.keras.config import MODELS, Layer, is_operation

Shape = tuple[int | None, ...]
Value = ir.Value
Values = list[ir.Value]
Build = Callable[["Network", Layer, Values, Mapping[str, Any]], Values]
"""Writes one layer: the network, the layer, its inputs, the other arguments of its call; gives its outputs."""

_DTYPES = {"float32", "float64", "int32", "int64", "uint8", "bool"}
HINT = "export it in Keras, model.export('model.onnx', format='onnx'), and add --graph model.onnx"


class Network:
    """A graph in the making.

    Attributes:
      graph: what is built. tensors: name of a variable -> tensor.
      shapes: (layer, number of its call, of its output) -> shape with the batch, None where it is free.
      calls: layer -> the shapes of the inputs of its first call.
      literals: layer that reshapes -> the output of its node, whose sizes stand in the layer's settings.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, ir.TensorProtocol],
        layers: Mapping[str, Build],
        operations: Mapping[str, Build],
    ) -> None:
        self.graph = GraphBuilder(name)
        self.tensors = tensors
        self.shapes: dict[tuple[str, int, int], Shape] = {}
        self.calls: dict[str, list[Shape]] = {}
        self.literals: dict[str, str] = {}
        self._layers, self._operations = layers, operations
        self._facts: Facts | None = None
        self._seen = 0

    def parameter(self, name: str) -> Value:
        """A variable of the model.

        Raises:
          CorruptFile: the file does not have it.
        """
        if name not in self.tensors:
            raise CorruptFile(f"the file has no variable '{name}', which its configuration has")
        return self.graph.parameter(name, self.tensors[name])

    def size(self, name: str) -> tuple[int, ...]:
        """The shape of a variable."""
        self.parameter(name)
        return shape_of(self.tensors[name])

    def op(self, kind: str, *inputs: Value | None, **attributes: Any) -> Value:  # noqa: ANN401
        """One node, its first output."""
        return self.graph.op(kind, *inputs, **attributes)

    def number(self, value: float | Sequence[float]) -> Value:
        """A literal in float32."""
        return self.graph.constant(value, "float32")

    def integers(self, value: Sequence[int]) -> Value:
        """A literal vector."""
        return self.graph.constant(list(value))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """Its axes in another order; none if it is the same."""
        return x if list(perm) == list(range(len(perm))) else self.op("Transpose", x, perm=list(perm))

    def shape(self, x: Value) -> Shape:
        """With the batch first; None for what is free."""
        model = self.graph.model()
        if self._facts is None:
            self._facts = Facts(model)
        nodes = list(model.graph)
        for value in model.graph.initializers.values():
            if value not in self._facts.shapes and value.const_value is not None:
                self._facts.tensor(value, value.const_value)
        for node in nodes[self._seen :]:
            self._facts.step(node)
        self._seen = len(nodes)
        found = self._facts.shapes.get(x)
        if found is None:
            raise Refused(f"the shape of '{x.name}' is not known", hint=HINT)
        return tuple(None if self._facts.stands_in(size) else size for size in found)

    def shape_of(self, x: Value) -> tuple[int, ...]:
        """The shape of a value that has no free axis."""
        return tuple(size or 0 for size in self.shape(x))

    def rank(self, x: Value) -> int:
        """How many axes, the batch among them."""
        return len(self.shape(x))

    def run(self, layer: Layer, inputs: Values, arguments: Mapping[str, Any] | None = None) -> Values:
        """The outputs of a layer.

        Raises:
          Refused: there is no rule for it.
        """
        self.calls.setdefault(layer.name, [self.shape(value) for value in inputs])
        if layer.kind in MODELS:
            return self.model(layer, inputs)
        table = self._operations if is_operation(layer.record) else self._layers
        if layer.kind not in table:
            raise Refused(_unknown(layer), hint=HINT)
        policy = layer.config.get("dtype")
        name = policy.get("config", {}).get("name") if isinstance(policy, Mapping) else policy
        if name not in (None, "float32", "int32", "int64"):
            raise Refused(f"the layer '{layer.name}' computes in {name}, not in float32", hint=HINT)
        return table[layer.kind](self, layer, inputs, arguments or {})

    def model(self, layer: Layer, inputs: Values | None = None) -> Values:
        """The outputs of a model; without inputs it gets inputs of its own.

        Raises:
          Refused: it is of a class of a person's own.
        """
        if layer.kind != "Sequential" and "input_layers" not in layer.config:
            raise Refused(f"'{layer.kind}' is a class of your own, whose code is not in the file", hint=HINT)
        return (
            self._sequence(layer, inputs) if layer.kind == "Sequential" else self._functional(layer, inputs)
        )

    def observe(self, layer: Layer) -> Value:
        """An input of the graph."""
        config = layer.config
        batch_shape = config.get("batch_shape", config.get("batch_input_shape"))
        if not isinstance(batch_shape, list) or config.get("sparse") or config.get("ragged"):
            raise Refused(f"the input '{layer.name}' has no plain shape", hint=HINT)
        dtype = config.get("dtype") or "float32"
        if dtype not in _DTYPES:
            raise Refused(f"the input '{layer.name}' is {dtype}", hint=HINT)
        name = str(config["name"])
        shape = [
            f"{name}_{axis}" if size is None else int(size) for axis, size in enumerate(batch_shape[1:], 1)
        ]
        value = self.graph.input(name, shape, dtype)
        self._facts, self._seen = None, 0  # made again, as it knows the inputs that were there
        return value

    def _sequence(self, layer: Layer, inputs: Values | None) -> Values:
        children = list(layer.children)
        if inputs is None:
            if not children or children[0].kind != "InputLayer":
                raise Refused(
                    "the model does not say the shape of its inputs: it was never built",
                    hint="call it once before it is saved",
                )
            inputs = [self.observe(children[0])]
        for child in children:
            if child.kind == "InputLayer":
                self.shapes[child.name, 0, 0] = self.shape(inputs[0])
                continue
            inputs = self.run(child, inputs)
            self.shapes[child.name, 0, 0] = self.shape(inputs[0])
        return inputs

    def _functional(self, layer: Layer, inputs: Values | None) -> Values:
        config, prefix = layer.config, f"{layer.name}." if layer.name else ""
        by_name = {child.name.removeprefix(prefix): child for child in layer.children}
        entries = histories(config["input_layers"])
        values: dict[tuple[str, int, int], Value] = {}
        for place, (name, _, _) in enumerate(entries):
            values[name, 0, 0] = self.observe(by_name[name]) if inputs is None else inputs[place]
        pending = [
            (child, number, node)
            for child in layer.children
            for number, node in enumerate(child.record.get("inbound_nodes", ()))
            if child.kind != "InputLayer"
        ]
        self._note(prefix, values)
        while pending:
            ready = [call for call in pending if set(reads(call[2])) <= set(values)]
            if not ready:
                raise CorruptFile(f"the layers of '{layer.name or 'the model'}' wait for each other")
            for child, number, node in ready:
                made = self.run(child, *_arguments(node, values))
                found = {(child.name.removeprefix(prefix), number, k): value for k, value in enumerate(made)}
                values |= found
                self._note(prefix, found)
            pending = [call for call in pending if call not in ready]
        return [values[history] for history in histories(config["output_layers"])]

    def _note(self, prefix: str, values: Mapping[tuple[str, int, int], Value]) -> None:
        for (name, number, k), value in values.items():
            self.shapes[f"{prefix}{name}", number, k] = self.shape(value)


def histories(record: object) -> list[tuple[str, int, int]]:
    """The (layer, call, output) of a list, or a dict, of them, or of a single one."""
    if isinstance(record, Mapping):
        return [found for value in record.values() for found in histories(value)]
    if isinstance(record, list) and len(record) == 3 and isinstance(record[0], str):
        return [(record[0], int(record[1]), int(record[2]))]
    if isinstance(record, list):
        return [found for value in record for found in histories(value)]
    raise CorruptFile("the configuration does not name the inputs and outputs of the model")


def tensor_history(record: object) -> tuple[str, int, int] | None:
    """What a placeholder of a tensor stands for; None for anything else."""
    if isinstance(record, Mapping) and record.get("class_name") == "__keras_tensor__":
        name, number, k = record["config"]["keras_history"]
        return str(name), int(number), int(k)
    return None


def reads(node: object) -> list[tuple[str, int, int]]:
    """All tensors that a call is given."""
    if (history := tensor_history(node)) is not None:
        return [history]
    members = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return [history for member in members for history in reads(member)]


def _arguments(
    node: Mapping[str, Any], values: Mapping[tuple[str, int, int], Value]
) -> tuple[Values, dict[str, Any]]:
    """The tensors of a call, flattened, and its other arguments; `args` holds those that have no name."""

    def filled(record: object) -> object:
        if (history := tensor_history(record)) is not None:
            return values[history]
        if isinstance(record, list):
            return [filled(member) for member in record]
        return record

    given = [filled(argument) for argument in node.get("args", ())]
    named = {key: filled(value) for key, value in node.get("kwargs", {}).items() if value is not None}
    flat: Values = []
    for argument in [*given, *named.values()]:
        members = argument if isinstance(argument, list) else [argument]
        flat += [member for member in members if isinstance(member, ir.Value)]
    return flat, {"args": given, **named}


def _unknown(layer: Layer) -> str:
    if layer.kind == "Lambda":
        return f"the layer '{layer.name}' is a Lambda: it is Python code in the file, which is never executed"
    package = layer.record.get("registered_name") or layer.kind
    return f"there is no rule for the layer '{layer.name}', a {package}"
