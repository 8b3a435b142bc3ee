"""What a module says of its own sizes, and how that follows when its tensors change shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from surgery.edits.parts import TensorEdit
from surgery.edits.plan import Plan
from surgery.errors import Refused, shape_text
from surgery.graph import layout
from surgery.torch.live.attention import rows_of, split
from surgery.torch.sequences import SelfAttention

Attributes = dict[str, Any]


def _linear(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    out, into = shapes["weight"]
    return {"out_features": out, "in_features": into}


def _conv(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    out, into, *_ = shapes["weight"]
    return {
        "out_channels": out,
        "in_channels": into * _groups(module, shapes),
        "groups": _groups(module, shapes),
        **_kernel(module, shapes),
    }


def _conv_transpose(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    into, out, *_ = shapes["weight"]
    channels = {"in_channels": into, "out_channels": out * int(module.groups)}  # type: ignore[arg-type]
    return {**channels, **_kernel(module, shapes)}


def _kernel(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    """A larger kernel, and the padding with which every output reads what it read before."""
    before: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
    after = shapes["weight"][2:]
    if after == before:
        return {}
    padding: str | tuple[int, ...] = module.padding  # type: ignore[assignment]
    old = (0,) * len(after) if padding == "valid" else padding
    if isinstance(old, str):
        return {"kernel_size": after}
    more = [new - size for new, size in zip(after, before, strict=True)]
    if any(n % 2 for n in more):
        raise Refused(
            f"{type(module).__name__} pads both sides alike: no kernel of {shape_text(after)} takes the place of one "
            f"of {shape_text(before)}",
            hint="grow it by an even number, as from 3 to 5",
        )
    dilation: tuple[int, ...] = module.dilation  # type: ignore[assignment]
    grown = tuple(p + d * n // 2 for p, d, n in zip(old, dilation, more, strict=True))
    return {"kernel_size": after, "padding": grown}


def _groups(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of groups: as it was, or of a depthwise convolution one for each channel."""
    old, out = int(module.groups), int(module.out_channels)  # type: ignore[arg-type]
    depthwise = old > 1 and old == module.in_channels
    return shapes["weight"][0] // (out // old) if depthwise else old


