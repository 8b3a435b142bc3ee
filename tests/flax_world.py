"""The real flax, optax, Orbax and jax2onnx: a training state that they save, restore and go on with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax2onnx import to_onnx

ZARR = {"zarr": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}
MAKE = Path(__file__).parent / "fixtures" / "flax_state" / "make.py"


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flax_state_make", MAKE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """One training state.

    Attributes:
      state: after three steps.
    """

    def __init__(self, optimizer: str) -> None:
        self._make = _make()
        self._optimizer = self._make.OPTIMIZERS[optimizer]
        self._name = optimizer
        net = self._make.Network()
        self.state = self._make.train(self._make.fresh(optimizer, net), self._optimizer, net, 3)

    def save(self, folder: Path, kind: str) -> tuple[Path, Path]:
        """The state in a format, and the graph of its network."""
        net, params, graph = self._make.Network(), self.state["params"], folder / "net.onnx"
        to_onnx(
            lambda x: net.apply({"params": params}, x), [("B", 6)], return_mode="file", output_path=str(graph)
        )
        target = folder / "state"
        if kind == "msgpack":
            target.write_bytes(flax.serialization.to_bytes(self.state))
        elif kind == "manager":
            with ocp.CheckpointManager(target) as manager:
                manager.save(7, args=ocp.args.StandardSave(self.state))
                manager.wait_until_finished()
            target = target / "7"
        elif kind in ZARR:
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**ZARR[kind])).save(target, self.state)
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(target, self.state)
        return target, graph

    def restored(self, path: Path, kind: str) -> dict[str, Any]:
        """What the package itself reads, into a state of twice the width."""
        wanted = self._make.fresh(self._name, self._make.Network((14, 10)))
        if kind == "msgpack":
            return flax.serialization.from_bytes(wanted, path.read_bytes())
        if kind == "manager":
            (path.parent / "wide_run").mkdir()
            path = path.rename(path.parent / "wide_run" / "7")
            with ocp.CheckpointManager(path.parent) as manager:
                return manager.restore(7, args=ocp.args.StandardRestore(jax.tree.map(np.asarray, wanted)))
        if kind in ZARR:
            handler = ocp.PyTreeCheckpointHandler(**ZARR[kind])
            return ocp.Checkpointer(handler).restore(path, args=ocp.args.PyTreeRestore(item=wanted))
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, jax.tree.map(np.asarray, wanted))

    def answers(self, state: dict[str, Any], widths: tuple[int, int] = (14, 10)) -> np.ndarray:
        """Of both networks."""
        net = self._make.Network(widths)
        seen = self._make.observations()
        return np.stack([net.apply({"params": state[key]}, seen) for key in ("params", "target_params")])

    def trained(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state some steps on, with its own slots."""
        found: dict[str, Any] = self._make.train(state, self._optimizer, self._make.Network((14, 10)), 3)
        return found
