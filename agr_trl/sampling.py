"""Draw tokens from the plain softmax at a temperature, and remember how likely each was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

# What `generate` is told when a `Sampler` draws.
GREEDY = {"do_sample": False, **dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))}


class Sampler(LogitsProcessor):
    """Draw each next token from softmax(logits / temperature) inside `generate`.

    `generate` is told not to sample: it takes the largest score, and this gives 0 to the token that
    it has drawn and -inf to all others. Its own sampling (`torch.multinomial`) draws an exponential
    number for every token of the vocabulary, a quarter of all time with t5-small's shape on a CPU;
    this draws one uniform number a row and looks it up in the distribution function. Uses torch's
    global random state. One instance serves one call of `generate`.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that leave one token a row, for logits (B, V)."""
        logps = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        below = logps.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device)
        # To the right of equal sums, so that a token without probability is never drawn.
        tokens = torch.searchsorted(below, drawn * below[:, -1:], right=True)
        tokens = tokens.clamp(max=scores.size(1) - 1)
        self._logps.append(logps.gather(1, tokens))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0)

    @property
    def log_probabilities(self) -> Tensor:
        """Log-probabilities of the tokens drawn so far, (B, C) in nats.

        What stands behind a row's end was drawn too, and dropped by `generate`.
        """
        return torch.cat(self._logps, dim=1)


@contextmanager
def blank_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Hide the checkpoint's generation settings: `generate` fills every unset one from them.

    BART brings 4 beams, `no_repeat_ngram_size`, `min_length` and a forced EOS. They come back on
    leaving, so a saved model keeps its own.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
