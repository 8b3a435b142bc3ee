"""The sidecar: a new network beside the old one, and a gate that hands over from one to the other.

    y = (1 − g) · old(x) + new(x)        g = 0 and new(x) = 0 at first

For two families of networks between which no weights can be mapped: the result computes what the old network computes,
bit by bit, and has the new one in it, whose last layer starts at zero and learns from the first step. The gate is not
learned: training moves it from 0 to 1 by a schedule, and at 1 `finish` takes the old network out again, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint, check_finite
from surgery.edits.insert import joined
from surgery.edits.insertion import Insertion, NewPort
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, ClaimFailed, ProofFailed, Refused, shape_text
from surgery.graph.beside import PREFIX, absorb, blend, drop_old, plain_names
from surgery.graph.zeroed import zeroed_for
from surgery.interface import Interface, LineageStep, Port
from surgery.optimizer import OptimizerState
from surgery.storage import save
from surgery.tensors import shape_of
from surgery.verify import Report, prove, versions
from surgery.verify.structure import check_structure

GATE = f"{PREFIX}gate"
Recorded = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """A checkpoint, and what its verification found."""

    checkpoint: Checkpoint
    report: Report

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the checkpoint; see `surgery.save`."""
        return save(self.checkpoint, path, force=force)


def sidecar(
    checkpoint: Checkpoint, new: Checkpoint, *, observations: Recorded | None = None, seed: int = 0
) -> Outcome:
    """Put a new network beside the old one: y = (1 − g) · old(x) + new(x), exact at g = 0.

    Args:
      checkpoint: the old network, with its optimizer state, which is carried.
      new: the new one, of any family: every output of the old one that is no recurrent state must be one of its
        outputs, every input of its own that is no state one of the old one's. Its last layers are set to zero.
      observations: recorded inputs to verify on; random ones otherwise. seed: of these.

    Returns:
      The network with both, proved to give the same bits. Everything of the new network is named `sidecar.…`; the gate
      is the initializer `sidecar.gate` of shape (1,). New parameters start with fresh optimizer state.

    Raises:
      ArgumentError: inputs or outputs that do not fit.
      Refused: an output of the new network that is not zero when its last layer is (behind a softmax, say).
    """
    if GATE in checkpoint.tensors:
        raise Refused(
            "there is a sidecar already", hint="take the old network out first: surgery finish MODEL -o OUT"
        )
    check_finite(checkpoint)
    check_finite(new)
    inputs, outputs = _inputs(checkpoint, new), _outputs(checkpoint, new)
    zeroed = zeroed_for(new.model, list(outputs.values()))
    model = checkpoint.model.clone()
    values = absorb(model, new.model, inputs, zeroed)
    ports = _state_ports(checkpoint, new, inputs)
    for port in ports:
        value = values[port.name.removeprefix(PREFIX)]
        value.shape = ir.Shape(port.shape)
        (model.graph.inputs if port.side == "input" else model.graph.outputs).append(value)
    blend(model, {old: values[name] for old, name in outputs.items()}, GATE)
    after = checkpoint.replace(
        model=model,
        interface=_with(checkpoint.interface, ports),
        optimizer=_carried(checkpoint.optimizer, new, zeroed),
        path=None,
    )
    report = _proved("sidecar", checkpoint, after, ports, observations, seed)
    return Outcome(_stepped(after, "sidecar", (checkpoint, new), report, {"gate": 0.0}), report)


def gate(checkpoint: Checkpoint) -> float:
    """How far the handing over is: 0 the old network with the new one added, 1 the new one alone.

    Raises:
      ArgumentError: a checkpoint without a sidecar.
    """
    return float(_gate(checkpoint).numpy().reshape(-1)[0])


