"""A graph written with the builder is a valid model that keeps the names given and can be operated on."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from surgery.builder import GraphBuilder
from surgery.graph.spaces import analyse


def _network() -> ir.Model:
    random = np.random.default_rng(0)

    def weights(*shape):
        return random.standard_normal(shape, dtype=np.float32)

    graph = GraphBuilder("net")
    x = graph.input("observation", (2, 5, 5))
    x = graph.op("Relu", graph.convolution(x, "conv", weights(3, 2, 3, 3), weights(3), pads=(1, 1, 1, 1)))
    x = graph.op("Relu", graph.linear(graph.op("Flatten", x), "fc", weights(8, 75), weights(8)))
    graph.output(graph.linear(x, "head", weights(4, 8), weights(4)), "q_values", (4,))
    return graph.model()


def test_a_built_network_is_valid_runs_and_keeps_its_names():
    model = _network()
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (values,) = session.run(None, {"observation": np.ones((6, 2, 5, 5), np.float32)})
    assert values.shape == (6, 4)
    assert {"conv.weight", "fc.bias", "head.weight"} <= set(model.graph.initializers)


def test_the_spaces_of_a_built_network_are_found():
    assert {space.name: space.size for space in analyse(_network()).spaces if space.widenable} == {
        "conv": 3,
        "fc": 8,
    }
