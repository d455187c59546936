"""Encode each product once, however many queries of it a batch samples or scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def encode_once(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let an encoder-decoder encode distinct rows only, inside this context; callers see all rows.

    The G completions of a group share their prompt, so of B rows only B / G differ. The encoder
    runs on those, and so do the decoder's layers that make keys and values of what was encoded (a
    sixth of the encoder's cost in T5). The hooks live below whatever wraps the model, so the
    wrapped forward (DDP, autocast, PEFT) is still the one called, and the gradients of repeated
    rows add up in the one row that was encoded. Results are those without it to rounding.

    Keys and values are not shared where activations are checkpointed: they are computed again in
    the backward pass, when the hooks are gone.
    """
    inverse: Tensor | None = None  # (B,): the distinct row that each row is; None if all differ
    distinct: Tensor | None = None  # (B / G, P, width), what was encoded
    repeated: Tensor | None = None  # (B, P, width), what the decoder is given
    shortened: set[nn.Module] = set()

    def keep_distinct_rows(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal inverse
        key = torch.cat([kwargs["input_ids"], kwargs["attention_mask"]], dim=1)  # (B, 2P)
        rows, inverse = torch.unique(key, dim=0, return_inverse=True)
        if len(rows) == len(key):
            inverse = None
            return None
        input_ids, attention_mask = rows.chunk(2, dim=1)
        return args, {**kwargs, "input_ids": input_ids, "attention_mask": attention_mask}

    def repeat_rows(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal distinct, repeated
        distinct = repeated = None
        if inverse is not None:
            distinct, repeated = output.last_hidden_state, output.last_hidden_state[inverse]
            output.last_hidden_state = repeated
        return output

    def take_distinct(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if repeated is None or not args or args[0] is not repeated:
            return None
        shortened.add(module)
        return (distinct, *args[1:])

    def repeat_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if module not in shortened:
            return output
        shortened.discard(module)
        return output[inverse]

    encoder = model.get_encoder()
    handles = [
        encoder.register_forward_pre_hook(keep_distinct_rows, with_kwargs=True),
        encoder.register_forward_hook(repeat_rows),
    ]
    if not (model.is_activation_checkpointing and torch.is_grad_enabled()):
        # Leaves and adapted layers: whichever is given the very tensor that the encoder gave.
        for module in model.get_decoder().modules():
            handles.append(module.register_forward_pre_hook(take_distinct))
            handles.append(module.register_forward_hook(repeat_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
