"""Cast weights that do not change to autocast's precision once, however often a step uses them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold the frozen float32 weights of linear layers in `dtype` inside this context.

    In inference mode that is all of them. Autocast keeps what it has cast only of weights that are
    trained, and in inference mode of none (`cached_cast` in torch's autocast_mode.cpp). Under LoRA
    nearly all are frozen, and were cast anew for every token that is decoded: a quarter of a
    bfloat16 step of t5-small's shape on a CPU. Under autocast to `dtype` results are the same to
    the bit, since a linear layer is given the same rounded weight; where an embedding shares that
    weight (T5's output layer) it keeps the float32 one. The float32 weights come back on leaving,
    so that nothing is merged into rounded ones.
    """
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    are_all_frozen = torch.is_inference_mode_enabled()
    own = {
        part: part.weight
        for part in linear
        if part.weight.dtype == torch.float32 and (are_all_frozen or not part.weight.requires_grad)
    }
    for part, weight in own.items():
        part.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    try:
        yield
    finally:
        for part, weight in own.items():
            part.weight = weight
