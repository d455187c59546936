"""How likely tokens were, and how sure the model: without a table of the vocabulary's size more."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_ROWS = 16  # whose scores over a vocabulary of some ten thousand tokens stay in a core's cache


def token_scores(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of tokens and entropies in nats, each float32 (B, C).

    `logits` is (B, C, V) in any precision, `tokens` (B, C). log p(t) = x_t - log sum_v exp(x_v) and
    H = log sum_v exp(x_v) - sum_v p_v x_v, with x = logits / temperature. Log-probabilities have
    gradients, d log p(t) / d x_v = [v = t] - p_v; entropies have none. A block of rows is taken at
    a time, forward and backward, so that nothing of the size of the logits is written but their
    gradient. Step by step, as in TRL, a float32 step of t5-small's shape reads and writes them ten
    times on a CPU.
    """
    logps, entropies = _TokenScores.apply(logits.flatten(0, 1), tokens.flatten(), temperature)
    return logps.view_as(tokens), entropies.view_as(tokens)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logps, entropies, normalizers = logits.new_empty((3, len(logits)), dtype=torch.float32)
        space = logits.new_empty((_ROWS, logits.size(1)), dtype=torch.float32)
        for rows, scores in _scaled_blocks(logits, temperature):  # (R, V)
            peak = scores.amax(1, keepdim=True)
            chosen = scores.sub_(peak).gather(1, tokens[rows, None])
            weights = torch.exp(scores, out=space[: len(scores)])
            total = weights.sum(1)
            logps[rows] = chosen[:, 0] - total.log()
            entropies[rows] = total.log() - weights.mul_(scores).sum(1) / total
            normalizers[rows] = total.log() + peak[:, 0]
        ctx.save_for_backward(logits, tokens, normalizers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, of_logps: Tensor, of_entropies: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, normalizers = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        of_scores = (of_logps / ctx.temperature)[:, None]  # (N, 1)
        for rows, scores in _scaled_blocks(logits, ctx.temperature):
            probabilities = scores.sub_(normalizers[rows, None]).exp_()
            change = probabilities.mul_(-of_scores[rows])
            gradient[rows] = change.scatter_add_(1, tokens[rows, None], of_scores[rows])
        return gradient, None, None


def _scaled_blocks(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows and their logits / temperature, float32 (R, V), in memory that is used again."""
    scratch = logits.new_empty((_ROWS, logits.size(1)), dtype=torch.float32)
    for begin in range(0, len(logits), _ROWS):
        rows = slice(begin, min(begin + _ROWS, len(logits)))
        scores = scratch[: rows.stop - rows.start]
        yield rows, scores.copy_(logits[rows]).div_(temperature)
