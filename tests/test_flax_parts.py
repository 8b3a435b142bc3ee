"""Training states as JAX programs lay them out: which arrays are networks, copies of them, and optimizers' state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import Refused
from surgery.model_file import write_model
from surgery_adapters.array_files import with_graph
from surgery_adapters.containers import optax_state
from surgery_adapters.flax.parts import Parts


def net(width: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"Dense_0": {"kernel": ir.tensor(rng.standard_normal((3, width)).astype(np.float32))}}


def adam(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"0": {"count": 3, "mu": params, "nu": params}, "1": {}}


def state(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": 3, "params": params, "opt_state": adam(params)}


A, B, C = net(2), net(5), net(5, 1)
CASES = {
    "a TrainState": (state(A), {}, {"opt_state": "params"}),
    "the state of a runner": ({"0": state(A), "1": {"obs": A}}, {}, {"0.opt_state": "0.params"}),
    "params of params": (
        {"params": {"params": A}, "opt_state": adam({"params": A})}, {}, {"opt_state": "params.params"},
    ),
    "a learner of several": (
        {"learner_state": {"params": {"actor_params": {"params": A}, "critic_params": {"params": B}},
                           "opt_states": {"actor_opt_state": adam({"params": A}),
                                          "critic_opt_state": adam({"params": B})}}},
        {},
        {"learner_state.opt_states.actor_opt_state": "learner_state.params.actor_params.params",
         "learner_state.opt_states.critic_opt_state": "learner_state.params.critic_params.params"},
    ),
    "twin critics, told by their names": (
        {"qf1": state(B), "qf2": state(C), "qf1_target": B, "qf2_target": C},
        {"qf1_target.": "qf1.params.", "qf2_target.": "qf2.params."},
        {"qf1.opt_state": "qf1.params", "qf2.opt_state": "qf2.params"},
    ),
    "twin critics side by side": (
        {"qf1_params": B, "qf2_params": C, "qf1_opt_state": adam(B), "qf2_opt_state": adam(C), "target_qf2_params": C},
        {"target_qf2_params.": "qf2_params."},
        {"qf1_opt_state": "qf1_params", "qf2_opt_state": "qf2_params"},
    ),
    "a target beside its network, in an agent": (
        {"agent": {**state(A), "target_params": A}}, {"agent.target_params.": "agent.params."},
        {"agent.opt_state": "agent.params"},
    ),
    "a module that is called like an optimizer": ({"params": {"option": A, "target": A}}, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("tree", "originals", "trained"), CASES.values(), ids=CASES)
def test_every_optimizer_and_every_copy_is_that_of_its_own_network(tree, originals, trained):
    parts = Parts.of(tree)
    assert parts.originals == originals
    for path, network in trained.items():
        bound = optax_state.bind(parts.optimizers[path], parts.trained_by(path))
        assert bound.state.parameters == (f"{network}.Dense_0.kernel",)
    assert set(parts.optimizers) == set(trained)


def test_what_no_name_tells_apart_is_refused():
    with pytest.raises(Refused, match="'target' has the shapes of 'one' and 'two'"):
        Parts.of({"one": B, "two": C, "target": B})
    parts = Parts.of({"one": B, "two": C, "opt_state": adam(B)})
    with pytest.raises(Refused, match="fits several networks"):
        optax_state.bind(parts.optimizers["opt_state"], parts.trained_by("opt_state"))


def test_a_copy_of_one_network_of_a_graph_has_its_outputs_alone(tmp_path):
    parts = Parts.of({"actor": A, "critic": B, "target_critic": C})
    graph = GraphBuilder("two")
    x = graph.input("observation", (3,))
    for name, params in (("mean", A), ("value", B)):
        kernel = params["Dense_0"]["kernel"]
        graph.output(
            graph.op("MatMul", x, graph.parameter(f"{name}_k", kernel.numpy())), name, (kernel.shape[1],)
        )
    with (tmp_path / "net.onnx").open("wb") as file:
        write_model(graph.model(), file)
    groups = {"": parts.networks, **parts.copies}
    found = with_graph(tmp_path, Reading(graph=tmp_path / "net.onnx"), groups, (), parts.originals)
    assert [value.name for value in found.model.graph.outputs] == ["mean", "value", "value_target_critic"]
    assert set(found.tensors) == {f"{name}.Dense_0.kernel" for name in ("actor", "critic", "target_critic")}
    assert found.copies == {"target_critic.": "critic."}
