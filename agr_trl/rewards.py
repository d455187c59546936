"""The generator's rewards: hard for the frozen retriever, and still about the product.

Each reward is a callable that TRL calls with the completions and the dataset's columns; its
`__name__` becomes the metric's name, and `reward_weights` in the YAML weighs the sum. All lie in
[0, 1], and a blank query earns 0 from each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit, rel_entr

from agr_trl.acceptance import AcceptanceFilter, independent_scores, query_statistics
from agr_trl.config import RewardArguments
from agr_trl.errors import UserError
from agr_trl.losses import relevance_bce
from agr_trl.relevance import RelevanceScorer, Teacher
from agr_trl.retriever import Retriever
from agr_trl.search import BM25Index, score_distinct
from agr_trl.word_matches import words


class RetrieverLossReward:
    """L_R of the frozen retriever, shaped into [0, 1].

    With z the log-odds and p = sigmoid(z), against the label "relevant":
    `bce`: min(softplus(-z), cap) / cap. With cap 4 nats: z = 0 gives .173, z = -4 or less gives 1.
    `uncertainty`: 2 * min(p, 1 - p); 1 where the retriever cannot decide.
    `margin_band`: 1 for p in [band_low, band_high], falling linearly to 0 at p = 0 and p = 1; keeps
    the generator away from pairs that are simply wrong (R-Zero, arXiv 2508.05004, keeps .3 to .8).
    Against the soft label y of `teacher`, from which the retriever will learn the query:
    `disagreement`: min(KL(y || p), cap) / cap, the loss that learning can take away, whichever of
    the two is higher. With `loss_reward_negatives` n, its mean over the product and the query's n
    best BM25 products beside it, the pairs that would be mined as its negatives.
    With `others` it is the mean over all retrievers: what only one of them gets wrong earns less
    (attacks on an ensemble, Tramèr et al., arXiv 1705.07204).
    With `gate_loss_reward`, a query that `gate` would not accept earns nothing for being hard, nor
    does a second copy within its group, or within the part of the group that this process has, if
    the batch of a process is no multiple of the group. Raises `UserError` if there is no gate, or
    no soft label or index where the settings need one. Freezes the retrievers.
    """

    __name__ = "retriever_loss"

    def __init__(
        self,
        retriever: Retriever,
        settings: RewardArguments,
        gate: "AcceptanceReward | None" = None,
        teacher: Teacher | None = None,
        index: BM25Index | None = None,
        catalogue: Sequence[str] = (),
        others: Sequence[Retriever] = (),
    ) -> None:
        if settings.gate_loss_reward and gate is None:
            raise UserError("`gate_loss_reward` needs rules; pass `gate`, or set it to false")
        if settings.loss_reward == "disagreement" and teacher is None:
            raise UserError("`loss_reward: disagreement` needs soft labels; pass `teacher`")
        if settings.loss_reward_negatives and index is None:
            raise UserError("`loss_reward_negatives` needs BM25; pass `index` and `catalogue`")
        self.retrievers = [one.freeze() for one in (retriever, *others)]
        self.settings = settings
        self.gate = gate if settings.gate_loss_reward else None
        self.teacher, self.index, self.catalogue = teacher, index, catalogue

    def __call__(
        self,
        completions: Sequence[str],
        document: Sequence[str],
        title: Sequence[str] = (),
        product_index: Sequence[int] = (),
        **_: Any,
    ) -> list[float]:
        """Return one reward a completion, in [0, 1]."""
        if self.settings.loss_reward == "disagreement":
            rewards = self._disagreement(completions, document, product_index)
        else:
            rewards = np.mean(
                [self.shape(logits) for logits in self._log_odds(completions, document)], axis=0
            )
        rewards[[not words(completion) for completion in completions]] = 0.0
        if self.gate is not None:
            rewards = rewards * self.gate(completions, document, title, product_index)
        return rewards.tolist()

    def _log_odds(self, queries: Sequence[str], documents: Sequence[str]) -> list[np.ndarray]:
        """Return what each retriever gives aligned pairs, (N,)."""
        return [score_distinct(one.score, queries, documents) for one in self.retrievers]

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

    def _disagreement(
        self, completions: Sequence[str], document: Sequence[str], product_index: Sequence[int]
    ) -> np.ndarray:
        """Return the mean capped KL of each query's pairs, (N,) in [0, 1]."""
        assert self.teacher is not None
        rows, documents = np.arange(len(completions)), list(document)
        if self.settings.loss_reward_negatives:
            others, texts = self._neighbours(completions, product_index)
            rows, documents = np.concatenate([rows, others]), documents + texts
        queries = [completions[row] for row in rows.tolist()]
        labels, cap = self.teacher.probability(queries, documents), self.settings.loss_cap_nats
        losses = [excess_loss(expit(own), labels) for own in self._log_odds(queries, documents)]
        capped = np.mean([np.minimum(loss, cap) / cap for loss in losses], axis=0)
        return np.bincount(rows, capped) / np.bincount(rows)

    def _neighbours(
        self, completions: Sequence[str], product_index: Sequence[int]
    ) -> tuple[np.ndarray, list[str]]:
        """Return the best BM25 products that are not the query's own: its row, and the text."""
        assert self.index is not None
        count = self.settings.loss_reward_negatives
        top, scores = self.index.top(list(completions), count + 1)
        usable = (scores > 0) & (top != np.asarray(product_index)[:, None])
        usable &= usable.cumsum(axis=1) <= count
        rows, columns = np.nonzero(usable)
        return rows, [self.catalogue[position] for position in top[rows, columns]]


def excess_loss(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return KL(label || probability) in nats, 0 or more, for two arrays (N,) in [0, 1].

    It is the binary cross-entropy minus the label's own entropy, which no retriever can avoid.
    """
    loss: np.ndarray = rel_entr(label, probability) + rel_entr(1 - label, 1 - probability)
    return loss


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

    Its mean is the acceptance rate. The recipes give it weight 0: logged, not optimised. The last
    answer is kept, since the gate of the loss reward asks for the same queries just before.
    """

    __name__ = "accepted"

    def __init__(self, relevance: RelevanceScorer, acceptance: AcceptanceFilter) -> None:
        self.relevance = relevance
        self.acceptance = acceptance
        self._asked: tuple[Any, ...] = ()
        self._answer: list[float] = []

    def __call__(
        self,
        completions: Sequence[str],
        document: Sequence[str],
        title: Sequence[str],
        product_index: Sequence[int],
        **_: Any,
    ) -> list[float]:
        """Return 0.0 or 1.0 a completion."""
        asked = (tuple(completions), tuple(product_index))
        if asked != self._asked:
            relevance = independent_scores(self.relevance, completions, document)
            reasons = self.acceptance.reasons(
                completions, document, title, np.asarray(product_index), relevance
            )
            self._asked, self._answer = asked, [float(not reason) for reason in reasons]
        return list(self._answer)
