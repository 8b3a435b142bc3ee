"""Surgery on a module and its optimizer while they are being trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import nn

from surgery.aliases import aliased
from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.operate import apply
from surgery.ops.widen import widen
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.port_kinds import infer
from surgery.torch.export import Inputs, export
from surgery.torch.live import checks
from surgery.torch.live.attention import fitted
from surgery.torch.live.groups import regroup
from surgery.torch.live.journal import all_or_nothing
from surgery.torch.live.layers import NewLayers, check_stateless
from surgery.torch.live.outputs import Runner
from surgery.torch.live.prepare import Prepared
from surgery.torch.live.report import Operation
from surgery.torch.stored import initializers, to_numpy

Optimizers: TypeAlias = "torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None"


@torch.inference_mode(False)
def operate(
    model: nn.Module,
    optimizer: Optimizers,
    example_inputs: Inputs,
    *,
    widths: Mapping[str, int] | None = None,
    plan: Plan | Callable[[Checkpoint], Plan] | None = None,
    also: Sequence[nn.Module] = (),
    copies: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    schedulers: Sequence[Any] = (),
    scaler: torch.amp.GradScaler | None = None,
    follow_recipe: bool = False,
    reset_unknown: bool = False,
    prove: bool = True,
    training: bool = False,
    export_options: Mapping[str, Any] | None = None,
    **how: Any,  # noqa: ANN401
) -> Operation:
    """Change a module, its optimizer and its companions in place, with the same plan, or change nothing.

    The module is exported and analysed; what a plan says of the graph is then done to the live objects. Parameters and
    buffers stay the same objects with other numbers: references, hooks, tied weights, `optimizer.param_groups` and
    weight-sharing modules stay valid. Gradients are dropped (as by `zero_grad`). `torch.compile` compiles once more.

    Args:
      model: any module that exports. Behind `torch.compile` it is found; data-parallel wrappers are refused.
      optimizer: that trains it; several, or None. Parameters of other networks in it are left alone.
      example_inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments, with a batch of at least 2.
      widths: space -> new number of units, as for `surgery.widen`; spaces have the names of the module's parts (any of
        its names, where a part has several), or those of a recognised architecture.
      plan: instead of `widths`: a plan made elsewhere for this graph, or what makes one from the exported checkpoint
        (`lambda c: surgery.extend(c, …)`). New layers (`surgery.deepen`) become modules: in the sequence that holds the
        layer before them, in its activation's place, or beside it, called by a hook.
      also: networks with the same parameters, which follow the same plan with the same random numbers: targets,
        averages. What they share with the model is changed once.
      copies: prefix of names -> prefix of their originals, of target networks inside the model: as in
        `Checkpoint.copies`, they are edited alike.
      attributes: "path.name" -> new value, of modules whose own sizes nobody can guess.
      schedulers: learning-rate schedules, which follow where groups are split.
      scaler: a gradient scaler, to be sure that no step is half done.
      follow_recipe: split the optimizer's groups so that the trajectory goes on as before; else it is only reported.
      reset_unknown: drop the state that no rule carries, of the parameters that change, and say so; else it is refused.
      prove: prove the plan in float64 on the exported graph, too; the module's own outputs are compared in any case.
      training: look at what the module computes in training mode.
      export_options: for the exporter: dynamic_shapes, input_names, output_names.
      how: further arguments of `surgery.widen` (init, factor, shares, noise, seed).

    Returns:
      What was done, and the settings that continue the trajectory.

    Raises:
      GraphError: the module does not export.
      UnknownName, ArgumentError, PlanMismatch: the plan does not fit.
      Refused: something cannot follow; names the module or the tensor.
      ClaimFailed, ProofFailed: the result is not what the plan claims.
      In all cases the model, its companions and the optimizer are exactly as they were.
    """
    checks.check_arguments((model, *also), example_inputs, widths, plan, schedulers)
    if isinstance(optimizer, type):
        raise ArgumentError(
            f"the class {optimizer.__name__} is no optimizer", hint="give the one that is in use"
        )
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    networks = [checks.unwrapped(network) for network in (model, *also)]
    for at, network in enumerate(networks):
        checks.check_module(network, "the model" if at == 0 else f"network {at} of also")
    others = checks.check_optimizers(optimizers, networks)
    checks.check_scaler(scaler, optimizers)
    options = dict(export_options or {})
    checkpoint = _described(networks[0], example_inputs, options, training).replace(copies=copies or {})
    planned = _planned(checkpoint, networks[0], widths, plan, how)
    check_stateless(planned)
    runner = Runner(networks[0], example_inputs, planned, checkpoint.model, training)
    before = runner.before()
    after = apply(planned, checkpoint, verify=prove)
    _check_same_tensors(planned, checkpoint, after.checkpoint)
    prepared = Prepared(planned, checkpoint, optimizers, reset_unknown)
    asked = _asked(networks, attributes or {})
    for network in networks:
        prepared.add(network, asked)
    prepared.attributes.update(asked)
    layers = NewLayers(planned, checkpoint, runner) if planned.insertions else None
    with all_or_nothing() as journal:
        prepared.carry_out(journal)
        if layers is not None:
            layers.install(journal, [(network, checks.tensors_of(network)) for network in networks])
            layers.join(journal, optimizers)
        if follow_recipe and prepared.recipe is not None and prepared.recipe.exact:
            for each in optimizers:
                regroup(journal, each, prepared.factors, schedulers)
        difference = runner.compare(before)
    return Operation(
        plan=planned,
        proof=after.report,
        difference=difference,
        tensors=tuple(prepared.names),
        attributes=prepared.changed,
        layers={} if layers is None else layers.names,
        slots=prepared.slots,
        others=others,
        not_carried=tuple(prepared.not_carried.values()),
        recipe=prepared.recipe,
        regrouped=follow_recipe and prepared.recipe is not None and prepared.recipe.exact,
    )


def _described(
    network: nn.Module, example_inputs: Inputs, options: Mapping[str, Any], training: bool
) -> Checkpoint:
    """The module as a checkpoint whose tensors are the module's own memory."""
    model = export(network, example_inputs, training=training, scopes=True, **options)
    held = checks.tensors_of(network)
    trained = [str(v.name) for v in initializers(model) if isinstance(held.get(str(v.name)), nn.Parameter)]
    for value in initializers(model):
        if str(value.name) in held and value.const_value is not None:
            value.const_value = ir.tensor(to_numpy(held[str(value.name)]), name=value.name)
    # no slots: it only says which tensors are parameters, each with one history
    state = OptimizerState("sgd", {}, {}, (ParamGroup(tuple(trained)),))
    return Checkpoint(model, infer(model), optimizer=state)


