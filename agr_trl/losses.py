"""L_R, the retriever's loss: one definition for its Trainer and for the generator's reward."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def relevance_bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each pair in nats, shape (N,), not reduced.

    `logits` are log-odds of "relevant", (N,) or (N, 1); `labels` lie in [0, 1] and may be soft.
    BCE(z, y) = y * softplus(-z) + (1 - y) * softplus(z), in float32 whatever the model's type.
    """
    flat = logits.reshape(-1).float()
    return binary_cross_entropy_with_logits(flat, labels.reshape(-1).float(), reduction="none")


def trainer_relevance_loss(
    outputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the mean L_R over the effective batch, as `Trainer(compute_loss_func=...)` wants it.

    A sum divided by the number of pairs in all accumulation steps and processes. A plain mean would
    be multiplied by the number of accumulation steps and processes, loss and gradients alike,
    because Trainer takes any loss function's result as already scaled (transformers#47688).
    """
    losses = relevance_bce(outputs["logits"], labels)
    if num_items_in_batch is None:
        return losses.mean()
    return losses.sum() / num_items_in_batch