def set_gate(checkpoint: Checkpoint, value: float) -> Checkpoint:
    """The same network with the gate at another value; at another value it is another function.

    Raises:
      ArgumentError: no sidecar, or a value outside of 0 … 1.
    """
    if not 0 <= value <= 1:
        raise ArgumentError(f"a gate of {value}", hint="from 0 (the old network) to 1 (the new one)")
    old = _gate(checkpoint)
    model = checkpoint.model.clone()
    array = np.full(shape_of(old), value, old.dtype.numpy())
    model.graph.initializers[GATE].const_value = ir.Tensor(array, dtype=old.dtype, name=GATE)
    step = LineageStep(
        "gate", (checkpoint.digest(),), versions(), summary={"from": gate(checkpoint), "to": value}
    )
    return checkpoint.replace(model=model, path=None, lineage=(*checkpoint.lineage, step))


def finish(checkpoint: Checkpoint, *, observations: Recorded | None = None, seed: int = 0) -> Outcome:
    """Take the old network out of one with a sidecar, when the gate is 1.

    Args:
      checkpoint: made by `sidecar`, and trained. observations, seed: to verify on.

    Returns:
      The new network alone, under the names that it had, with its optimizer state, proved to give the same bits.

    Raises:
      ArgumentError: no sidecar. Refused: the gate is not 1, so that the old network still counts.
    """
    value = gate(checkpoint)
    if value != 1:
        raise Refused(
            f"the gate is {value:g}: the old network still counts",
            hint="train on until it is 1; surgery gate MODEL --to 1 -o OUT sets it, and changes the function",
        )
    check_finite(checkpoint)
    states = {port.name for port in _ports(checkpoint.interface) if port.kind == "state"}
    model = checkpoint.model.clone()
    old = tuple(_new_port(model, checkpoint, side, name) for side, name in drop_old(model, GATE, states))
    alone = _reduced(checkpoint, model)
    # the network with both is judged as a growth of the one without the old: its states are what was added
    report = _proved("finish", alone, checkpoint, old, observations, seed)
    after = _renamed(alone)
    structure = check_structure(after.model, checkpoint.model)
    if not structure.ok:
        raise ProofFailed("what is left is not a valid model", where={structure.name: structure.detail})
    return Outcome(_stepped(after, "finish", (checkpoint,), report, {"gate": value}), report)


def _gate(checkpoint: Checkpoint) -> ir.TensorProtocol:
    found = checkpoint.tensors.get(GATE)
    if found is None or found.size != 1:
        raise ArgumentError(
            f"the model has no sidecar: there is no '{GATE}' in it",
            hint="surgery sidecar OLD.onnx NEW.onnx -o OUT puts a new network beside the old one",
        )
    return found


# ---- what fits to what ----------------------------------------------------------------------------------------


def _ports(interface: Interface) -> tuple[Port, ...]:
    return (*interface.inputs, *interface.outputs)


def _matched(old: tuple[Port, ...], new: tuple[Port, ...], side: str) -> dict[str, str]:
    """Old name -> new name: the same name, or the only one of the same kind."""
    out = {}
    for port in old:
        alike = [other.name for other in new if other.kind == port.kind]
        mine = [other.name for other in old if other.kind == port.kind]
        if any(other.name == port.name for other in new):
            out[port.name] = port.name
        elif len(alike) == len(mine) == 1:
            out[port.name] = alike[0]
        else:
            raise ArgumentError(
                f"the networks have different {side}s: nothing fits '{port.name}' ({port.kind})",
                where={
                    "this": ", ".join(f"{p.name} ({p.kind})" for p in old),
                    "other": ", ".join(f"{p.name} ({p.kind})" for p in new),
                },
                hint="make the new network for the same task: surgery new ARCH --like OLD.onnx -o NEW.onnx, "
                "or say what they mean: surgery annotate",
            )
    return out


def _outputs(checkpoint: Checkpoint, new: Checkpoint) -> dict[str, str]:
    """Output of the old network -> output of the new one that is added to it."""
    old, other = (tuple(p for p in c.interface.outputs if p.kind != "state") for c in (checkpoint, new))
    found = _matched(old, other, "output")
    for name, partner in found.items():
        _check_alike(checkpoint, new, name, partner, "output")
        value = checkpoint.value(name)
        if value.dtype is not None and not value.dtype.is_floating_point():
            raise Refused(f"output '{name}' is {value.dtype.name}: no gate can blend two of them")
    return found


