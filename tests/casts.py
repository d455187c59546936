"""Count how often tensors of some shape are cast, so that a test needs no clock."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CastCounter(TorchDispatchMode):
    """Counts casts to `dtype` of tensors whose shape `is_counted`."""

    def __init__(
        self, is_counted: Callable[[torch.Size], bool], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__()
        self.is_counted, self.dtype, self.casts = is_counted, dtype, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # In inference mode a cast comes as it is called, otherwise as what it is made of.
        casts = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        is_cast = func in casts and output.dtype == self.dtype != args[0].dtype
        self.casts += is_cast and self.is_counted(args[0].shape)
        return output
