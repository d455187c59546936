"""Draw tokens from the plain softmax at a temperature, and remember how likely each was."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from agr_trl.adapters import below_adapter
from agr_trl.decoding import decode
from agr_trl.encode_once import encode_once
from agr_trl.frozen_linear import frozen_linear, merged_adapters
from agr_trl.head_gradients import HeadGradients

_BLOCK = 128  # tokens: of the order of a vocabulary's root, so that both look-ups are short

# Families that are decoded here and not by `generate`; their step can be recorded on a GPU.
_OWN_DECODING = ("t5", "mt5")

# What `generate` is told when a `Sampler` draws.
GREEDY = {"do_sample": False, **dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))}


class Sampler(LogitsProcessor):
    """Draw each next token from softmax(logits / temperature) inside `generate`.

    `generate` is told not to sample: it takes the largest score, and this gives 0 to the token that
    it has drawn and -inf to all others. Its own sampling (`torch.multinomial`) draws an exponential
    number for every token of the vocabulary, a quarter of all time with t5-small's shape on a CPU;
    this draws one uniform number a row and looks it up in the distribution function, first in that
    of blocks of tokens and then within one, so that no sums over the whole vocabulary are written.
    Uses torch's global random state. One instance serves one call of `generate`, and writes each
    token's scores over those of the last: fresh memory costs more than the arithmetic. A `head`
    takes the gradients of what is drawn.
    """

    def __init__(self, temperature: float, head: HeadGradients | None = None) -> None:
        self._temperature = temperature
        self._head = head
        self._logps: list[Tensor] = []
        self._scratch: Tensor | None = None  # (2, B, V) float32

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that leave one token a row, for logits (B, V)."""
        tokens, logps = self.draw(scores)
        self._logps.append(logps)
        assert self._scratch is not None
        return self._scratch[0].fill_(-torch.inf).scatter_(1, tokens, 0)

    def draw(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return a token a row and its log-probability, each (B, 1), for logits (B, V)."""
        if self._scratch is None:
            self._scratch = scores.new_empty((2, *scores.shape), dtype=torch.float32)
        scaled, probabilities = self._scratch
        torch.div(scores.float(), self._temperature, out=scaled)
        torch.softmax(scaled, dim=-1, out=probabilities)
        blocks = _block_sums(probabilities)  # (B, V / _BLOCK)
        uniform = torch.rand(len(scores), 1, dtype=_precise(scores.device), device=scores.device)
        block, rest = _look_up(blocks, uniform)
        tokens = block * _BLOCK + torch.arange(_BLOCK, device=scores.device)  # (B, _BLOCK)
        inside = probabilities.gather(1, tokens.clamp(max=scores.size(1) - 1))
        place, _ = _look_up(inside.masked_fill(tokens >= scores.size(1), 0), rest)
        tokens = tokens.gather(1, place)
        logps = probabilities.gather(1, tokens).log()
        if self._head:
            self._head.take(scaled, probabilities, tokens, self._temperature)
        return tokens, logps

    @property
    def log_probabilities(self) -> Tensor:
        """Log-probabilities of the tokens drawn so far, (B, C) in nats.

        What stands behind a row's end was drawn too, and dropped by `generate`.
        """
        return torch.cat(self._logps, dim=1)


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel | PeftModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    prefix: Tensor,
    config: GenerationConfig,
    temperature: float,
    head: HeadGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a completion for each prompt (B, P), decoded behind `prefix` (B, D).

    Returns tokens and their log-probabilities in nats, both (B, C): C is at most `max_new_tokens`
    of `config`, which also names the end and pad tokens, and is less where all rows end before.
    What stands behind a row's end means nothing. Equal prompts are encoded once. On a GPU a T5
    replays a recorded step; draws then differ from those of `generate`, whose law they have, and
    `head` is not supported there.
    """
    sampler = Sampler(temperature, head)
    base = below_adapter(model)
    device = input_ids.device.type
    is_autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_autocast else torch.float32
    with ExitStack() as contexts:
        contexts.enter_context(encode_once(model))
        if not is_recorded(model):
            contexts.enter_context(frozen_linear(base, dtype))
            if dtype == torch.float32:
                contexts.enter_context(merged_adapters(model.get_decoder()))
        if head:
            contexts.enter_context(head.recording(model))
        if model.config.model_type in _OWN_DECODING:
            ends = config.eos_token_id
            return decode(
                base,
                input_ids,
                attention_mask,
                prefix,
                sampler.draw,
                max_tokens=config.max_new_tokens,
                end_tokens=ends if isinstance(ends, list) else [ends],
                pad_token=config.pad_token_id,
            )
        contexts.enter_context(blank_generation_config(model))
        tokens = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=prefix,
            decoder_attention_mask=torch.ones_like(prefix),
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler]),
        )  # (B, D + C)
    return tokens[:, prefix.size(1) :], sampler.log_probabilities


def is_recorded(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a model decodes by a recorded step."""
    return model.device.type == "cuda" and model.config.model_type in _OWN_DECODING


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs lack


def _block_sums(probabilities: Tensor) -> Tensor:
    """Sum (B, V) over blocks of tokens; the last may be short."""
    whole = probabilities.size(1) // _BLOCK * _BLOCK
    sums = probabilities[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)).sum(-1)
    return torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], dim=1)


def _look_up(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return where (B, 1) numbers in [0, 1) fall among weights (B, N), and where within that.

    Both (B, 1); a weight of 0 is never met, since of equal sums the rightmost is taken.
    """
    below = weights.cumsum(-1, dtype=_precise(weights.device))
    drawn = uniform * below[:, -1:]
    last = weights.size(1) - 1 - weights.flip(1).ne(0).int().argmax(1, keepdim=True)
    place = torch.searchsorted(below, drawn, right=True).minimum(last)
    weight = weights.gather(1, place).to(below.dtype)
    return place, (1 - (below.gather(1, place) - drawn) / weight).clamp(0, 1)


def mark_unknown_pieces(
    texts: Sequence[str], token_ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return decoded texts in which a piece that the tokenizer does not know is U+FFFD.

    Decoding leaves it out as it does an end token, and joins what stands on its two sides.
    """
    unknown = tokenizer.unk_token_id
    left_out = {*tokenizer.all_special_ids} - {unknown}
    marked = list(texts)
    for row, ids in enumerate(token_ids):
        if unknown in ids:
            text = tokenizer.decode([token for token in ids if token not in left_out])
            marked[row] = text.replace(tokenizer.unk_token, "\ufffd")
    return marked


@contextmanager
def blank_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Hide the checkpoint's generation settings: `generate` fills every unset one from them.

    BART brings 4 beams, `no_repeat_ngram_size`, `min_length` and a forced EOS. They come back on
    leaving, so a saved model keeps its own.
    """
    base = below_adapter(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
