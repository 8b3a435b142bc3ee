"""Deepen: new layers that change nothing at first, and learn from the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.copies import original_name
from surgery.edits.insert import slot_counts
from surgery.edits.insertion import Insertion
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused
from surgery.graph.layers import Spot, is_activation, layers, spots
from surgery.graph.operands import operands
from surgery.graph.ranges import bounds, keeps
from surgery.graph.spaces import Analysis
from surgery.ops import blocks, naming, sequences

Kind = Literal["auto", "identity", "residual", "rezero", "batchnorm", "recurrent", "attention"]
KINDS: tuple[Kind, ...] = ("auto", "identity", "residual", "rezero", "batchnorm", "recurrent", "attention")
_BRANCHES: Mapping[str, blocks.Branch] = {
    "identity": blocks.identity,
    "residual": blocks.residual,
    "rezero": blocks.rezero,
    "batchnorm": blocks.batchnorm,
    "recurrent": sequences.recurrent,
    "attention": sequences.attention,
}
_PORTABLE = frozenset(
    ["Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Selu", "Celu", "Gelu", "Softplus", "Mish", "HardSwish"]
)
"""Activations without operands, which can stand anywhere."""

MOST_LAYERS = 1000
MOST_KERNEL = 63


@dataclass(frozen=True)
class _Request:
    """What to insert: a kind that is settled, its form, how many, and names if they are given."""

    kind: str
    form: blocks.Shape
    count: int = 1
    given: tuple[str, ...] = ()


def deepen(
    checkpoint: Checkpoint,
    after: str | Sequence[str],
    *,
    count: int = 1,
    kind: Kind = "auto",
    width: int | None = None,
    kernel: int | None = None,
    heads: int | None = None,
    name: str | Sequence[str] | None = None,
    parts: tuple[str, str] | None = None,
    seed: int = 0,
) -> Plan:
    """Insert layers without changing the function.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      after: the layer to put them behind: a module path or the ending of one, a parameter, a space, a module of several
        layers, or the name of a value of the graph. Behind a layer means behind its bias, normaliser, pooling,
        residual sum and activation. A layer that is used several times gets the new one behind every use. Several
        layers get new ones in one plan: two critics of one setting, an actor and its critic.
      count: how many, one behind the other.
      kind: "identity": a layer that starts as the identity, with the activation before it, which must return its own
        results as they are (a Relu does, a Tanh does not); "residual": a branch whose last layer starts at zero, in
        the form of IMPALA's blocks; "rezero": a branch times a scalar that starts at zero; "batchnorm": a branch with
        batch normalisations, the last of which starts with scale zero; "recurrent": a branch of the cell of the
        recurrent layer before it (an LSTM over one step where there is one vector for each member of the batch), whose
        state becomes an input and output of the graph; "attention": a branch of self-attention over the middle axis of
        a sequence of vectors; "auto": residual behind a residual sum and
        wherever an identity is not exact, else identity.
      width: units inside a branch; as many as outside by default.
      kernel: size of new convolutions; by default 3, or 1 behind a convolution of size 1.
      heads: of attention; by default as many, up to 8, as leave each of them 8 units.
      name: module path of the new layer, or one for each; in the style of the model by default.
      parts: names of the two layers of a branch within it.
      seed: of the random weights of a branch.

    Returns:
      A plan that claims "identical": the new layers compute with ones and zeros only until they have learned.

    Raises:
      UnknownName: no such layer; lists the nearest. ArgumentError: a count, kind, width or name that does not fit.
      Refused: a place where no layer can go, or an identity behind an activation that changes its own results.

    References:
      Chen, Goodfellow, Shlens. Net2Net. ICLR 2016 (arXiv:1511.05641). Zhang, Dauphin, Ma. Fixup initialization.
      ICLR 2019 (arXiv:1901.09321). Bachlechner et al. ReZero is all you need. UAI 2021 (arXiv:2003.04887). Espeholt et
      al. IMPALA. ICML 2018 (arXiv:1802.01561).
    """
    _check(count, kind, width, kernel, name)
    analysis = checkpoint.analysis
    places = [after] if isinstance(after, str) else list(dict.fromkeys(after))
    given = (name,) if isinstance(name, str) else tuple(name or ())
    if not places or (given and len(places) > 1):
        raise ArgumentError("names are for the layers behind one layer", hint="leave out the names")
    used, insertions, roots = naming.taken(analysis), list[Insertion](), set[str]()
    for place in places:
        family, request = _requested(checkpoint, analysis, place, kind, width, kernel, heads, parts)
        root = family[0][0].layer.weight
        if root in roots:
            continue  # a copy of a layer that was named before
        roots.add(root)
        insertions += _insertions(
            analysis, checkpoint, family, replace(request, count=count, given=given), used
        )
        used |= {tensor.name for new in insertions for tensor in new.tensors}
    return Plan(
        operation="deepen",
        arguments={
            "after": after if isinstance(after, str) else places, "count": count, "kind": kind, "width": width,
            "kernel": kernel, "heads": heads, "parts": None if parts is None else list(parts),
            "names": [new.name for new in insertions],
        },
        claim="identical",
        spaces=(),
        tensors=(),
        operands=(),
        seed=seed,
        slots=slot_counts(checkpoint.optimizer, insertions),
        insertions=tuple(insertions),
    )  # fmt: skip


def _requested(
    checkpoint: Checkpoint,
    analysis: Analysis,
    after: str,
    kind: Kind,
    width: int | None,
    kernel: int | None,
    heads: int | None,
    parts: tuple[str, str] | None,
) -> tuple[list[list[Spot]], _Request]:
    """Where layers go behind a layer and behind its copies, and what goes there."""
    module, places = spots(analysis, after)
    family = _family(analysis, places, checkpoint.copies)
    chosen = _settle(analysis, [spot for member in family for spot in member], kind, module)
    if chosen != "identity":
        family = [[_before_activation(analysis, spot) for spot in member] for member in family]
    places = family[0]
    _check_normalised(chosen, places[0])
    form = _form(places[0], width, kernel, parts)
    if chosen == "recurrent":
        for member in family:
            sequences.check_recurrent(member)
    elif chosen == "attention":
        form = replace(form, heads=sequences.check_attention(checkpoint, places, heads, form.width))
    return family, _Request(chosen, form)


def _check(
    count: int, kind: str, width: int | None, kernel: int | None, name: str | Sequence[str] | None
) -> None:
    if kind not in KINDS:
        raise ArgumentError(f"unknown kind '{kind}' of a layer", hint=", ".join(KINDS))
    if not 0 < count <= MOST_LAYERS:
        raise ArgumentError(
            f"cannot insert {count} layers", hint=f"a whole number from 1 to {MOST_LAYERS}: --count N"
        )
    if width is not None and not 0 < width <= 1 << 24:
        raise ArgumentError(f"a branch of {width} units", hint="a whole number, 1 or more")
    if kernel is not None and not (0 < kernel <= MOST_KERNEL and kernel % 2):
        raise ArgumentError(
            f"a convolution of size {kernel} has no middle, or is too large",
            hint=f"an odd size up to {MOST_KERNEL}",
        )
    names = [name] if isinstance(name, str) else list(name or [])
    if names and len(names) != count:
        raise ArgumentError(f"{count} new layers, but {len(names)} names")
    if any(not part for text in names for part in text.split(".")):
        raise ArgumentError(
            f"'{next(n for n in names if not all(n.split('.')))}' is not the path of a module"
        )


def _family(analysis: Analysis, places: list[Spot], copies: Mapping[str, str]) -> list[list[Spot]]:
    """The places behind a layer, the original's first, and those behind its copies in target and averaged networks."""
    if not copies:
        return [places]
    root = original_name(places[0].layer.weight, copies)
    alike = dict.fromkeys(
        layer.weight for layer in layers(analysis) if original_name(layer.weight, copies) == root
    )
    own = places[0].layer.weight
    found = {weight: spots(analysis, weight)[1] for weight in alike}
    if len(found) > 1 and [spot.value for spot in found[own]] != [spot.value for spot in places]:
        raise Refused(
            f"'{places[0].value.name}' has no counterpart in the copies of '{own}'",
            hint="name the layer, not a value of the graph",
        )
    return [found[weight] for weight in sorted(found, key=lambda weight: weight != root)]


