"""Count how often a model's weights are cast, so that a test needs no clock."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CastCounter(TorchDispatchMode):
    """Counts casts of tensors with one of `shapes` from float32 to bfloat16."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.casts = shapes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # In inference mode a cast comes as it is called, otherwise as what it is made of.
        casts = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        is_cast = func in casts and output.dtype == torch.bfloat16
        self.casts += is_cast and args[0].shape in self.shapes
        return output
