"""Encode each product once, however many queries of it a batch samples or scores.

Notation: B rows, of which n differ, P prompt tokens, C decoder tokens, H heads of d numbers.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

# Families whose cross-attention is computed by what ALL_ATTENTION_FUNCTIONS holds.
_WITH_EXCHANGEABLE_ATTENTION = ("t5", "mt5", "bart", "mbart")


@contextmanager
def encode_once(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let an encoder-decoder encode distinct rows only, inside this context; callers see all rows.

    The G completions of a group share their prompt, so of B rows only B / G differ. The encoder
    runs on those, and so do the decoder's layers that make keys and values of what was encoded (a
    sixth of the encoder's cost in T5). T5, BART and their kin also attend to them where they are:
    the queries of a product read its keys and values once, at every token. For other families they
    are repeated. The hooks live below whatever wraps the model, so the wrapped forward (DDP,
    autocast, PEFT) is still the one called, and the gradients of repeated rows add up in the one
    row that was encoded. Results are those without it to rounding.

    Where activations are checkpointed only the encoder is shared: keys and values are computed
    again in the backward pass, when the hooks are gone.
    """
    encoder, decoder = model.get_encoder(), model.get_decoder()
    shared = _DistinctRows()
    with ExitStack() as hooks:

        def hook(handle: Any) -> None:
            hooks.callback(handle.remove)

        hook(encoder.register_forward_pre_hook(shared.keep_distinct, with_kwargs=True))
        if model.is_activation_checkpointing and torch.is_grad_enabled():
            hook(encoder.register_forward_hook(shared.repeat_encoded))
        elif (
            model.config.model_type in _WITH_EXCHANGEABLE_ATTENTION
            and decoder.config._attn_implementation == "sdpa"
        ):
            hook(encoder.register_forward_hook(shared.remember_encoded))
            hook(decoder.register_forward_pre_hook(shared.mask_distinct, with_kwargs=True))
            shared.plain_attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
            hooks.callback(ALL_ATTENTION_FUNCTIONS.update, sdpa=shared.plain_attention)
            ALL_ATTENTION_FUNCTIONS["sdpa"] = shared.attend
        else:
            hook(encoder.register_forward_hook(shared.repeat_encoded))
            # Leaves and adapted layers: whichever is given the very tensor that the encoder gave.
            for module in decoder.modules():
                hook(module.register_forward_pre_hook(shared.take_distinct))
                hook(module.register_forward_hook(shared.repeat_output))
        yield


@dataclass
class Encoding:
    """What an encoder made of the distinct rows of a batch."""

    rows: Tensor  # (n, 2P), token ids beside their mask
    output: ModelOutput  # of the encoder: also what else the family's decoder reads

    @property
    def hidden(self) -> Tensor:
        """The last hidden states, (n, P, width)."""
        return self.output.last_hidden_state


def encode(
    model: PreTrainedModel | PeftModel, input_ids: Tensor, attention_mask: Tensor
) -> Encoding | None:
    """Encode the distinct rows of a batch, both (B, P), with gradients where they are on.

    None where all differ, which `encode_once` leaves in their order.
    """
    rows = _beside(input_ids, attention_mask).unique(dim=0)
    if len(rows) == len(input_ids):
        return None
    input_ids, attention_mask = rows.chunk(2, dim=1)
    encoder = model.get_encoder()
    output = encoder(input_ids=input_ids, attention_mask=attention_mask)
    return Encoding(rows, output)


@contextmanager
def encoded_before(model: PreTrainedModel | PeftModel, encoding: Encoding | None) -> Iterator[None]:
    """Let the encoder answer with `encoding`, inside this context, to the rows it was made of.

    Other rows are encoded as ever. Goes around `encode_once`, which asks for distinct rows in the
    order of `encode`. The weights must be those that `encoding` was made with.
    """
    if encoding is None:
        yield
        return
    encoder = model.get_encoder()
    own, replaced = encoder.forward, vars(encoder).get("forward")  # by accelerate, for one

    def forward(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        if torch.equal(_beside(input_ids, attention_mask), encoding.rows):
            return copy.copy(encoding.output)
        return own(input_ids=input_ids, attention_mask=attention_mask, **options)

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
        if replaced is not None:
            encoder.forward = replaced


def _beside(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return torch.cat([input_ids, attention_mask], dim=1)


class _DistinctRows:
    """What the hooks of one context know of its batch."""

    def __init__(self) -> None:
        self.place: Tensor | None = None  # (B,), each row's distinct one; None where all differ
        self.mask: Tensor | None = None  # (n, P), of the distinct rows
        self.encoded: Tensor | None = None  # (n, P, width), what was encoded
        self.repeated: Tensor | None = None  # (B, P, width), what the decoder is given, or None
        self.by_row: Tensor | None = None  # (B,), rows ordered by their distinct row
        self.is_even = False  # each distinct row stands for as many rows
        self.shortened: set[nn.Module] = set()
        self.plain_attention: Callable[..., tuple[Tensor, None]]

    def keep_distinct(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the encoder distinct rows."""
        key = _beside(kwargs["input_ids"], kwargs["attention_mask"])  # (B, 2P)
        rows, place, counts = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
        self.encoded = self.repeated = None
        if len(rows) == len(key):
            self.place = None
            return None
        self.place, self.by_row = place, place.argsort(stable=True)
        self.is_even = bool((counts == counts[0]).all())
        input_ids, self.mask = rows.chunk(2, dim=1)
        return args, {**kwargs, "input_ids": input_ids, "attention_mask": self.mask}

    def remember_encoded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Know again what the decoder will be given."""
        self.encoded = output.last_hidden_state

    def repeat_encoded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Give the decoder as many rows as the caller gave the encoder."""
        if self.place is not None:
            self.encoded = output.last_hidden_state
            self.repeated = output.last_hidden_state = output.last_hidden_state[self.place]
        return output

    def mask_distinct(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the decoder the mask of the distinct rows beside what was encoded of them."""
        if self.place is None or kwargs["encoder_hidden_states"] is not self.encoded:
            return None
        return args, {**kwargs, "encoder_attention_mask": self.mask}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        position_bias: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend from (B, H, C, d) to keys and values (n, H, P, d); returns (B, C, H, d).

        The queries of a distinct row stand one behind the other: (n, H, B / n * C, d).
        """
        options["position_bias"] = position_bias
        if len(key) < len(query) and not self.is_even:
            key, value = key[self.place], value[self.place]
            if attention_mask is not None:
                attention_mask = attention_mask[self.place]
        if len(key) == len(query):
            return self.plain_attention(module, query, key, value, attention_mask, **options)
        assert self.by_row is not None
        group = len(query) // len(key)
        query = query[self.by_row].unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)
        # The C positions of each mask, once for each of the group; one position is for all.
        if attention_mask is not None and attention_mask.size(2) > 1:
            attention_mask = attention_mask.repeat(1, 1, group, 1)
        if position_bias is not None and position_bias.size(2) > 1:
            options["position_bias"] = position_bias.repeat(1, 1, group, 1)
        output, _ = self.plain_attention(module, query, key, value, attention_mask, **options)
        in_order = output.unflatten(1, (group, -1)).flatten(0, 1)
        return torch.empty_like(in_order).index_copy(0, self.by_row, in_order), None

    def take_distinct(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give a layer of the decoder that is given the repeated rows the distinct ones."""
        if self.repeated is None or not args or args[0] is not self.repeated:
            return None
        self.shortened.add(module)
        return (self.encoded, *args[1:])

    def repeat_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Repeat what that layer made."""
        if module not in self.shortened:
            return output
        self.shortened.discard(module)
        return output[self.place]
