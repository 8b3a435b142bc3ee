"""Files that flax wrote (tests/fixtures/make_flax.py): the graph answers as the networks did, and arrays go back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.errors import SurgeryError
from surgery.verify.outputs import runtime
from surgery_adapters.containers.msgpack_tree import flat, read

FLAX = Path(__file__).parent / "fixtures" / "flax"
NAMES = ("dqn", "atari", "ppo", "c51", "td3", "impala")


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_answers_as_flax_did(name):
    recorded = np.load(FLAX / "answers.npz")
    seen = recorded["images" if name in ("atari", "ppo", "impala") else "vectors"].astype(np.float32)
    known = {"observation": seen, "critic_observation": recorded["both"]}
    model = surgery.load(FLAX / f"{name}.cleanrl_model").model
    found = runtime(model)({value.name: known[value.name] for value in model.graph.inputs})
    wanted = {key.partition("/")[2]: recorded[key] for key in recorded.files if key.startswith(f"{name}/")}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)
        assert (found[key].argmax(-1) == value.argmax(-1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_copy_is_the_same_bytes_and_a_wide_one_the_same_function(tmp_path, name):
    path = FLAX / f"{name}.cleanrl_model"
    before = surgery.load(path)
    surgery.save(before, tmp_path / "copy.cleanrl_model")
    assert (tmp_path / "copy.cleanrl_model").read_bytes() == path.read_bytes()
    plan = surgery.widen(
        before, factor=30 if name == "dqn" else 2
    )  # beyond every size that changes the codes
    result = surgery.apply(plan, before)
    result.save(tmp_path / "wide.cleanrl_model")
    after = surgery.load(tmp_path / "wide.cleanrl_model")
    assert after.digest() == result.checkpoint.digest()
    old, new = flat(read(path)), flat(read(tmp_path / "wide.cleanrl_model"))
    assert list(old) == list(new)
    touched = {tensor.name for tensor in plan.tensors}
    assert {key for key in old if old[key].tobytes() != new[key].tobytes()} == touched


def test_damaged_files_are_errors(tmp_path):
    content = (FLAX / "ppo.cleanrl_model").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(content)
        if rng.random() < 0.5:
            broken = broken[: int(rng.integers(2, len(content)))]
        else:
            for place in rng.integers(2, 200, 2):
                broken[place] = rng.integers(256)
        (tmp_path / "x.cleanrl_model").write_bytes(broken)
        try:
            surgery.load(tmp_path / "x.cleanrl_model")
        except SurgeryError as error:
            assert "\n" not in error.message


HOSTILE = {
    "more entries than bytes": b"\x81\xa6params\xdf\xff\xff\xff\xff",
    "nested without end": b"\x81\xa1a" * 3000,
    "an array beyond the file": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a code that is none": b"\x81\xa1a\xc1",
    "no parameters": b"\x81\xa1a\x01",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_errors_and_allocate_nothing(tmp_path, content):
    (tmp_path / "x.cleanrl_model").write_bytes(content)
    with pytest.raises(SurgeryError):
        surgery.load(tmp_path / "x.cleanrl_model")