def _check_normalised(kind: str, spot: Spot) -> None:
    if kind == "batchnorm" and not spot.spatial and (spot.rank, spot.axis) != (2, 1):
        raise Refused(
            f"'{spot.value.name}' has {spot.rank} axes: batch normalisation is for images and plain vectors",
            hint="another branch that starts at zero: --kind residual",
        )


def _settle(analysis: Analysis, places: Sequence[Spot], kind: Kind, module: str) -> str:
    """The kind that is meant by "auto", and whether an identity is exact."""
    if kind not in ("auto", "identity"):
        return kind
    for spot in places:
        reason = _no_identity(analysis, spot)
        if kind == "auto" and (reason or spot.summed):
            return "residual"
        if reason:
            raise Refused(
                f"no identity layer behind '{module}': {reason}",
                where={"value": spot.value.name},
                hint="a branch that starts at zero is exact here: --kind residual",
            )
    return "identity"


def _no_identity(analysis: Analysis, spot: Spot) -> str | None:
    """Why an identity layer would change the function, or would be a layer without an activation."""
    node, facts = spot.activation, analysis.trace.facts
    if node is None:
        return "it is followed by no activation that the new layer could use"
    if not keeps(node, bounds(spot.value, facts), facts):
        return f"applying its activation {node.op_type} a second time changes the result"
    return None


