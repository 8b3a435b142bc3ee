"""How each ONNX operator is said in PyTorch: one small function per operator, in families."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.torch.call import Translation
from surgery.torch.operators import (
    activation,
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalise,
    pooling,
    recurrent,
    reduction,
    resize,
    shapes,
)

FAMILIES = (
    activation,
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalise,
    pooling,
    recurrent,
    reduction,
    resize,
    shapes,
)

TRANSLATIONS: Mapping[str, Translation] = {
    name: translation for family in FAMILIES for name, translation in family.TRANSLATIONS.items()
}