def _inputs(checkpoint: Checkpoint, new: Checkpoint) -> dict[str, str]:
    """Input of the new network -> input of the old one that it reads; its states are its own."""
    old, other = (tuple(p for p in c.interface.inputs if p.kind != "state") for c in (checkpoint, new))
    found = _matched(other, old, "input")
    for name, partner in found.items():
        _check_alike(checkpoint, new, partner, name, "input")
    return found


def _check_alike(checkpoint: Checkpoint, new: Checkpoint, name: str, partner: str, side: str) -> None:
    old, other = checkpoint.value(name), new.value(partner)
    shapes = [[d if isinstance(d, int) else None for d in v.shape or ()] for v in (old, other)]
    known = all(v.shape is not None for v in (old, other))
    fits = len(shapes[0]) == len(shapes[1]) and all(
        a == b or a is None or b is None for a, b in zip(*shapes, strict=False)
    )
    if (known and not fits) or old.dtype != other.dtype:
        shown = [
            f"{v.dtype.name.lower() if v.dtype else '?'} {shape_text(v.shape or ())}" for v in (old, other)
        ]
        raise ArgumentError(
            f"{side} '{name}' of the networks differs",
            where={"old": shown[0], "new": shown[1]},
            hint="make the new network for the same task: surgery new ARCH --like OLD.onnx -o NEW.onnx",
        )


def _state_ports(checkpoint: Checkpoint, new: Checkpoint, inputs: Mapping[str, str]) -> tuple[NewPort, ...]:
    """The new network's recurrent state, with the old one's symbol for the size of a batch."""
    places: dict[str, tuple[str, int]] = {}
    for name, partner in inputs.items():
        for k, dim in enumerate(new.value(name).shape or ()):
            if not isinstance(dim, int) and dim.value:
                places.setdefault(dim.value, (partner, k))
    first = (next(iter(inputs.values()), ""), 0)
    out = []
    for side, ports in (("input", new.interface.inputs), ("output", new.interface.outputs)):
        for port in ports:
            if port.kind == "state":
                value = new.value(port.name)
                symbols = [d.value for d in value.shape or () if not isinstance(d, int)]
                at = places.get(str(symbols[0]), first) if symbols else first
                own = (checkpoint.value(at[0]).shape or [])[at[1]]
                batch = own if isinstance(own, int) else str(own.value or "batch")
                shape = tuple(d if isinstance(d, int) else batch for d in value.shape or ())
                dtype = str((value.dtype or ir.DataType.FLOAT).numpy())
                out.append(
                    NewPort("input" if side == "input" else "output", PREFIX + port.name, shape, at, dtype)
                )
    return tuple(out)


def _new_port(model: ir.Model, checkpoint: Checkpoint, side: str, name: str) -> NewPort:
    """A port of the old network as one that was added to what is left."""
    value = checkpoint.value(name)
    batch = next((v for v in model.graph.inputs if v.shape is not None and len(v.shape)), None)
    shape = tuple(d if isinstance(d, int) else str(d.value or "batch") for d in value.shape or ())
    dtype = str((value.dtype or ir.DataType.FLOAT).numpy())
    follows = ("" if batch is None else str(batch.name), 0)
    return NewPort("input" if side == "input" else "output", name, shape, follows, dtype)


# ---- what comes of it -----------------------------------------------------------------------------------------


def _with(interface: Interface, ports: tuple[NewPort, ...]) -> Interface:
    inputs, outputs = (
        tuple(Port(port.name, "state", declared=True) for port in ports if port.side == side)
        for side in ("input", "output")
    )
    return Interface((*interface.inputs, *inputs), (*interface.outputs, *outputs))


