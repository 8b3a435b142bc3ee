"""A named architecture is a valid network that computes what the framework's own layers compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.architectures import examples, new, new_like, parse
from surgery.architectures.heads import HEADS
from surgery.architectures.layers import Activation, Convolution, Dense, Recurrent, Residual, resolved, walk
from surgery.cli import main
from surgery.errors import ArgumentError, CorruptFile, UnknownName
from surgery.verify.outputs import runtime
from tests import zoo
from tests.test_docs import ROOT

TEACHERS = ROOT / "examples" / "teachers"
SHAPES = {
    "nature": (4, 84, 84),
    "nature-same": (84, 84, 4),
    "minatar": (4, 10, 10),
    "impala-b1": (3, 24, 24),
    "impala-dopamine": (22, 22, 3),
    "mlp-7-5-tanh": (8,),
    "mlp-7-5-silu": (8,),
    "lstm-6-5": (8,),
    "gru-6-fc0": (8,),
    "minatar-lstm-6": (10, 10, 4),
    "transformer-8-l1-h2": (5, 7),
}
"""Name -> an observation that it takes."""


def sample(checkpoint: surgery.Checkpoint, batch: int = 3) -> dict[str, np.ndarray]:
    rng, arrays = np.random.default_rng(1), {}
    for value in checkpoint.model.graph.inputs:
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        pixels = value.dtype == ir.DataType.UINT8
        drawn = rng.integers(0, 256, shape) if pixels else rng.standard_normal(shape)
        arrays[value.name] = drawn.astype(np.uint8 if pixels else np.float32)
    return arrays


def outputs(checkpoint: surgery.Checkpoint, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runtime(checkpoint.model)(arrays)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_architecture_with_every_head_is_valid_and_says_what_the_head_promises(name, head):
    made = new(name, observation=SHAPES[name], actions=6, head=head)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    found = outputs(made, sample(made))
    wanted = {"q_values": (3, 6), "atom_logits": (3, 6, 51), "quantiles": (3, 6, 200), "logits": (3, 6),
              "value": (3, 1), "mean": (3, 6), "log_std": (3, 6)}  # fmt: skip
    assert [port.kind for port in made.interface.outputs if port.kind != "state"] == list(HEADS[head].outputs)
    for kind in HEADS[head].outputs:
        assert found[kind].shape == wanted[kind]
        assert np.isfinite(found[kind]).all()


@pytest.mark.parametrize("name", SHAPES)
def test_every_hidden_space_of_an_untrained_network_can_grow_and_has_its_layers_name(name):
    made = new(name, observation=SHAPES[name], actions=6)
    hidden = [space for space in surgery.analyse(made.model, made.interface).spaces if space.hidden]
    assert all(space.widenable for space in hidden)
    layers, _ = resolved(parse(name).layers, (4, 84, 84) if len(SHAPES[name]) == 3 else SHAPES[name])
    names = {full for full, layer in walk(layers) if isinstance(layer, (Convolution, Dense, Recurrent))}
    assert {space.name.partition("[")[0].removesuffix(".query").removesuffix(".value") for space in hidden} <= {
        *names, *(full for full, layer in walk(layers) if full.endswith("self")),
    }  # fmt: skip


def test_a_seed_decides_every_weight_and_another_seed_changes_them():
    first, again, other = (new("impala", observation=(4, 84, 84), actions=4, seed=seed) for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    for name, tensor in first.tensors.items():
        assert not np.array_equal(tensor.numpy(), other.tensors[name].numpy())


class _Stack(nn.Module):
    def __init__(self, inputs: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(blocks))

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return x


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class _Impala(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList([_Stack(4, 32, 3), _Stack(32, 64, 3), _Stack(64, 64, 3)])
        self.fc, self.q = nn.Linear(64 * 11 * 11, 256), nn.Linear(256, 6)

    def forward(self, x):
        x = x / 255
        for stack in self.stacks:
            x = stack(x)
        return self.q(F.relu(self.fc(F.relu(x).flatten(1))))


class _Nature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2)
        self.conv3, self.fc, self.q = nn.Conv2d(64, 64, 3), nn.Linear(3136, 512), nn.Linear(512, 6)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x / 255))))
        return self.q(F.relu(self.fc(F.relu(self.conv3(x)).flatten(1))))


class _NatureSame(nn.Module):
    """Dopamine's: 84 → 21 → 11 → 11; TensorFlow pads more behind than before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2)
        self.conv3, self.fc, self.q = nn.Conv2d(64, 64, 3), nn.Linear(7744, 512), nn.Linear(512, 6)

    def forward(self, x):
        x = F.relu(self.conv1(F.pad(x.permute(0, 3, 1, 2) / 255, (2, 2, 2, 2))))
        x = F.relu(self.conv2(F.pad(x, (1, 2, 1, 2))))
        x = F.relu(self.conv3(F.pad(x, (1, 1, 1, 1)))).permute(0, 2, 3, 1)
        return self.q(F.relu(self.fc(x.flatten(1))))


