"""State dicts of networks that a person names: the architecture gives the graph, the file its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.adapters import Reading
from surgery.architectures import new, parse
from surgery.architectures.heads import ATOMS, HEADS, QUANTILES
from surgery.architectures.layers import Attention, Convolution, Dense, Recurrent, resolved, walk
from surgery.architectures.library import Architecture
from surgery.architectures.untrained import channels_first
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, SurgeryError, UnknownName
from surgery.interface import Interface, Port
from surgery.tensors import shape_of
from surgery_adapters.networks.assignment import (
    SIDES,
    Shape,
    Shapes,
    assigned,
    differing,
    fits,
    trained_shapes,
)
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.layers import GATES
from surgery_adapters.networks.side_by_side import beside
from surgery_adapters.networks.words import words_of

_DIVIDED = ("nature", "impala")
"""Families whose images, with values up to 255, are divided by 255 in every known script."""


@dataclass(frozen=True)
class _Guess:
    """What the network may be: an architecture with a head."""

    checkpoint: Checkpoint
    head: str

    def shapes(self) -> dict[str, Shape]:
        """Of its parameters as PyTorch has them, in the order of the data."""
        return {
            name: shape
            for own, tensor in self.checkpoint.tensors.items()
            for name, shape in _torch_form(own, shape_of(tensor))
        }


def named(parts: Sequence[Part], reading: Reading) -> tuple[ir.Model, Interface]:
    """The graph of an architecture with the parameters of a file, and beside it that of each of its copies.

    Args:
      parts: the networks of the file: one, and copies of it.
      reading: names the architecture, and the shape of an observation or the head where sizes do not tell.

    Raises:
      UnknownName: no such architecture or head.
      ArgumentError: other layers than the file's, with those that differ; more than one head fits.
      Refused: neither names nor order tell which layer is which.
    """
    originals = [part for part in parts if part.original is None]
    if len(originals) > 1:
        raise ArgumentError(
            f"the file holds several networks ({', '.join(part.label for part in originals)}), but an "
            "architecture's name describes only one",
            hint="name the code that makes them: --module PKG:CALLABLE",
        )
    guess = _recognised(originals[0], reading)
    model, interface = _filled(guess, originals[0]), guess.checkpoint.interface
    ports = list(interface.outputs)
    for part in parts:
        if part.original is not None:
            copy = _recognised(part, reading)
            other = _filled(copy, part)
            suffix = f"_{part.prefix.strip('.').replace('.', '_')}"
            for value in other.graph.outputs:
                value.name = f"{value.name}{suffix}"
            ports += [Port(str(value.name), "other", declared=True) for value in other.graph.outputs]
            beside(model, other, part.prefix)
    return model, Interface(interface.inputs, tuple(ports))


def _recognised(part: Part, reading: Reading) -> _Guess:
    """The head and sizes with which the architecture has the layers of a network."""
    architecture = parse(str(reading.architecture))
    held = trained_shapes(part.tensors)
    guesses = list(_guesses(architecture, held, reading))
    streams = any(words_of(name) & SIDES["advantage"] for name in held)
    fitting = [
        guess
        for guess in guesses
        if fits(guess.shapes(), held) and guess.head != ("actor-critic" if streams else "dueling")
    ]
    if len({guess.head for guess in fitting}) > 1:
        raise ArgumentError(
            f"several heads have the sizes of the last layer: {', '.join(guess.head for guess in fitting)}",
            hint=f"say which it is: --head {fitting[0].head}",
        )
    if fitting:
        return fitting[0]
    raise _unlike(architecture, guesses, held)


def _unlike(architecture: Architecture, guesses: Sequence[_Guess], held: Shapes) -> ArgumentError:
    """What is missing for the nearest guess."""
    hint = "surgery list architectures; of other images: --observation 4,84,84; own layers in a file: FILE.toml:NAME"
    if not guesses:
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in list(held.items())[:6])
        return ArgumentError(
            f"the file has no layer that could be the first or the last one of '{architecture.name}'",
            where={"in the file": shown}, hint=hint,
        )  # fmt: skip
    nearest = min(guesses, key=lambda guess: sum(map(len, differing(guess.shapes(), held))))
    try:
        assigned(nearest.shapes(), held)
    except ArgumentError as error:
        where = {
            f"'{architecture.name}' has": error.where["wanted"],
            "the file has": error.where["in the file"],
        }
        return ArgumentError(
            f"the file is not '{architecture.name}' with a head '{nearest.head}'", where=where, hint=hint
        )
    raise AssertionError("a guess that does not fit has been assigned")


def _guesses(architecture: Architecture, held: Shapes, reading: Reading) -> Iterator[_Guess]:
    if reading.head is not None and reading.head not in HEADS:
        raise UnknownName("head", reading.head, HEADS)
    scale = 1 / 255 if architecture.name.partition("-")[0] in _DIVIDED else None
    for observation in _observations(architecture, held, reading):
        try:
            _, after = resolved(architecture.layers, channels_first(observation))
        except SurgeryError as error:
            raise error.within(architecture=architecture.name, observation=list(observation)) from None
        outs = dict.fromkeys(shape[0] for shape in held.values() if len(shape) == 2 and shape[1] == after[-1])
        for head in [reading.head] if reading.head else HEADS:
            per_action = {"c51": ATOMS, "qr": QUANTILES}.get(head, 1)
            for out in outs:
                if out % per_action == 0:
                    made = new(
                        architecture, observation=observation, actions=out // per_action, head=head,
                        scale=scale if len(observation) == 3 else None,
                    )  # fmt: skip
                    yield _Guess(made, head)


def _observations(architecture: Architecture, held: Shapes, reading: Reading) -> list[Shape]:
    """Shapes of an observation that the first layer of the architecture may read in this file."""
    if reading.observation is not None:
        return [reading.observation]
    layers = [layer for _, layer in walk(architecture.layers)]
    first = next(layer for layer in layers if isinstance(layer, Convolution | Dense | Recurrent | Attention))
    match first:
        case Convolution(channels=out, kernel=kernel) if architecture.observation is not None:
            usual = architecture.observation
            channels = {shape[1] for shape in held.values() if (shape[0], *shape[2:]) == (out, *kernel)}
            last = channels_first(usual) != usual
            return [(*usual[:2], count) if last else (count, *usual[1:]) for count in sorted(channels)]
        case Dense(width=out) if not any(isinstance(layer, Attention) for layer in layers):
            return sorted({shape[1:] for shape in held.values() if len(shape) == 2 and shape[0] == out})
        case Recurrent(kind=kind, width=width):
            gates = 4 if kind == "lstm" else 3
            found = {shape[1:] for shape in held.values() if len(shape) == 2 and shape[0] == gates * width}
            return sorted(found)
    raise ArgumentError(
        f"the file does not give the shape of an observation of '{architecture.name}'",
        hint="give it: --observation 4,84,84",
    )


def _torch_form(name: str, shape: Shape) -> list[tuple[str, Shape]]:
    """A parameter of ours as PyTorch's recurrent layers have it: (1, gates · H, n) without the first axis."""
    module, _, leaf = name.rpartition(".")
    match leaf:
        case "weight_input":
            return [(f"{module}.weight_ih_l0", shape[1:])]
        case "weight_state":
            return [(f"{module}.weight_hh_l0", shape[1:])]
        case "bias" if len(shape) == 2:
            return [(f"{module}.bias_{side}_l0", (shape[1] // 2,)) for side in ("ih", "hh")]
    return [(name, shape)]


def _filled(guess: _Guess, part: Part) -> ir.Model:
    """The graph with a network's parameters under the network's own names."""
    names = assigned(guess.shapes(), trained_shapes(part.tensors))
    model = guess.checkpoint.model.clone()
    for own, value in list(model.graph.initializers.items()):
        torch = [
            names[name] for name, _ in _torch_form(own, tuple(value.shape.numpy() if value.shape else ()))
        ]
        model.graph.initializers.pop(own)
        held = [_parameter(model, part, name) for name in torch]
        if torch and own not in names:
            node = next(iter(value.uses())).node
            value.replace_all_uses_with(_gates_in_order(model, node.op_type, held))
        else:
            value.replace_all_uses_with(held[0])
    return model


def _parameter(model: ir.Model, part: Part, name: str) -> ir.Value:
    tensor = part.tensors[name]
    value = ir.Value(
        name=name, shape=ir.Shape(shape_of(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _gates_in_order(model: ir.Model, kind: str, held: Sequence[ir.Value]) -> ir.Value:
    """PyTorch's gates in ONNX's order: one weight as (1, gates · H, n), or two biases as (1, 2 · gates · H)."""
    order = GATES[kind]
    nodes: list[ir.Node] = []
    rows: list[ir.Value] = []
    for value in held:
        split = ir.node("Split", [value], {"axis": 0, "num_outputs": len(order)}, num_outputs=len(order))
        nodes.append(split)
        rows += [split.outputs[place] for place in order]
    front = ir.node("Constant", [], {"value": ir.Tensor(np.zeros(1, np.int64))})
    joined = ir.node("Concat", rows, {"axis": 0})
    whole = ir.node("Unsqueeze", [joined.outputs[0], front.outputs[0]])
    nodes += [joined, front, whole]
    for number, node in enumerate(nodes):
        node.name = f"{held[0].name}.gates.{number}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}.{index}"
    model.graph.insert_before(model.graph[0], nodes)
    return whole.outputs[0]