def _planned(
    checkpoint: Checkpoint,
    network: nn.Module,
    widths: Mapping[str, int] | None,
    plan: Plan | Callable[[Checkpoint], Plan] | None,
    how: Mapping[str, Any],
) -> Plan:
    if plan is None:
        if widths is None:
            return _by_factor(checkpoint, network, how)
        named = _exported_names(widths, checkpoint, network)
        return aliased(widen, "widths")(checkpoint, widths=named, **how)
    if widths or how:
        raise ArgumentError("widths and a plan at once", hint="give one of them")
    made = plan if isinstance(plan, Plan) else plan(checkpoint)
    if not isinstance(made, Plan):
        raise ArgumentError(f"the function gives a {type(made).__name__}, and no plan")
    return made


def _by_factor(checkpoint: Checkpoint, network: nn.Module, how: Mapping[str, Any]) -> Plan:
    """Everything that can grow, as far as PyTorch's attention lets it."""
    made = widen(checkpoint, **how)
    widths, left = fitted(network, made)
    if widths == {edit.space: edit.after for edit in made.spaces}:
        return made
    if not widths:
        raise Refused("no space of this module can grow", where=dict(left),
                      hint="give widths: heads × their size must be as many units as outside")  # fmt: skip
    others = {name: value for name, value in how.items() if name != "factor"}
    return dataclasses.replace(
        widen(checkpoint, widths=widths, **others), frozen=tuple(sorted([*made.frozen, *left]))
    )


def _exported_names(widths: Mapping[str, int], checkpoint: Checkpoint, network: nn.Module) -> dict[str, int]:
    """The names that the exporter chose, where a part of the module has several."""
    paths: dict[int, list[str]] = {}
    for path, part in network.named_modules(remove_duplicate=False):
        paths.setdefault(id(part), []).append(path)
    chosen = {name.rpartition(".")[0] for name in checkpoint.tensors}
    others = {path: own for own in paths.values() for path in own if path not in chosen}
    found: dict[str, int] = {}
    for name, width in widths.items():
        same = [path for path in others.get(name, ()) if path in chosen]
        found[_parametrised(checkpoint, network, same[0] if same else name)] = width
    if len(found) < len(widths):
        raise ArgumentError("a part of the module is given twice, by two of its names", hint="give it once")
    return found


def _parametrised(checkpoint: Checkpoint, network: nn.Module, name: str) -> str:
    """The name of a space that belongs to an original of a parametrised tensor, by the name of the part that has it."""
    lists = getattr(dict(network.named_modules()).get(name), "parametrizations", {})
    if not lists:
        return name
    known = {space.name for space in checkpoint.analysis.spaces}
    tries = [name, *(f"{name}.parametrizations.{tensor}" for tensor in lists)]
    return next((each for each in tries if each in known), name)


def _check_same_tensors(plan: Plan, before: Checkpoint, after: Checkpoint) -> None:
    numbers = tuple(f"{operand.node}.operand{operand.where}" for operand in plan.operands)
    layers = {tensor.name for new in plan.insertions for tensor in new.tensors}
    new = set(after.tensors) - set(before.tensors) - layers
    unknown = sorted(name for name in new if not name.startswith(numbers))
    if unknown:
        raise Refused(
            f"the plan adds {', '.join(unknown[:3])}, which the module's class has no place for",
            hint="write it into the class (surgery code shows how it would look), or work on the exported file",
        )


def _asked(networks: Sequence[nn.Module], wanted: Mapping[str, Any]) -> dict[tuple[nn.Module, str], Any]:
    """Attributes that the caller asked for, of all networks."""
    found: dict[tuple[nn.Module, str], Any] = {}
    for network in networks:
        modules = dict(network.named_modules())
        for path, value in wanted.items():
            owner, _, name = path.rpartition(".")
            if owner not in modules:
                raise UnknownName("module", owner, modules)
            if not hasattr(modules[owner], name):
                raise UnknownName("attribute", path, [f"{owner}.{known}" for known in vars(modules[owner])])
            found[modules[owner], name] = value
    return found
