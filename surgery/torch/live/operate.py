"""Surgery on a module and its optimizer while they are being trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import nn

from surgery.architectures.family import with_aliases
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
from surgery.torch.optimizer_state import uncompiled
from surgery.torch.stored import initializers, to_numpy

Optimizers: TypeAlias = "torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None"


@torch.inference_mode(False)
def operate(
    model: nn.Module,
    optimizer: Optimizers,
    example_inputs: Inputs,
    plan: Plan | Callable[[Checkpoint], Plan],
    *,
    also: Sequence[nn.Module] = (),
    attributes: Mapping[str, Any] | None = None,
    follow_recipe: bool = False,
    schedulers: Sequence[Any] = (),
    reset_unknown: bool = False,
    prove: bool = True,
    training: bool = False,
    export_options: Mapping[str, Any] | None = None,
) -> Operation:
    """Change a module, its optimizer and its companions in place, with the same plan, or change nothing.

        operate(model, optimizer, x, lambda c: surgery.widen(c, widths={"fc": 1024}), also=[target])

    The module is exported and analysed; what a plan says of the graph is then done to the live objects. Parameters and
    buffers stay the same objects with other numbers: references, hooks, tied weights, `optimizer.param_groups` and
    weight-sharing modules stay valid. Gradients are dropped (as by `zero_grad`). `torch.compile` compiles once more.

    Args:
      model: any module that exports. Behind `torch.compile` it is found; data-parallel wrappers are refused.
      optimizer: that trains it; several, or None. Parameters of other networks in it are left alone.
      example_inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments, with a batch of at least 2.
      plan: what makes one of the module as a checkpoint (`surgery.widen`, `extend`, `deepen` …), or one that was made
        elsewhere for this graph. Spaces have the names of the module's parts (any of its names, where a part has
        several), or those of a recognised architecture. Target networks inside the model are told by
        `c.replace(copies=…)`. New layers become modules: in the sequence that holds the layer before them, in its
        activation's place, or beside it, called by a hook.
      also: networks with the same parameters, which follow the same plan with the same random numbers: targets,
        averages. What they share with the model is changed once.
      attributes: "path.name" -> new value, of modules whose own sizes nobody can guess.
      follow_recipe: split the optimizer's groups so that the trajectory goes on as before; else it is only reported.
      schedulers: learning-rate schedules, which follow where groups are split.
      reset_unknown: let parameters that change begin anew where no rule carries their state; else that is refused.
      prove: prove the plan in float64 on the exported graph, too; the module's own outputs are compared in any case.
      training: look at what the module computes in training mode.
      export_options: for the exporter: dynamic_shapes, input_names, output_names.

    Returns:
      What was done, and the settings that continue the trajectory.

    Raises:
      GraphError: the module does not export.
      UnknownName, ArgumentError, PlanMismatch: the plan does not fit.
      Refused: something cannot follow; names the module or the tensor.
      ClaimFailed, ProofFailed: the result is not what the plan claims.
      In all cases the model, its companions and the optimizer are exactly as they were.
    """
    also, schedulers = checks.several(also, "also"), checks.several(schedulers, "schedulers")
    checks.check_arguments((model, *also), example_inputs, plan, schedulers)
    networks, optimizers = checks.checked(model, also), checks.distinct(optimizer)
    others = checks.check_optimizers(optimizers, networks)
    with uncompiled(*networks):
        checkpoint = _described(networks[0], example_inputs, dict(export_options or {}), training)
        planned = plan if isinstance(plan, Plan) else _planned(plan, checkpoint, networks[0])
        check_stateless(planned)
        runner = Runner(networks[0], example_inputs, planned, checkpoint.model, training)
        before = runner.before()
        after = apply(planned, checkpoint, verify=prove)
        _check_same_tensors(planned, checkpoint, after.checkpoint)
        prepared = Prepared(planned, checkpoint, optimizers, reset_unknown)
        prepared.add_all(networks, _asked(networks, attributes or {}))
        unused = checks.unused(networks[0], (str(v.name) for v in initializers(checkpoint.model)), planned)
        layers = NewLayers(planned, checkpoint, runner) if planned.insertions else None
        regrouped = follow_recipe and prepared.recipe is not None and prepared.recipe.exact
        with all_or_nothing() as journal:
            prepared.carry_out(journal)
            if layers is not None:
                layers.install(journal, [(network, checks.tensors_of(network)) for network in networks])
                layers.join(journal, optimizers)
            for each in optimizers if regrouped else ():
                regroup(journal, each, prepared.factors[each], schedulers)
            difference = runner.compare(before)
        return Operation(
            plan=planned,
            proof=after.report,
            difference=difference,
            tensors=tuple(prepared.names),
            attributes=prepared.changed,
            layers={} if layers is None else layers.names,
            untrained=() if layers is None or not optimizers else layers.untrained(optimizers),
            slots=prepared.slots,
            others=others,
            unused=unused,
            not_carried=tuple(prepared.not_carried.values()),
            recipe=prepared.recipe,
            regrouped=regrouped,
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
    checkpoint = Checkpoint(model, infer(model), optimizer=state)
    vars(checkpoint)["analysis"] = with_aliases(checkpoint.analysis, _names(checkpoint, network))
    return checkpoint


def _names(checkpoint: Checkpoint, network: nn.Module) -> dict[str, str]:
    """Names of the module's parts that the exporter did not choose -> space: of a part with several, of a parametrised
    one that of its originals."""
    known = checkpoint.analysis.by_name
    paths: dict[nn.Module, list[str]] = {}
    for path, part in network.named_modules(remove_duplicate=False):
        paths.setdefault(part, []).append(path)
    found: dict[str, str] = {}
    for part, own in paths.items():
        tensors = getattr(part, "parametrizations", {})
        tries = (*own, *(f"{path}.parametrizations.{tensor}" for path in own for tensor in tensors))
        space = next((name for name in tries if name in known), None)
        if space is not None:
            found |= {path: space for path in own if path != space}
    return found


def _planned(make: Callable[[Checkpoint], Plan], checkpoint: Checkpoint, network: nn.Module) -> Plan:
    made = make(checkpoint)
    if not isinstance(made, Plan):
        raise ArgumentError(f"the function returns a {type(made).__name__}, not a plan", hint=checks.PLAN)
    return _fitted(made, checkpoint, network) if "factor" in made.arguments else made


def _fitted(made: Plan, checkpoint: Checkpoint, network: nn.Module) -> Plan:
    """Everything that can grow by a factor, as far as PyTorch's attention lets it."""
    widths, left = fitted(network, made)
    if widths == {edit.space: edit.after for edit in made.spaces}:
        return made
    if not widths:
        raise Refused("no space of this module can grow", where=dict(left),
                      hint="give widths: heads × their size must be as many units as outside")  # fmt: skip
    how = {name: value for name, value in made.arguments.items() if name not in ("factor", "widths")}
    again = widen(checkpoint, widths=widths, seed=made.seed, **how)
    return dataclasses.replace(again, frozen=tuple(sorted([*made.frozen, *left])))


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
