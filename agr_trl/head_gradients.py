"""Take the head's gradients while tokens are drawn, so that the loss leaves the head out.

The head, from a decoder's last hidden states to the logits of a whole vocabulary, is 40 % of a
T5-small's decoder. Where weights are those that a token t was drawn with, the loss needs of it
log p(t), which was met, and d log p(t) / d hidden, whose parts are at hand when t is drawn: the
softmax p is. It is as large as the hidden state, where logits and their gradient are as large as
the vocabulary.

Notation: B rows, C drawn tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from agr_trl.adapters import below_adapter


class Drawn(NamedTuple):
    """What is known of drawn tokens."""

    logps: Tensor  # (B, C), nats
    entropies: Tensor  # (B, C), nats, of the softmax that each was drawn from
    gradients: Tensor  # (B, C, width), d log p / d hidden

    def of_length(self, length: int) -> "Drawn":
        """Cut or pad with 0 to C = `length`."""
        missing = max(0, length - self.logps.size(1))
        logps, entropies = (nn.functional.pad(part, (0, missing))[:, :length] for part in self[:2])
        gradients = nn.functional.pad(self.gradients, (0, 0, 0, missing))[:, :length]
        return Drawn(logps, entropies, gradients)


def has_frozen_head(model: PreTrainedModel | PeftModel) -> bool:
    """Whether all that is trained lies in the encoder or the decoder, the head's weight apart.

    Not where the decoder is a model that has the head in it, as a pair of two models has.
    """
    if model.get_decoder().get_output_embeddings() is not None:
        return False
    parts = (model.get_encoder(), model.get_decoder())
    inside = {id(weight) for part in parts for weight in part.parameters()}
    inside -= {id(weight) for weight in below_adapter(model).get_output_embeddings().parameters()}
    return all(id(weight) in inside for weight in model.parameters() if weight.requires_grad)


class HeadGradients:
    """The head's gradients for each token that a `Sampler` draws inside `recording`."""

    def __init__(self) -> None:
        self._hidden: Tensor | None = None  # (B, 1, width), from which the logits were made
        self._logits: Tensor | None = None  # (B, 1, V)
        self._entropies: list[Tensor] = []
        self._gradients: list[Tensor] = []

    @contextmanager
    def recording(self, model: PreTrainedModel | PeftModel) -> Iterator[None]:
        """Record the head alone in each forward pass, inside a context without gradients."""
        hooks = [
            model.get_decoder().register_forward_hook(self._begin),
            below_adapter(model).register_forward_hook(self._end),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: nn.Module, args: Any, output: Any) -> Any:
        self._hidden = output.last_hidden_state[:, -1:].detach().requires_grad_()
        output.last_hidden_state = self._hidden
        torch.set_grad_enabled(True)
        return output

    def _end(self, module: nn.Module, args: Any, output: Any) -> Any:
        torch.set_grad_enabled(False)
        self._logits = output.logits
        output.logits = output.logits.detach()
        return output

    def take(
        self, scaled: Tensor, probabilities: Tensor, tokens: Tensor, temperature: float
    ) -> None:
        """Take the gradients of drawn tokens (B, 1) from logits / T, `scaled`, and their softmax.

        The probabilities are written over.

        With x = logits / T, p its softmax and Z the softmax's sum: d log p(t) / d logits_v =
        ([v = t] - p_v) / T, and H = log Z - sum_v p_v x_v, where log Z = x_t - log p_t.
        """
        assert self._logits is not None and self._hidden is not None
        normalizers = scaled.gather(1, tokens) - probabilities.gather(1, tokens).log()
        self._entropies.append(normalizers - torch.linalg.vecdot(probabilities, scaled)[:, None])
        # The factor -1 / T stands before what is as wide as the hidden state, not the vocabulary.
        probabilities.scatter_add_(1, tokens, torch.full_like(normalizers, -1))
        of_logits = probabilities[:, None].to(self._logits.dtype)
        (gradient,) = torch.autograd.grad(self._logits, self._hidden, of_logits)
        self._gradients.append(gradient.float() / -temperature)
        self._logits = self._hidden = None

    def of(self, logps: Tensor) -> Drawn:
        """Return what was taken beside the tokens' log-probabilities (B, C)."""
        return Drawn(logps, torch.cat(self._entropies, dim=1), torch.cat(self._gradients, dim=1))


@contextmanager
def without_head(model: PreTrainedModel | PeftModel, states: list[Tensor]) -> Iterator[None]:
    """Keep the decoder's last hidden states from the head, inside this context.

    They are appended to `states`. The head is given one of them, since no model expects none.
    """

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        states.append(output.last_hidden_state)
        output.last_hidden_state = output.last_hidden_state[:1, :1]
        return output

    hook = model.get_decoder().register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def log_probabilities(drawn: Drawn, states: Tensor) -> Tensor:
    """Return log-probabilities (B, C) whose gradients flow to hidden states (B, C, width)."""
    return drawn.logps + ((states - states.detach()) * drawn.gradients).sum(-1)
