"""What follows in the pickles of a checkpoint when its networks change: every model_config, every space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.edits.ports import port_sources
from surgery.errors import CorruptFile, Refused
from surgery.tensors import shape_of
from surgery_adapters.containers.pickle_tree import Made, walk
from surgery_adapters.containers.pickled_arrays import is_array, read_array
from surgery_adapters.containers.spaces import Source, Space, change_box, change_count, read_space
from surgery_adapters.networks.layers import Tensors
from surgery_adapters.rllib import connectors
from surgery_adapters.rllib.connectors import FILTER, FLATTEN, PREVIOUS, Connectors
from surgery_adapters.rllib.folder import RllibFolder, fields_of
from surgery_adapters.rllib.networks import Networks, square
from surgery_adapters.writeback.contract import since
from surgery_adapters.writeback.sequences import HINT, Numbering

_CONFIGS = ("model_config", "_model_config")
_SAME = Numbering()
_HEADS = ("q_values", "logits", "mean")


def widths(networks: Networks, tensors: Tensors, numbering: Numbering = _SAME) -> dict[str, Any]:
    """The settings of the model_config that make networks of these widths.

    Args:
      networks: as they were. tensors: as they will be. numbering: what the old ones are called, and which are new.

    Raises:
      Refused: networks that one setting sizes have different widths, or only some of them new layers.
    """
    found: dict[str, Any] = {}
    for setting, every in networks.sized.items():
        now = [_modules(modules, numbering) for modules in every]
        _check_depths(setting, every, now)
        sizes = [[_width(tensors, module) for module in modules] for modules in now]
        longest = max(sizes, key=len)  # the last layer of a SAC action's encoder is sized by another
        for modules, had in zip(now, sizes, strict=True):
            if had != longest[: len(had)]:
                raise Refused(
                    f"'{modules[0]}' would have other widths, {had}, than {longest}: RLlib has one '{setting}' for all",
                    hint="give the same widths to all of them",
                )
        found[setting] = longest
    if "conv_filters" in found:
        found["conv_filters"] = _filters(networks, tensors, numbering)
    if "lstm_cell_size" in found:
        found["lstm_cell_size"] = found["lstm_cell_size"][0]
    return found


def _modules(modules: Sequence[str], numbering: Numbering) -> list[str]:
    """The modules of a network's layers by their new names, new ones among them."""
    groups = {module.rpartition(".")[0] for module in modules}
    new = dict.fromkeys(name.rpartition(".")[0] for name in numbering.added)
    inside = [module for module in new if module.rpartition(".")[0] in groups]
    found = [numbering.moved(module) for module in modules] + inside
    return sorted(found, key=lambda module: int(module.rpartition(".")[2])) if inside else found