def _carried(state: OptimizerState | None, new: Checkpoint, zeroed: frozenset[str]) -> OptimizerState | None:
    """The old network's state; the new one's parameters in its largest group, with the state that they have."""
    if state is None:
        return None
    names = new.optimizer.parameters if new.optimizer else tuple(_parameters(new))
    grown = joined(state, [(PREFIX + name, shape_of(new.tensors[name]), "") for name in names])
    if new.optimizer is None or new.optimizer.kind != state.kind:
        return grown
    slots = {slot: dict(held) for slot, held in grown.slots.items()}
    for slot, held in new.optimizer.slots.items():
        for name, tensor in held.items():
            if name not in zeroed and PREFIX + name in slots.get(slot, {}):
                slots[slot][PREFIX + name] = tensor
    steps = {PREFIX + n: count for n, count in new.optimizer.steps.items() if n not in zeroed}
    return grown.replace(slots=slots, steps={**grown.steps, **steps} if grown.steps else grown.steps)


def _parameters(new: Checkpoint) -> list[str]:
    """What an optimizer trains of a network without one: floats with an axis, but no running statistics."""
    out = []
    for name, value in new.model.graph.initializers.items():
        tensor, uses = value.const_value, list(value.uses())
        running = all(use.node.op_type == "BatchNormalization" and use.idx > 2 for use in uses)
        if (
            tensor is not None
            and tensor.dtype.is_floating_point()
            and len(tensor.shape)
            and uses
            and not running
        ):
            out.append(name)
    return out


def _reduced(checkpoint: Checkpoint, model: ir.Model) -> Checkpoint:
    """A checkpoint of which the model has kept a part."""
    inputs, outputs = ({str(v.name) for v in side} for side in (model.graph.inputs, model.graph.outputs))
    interface = Interface(
        tuple(port for port in checkpoint.interface.inputs if port.name in inputs),
        tuple(port for port in checkpoint.interface.outputs if port.name in outputs),
    )
    state = checkpoint.optimizer
    if state is not None:
        state = state.only(set(model.graph.initializers))
    return checkpoint.replace(model=model, interface=interface, optimizer=state, path=None)


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    """The new network under its own names."""
    model = checkpoint.model.clone()
    names = plain_names(model)
    inputs, outputs = (
        tuple(Port(names.get(p.name, p.name), p.kind, p.low, p.high, p.labels, p.declared) for p in ports)
        for ports in (checkpoint.interface.inputs, checkpoint.interface.outputs)
    )
    state = checkpoint.optimizer
    if state is not None:
        groups = tuple(
            type(group)(tuple(names.get(n, n) for n in group.parameters), group.hyper)
            for group in state.groups
        )
        slots = {slot: {names.get(n, n): t for n, t in held.items()} for slot, held in state.slots.items()}
        steps = {names.get(n, n): count for n, count in state.steps.items()}
        state = state.replace(slots=slots, steps=steps, groups=groups)
    return checkpoint.replace(model=model, interface=Interface(inputs, outputs), optimizer=state)


def _proved(
    operation: str,
    before: Checkpoint,
    after: Checkpoint,
    ports: tuple[NewPort, ...],
    observations: Recorded | None,
    seed: int,
) -> Report:
    """The report on two checkpoints of which the second has more recurrent state."""
    more = (Insertion(operation, "network", 0, (), (), ports),)
    plan = Plan(operation, {}, "identical", (), (), (), insertions=more)
    report = prove(plan, before, after, after, observations=observations, seed=seed)
    if report.ok:
        return report
    raise ClaimFailed(
        f"'{operation}' would change the function: {report.failed[0].name}", where=report.failures,
        hint="the numbers of one of the networks overflow, or it is not a function of its inputs alone",
    )  # fmt: skip


def _stepped(
    after: Checkpoint,
    operation: str,
    parents: tuple[Checkpoint, ...],
    report: Report,
    summary: Mapping[str, float],
) -> Checkpoint:
    step = LineageStep(
        operation, tuple(parent.digest() for parent in parents), versions(), summary=dict(summary),
        witness=report.to_json(),
    )  # fmt: skip
    return after.replace(lineage=(*parents[0].lineage, step))
