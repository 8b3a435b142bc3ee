"""An untrained network of a named architecture, as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import onnx_ir as ir

from surgery.architectures.heads import HEADS, dueling, split_stream
from surgery.architectures.initialise import Initialiser
from surgery.architectures.layers import Layer, Shape, resolved
from surgery.architectures.library import Architecture, Initialisation
from surgery.architectures.names import MOST_UNITS, parse
from surgery.architectures.writer import NEXT, Writer
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, UnknownName, shape_text
from surgery.interface import Interface, LineageStep, Port


def new(
    arch: str | Architecture,
    *,
    observation: Sequence[int],
    actions: int,
    head: str = "q",
    dtype: str = "float32",
    scale: float | None = None,
    seed: int = 0,
    noisy: bool = False,
) -> Checkpoint:
    """An untrained network.

    Its input is `observation`, (batch, *observation); recurrent state goes in as `hidden` (and `cell`), (batch, width),
    and comes out as `hidden_next`. Outputs by head, A actions: q and dueling `q_values` (batch, A); c51, and rainbow
    (dueling and noisy), `atom_logits` (batch, A, 51) with the support in its range; qr `quantiles` (batch, A, 200);
    actor-critic `logits` (batch, A) and `value` (batch, 1); gaussian `mean`, `log_std` (batch, A) and `value`.

    Args:
      arch: a name with modifiers, or what `parse` gave for it.
      observation: the shape of one observation; of an image the smaller of the first and the last axis are channels.
      actions: how many, or of how many numbers an action consists.
      head: one of `HEADS`.
      dtype: of the observation, "float32" or "uint8".
      scale: a factor on observations inside the graph, such as 1/255; None for none.
      seed: of all weights.
      noisy: make every dense layer a noisy one (Fortunato et al. 2018): `weight_mu`, `weight_sigma`, `bias_mu`,
        `bias_sigma`, and the noise, which is zero until someone trains the network.

    Raises:
      UnknownName: no such architecture or head.
      ArgumentError: an observation that the architecture cannot take; no actions.
    """
    architecture = parse(arch) if isinstance(arch, str) else arch
    shape = _checked(observation, actions, head, dtype, scale)
    try:
        layers, after = resolved(architecture.layers, channels_first(shape))
        if len(after) != 1:
            raise ArgumentError(f"what the head would read is not a vector: {list(after)}")
    except ArgumentError as error:
        raise error.within(architecture=architecture.name, observation=shape_text(shape)) from None
    model, interface = _written(architecture, layers, shape, actions, head, dtype, scale, seed, noisy)
    step = LineageStep(
        "new",
        versions={"policy-surgery": version("policy-surgery")},
        seed=seed,
        summary={
            "architecture": architecture.name,
            "head": head,
            "observation": shape,
            "actions": actions,
            "noisy": noisy,
        },
    )
    return Checkpoint(model, interface, lineage=(step,))


def channels_first(shape: Shape) -> Shape:
    """The shape of an observation as layers see it: channels are the smaller of an image's outer axes."""
    return (shape[2], *shape[:2]) if _last(shape) else shape


def _last(shape: Shape) -> bool:
    return len(shape) == 3 and shape[2] < shape[0]


def _checked(observation: Sequence[int], actions: int, head: str, dtype: str, scale: float | None) -> Shape:
    shape = tuple(int(size) for size in observation)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ArgumentError(f"an observation of shape {shape_text(shape)}", hint="F, ENTITIES×F or C×H×W")
    if not 1 <= actions <= MOST_UNITS:
        raise ArgumentError(f"{actions} actions", hint=f"from 1 to {MOST_UNITS}")
    if head not in HEADS:
        raise UnknownName("head", head, HEADS)
    if dtype not in ("float32", "uint8"):
        raise ArgumentError(f"observations of type '{dtype}'", hint="float32 or uint8")
    if scale is not None and not 0 < scale < float("inf"):
        raise ArgumentError(f"a scale of {scale}")
    return shape


def _written(
    architecture: Architecture,
    layers: tuple[Layer, ...],
    shape: Shape,
    actions: int,
    head: str,
    dtype: str,
    scale: float | None,
    seed: int,
    noisy: bool,
) -> tuple[ir.Model, Interface]:
    kind = HEADS[head]
    start: Initialisation = architecture.initialisation
    if kind.policy and start == "uniform":
        start = "orthogonal"
    graph = GraphBuilder(architecture.name)
    x = _observed(graph, shape, dtype, scale)
    writer = Writer(graph, Initialiser(start, seed), x, channels_first(shape), noisy=noisy or kind.noisy)
    shared, stream = split_stream(layers) if kind.streams else (layers, ())
    writer.add(shared)
    outputs = dueling(writer, kind, actions, stream) if kind.streams else kind.write(writer, actions)
    inputs = [Port("observation", "observation", declared=True)]
    for name, value, width in writer.states:
        graph.output(value, f"{name}{NEXT}", (width,))
        inputs.append(Port(name, "state", declared=True))
        outputs.append(Port(f"{name}{NEXT}", "state", declared=True))
    return graph.model(), Interface(tuple(inputs), tuple(outputs))


def _observed(graph: GraphBuilder, shape: Shape, dtype: str, scale: float | None) -> ir.Value:
    """The observation as numbers, scaled, channels first."""
    x = graph.input("observation", shape, dtype)
    if dtype != "float32":
        x = graph.op("Cast", x, to=int(ir.DataType.FLOAT))
    if scale is not None:
        inverse = round(1 / scale)
        if abs(inverse * scale - 1) < 1e-12:  # dividing by 255 is not multiplying by its float32 inverse
            x = graph.op("Div", x, graph.constant(inverse, "float32"))
        else:
            x = graph.op("Mul", x, graph.constant(scale, "float32"))
    return graph.op("Transpose", x, perm=[0, 3, 1, 2]) if _last(shape) else x