@pytest.mark.parametrize(
    ("name", "module", "observation", "count"),
    [
        ("impala-x2-b3", _Impala, (4, 84, 84), None),
        ("nature", _Nature, (4, 84, 84), 1_687_206),
        ("nature-same", _NatureSame, (84, 84, 4), 4_046_502),
    ],
)
def test_a_network_computes_what_pytorchs_layers_compute_with_its_weights(name, module, observation, count):
    made = new(name, observation=observation, actions=6, dtype="uint8", scale=1 / 255)
    net = module()
    net.load_state_dict({key: torch.from_numpy(t.numpy().copy()) for key, t in made.tensors.items()})
    arrays = sample(made)
    with torch.no_grad():
        wanted = net(torch.from_numpy(arrays["observation"].astype(np.float32))).numpy()
    np.testing.assert_allclose(
        outputs(made, arrays)["q_values"], wanted, rtol=0, atol=1e-5 * abs(wanted).max()
    )
    assert count is None or count == sum(t.size for t in made.tensors.values())


def test_dopamines_max_pool_pads_behind_where_the_image_is_even_and_pytorchs_on_both_sides():
    for name, pads in (("impala-dopamine", [(0, 0, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1)]),
                       ("impala", [(1, 1, 1, 1)] * 3)):  # fmt: skip
        graph = new(name, observation=(84, 84, 4), actions=6).model.graph
        found = [tuple(node.attributes["pads"].value) for node in graph if node.op_type == "MaxPool"]
        assert found == pads


def test_a_recurrent_step_carries_its_state():
    made = new("lstm-6-5", observation=(8,), actions=3)
    arrays = sample(made)
    first = outputs(made, arrays)
    states = [port.name for port in made.interface.inputs if port.kind == "state"]
    assert states == ["hidden", "cell", "hidden2", "cell2"]
    second = outputs(made, {**arrays, **{name: first[f"{name}_next"] for name in states}})
    assert all(first[f"{name}_next"].shape == arrays[name].shape for name in states)
    assert not np.allclose(first["q_values"], second["q_values"])


def test_dueling_streams_have_a_dense_layer_each_and_the_advantages_are_centred():
    made = new("nature", observation=(4, 84, 84), actions=6, head="dueling")
    assert {"value.fc.weight", "advantage.fc.weight"} <= set(made.tensors)
    assert "fc.weight" not in made.tensors


def test_c51_says_its_support():
    (port,) = new("mlp-8", observation=(4,), actions=2, head="c51").interface.outputs
    assert (port.kind, port.low, port.high) == ("atom_logits", -10, 10)


def test_policy_heads_start_orthogonal_with_ppos_gains():
    made = new("mlp-64-64-tanh", observation=(8,), actions=4, head="actor-critic")
    hidden, policy, value = (made.tensors[f"{name}.weight"].numpy() for name in ("fc2", "policy", "value"))
    np.testing.assert_allclose(hidden @ hidden.T, 2 * np.eye(64), atol=1e-5)
    np.testing.assert_allclose(policy @ policy.T, 1e-4 * np.eye(4), atol=1e-9)
    np.testing.assert_allclose(value @ value.T, np.eye(1), atol=1e-5)
    assert not made.tensors["fc1.bias"].numpy().any()


def test_value_heads_start_as_pytorchs_layers_do():
    made = new("mlp-256", observation=(16,), actions=4)
    for name in ("fc.weight", "fc.bias"):
        array = made.tensors[name].numpy()
        assert 0.24 < abs(array).max() <= 0.25


def widths(name: str) -> list[object]:
    kept = (Convolution, Dense, Recurrent)
    return [
        getattr(x, "channels", getattr(x, "width", 0))
        for _, x in walk(parse(name).layers)
        if isinstance(x, kept)
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nature-x2", [64, 128, 128, 512]),
        ("nature-x1.5-fc1024", [48, 96, 96, 1024]),
        ("nature-fc1024-x2", [64, 128, 128, 1024]),
        ("impala-x4-b1", [64, 64, 64, 128, 128, 128, 128, 128, 128, 256]),
        ("impala-dopamine-b1-fc7", [16, 16, 16, 32, 32, 32, 32, 32, 32, 7]),
        ("mlp-3-4-5", [3, 4, 5]),
        ("lstm-512", [512, 512]),
        ("lstm-512-fc64", [64, 512]),
        ("gru-26-26-fc0", [26, 26, 26]),
        ("nature-lstm-128-x2", [64, 128, 128, 512, 128]),
    ],
)
def test_modifiers_change_what_they_say(name, wanted):
    assert widths(name) == wanted


