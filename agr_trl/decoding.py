"""Decode without what `generate` does around each token; on a GPU from a recorded step.

`generate` takes a token's logits over in a copy, and writes and reads scores of the vocabulary's
size once more to choose the token that was drawn. On a GPU a decoder of twelve layers is some
thousand small kernels a token, which Python launches more slowly than the GPU runs them: with
t5-base's shape and 256 queries an H200 computed for 15 % of the time of sampling. A step recorded
as a CUDA graph is launched as one.

Notation: B rows, P prompt tokens, D decoder prefix tokens, C new tokens, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache

# Drawn from logits (B, V): the tokens and their log-probabilities, each (B, 1).
Draw = Callable[[Tensor], tuple[Tensor, Tensor]]

LOOK_EVERY = 4  # tokens; to see whether all rows have ended a GPU has to be waited for


def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    prefix: Tensor,
    draw: Draw,
    *,
    max_tokens: int,
    end_tokens: list[int],
    pad_token: int,
) -> tuple[Tensor, Tensor]:
    """Return drawn tokens and their log-probabilities, both (B, C), as `generate` would draw them.

    Prompts are (B, P), the decoder starts with `prefix` (B, D); C is at most `max_tokens`. A row
    has pad tokens behind its end. On a GPU the first token is drawn step by step, which makes the
    keys and values of the prompts; the step of the second is recorded and replayed.
    """
    decoder = model.get_decoder().config
    is_recorded = input_ids.is_cuda
    own = DynamicCache(config=decoder)
    if is_recorded:  # replayed steps write to one place
        own = StaticCache(config=decoder, max_cache_len=prefix.size(1) + max_tokens)
    cache = EncoderDecoderCache(own, DynamicCache(config=decoder))
    encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    ends = torch.tensor(end_tokens, device=input_ids.device)
    is_open = torch.ones_like(prefix[:, :1], dtype=torch.bool)

    def step(given: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(
            encoder_outputs=encoded,
            attention_mask=attention_mask,
            decoder_input_ids=given,
            cache=cache,
            use_cache=True,
        ).logits[:, -1]
        drawn, logps = draw(logits)
        drawn = torch.where(is_open, drawn, pad_token)
        is_open.logical_and_(torch.isin(drawn, ends, invert=True))
        return drawn, logps

    last, logps = step(prefix)
    token = last.clone()  # what each replayed step is given, and leaves for the next
    tokens, all_logps = [last], [logps]

    def next_step() -> Tensor:
        drawn, logps = step(token)
        token.copy_(drawn)
        return logps

    advance = _recorded(next_step) if is_recorded else next_step
    look_every = LOOK_EVERY if is_recorded else 1
    for count in range(1, max_tokens):
        if count % look_every == 0 and not is_open.any():
            break
        all_logps.append(advance().clone())
        tokens.append(token.clone())
    return torch.cat(tokens, dim=1), torch.cat(all_logps, dim=1)


def _recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record `step` as a CUDA graph; return a function that replays it.

    Recording runs nothing. Not by `torch.cuda.graph`, which collects Python's garbage each time.
    Only this thread is watched: one that pins memory for a DataLoader would else break it.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        result = step()
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
