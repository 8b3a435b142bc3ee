"""A route travelled: plan after plan, each proved, and the end compared with the start."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from surgery.architectures.layers import Convolution, Dense, Recurrent, Residual
from surgery.architectures.library import numbered
from surgery.architectures.recognise import recognise
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.errors import Refused
from surgery.operate import Result, apply
from surgery.ops.deepen import Kind, deepen
from surgery.ops.kernel import grow_kernel
from surgery.ops.widen import Init, widen
from surgery.route.align import align
from surgery.route.edits import Alignment, Insert, Kernel, Row, Widen
from surgery.route.proof import end_to_end
from surgery.route.target import Target, target_of
from surgery.storage import save
from surgery.verify import Report

_MOST_PLANS = 50


@dataclass(frozen=True)
class Journey:
    """What came of a route.

    Attributes:
      target: where it went. rows: layer by layer, what was to be done.
      results: of every plan, in order; the last one holds the checkpoint.
      report: of the last checkpoint against the first; None if it was not asked for.
      start: the checkpoint before the first plan.
    """

    target: Target
    rows: tuple[Row, ...]
    results: tuple[Result, ...]
    report: Report | None
    start: Checkpoint

    @property
    def checkpoint(self) -> Checkpoint:
        """The last one."""
        return self.results[-1].checkpoint if self.results else self.start

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the last checkpoint; see `surgery.save`."""
        return save(self.checkpoint, path, force=force)


def survey(checkpoint: Checkpoint, to: str) -> tuple[Target, Alignment]:
    """What a route would do, layer by layer, without doing it.

    Raises: as `migrate`, but no Refused for a layer that has no exact edit: the alignment says so.
    """
    network = recognise(checkpoint)
    target = target_of(to, checkpoint, network)
    return target, align(network.tree, target.layers, network.analysis)


def migrate(
    checkpoint: Checkpoint,
    to: str,
    *,
    init: Init = "auto",
    verify: bool = True,
    observations: Mapping[str, Array] | None = None,
    seed: int = 0,
    progress: Callable[[Plan], None] | None = None,
    accept: Callable[[Checkpoint], None] = lambda _: None,
) -> Journey:
    """Take a network to a named architecture, or to that of another file, without changing its function.

    Identity layers are put in first, while they are small; then everything grows in one widening; blocks that start at
    zero come last, so that they read all units. Each plan is proved, and the last network is looked at again: its
    layers must be those of the target.

    Args:
      checkpoint: left as it is.
      to: a name with modifiers (`surgery list architectures`), `FILE.toml:NAME`, or another file.
      init: how new units start; see `surgery.widen`.
      verify: whether to prove each plan. observations: to prove on; random ones otherwise.
      seed: of everything random.
      progress: called with every plan before it is carried out.
      accept: called with the last checkpoint before anything is proved; what it raises ends the journey.

    Returns:
      The journey; of no plans if the network is the target already.

    Raises:
      Refused: there is no exact route; `where` has the reason for every layer, the hint the command that distils.
      UnknownName, ArgumentError, FileError: of the target.
    """
    target, found = survey(checkpoint, to)
    rows, results, at = found.rows, list[Result](), checkpoint
    while found.edits or found.reasons:
        check(found, target, checkpoint)
        if len(results) == _MOST_PLANS:
            raise RuntimeError(f"a route to '{target.name}' that does not end")
        try:
            plan = _next(at, found, init, seed)
        except Refused as error:
            raise error.within(route=f"to {target.name}, step {len(results) + 1}") from None
        if progress is not None:
            progress(plan)
        results.append(apply(plan, at, verify=False))
        at = results[-1].checkpoint
        network = recognise(at)
        found = align(network.tree, target.layers, network.analysis)
    accept(at)
    journey = Journey(target, rows, tuple(results), None, checkpoint)
    return _proved(journey, observations, seed) if verify and results else journey


def _proved(journey: Journey, observations: Mapping[str, Array] | None, seed: int) -> Journey:
    """The same with the report, which is the witness of the last step of the lineage."""
    report = end_to_end(journey.results, journey.start, observations=observations, seed=seed)
    *others, last = journey.results
    lineage = last.checkpoint.lineage
    step = replace(lineage[-1], witness=report.to_json())
    checkpoint = last.checkpoint.replace(lineage=(*lineage[:-1], step))
    return replace(journey, results=(*others, replace(last, checkpoint=checkpoint)), report=report)