def test_blocks_are_counted_per_stage_and_numbered():
    blocks = [layer.name for layer in parse("impala-b3").layers if isinstance(layer, Residual)]
    assert blocks == [f"stacks.{stack}.blocks.{block}" for stack in range(3) for block in range(3)]


def test_an_activation_replaces_all_of_them():
    kinds = {layer.kind for _, layer in walk(parse("impala-elu").layers) if isinstance(layer, Activation)}
    assert kinds == {"Elu"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("natur", "nature"),
        ("impalla-x2", "impala"),
        ("mlp", "how wide"),
        ("mlp-", "mlp-"),
        ("mlp-0", "whole number"),
        ("mlp-x2", "x2"),
        ("mlp-99999999", "65536"),
        ("nature-b2", "residual"),
        ("nature-x0", "0 times"),
        ("nature-y2", "did you mean"),
        ("nature-lstm", "how wide"),
        ("lstm-b2", "b2"),
        ("transformer-30-h4", "multiple"),
        ("", "unknown architecture"),
        ("nature-", "modifier"),
    ],
)
def test_a_wrong_name_is_refused_with_a_way_out(name, words):
    with pytest.raises(ArgumentError) as caught:
        parse(name)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.hint or name in caught.value.message


@pytest.mark.parametrize(
    ("name", "observation", "words"),
    [
        ("nature", (4,), "image"),
        ("nature", (4, 8, 8), "does not fit"),
        ("transformer-8-h2", (8,), "list of entities"),
        ("nature", (4, 84, 84, 1), "observation of shape"),
        ("mlp-8", (), "observation of shape"),
        ("mlp-8", (5, 3), "not flattened"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(name, observation, words):
    with pytest.raises(ArgumentError, match=words):
        new(name, observation=observation, actions=4)


def test_unknown_heads_and_types_are_refused():
    with pytest.raises(UnknownName, match="head"):
        new("mlp-8", observation=(4,), actions=2, head="duelling")
    with pytest.raises(ArgumentError, match="float16"):
        new("mlp-8", observation=(4,), actions=2, dtype="float16")


OWN = """
[small]
observation = [4, 20, 20]
layers = [
  { conv = 8, kernel = [3, 5], stride = 2, padding = "same" },
  "elu",
  { residual = [{ conv = 8, kernel = 1 }, "elu"], times = 2 },
  { mean-pool = 2 },
  "flatten",
  { dense = 32 },
  { gru = 7 },
]
[other]
layers = [{ dense = 3 }]
"""


def test_a_file_of_ones_own_has_the_same_form_and_takes_modifiers(tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    name = f"{tmp_path / 'mine.toml'}:small-x2-b3-fc9"
    assert widths(name) == [16, 16, 16, 16, 9, 7]
    made = new(name, observation=(4, 20, 20), actions=3)
    assert {"conv1.weight", "block3.conv1.bias", "fc.weight", "gru.weight_state"} <= set(made.tensors)
    assert outputs(made, sample(made))["q_values"].shape == (3, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a]\nlayers = [{ dens = 3 }]", "not a layer"),
        ("[a]\nlayers = ['rellu']", "unknown layer"),
        ("[a]\nlayers = []", "no layers"),
        ("[a]\nlayers = [{ conv = 3 }]", "kernel"),
        ("[a]\nlayers = [{ conv = 3, kernel = 0 }]", "kernel"),
        ("[a]\nlayers = [{ dense = 3, kernel = 3 }]", "does not know"),
        ("[a]\nlayers = [{ dense = -3 }]", "whole number"),
        ("[a]\nlayers = [{ residual = 3 }]", "list"),
        ("[a]\nlayers = [{ attention = 7, heads = 2 }]", "multiple"),
        ("[a]\nlayers = [{ dense = 3 }]\ninitialisation = 'zeros'", "initialisation"),
        ("[a]\nlayers = [{ dense = 3 }]\nobservation = [1.5]", "observation"),
        ("a = 3", "JSON object"),
        ("[a]\nlayers = [{ dense = 3, name = 'x' }, { dense = 3, name = 'x' }]", "called x"),
        ("[a", "TOML"),
        ("", "not describe an architecture"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, words):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises((ArgumentError, CorruptFile), match=words) as caught:
        parse(f"{tmp_path / 'bad.toml'}:a")
    assert "bad.toml" in str(caught.value.where)


def test_a_file_that_is_missing_or_lacks_the_name_is_refused(tmp_path):
    with pytest.raises(surgery.SurgeryError, match="missing"):
        parse(str(tmp_path / "missing.toml"))
    (tmp_path / "mine.toml").write_text(OWN)
    with pytest.raises(UnknownName, match="smal"):
        parse(f"{tmp_path / 'mine.toml'}:smal")


def test_the_catalogue_has_every_name_with_its_size():
    found = {example.name: example for example in examples()}
    assert {
        "nature",
        "nature-same",
        "impala",
        "impala-dopamine",
        "minatar",
        "mlp-256-256",
        "lstm-512",
    } <= set(found)
    assert found["impala"].parameters == 1_090_774
    assert "conv 32 8×8/4" in found["nature"].layers


@pytest.mark.parametrize(
    ("teacher", "arch", "head", "shape", "actions"),
    [
        ("breakout-ppo", "impala", "actor-critic", (4, 84, 84), 4),
        ("minatar-breakout-dqn", "minatar-x2", "q", (4, 10, 10), 3),
        ("cartpole-dqn", "mlp-16", "q", (4,), 2),
    ],
)
def test_a_student_has_the_task_of_its_teacher_and_not_its_scores(teacher, arch, head, shape, actions):
    trained = surgery.load(TEACHERS / f"{teacher}.onnx")
    made = new_like(arch, trained)
    assert [port.kind for port in made.interface.outputs] == list(HEADS[head].outputs)
    arrays = sample(made)
    assert arrays["observation"].shape == (3, *shape)
    assert outputs(made, arrays)[HEADS[head].outputs[0]].shape == (3, actions)
    own, theirs = made.environment, trained.environment
    assert own.id == theirs.id
    assert {**own.settings, "scores": None} == {**theirs.settings, "scores": None}
    assert {score["mode"] for score in own.settings.get("scores", ())} <= {"random"}


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", ["nature_dqn", "nature_nhwc"])
def test_a_students_graph_scales_observations_as_its_teachers_does(name, style):
    trained = surgery.annotate(
        surgery.load(zoo.export(name, style)), outputs={"q": surgery.interface.PortPatch(kind="q_values")}
    )
    made = new_like("nature" if name == "nature_dqn" else "minatar", trained)
    divisors = [node for node in made.model.graph if node.op_type == "Div"]
    assert made.model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert [
        float(node.inputs[1].producer().attributes["value"].as_tensor().numpy()) for node in divisors
    ] == [255]


def test_new_writes_a_student_and_says_how_large_it_is(tmp_path, capsys):
    target = tmp_path / "student.onnx"
    words = [
        "new",
        "nature-x2",
        "--like",
        str(TEACHERS / "breakout-ppo.onnx"),
        "-o",
        str(target),
        "--seed",
        "3",
    ]
    assert main([*words, "--json"]) == 0
    assert '"parameters"' in capsys.readouterr().out
    assert surgery.load(target).lineage[-1].operation == "new"
    assert main(words) == 2
    assert main([*words, "--force"]) == 0


@pytest.mark.parametrize("like", [True, False])
def test_new_noisy_is_the_network_that_the_library_makes(like: bool, tmp_path: Path):
    target, teacher = tmp_path / "student.onnx", TEACHERS / "breakout-ppo.onnx"
    sizes = ["--like", str(teacher)] if like else ["--observation", "6", "--actions", "3", "--head", "qr"]
    arch = "nature" if like else "mlp-8"
    assert main(["new", arch, *sizes, "--noisy", "--seed", "3", "-o", str(target)]) == 0
    wanted = (
        new_like(arch, surgery.load(teacher), seed=3, noisy=True)
        if like
        else new(arch, observation=(6,), actions=3, head="qr", seed=3, noisy=True)
    )
    made = surgery.load(target)
    assert made.digest() == wanted.digest()
    assert made.lineage[-1].summary["noisy"] is True
    assert any(name.endswith("weight_sigma") for name in made.tensors)


@pytest.mark.parametrize(
    "words",
    [
        "new nature -o s.onnx",
        "new nature --observation 4x84 -o s.onnx --actions 3",
        "new nature --observation 4xx -o s.onnx --actions 3",
        "new natur --observation 4x84x84 --actions 3 -o s.onnx",
        "new nature --like missing.onnx -o s.onnx",
    ],
)
def test_new_refuses_what_it_cannot_make(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert not list(tmp_path.iterdir())
    assert "error:" in capsys.readouterr().err


def test_architectures_are_listed_with_their_sizes(capsys):
    assert main(["list", "architectures"]) == 0
    text = capsys.readouterr().out
    assert "1,090,774" in text
    assert "-xN" in text
