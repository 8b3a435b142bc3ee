"""The sizes of a policy's networks as `policy_kwargs` say them: `net_arch`, LSTM, features extractor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.containers.pickle_tree import Name
from surgery_adapters.networks.layers import NATURE, Tensors
from surgery_adapters.sb3.file import Sb3File

OURS = "surgery_adapters.sb3.extractor"
_DEFAULT_CHANNELS = [32, 64, 64]


def widths(file: Sb3File, tensors: Tensors, model: ir.Model, names: Mapping[str, str]) -> dict[str, object]:
    """`policy_kwargs` that make networks of these sizes; none where no hidden layer changed.

    Args:
      file: the original. tensors: every tensor of the policy, as it will be.
      model: the graph. names: its parameters -> their names among the tensors.

    Raises:
      Refused: sizes that no settings of the framework can express.
    """
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    old = {name: shape_of(tensor) for name, tensor in file.policy.items()}
    kwargs, before, after = file.kwargs, _sizes(old), _sizes(shapes)
    changed: dict[str, object] = {}
    if _arch(before) != _arch(after):
        changed["net_arch"] = _net_arch(after, file)
    if _of(before, "lstm") != _of(after, "lstm"):
        changed["lstm_hidden_size"] = _one(_of(after, "lstm"), "LSTM")[0]
    if any(_of(before, kind) != _of(after, kind) for kind in ("cnn", "kernel", "dense")):
        # what the framework takes for net_arch where none is given depends on the class of the extractor
        changed |= {
            "net_arch": _net_arch(after, file),
            **_extractor(after, kwargs, _convolutions(model, names)),
        }
    return changed


def _convolutions(model: ir.Model, names: Mapping[str, str]) -> dict[str, tuple[int, int, int]]:
    """Weight -> kernel, stride and padding of its convolution.

    Raises:
      Refused: one that `nn.Conv2d` cannot be, with these three numbers.
    """
    found = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.name in names:
            kinds = (node.attributes.get_ints("kernel_shape"), node.attributes.get_ints("strides"),
                     node.attributes.get_ints("pads"))  # fmt: skip
            sizes = [set(numbers or ()) for numbers in kinds]
            if any(len(numbers) != 1 for numbers in sizes):
                raise Refused(
                    f"the kernel, stride or padding of '{weight.name}' is not the same on all sides",
                    hint="grow a kernel by an even number, such as 3 to 5: surgery kernel --size LAYER=5",
                )
            kernel, stride, padding = (numbers.pop() for numbers in sizes)
            found[names[str(weight.name)]] = (kernel, stride, padding)
    return found


Sizes = dict[tuple[str, str], list[int]]
"""(what, module) -> hidden widths, in order."""

_MLPS = {
    "mlp_extractor.shared_net.": "shared", "mlp_extractor.policy_net.": "pi", "mlp_extractor.value_net.": "vf",
    "q_net.q_net.": "q", "quantile_net.quantile_net.": "q", "actor.latent_pi.": "pi", "actor.mu.": "pi",
}  # fmt: skip


def _sizes(shapes: Mapping[str, Sequence[int]]) -> Sizes:
    """The hidden widths that a policy's settings can express."""
    found: Sizes = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        parent, _, place = module.rpartition(".")
        if leaf == "weight_hh_l0":
            found[("lstm", module)] = [shape[1]]
        elif leaf != "weight" or not place.isdecimal():
            continue
        elif parent.endswith("cnn"):
            found.setdefault(("cnn", parent.removesuffix("cnn")), []).append(shape[0])
            found.setdefault(("kernel", parent.removesuffix("cnn")), []).append(shape[-1])
        elif parent.endswith("linear"):
            found.setdefault(("dense", parent.removesuffix("linear")), []).append(shape[0])
        else:
            found.setdefault(("mlp", f"{parent}."), []).append(shape[0])
    return found


def _of(sizes: Sizes, what: str) -> list[list[int]]:
    return [widths for (kind, _), widths in sizes.items() if kind == what]


def _arch(sizes: Sizes) -> dict[str, list[list[int]]]:
    """Part of `net_arch` -> the hidden widths of every network that it makes."""
    found: dict[str, list[list[int]]] = {}
    for (kind, module), widths in sizes.items():
        part = _MLPS.get(module) or ("qf" if module.startswith("critic.qf") else None)
        clipped = module == "actor.mu." and ("mlp", "actor.latent_pi.") in sizes
        if kind == "mlp" and part is not None and not clipped:
            headless = module.startswith("mlp_extractor.") or module == "actor.latent_pi."
            found.setdefault(part, []).append(widths if headless else widths[:-1])
    return found