def _before_activation(analysis: Analysis, spot: Spot) -> Spot:
    """Where a branch goes: into the residual stream, before the activation that reads it."""
    node = spot.activation
    if not spot.summed or node is None:
        return spot
    value = next(v for v in operands(node) if v not in analysis.trace.facts.constant)
    return replace(spot, value=value, activation=None)


def _form(spot: Spot, width: int | None, kernel: int | None, parts: tuple[str, str] | None) -> blocks.Shape:
    own = spot.layer.node.attributes.get("kernel_shape")
    flat = own is not None and set(own.as_ints()) == {1}
    stem = "conv" if spot.spatial else "fc"
    return blocks.Shape(width or spot.units, kernel or (1 if flat else 3), parts or (f"{stem}1", f"{stem}2"))


def _insertions(
    analysis: Analysis,
    checkpoint: Checkpoint,
    family: Sequence[Sequence[Spot]],
    request: _Request,
    used: set[str],
) -> list[Insertion]:
    """New layers behind a layer, and the same ones behind its copies."""
    out = list[Insertion]()
    names = _names(analysis, family[0][0], request, used)
    root = family[0][0].layer.weight
    for places in family:
        weight = places[0].layer.weight
        own = [found.moved(*_prefixes(weight, root, checkpoint.copies)) for found in names]
        out += _chain(analysis, checkpoint, places, request, own, names)
    for new in out:
        _check_free(new, used)
    return out


def _names(analysis: Analysis, spot: Spot, request: _Request, used: set[str]) -> list[naming.Names]:
    if request.given:
        return [naming.given(name) for name in request.given]
    names, known = list[naming.Names](), set(used)
    block = spot.summed and request.kind != "identity"
    for _ in range(request.count):
        names.append(naming.follow(spot.layer, known, block=block))
        known.add(names[-1].module)
    return names


def _prefixes(weight: str, root: str, copies: Mapping[str, str]) -> tuple[str, str]:
    """The prefix of the original network, and that of the copy which a weight belongs to."""
    for copy, original in copies.items():
        if weight.startswith(copy) and original_name(weight, copies) == root and weight != root:
            return original, copy
    return "", ""


def _chain(
    analysis: Analysis,
    checkpoint: Checkpoint,
    places: Sequence[Spot],
    request: _Request,
    names: Sequence[naming.Names],
    originals: Sequence[naming.Names],
) -> list[Insertion]:
    """One layer behind another, at every place."""
    own, kind = places[0].activation, request.kind
    activation = own if kind == "identity" or _portable(analysis, own) else _nearest(analysis, places[0])
    weight = places[0].layer.weight
    like = weight if checkpoint.optimizer is None or weight in checkpoint.trained else None
    batch = sequences.batch_of(checkpoint) if kind == "recurrent" else ("", ("", 0))
    dtype = blocks.dtype_of(analysis.model, weight)
    values, out = [str(spot.value.name) for spot in places], list[Insertion]()
    for found, original in zip(names, originals, strict=True):
        sketches = [
            blocks.Sketch(found, original, spot, at, activation, dtype, like, batch)
            for at, spot in enumerate(places)
        ]
        form, opens = request.form, own is None
        new = blocks.inserted(kind, _BRANCHES[kind], sketches, values, form, opens=opens)
        values = [
            str(spot.value.name) if spot.value.is_graph_output() else place.result
            for spot, place in zip(places, new.places, strict=True)
        ]
        out.append(new)
    return out


def _check_free(new: Insertion, used: set[str]) -> None:
    clash = sorted({tensor.name for tensor in new.tensors} & used)
    if clash:
        raise ArgumentError(
            f"the model has a '{clash[0]}' already", hint="give the new layer another name, or none"
        )


def _portable(analysis: Analysis, node: ir.Node | None) -> bool:
    """Whether an activation can stand behind any number of units: nothing in it is counted per unit."""
    if node is None:
        return False
    known = analysis.trace.facts.known
    limits = [v for v in operands(node) if v in analysis.trace.facts.constant]
    scalars = all(v in known and known[v].size == 1 for v in limits)
    return node.op_type in _PORTABLE or (node.op_type in ("Clip", "Max", "Min") and scalars)


def _nearest(analysis: Analysis, spot: Spot) -> ir.Node | None:
    """The activation that the model has nearest behind a value, else before it; None if it has none."""
    constant = analysis.trace.facts.constant
    order = {node: k for k, node in enumerate(analysis.model.graph)}
    producer = spot.value.producer()
    here = order[producer] if producer is not None else 0
    nodes = [node for node in order if node.op_type in _PORTABLE and is_activation(node, constant)]
    behind = [node for node in nodes if order[node] > here]
    before = [node for node in nodes if order[node] <= here]
    return behind[0] if behind else before[-1] if before else None