def _features(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    return {"num_features": next(iter(shapes.values()))[0]}


def _layer(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    return {"normalized_shape": shapes["weight"]}


def _group_norm(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    return {"num_channels": shapes["weight"][0]}


def _recurrent(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    into, hidden = shapes["weight_ih_l0"][1], shapes["weight_hh_l0"][1]
    if getattr(module, "proj_size", 0):
        return {"input_size": into, "proj_size": hidden, "hidden_size": shapes["weight_hr_l0"][1]}
    return {"input_size": into, "hidden_size": hidden}


def _cell(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    return {"input_size": shapes["weight_ih"][1], "hidden_size": shapes["weight_hh"][1]}


def _embedding(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    rows, columns = shapes["weight"]
    return {"num_embeddings": rows, "embedding_dim": columns}


def _bilinear(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    out, one, two = shapes["weight"]
    return {"out_features": out, "in1_features": one, "in2_features": two}


def _attention(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    if "in_proj_weight" in shapes:
        rows, model = shapes["in_proj_weight"]
        inner, key, value = rows // 3, model, model
    else:
        inner, model = shapes["q_proj_weight"]
        key, value = shapes["k_proj_weight"][1], shapes["v_proj_weight"][1]
    if inner != model:
        raise Refused(
            f"nn.MultiheadAttention has one width, and cannot have {inner} units in its heads and {model} outside",
            hint="give widths to both, so that heads × their size are as many as outside, or factor=…, which does",
        )
    return {"embed_dim": model, "kdim": key, "vdim": value}


def _slopes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Attributes:
    return {"num_parameters": shapes["weight"][0]}


RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., Attributes]], ...] = (
    ((nn.Bilinear,), _bilinear),
    ((nn.Linear,), _linear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    ((nn.modules.batchnorm._NormBase,), _features),
    ((nn.LayerNorm, nn.RMSNorm), _layer),
    ((nn.GroupNorm,), _group_norm),
    ((nn.RNNBase,), _recurrent),
    ((nn.RNNCellBase,), _cell),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.MultiheadAttention,), _attention),
    ((nn.PReLU,), _slopes),
)
"""How PyTorch's own modules name their sizes: classes (subclasses included) and what their attributes become."""

COMMON = frozenset({
    "in_features", "out_features", "input_size", "output_size", "input_dim", "output_dim", "in_dim", "out_dim",
    "hidden_size", "hidden_dim", "hidden", "features_dim", "latent_dim", "embed_dim", "embedding_dim", "d_model",
    "in_channels", "out_channels", "channels", "num_features", "n_features", "width", "features",
    "latent_dim_pi", "latent_dim_vf", "n_input_channels",
})  # fmt: skip
"""What a module that is not PyTorch's calls the size of an axis of its own tensors."""


def owners(model: nn.Module, plan: Plan) -> Iterator[tuple[str, nn.Module, dict[str, TensorEdit]]]:
    """The modules that own edited tensors: path, module, and the edits by the tensor's name in it.

    A parametrised tensor (weight norm, spectral norm) is edited as the one of its originals that has its shape.
    """
    edits = {tensor.name: tensor for tensor in plan.tensors}
    for path, module in model.named_modules(remove_duplicate=False):
        own = {name: name for name in (*module._parameters, *module._buffers)} | _parametrised(module)
        if isinstance(module, SelfAttention):  # the number of its heads is that of a part's rows
            own |= {"query.weight": "query.weight"}
        paths = {name: f"{path}.{source}".lstrip(".") for name, source in own.items()}
        found = {name: edits[source] for name, source in paths.items() if source in edits}
        if found:
            yield path, module, found


def _parametrised(module: nn.Module) -> dict[str, str]:
    """Parametrised tensors of a module: the path of the original with most elements, which has their shape."""
    lists = getattr(module, "parametrizations", {})
    found = {}
    for name, kept in lists.items():
        originals = {
            key: t for key, t in (*kept._parameters.items(), *kept._buffers.items()) if t is not None
        }
        if originals:
            largest = max(originals, key=lambda key: originals[key].numel())
            found[name] = f"parametrizations.{name}.{largest}"
    return found


def attributes(path: str, module: nn.Module, edits: Mapping[str, TensorEdit], plan: Plan) -> Attributes:
    """The attributes of one module that change, with their new values.

    Raises:
      Refused: the module cannot be of these sizes, or has other tensors that the graph does not show and that would
        have to follow; names the module.
    """
    where = {"module": f"{path or '(the model)'} ({type(module).__name__})"}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }
    after = {**shapes, **{name: edit.after(plan.sizes) for name, edit in edits.items()}}
    _check_unseen(module, edits, where)
    for kinds, rule in RULES:
        if isinstance(module, kinds):
            try:
                found = rule(module, after)
            except Refused as error:
                raise error.within(**where) from error
            except KeyError as error:
                raise Refused(
                    f"'{path}' computes its {error.args[0]} from {', '.join(sorted(edits))}", where=where,
                    hint="undo that (torch.nn.utils.remove_weight_norm, prune.remove …), operate, and do it again; "
                    "torch.nn.utils.parametrizations can stay",
                ) from error  # fmt: skip
            if isinstance(module, nn.GroupNorm):
                axis = next(iter(edits.values())).axes[0]
                found["num_groups"] = _outer(axis, module.num_groups, plan)
            if isinstance(module, nn.MultiheadAttention):
                found["num_heads"] = _heads(module, edits, plan)
                found["head_dim"] = found["embed_dim"] // found["num_heads"]
            return {name: value for name, value in found.items() if getattr(module, name, value) != value}
    if isinstance(module, SelfAttention):
        return {"heads": _outer(edits["query.weight"].axes[0], module.heads, plan)}
    return _custom(module, edits, plan)


def _check_unseen(module: nn.Module, edits: Mapping[str, TensorEdit], where: Mapping[str, str]) -> None:
    """A tensor that the graph did not use, beside one that changes, would be left behind in the old shape."""
    sizes = {size for edit in edits.values() for size in edit.before}
    unseen = [
        name
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
        and name not in edits
        and sizes.intersection(tensor.shape) - {1}
        and _follows(tensor, edits)
    ]
    if unseen and not isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        raise Refused(
            f"{', '.join(unseen)} would have to change too, but what the module computes in this mode does not use it",
            where=where, hint="operate with training=True if it is used in training mode only",
        )  # fmt: skip


def _follows(tensor: Tensor, edits: Mapping[str, TensorEdit]) -> bool:
    """Whether a tensor has the shape of an edited one, as noise has that of its weight."""
    return any(tuple(tensor.shape) == edit.before for edit in edits.values())


def _outer(axis: layout.Layout, count: int, plan: Plan) -> int:
    """What becomes of the outer part of an axis that has `count` elements: groups of channels, or heads."""
    outer, _ = split(axis, count)
    return layout.size(outer, plan.sizes) if outer else count


def _heads(module: nn.MultiheadAttention, edits: Mapping[str, TensorEdit], plan: Plan) -> int:
    """The heads are the outer part of the rows of each of the three projections."""
    edit = edits.get("in_proj_weight") or edits.get("q_proj_weight")
    return int(module.num_heads) if edit is None else _outer(rows_of(edit), int(module.num_heads), plan)


def _custom(module: nn.Module, edits: Mapping[str, TensorEdit], plan: Plan) -> Attributes:
    """Attributes with a common name whose value is the old size of one edited axis, and of no other.

    Names that say which side they are on (`in_…`, `out_…`) look at that axis only.
    """
    found = {}
    for name, value in vars(module).items():
        if name not in COMMON or type(value) is not int:
            continue
        side = {"in": 1, "out": 0}.get(name.partition("_")[0])
        new = {
            after
            for edit in edits.values()
            for axis, (before, after) in enumerate(zip(edit.before, edit.after(plan.sizes), strict=True))
            if before == value and (side is None or len(edit.before) < 2 or axis == side)
        }
        if len(new) == 1 and new != {value}:
            found[name] = new.pop()
    return found