def _check_depths(setting: str, old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> None:
    deeper = {len(now) - len(had): had for had, now in zip(old, new, strict=True) if had}
    if len(deeper) > 1:
        most, least = max(deeper), min(deeper)
        raise Refused(
            f"the layers of '{deeper[most][0]}' would be {most - least} more than those of '{deeper[least][0]}': "
            f"RLlib has one '{setting}' for all",
            hint=f"put new layers behind the same places of all (--after {deeper[most][0]} "
            f"--after {deeper[least][0]}), or {HINT}",
        )


def _filters(networks: Networks, tensors: Tensors, numbering: Numbering) -> list[list[Any]]:
    """Channels, kernel, stride and padding of every convolution; new ones are padded so that sizes stay."""
    first, old = networks.sized["conv_filters"][0], iter(networks.filters)
    had = {numbering.moved(module) for module in first}
    found = []
    for module in _modules(first, numbering):
        kernel, (_, size, *rest) = _kernel(tensors, module), next(old) if module in had else (0, 0, 1)
        if module in had and square(size) != kernel and "valid" in rest:
            raise Refused(
                f"'{module}' is 'valid' in RLlib, which pads nothing there: with another kernel sizes would change",
                hint=HINT,
            )
        found.append([_width(tensors, module), size if square(size) == kernel else kernel, *rest])
    return found


def _kernel(tensors: Tensors, module: str) -> int:
    height, width = shape_of(tensors[f"{module}.weight"])[2:]
    if height != width:
        raise Refused(
            f"there is no rule for a kernel that is not square: '{module}' has {height}×{width}", hint=HINT
        )
    return height


def _width(tensors: Tensors, module: str) -> int:
    cells = f"{module}.weight_hh_l0"
    return shape_of(tensors[cells])[1] if cells in tensors else shape_of(tensors[f"{module}.weight"])[0]


def follow(folder: RllibFolder, checkpoint: Checkpoint, changed: Mapping[str, Any]) -> list[str]:
    """Change every model_config and every space, in place.

    Args:
      folder: the original. checkpoint: what is written. changed: settings of the model_config with their new values.

    Returns:
      the pickles that are others now.

    Raises:
      Refused: a space that cannot be changed, or statistics of observations, which have no place for new ones.
    """
    changes, filters = _Spaces(folder, checkpoint), connectors.statistics(folder)
    touched = []
    for name in folder.files():
        nodes = _nodes(folder, name) if name.endswith(".pkl") else []
        if changes.observation and name in filters:
            connectors.follow(folder.tree(name).root, changes.observation)
            touched.append(name)
        elif changes.observation and "env_runner" in name and name.endswith("/state.pkl"):
            _check_statistics(nodes, changes, name)
        configs = [_resize(node, changed) for node in nodes if isinstance(node, dict)]
        spaces = [changes.apply(node) for node in nodes if isinstance(node, Made)]
        if any(configs) or any(spaces):
            touched.append(name)
    return touched


def _nodes(folder: RllibFolder, name: str) -> list[object]:
    """The nodes of a pickle; none of one that cannot be read and says of no component how it is made."""
    try:
        return list(walk(folder.tree(name).root))
    except CorruptFile:
        if name.endswith("class_and_ctor_args.pkl"):
            raise
        return []


def _resize(node: dict[Any, Any], changed: Mapping[str, Any]) -> bool:
    """Whether a dict holds a model_config; if so, it is changed."""
    found = [fields for key in _CONFIGS if (fields := fields_of(node.get(key))) is not None]
    for fields in found:
        fields.update(changed)
    return bool(found and changed)


class _Spaces:
    """The spaces of the module and of its environment, wherever they stand, and what they become."""

    def __init__(self, folder: RllibFolder, checkpoint: Checkpoint) -> None:
        self._seen, self._acted = folder.space("observation_space"), folder.space("action_space")
        self._connectors = Connectors.read(folder)
        steps = since(checkpoint)
        sources = port_sources(steps, "input", "observation")
        self.observation: dict[int, Source] = {axis - 1: source for axis, source in sources.items() if axis}
        head = next((port.name for port in checkpoint.interface.outputs if port.name in _HEADS), "")
        self._action: Source | None = port_sources(steps, "output", head).get(1)
        port = checkpoint.interface.input("observation")
        self._low, self._high = port.low, port.high
        shown = self._connectors.shown
        self._shown = None if shown is None or _same(shown, self._seen) else shown
        self._check()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an observation, as it was."""
        return tuple(self._seen.shape)

    def _check(self) -> None:
        """Raises: Refused: which space is which cannot be told, or one does not follow the other."""
        seen = [space for space in (self._seen, self._shown) if space is not None]
        if (self.observation or self._action) and any(_same(space, self._acted) for space in seen):
            raise Refused(
                "observations and actions have the same space: which of the checkpoint's is which is not known",
                hint=HINT,
            )
        mixes = [name for name in self._connectors.names if name not in (FILTER, FLATTEN)]
        mixed = bool(mixes) and self._shown is not None and self._shown.shape != self.shape
        if mixed and (self.observation or (self._action and PREVIOUS in mixes)):
            raise Refused(
                f"the connector '{mixes[0]}' makes the module's input from observations and actions, and cannot be "
                "changed along",
                hint=HINT,
            )
        flat = self._shown is None or self._shown.shape == self.shape or _grows(self._shown, self.observation)
        if self.observation and not mixed and not flat:
            raise Refused(
                f"'{FLATTEN}' makes a vector of what the environment shows: it is not known where its new features "
                "come from",
                hint=HINT,
            )

    def apply(self, node: Made) -> bool:
        """Whether a node is one of the spaces that change; if so, it is changed."""
        if not (self.observation or self._action) or not node.called.startswith("gymnasium.spaces"):
            return False
        try:
            space = read_space(node)
        except (CorruptFile, Refused):
            return False
        if self.observation and _same(space, self._seen):
            change_box(space, self.observation, self._low, self._high)
            return True
        if self.observation and self._shown is not None and _same(space, self._shown):
            self._show(space)
            return True
        if self._action and _same(space, self._acted):
            self._act(space, self._action)
            return True
        return False

    def _show(self, space: Space) -> None:
        """Change the environment's space; the module's has other bounds, those of what a connector makes."""
        if space.kind == "Discrete":
            change_count(space, len(self.observation[0]))
        else:
            change_box(space, self.observation, None, None)

    def _act(self, space: Space, source: Source) -> None:
        if space.kind == "Discrete":
            change_count(space, len(source))
            return
        low, high = (
            float(bound.flat[-1]) if bound is not None else None for bound in (space.low, space.high)
        )
        change_box(space, {0: source}, low, high)


def _grows(shown: Space, sources: Mapping[int, Source]) -> bool:
    """Whether a space of choices has only more of them, behind the old ones."""
    source, n = sources.get(0, ()), sum(shown.counts)
    return shown.kind == "Discrete" and [*source[:n]] == [*range(n)] and {*source[n:]} <= {None}


def _same(one: Space, other: Space) -> bool:
    """Whether two spaces hold the same elements."""
    if (one.kind, one.shape, one.dtype, one.counts) != (other.kind, other.shape, other.dtype, other.counts):
        return False
    pairs = ((one.low, other.low), (one.high, other.high))
    return all(a is b or (a is not None and b is not None and (a == b).all()) for a, b in pairs)


def _check_statistics(nodes: list[object], changes: _Spaces, name: str) -> None:
    for node in nodes:
        if is_array(node) and read_array(node).shape == changes.shape:
            raise Refused(f"'{name}' holds statistics of observations, which cannot follow", hint=HINT)
