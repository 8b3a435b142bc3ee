"""Result of surgery on live objects."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.edits.plan import Plan
from surgery.errors import some_text
from surgery.recipe import Recipe
from surgery.verify import Report


@dataclass(frozen=True)
class Operation:
    """What `operate` did.

    Attributes:
      plan: the edit; `surgery.torch.follow` and `grow_states` take it.
      proof: what verification found on the exported graph; None if it was not asked for.
      difference: largest relative difference of the module's outputs on the example inputs, before and after.
      tensors: parameters and buffers that changed, by network (0 is the model, the others are those of `also`).
      attributes: module attributes that changed: path -> (before, after).
      layers: tensors of new layers: name in the plan -> path in the module.
      untrained: parameters of new layers that no given optimizer trains, like the layer before them.
      slots: number of optimizer slots that followed.
      others: number of parameters that the optimizers hold besides those of the networks; they were left alone.
      unused: parameters that the model's `forward` does not use; they were left alone.
      not_carried: optimizer state that was reset because no rule carries it, in words.
      recipe: the param groups that continue the same trajectory, or why there are none; None without an optimizer.
      regrouped: whether the optimizer's groups follow the recipe already.
    """

    plan: Plan
    proof: Report | None
    difference: float
    tensors: tuple[tuple[str, ...], ...]
    attributes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    slots: int = 0
    others: int = 0
    unused: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()
    recipe: Recipe | None = None
    regrouped: bool = False

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """In words: a line that sums it up, what else to know, the optimizer's settings and what was not carried."""
        outputs = "change" if self.plan.claim == "changed" else "equal"
        parts = [
            *map(str, self.plan.changes),
            f"{sum(map(len, self.tensors)) + len(self.layers)} tensors, {self.slots} slots",
            f"outputs {outputs} (max |Δ| {self.difference:.2g} of the largest)",
        ]
        lines = [" · ".join(parts), *self.plan.notes]
        if self.layers:
            lines.append(f"new: {', '.join(self.layers.values())}")
        if self.untrained:
            lines.append(
                f"not trained, like the layer before: {some_text(self.untrained, 4)}; to train them: "
                "requires_grad_(True), and optimizer.add_param_group"
            )
        if self.recipe is not None:
            lines.append("optimizer settings, in place" if self.regrouped else "optimizer settings")
            lines.append(textwrap.indent(self.recipe.describe(), "  "))
        lines += [f"not carried: {what}" for what in self.not_carried]
        if self.others:
            lines.append(f"{self.others} parameters of other networks are left as they are")
        if self.unused:
            lines.append(f"forward() does not use {some_text(self.unused, 4)}: left as they are")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "plan": self.plan.to_json(),
            "proof": None if self.proof is None else self.proof.to_json(),
            "difference": self.difference,
            "tensors": [list(names) for names in self.tensors],
            "attributes": {path: list(pair) for path, pair in self.attributes.items()},
            "layers": dict(self.layers),
            "untrained": list(self.untrained),
            "slots": self.slots,
            "others": self.others,
            "unused": list(self.unused),
            "not_carried": list(self.not_carried),
            "recipe": None if self.recipe is None else self.recipe.to_json(),
            "regrouped": self.regrouped,
        }