def _net_arch(sizes: Sizes, file: Sb3File) -> object:
    parts = {part: _one(every, part) for part, every in _arch(sizes).items()}
    if set(parts) == {"q"}:
        return parts["q"]
    keys = {"pi", "qf"} if "qf" in parts else {"pi", "vf"}
    full = {key: parts.get(key, []) for key in sorted(keys)}
    if "vf" in full and _shares_layers(file):
        return [*parts.get("shared", []), full]
    old, equal = file.kwargs.get("net_arch"), all(widths == full["pi"] for widths in full.values())
    return full["pi"] if equal and isinstance(old, list) and old else full


def _shares_layers(file: Sb3File) -> bool:
    """Whether the framework is older than 1.8: an actor-critic's `net_arch` is a list, its common layers first."""
    found = re.match(r"(\d+)\.(\d+)", file.version)
    return found is not None and tuple(map(int, found.groups())) < (1, 8)


def _one(every: list[list[int]], what: str) -> list[int]:
    if any(widths != every[0] for widths in every):
        shown = " and ".join(str(widths) for widths in every)
        raise Refused(
            f"the networks '{what}' would have different widths, {shown}: Stable-Baselines3 has one setting for all",
            hint="give the same widths to all of them",
        )
    return every[0]


_COPIES = ("q_net_target.", "quantile_net_target.", "critic_target.", "actor_target.")


def _extractor(
    sizes: Sizes, kwargs: Mapping[str, Any], convolutions: Mapping[str, tuple[int, int, int]]
) -> dict[str, object]:
    """The features extractor, and its arguments, that has these layers."""
    given = dict(kwargs.get("features_extractor_kwargs") or {})
    kept = {key: value for key, value in given.items() if key == "normalized_image"}
    found: dict[str, dict[str, Any]] = {}
    for kind, module in sizes:
        read = any(
            name.startswith(f"{module}cnn.") for name in convolutions
        )  # not another name of an extractor
        if kind == "cnn" and read and not module.startswith(_COPIES):
            key = module.rstrip(".").rpartition("extractors.")[2] if "extractors." in module else ""
            layers = _image(sizes, module, convolutions)
            if found.setdefault(key, layers) != layers:
                raise Refused(
                    f"the features extractors would have different layers, {found[key]} and {layers}: "
                    "Stable-Baselines3 has one setting for all",
                    hint="give the same layers to all of them",
                )
    if set(found) == {""}:
        [arguments] = found.values()
        ours = str(kwargs.get("features_extractor_class", "")).startswith(OURS)
        if (
            arguments.keys() == {"channels", "features_dim"}
            and arguments["channels"] == _DEFAULT_CHANNELS
            and not ours
        ):
            return {"features_extractor_kwargs": {**kept, "features_dim": arguments["features_dim"]}}
        return {
            "features_extractor_class": Name(OURS, "NatureCNN"),
            "features_extractor_kwargs": {**kept, **arguments},
        }
    made: dict[str, object] = {
        "channels": {key: arguments.pop("channels") for key, arguments in found.items()},
        "features_dims": {key: arguments.pop("features_dim") for key, arguments in found.items()},
    }
    if more := {key: arguments for key, arguments in found.items() if arguments}:
        made["layers"] = more
    return {
        "features_extractor_class": Name(OURS, "CombinedExtractor"), "features_extractor_kwargs": {**kept, **made},
    }  # fmt: skip


def _image(
    sizes: Sizes, module: str, convolutions: Mapping[str, tuple[int, int, int]]
) -> dict[str, list[int] | int]:
    """The arguments of the `NatureCNN` of a module; those that are the Nature DQN's are left out."""
    dense = sizes[("dense", module)]
    arguments: dict[str, list[int] | int] = {"channels": sizes[("cnn", module)], "features_dim": dense[-1]}
    shapes = [found for name, found in convolutions.items() if name.startswith(f"{module}cnn.")]
    names = ("kernels", "strides", "paddings")
    if shapes != list(NATURE):
        arguments |= {
            name: list(numbers) for name, numbers in zip(names, zip(*shapes, strict=True), strict=True)
        }
    if dense[:-1]:
        arguments["hidden"] = dense[:-1]
    return arguments
