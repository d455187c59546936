"""Attend in float32 where autocast would take bfloat16 on a CPU, whose gradients are slow there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextmanager
def float32_attention(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let a model attend in float32, inside this context, under bfloat16 autocast on a CPU.

    torch's fused attention (pytorch/pytorch#104863) takes two to eight times as long for its
    gradients in bfloat16 as in float32 on a CPU, the most for short rows, and is no faster
    forward. What attention returns is rounded to bfloat16 as before. Elsewhere nothing changes, nor
    where activations are checkpointed: attention is computed again in the backward pass then, when
    this context is gone.
    """
    if not torch.is_autocast_enabled("cpu") or model.is_activation_checkpointing:
        yield
        return
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: nn.Module, query: Tensor, *others: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        in_full = [_float32(value) for value in (query, *others)]
        options = {name: _float32(value) for name, value in options.items()}
        with torch.autocast("cpu", enabled=False):
            output, _ = plain(module, *in_full, **options)
        return output.to(torch.get_autocast_dtype("cpu")), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
