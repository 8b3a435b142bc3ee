"""What a module computes before and after live surgery, compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, ClaimFailed, Refused, SurgeryError, first_line, shape_text
from surgery.torch.export import Inputs, arguments_of, mode
from surgery.torch.live.states import grow_inputs, kept_outputs, settled_inputs, shrink_outputs

_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}
_TF32, _HALF = 1e-2, 5e-2


@dataclass
class Runner:
    """The module on the example inputs, before and after."""

    network: nn.Module
    example_inputs: Inputs
    plan: Plan
    model: ir.Model
    training: bool

    def before(self) -> dict[str, Tensor]:
        """See `outputs`.

        Raises:
          ArgumentError: the module does not run on the example inputs.
        """
        try:
            found = self.outputs()
        except SurgeryError:
            raise
        except Exception as error:  # whatever the module's own code raises
            raise ArgumentError(
                f"{type(self.network).__name__} does not run on the example inputs: {first_line(error, typed=True)}",
                hint="give what it is given in training, of the same types and on the same device",
            ) from error
        if bad := [name for name, output in found.items() if output.isnan().any()]:
            raise ArgumentError(
                f"the output '{bad[0]}' of {type(self.network).__name__} is NaN on the example inputs",
                hint="give inputs on which it computes numbers, as in training",
            )
        return found

    def outputs(self, grown: bool = False) -> dict[str, Tensor]:
        """The tensors that it gives, by the names of the graph's outputs."""
        leaves, tree = torch.utils._pytree.tree_flatten(arguments_of(self.example_inputs))
        given = self.inputs()
        moved = iter((grow_inputs(self.plan, given, self.plan.seed) if grown else given).values())
        leaves = [next(moved, x) if isinstance(x, Tensor) else x for x in leaves]
        arguments = torch.utils._pytree.tree_unflatten(leaves, tree)
        with mode(self.network, self.training), _preserved(self.network), torch.no_grad():
            results = self.network(*arguments[0], **arguments[1])
        made = [x.detach() for x in torch.utils._pytree.tree_leaves(results) if isinstance(x, Tensor)]
        names = [str(v.name) for v in self.model.graph.outputs]
        return dict(zip(names, made, strict=False))

    def inputs(self) -> dict[str, Tensor]:
        """The example inputs by the names of the graph's inputs, where the plan promises equal outputs."""
        leaves = torch.utils._pytree.tree_leaves(arguments_of(self.example_inputs))
        names = [str(v.name) for v in self.model.graph.inputs if not v.is_initializer()]
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        return settled_inputs(self.plan, dict(zip(names, tensors, strict=False)))

    def compare(self, before: Mapping[str, Tensor]) -> float:
        """The largest difference, relative to the largest output.

        Raises:
          Refused: the module cannot run any more. ClaimFailed: it computes something else.
        """
        try:
            after = shrink_outputs(self.plan, self.outputs(grown=True))
        except SurgeryError:
            raise
        except Exception as error:  # whatever the module's own code raises
            raise Refused(
                f"{type(self.network).__name__} cannot run with its new sizes: {first_line(error, typed=True)}",
                where={"module": _culprit(self.network, error)},
                hint="its code contains a size: derive it from a shape, or name the attribute that holds it: "
                + _attributes(self.network, self.plan),
            ) from error
        worst = 0.0
        for name, old in kept_outputs(self.plan, before).items():
            if not old.is_floating_point():
                continue
            new = after[name]
            if new.shape != old.shape:
                raise ClaimFailed(
                    f"the output '{name}' was {shape_text(old.shape)} and is {shape_text(new.shape)}"
                )
            gap, limit = _gap(old, new), _limit(old)
            if self.plan.claim != "changed" and not gap <= limit:
                raise ClaimFailed(
                    f"the output '{name}' of {type(self.network).__name__} moves by {gap:.2g} (relative); "
                    f"the limit is {limit:g}",
                    hint="its code uses a number of its own: one in an attribute, as the number of heads "
                    f"({_attributes(self.network, self.plan)}), or one derived from a size, as 1/√d of attention "
                    "(leave that size as it is)",
                )
            worst = max(worst, gap)
        return worst


def _attributes(network: nn.Module, plan: Plan) -> str:
    """What to write: attributes that still hold the old size of a space, and the new one."""
    sizes = {edit.before: edit.after for edit in plan.spaces}
    found = [
        f"'{f'{path}.{name}'.lstrip('.')}': {_resized(value, sizes)}"
        for path, module in network.named_modules()
        if not type(module).__module__.startswith("torch.")
        for name, value in vars(module).items()
        if not name.startswith("_") and _resized(value, sizes) != value
    ] or ["'path.name': value"]
    return f"attributes={{{', '.join(found[:4])}{', …' if len(found) > 4 else ''}}}"


def _resized(value: object, sizes: Mapping[int, int]) -> object:
    """An attribute with new sizes for old ones: a whole number, or several."""
    if isinstance(value, list | tuple) and all(type(n) is int for n in value):
        return [sizes.get(n, n) for n in value]
    return sizes.get(value, value) if type(value) is int else value


def _gap(old: Tensor, new: Tensor) -> float:
    """The largest difference, relative to the largest number; infinite logits of masked actions are equal."""
    differ = old != new
    if not differ.any():
        return 0.0
    scale = max(float(old[old.isfinite()].abs().max()), 1e-30) if old.isfinite().any() else 1.0
    return float((new[differ].double() - old[differ].double()).abs().max()) / scale


@contextlib.contextmanager
def _preserved(network: nn.Module) -> Iterator[None]:
    """Run without leaving traces: buffers and random generators are as before afterwards."""
    held = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    devices = {b.device for b in (*network.parameters(), *network.buffers()) if b.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        try:
            yield
        finally:
            for buffer, old in held:
                buffer.data.copy_(old)


def _limit(output: Tensor) -> float:
    """How far an output may move, relative to the largest one. Ampere and later GPUs round the operands of convolutions
    in float32 to TF32 unless they are told not to, those of matrix products if they are told to: ten bits."""
    cudnn: Any = torch.backends.cudnn  # made at run time
    parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    if (
        output.is_cuda
        and output.dtype == torch.float32
        and any(one.fp32_precision == "tf32" for one in parts)
    ):
        return _TF32
    return _LIMITS.get(output.dtype, _HALF)


def _culprit(network: nn.Module, error: BaseException) -> str:
    """The innermost module of the network in whose `forward` an error arose."""
    paths = {id(module): path for path, module in network.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if id(owner) in paths:
            found = f"{paths[id(owner)] or '(the model)'} ({type(owner).__name__})"
        trace = trace.tb_next
    return found or type(network).__name__