def check(found: Alignment, target: Target, checkpoint: Checkpoint) -> None:
    """Raise Refused if a layer has no exact edit, with every reason and the command that distils instead."""
    if not found.reasons:
        return
    raise Refused(
        f"there is no exact route to '{target.name}'",
        where=found.reasons,
        hint=_way_out(found, target, checkpoint),
    )


def _way_out(found: Alignment, target: Target, checkpoint: Checkpoint) -> str:
    """The commands that lead there all the same."""
    model, env = checkpoint.path or "MODEL", checkpoint.environment.id or "ID"
    distill = f"surgery distill {model} --to {target.architecture or 'ARCH'} --env {env} -o DIR"
    wrong = [row for row in found.rows if row.reason is not None]
    narrower = dict(row.narrower for row in wrong if row.narrower is not None)
    if any(row.narrower is None for row in wrong):
        return distill
    widths = " ".join(f"--width {space}={width}" for space, width in narrower.items())
    return f"first make it narrower: surgery narrow {model} {widths} -o OUT; or: {distill}"


def _next(checkpoint: Checkpoint, found: Alignment, init: Init, seed: int) -> Plan:
    """The plan that comes next; of the kinds in their order the first for which there is anything to do."""
    identities = [e for e in found.edits if isinstance(e, Insert) and e.kind == "identity"]
    if identities:
        return _inserted(checkpoint, identities, seed)
    kernels = {edit.weight: edit.size for edit in found.edits if isinstance(edit, Kernel)}
    if kernels:
        return grow_kernel(checkpoint, kernels)
    widths = {edit.space: edit.width for edit in found.edits if isinstance(edit, Widen)}
    if widths:
        return widen(checkpoint, widths=widths, init=init, seed=seed)
    return _inserted(checkpoint, [e for e in found.edits if isinstance(e, Insert)], seed)


def _inserted(checkpoint: Checkpoint, edits: list[Insert], seed: int) -> Plan:
    """New layers at several places as one plan; those that would get the same name are left for the next one."""
    plan: Plan | None = None
    for after in dict.fromkeys(edit.after for edit in edits):
        here = [edit for edit in edits if edit.after == after]
        form = _form(here[-1])
        # the last ones first: others of another form then go before them, behind the same value
        count = next((k for k, edit in enumerate(reversed(here)) if _form(edit) != form), len(here))
        naming, kind = _naming(checkpoint, here[-1], count), cast(Kind, here[-1].kind)
        new = deepen(checkpoint, after, count=count, kind=kind, seed=seed, **form, **naming)
        if plan is None:
            plan = new
        elif not _names(plan) & _names(new):
            plan = replace(
                plan,
                insertions=(*plan.insertions, *new.insertions),
                slots={**plan.slots, **new.slots},
                arguments={**plan.arguments, f"after {after}": new.arguments},
            )
    assert plan is not None
    return plan


def _naming(checkpoint: Checkpoint, edit: Insert, count: int) -> dict[str, Any]:
    """A block is called after the block that it follows: the next numbers, and the same names within."""
    if edit.kind != "residual" or len(edit.like) != 2:
        return {}
    paths = [name.rpartition(".")[0] for name in edit.like]
    block = os.path.commonpath([path.replace(".", "/") for path in paths]).replace("/", ".")
    parts = tuple(path.removeprefix(f"{block}.") for path in paths)
    taken = {name for name in checkpoint.tensors if name.startswith(block.rstrip("0123456789"))}
    if not block or not block[-1].isdecimal() or not all(parts) or parts[0] == parts[1]:
        return {}
    names, k = list[str](), 0
    while len(names) < count:
        k += 1
        name = numbered(block, k)
        if not any(tensor.startswith(f"{name}.") for tensor in taken):
            names.append(name)
    return {"name": names, "parts": parts}


def _names(plan: Plan) -> set[str]:
    return {tensor.name for insertion in plan.insertions for tensor in insertion.tensors}


def _form(edit: Insert) -> dict[str, Any]:
    match edit.layer:
        case Residual(body=(_, Convolution() as first, _, Convolution())):
            return {"width": first.channels, "kernel": first.kernel[0]}
        case Residual(body=(_, Dense() as first, _, Dense())):
            return {"width": first.width}
        case Residual(body=(Recurrent() as cell, Dense())):
            return {"width": cell.width}
        case Convolution(kernel=kernel):
            return {"kernel": kernel[0]}
    return {}
