"""The generator's rewards: hard for the frozen retriever, and still about the product.

Each reward is a callable that TRL calls with the completions and the dataset's columns; its
`__name__` becomes the metric's name, and `reward_weights` in the YAML weighs the sum. All lie in
[0, 1], and a blank query earns 0 from each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from agr_trl.acceptance import AcceptanceFilter, independent_scores, query_statistics, words
from agr_trl.config import RewardArguments
from agr_trl.errors import UserError
from agr_trl.losses import relevance_bce
from agr_trl.relevance import RelevanceScorer
from agr_trl.retriever import Retriever


class RetrieverLossReward:
    """L_R of the frozen retriever against the label "relevant", shaped into [0, 1].

    With z the log-odds and p = sigmoid(z):
    `bce`: min(softplus(-z), cap) / cap. With cap 4 nats: z = 0 gives .173, z = -4 or less gives 1.
    `uncertainty`: 2 * min(p, 1 - p); 1 where the retriever cannot decide.
    `margin_band`: 1 for p in [band_low, band_high], falling linearly to 0 at p = 0 and p = 1; keeps
    the generator away from pairs that are simply wrong (R-Zero, arXiv 2508.05004, keeps .3 to .8).
    With `gate_loss_reward`, a query with S below `min_relevance` earns nothing for being hard;
    raises `UserError` if there is no S to gate by. Freezes the retriever.
    """

    __name__ = "retriever_loss"

    def __init__(
        self,
        retriever: Retriever,
        settings: RewardArguments,
        relevance: RelevanceScorer | None = None,
    ) -> None:
        if settings.gate_loss_reward and relevance is None:
            raise UserError("`gate_loss_reward` needs S; pass `relevance`, or set it to false")
        self.retriever = retriever.freeze()
        self.settings = settings
        self.gate = relevance if settings.gate_loss_reward else None

    def __call__(
        self, completions: Sequence[str], document: Sequence[str], **_: Any
    ) -> list[float]:
        """Return one reward a completion, in [0, 1]."""
        logits = self.retriever.score(completions, document)
        rewards = self.shape(logits)
        rewards[[not words(completion) for completion in completions]] = 0.0
        if self.gate is not None:
            relevance = independent_scores(self.gate, completions, document)
            rewards[relevance < self.settings.min_relevance] = 0.0
        return rewards.tolist()

    def shape(self, logits: np.ndarray) -> np.ndarray:
        """Map log-odds (N,) to rewards (N,) by the formula of `loss_reward`."""
        settings = self.settings
        if settings.loss_reward == "bce":
            z = torch.from_numpy(np.asarray(logits, dtype=np.float32))
            losses = relevance_bce(z, torch.ones_like(z)).numpy()
            return np.minimum(losses, settings.loss_cap_nats) / settings.loss_cap_nats
        p = expit(np.asarray(logits, dtype=np.float64))
        if settings.loss_reward == "uncertainty":
            return 2 * np.minimum(p, 1 - p)
        low, high = settings.band_low, settings.band_high
        return np.clip(np.minimum(p / low, (1 - p) / (1 - high)), 0, 1)


class RelevanceReward:
    """S(q, d) itself, (cosine + 1) / 2 in [0, 1]; also logs how the queries look as a set."""

    __name__ = "relevance"

    def __init__(self, relevance: RelevanceScorer) -> None:
        self.relevance = relevance

    def __call__(
        self,
        completions: Sequence[str],
        document: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Return one reward a completion, in [0, 1]."""
        if log_metric is not None:
            for name, value in query_statistics(completions, document).items():
                log_metric(f"queries/{name}", value)
        return independent_scores(self.relevance, completions, document).tolist()


class AcceptanceReward:
    """1 for a query that the acceptance filter would keep, else 0.

    Its mean is the acceptance rate. The recipes give it weight 0: logged, not optimised.
    """

    __name__ = "accepted"

    def __init__(self, relevance: RelevanceScorer, acceptance: AcceptanceFilter) -> None:
        self.relevance = relevance
        self.acceptance = acceptance

    def __call__(
        self,
        completions: Sequence[str],
        document: Sequence[str],
        title: Sequence[str],
        product_index: Sequence[int],
        **_: Any,
    ) -> list[float]:
        """Return 0.0 or 1.0 a completion."""
        relevance = independent_scores(self.relevance, completions, document)
        reasons = self.acceptance.reasons(completions, title, np.asarray(product_index), relevance)
        return [float(not reason) for reason in reasons]
