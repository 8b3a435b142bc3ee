"""What a network says between two changes of its weights, in onnxruntime."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError
from surgery.policy.backends import Run, in_runtime
from surgery.torch import from_module

STEPS = 200
"""Gradient steps for which a copy must hold, to be worth making: it takes up to 40 ms, and saves a third of a pass."""
_LOG = logging.getLogger(__name__)


class Frozen:
    """A target network on a CPU: its weights stand still for hundreds of gradient steps, and it learns nothing.

    On one core onnxruntime took 0.6 to 0.75 of a module's time in float32 (dense, Nature, IMPALA, batches of 32).

    Args:
      module: whose weights are asked for; one input, one output.
      checkpoint: the graph that it was made from.
    """

    def __init__(self, module: nn.Module, checkpoint: Checkpoint) -> None:
        self._module, self._checkpoint = module, checkpoint
        self._input = checkpoint.interface.inputs[0].name
        self._output = checkpoint.interface.outputs[0].name
        self._run: Run | None = None
        self._able = True

    def changed(self) -> None:
        """The module's weights are other ones from now on."""
        self._run = None

    def __call__(self, observation: Tensor) -> Tensor | None:
        """The output for observations as the module takes them; None: onnxruntime cannot run it."""
        if self._run is None and self._able:
            try:
                self._run = in_runtime(from_module(self._module, self._checkpoint), torch.device("cpu"))
            except SurgeryError as error:
                _LOG.info("the target network runs as a module: %s", error)
                self._able = False
        return None if self._run is None else self._run({self._input: observation})[self._output]
