"""Names, numbers and explanations for readers: the words of the report."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need and that reorder nothing
DEV_WARNING = "dev chose checkpoint, round and blend weight, so its figures are optimistic"
LOWER_IS_BETTER = ("log_loss", "ece")
NAMES = {
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "f1": "F1",
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "ece": "ECE",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "map": "MAP",
    "recall@100": "recall@100",
    "judged": "judged pool",
    "rerank": "reranked",
    "blend": "blend",
    "blend_weight": "blend weight",
}
GLOSSARY = {
    "S": "Relevance of a query to its product by a model that is never the retriever, 0 to 1.",
    "p": "R's probability that the product is relevant to the query; low where R gets a query "
    "wrong. Written: under the frozen R that G attacked. After: under the R of the same round, "
    "which learned from the accepted queries, even if the round was then rolled back.",
    "accepted": "The query passes every rule: neither blank nor broken nor the whole title, S high "
    "enough, found again by BM25 where that is asked for, not a duplicate.",
    "truly relevant": "Demo shop only: share of the accepted queries that its exact oracle grades "
    "as relevant to their product.",
    "copied, repeated": "Shares of G's queries that are an unbroken run of their product's words, "
    "and that repeat another query.",
    "distinct pairs": "Different pairs of neighbouring words over all such pairs in G's queries.",
    "loss of R": "The reward that makes G an adversary, 0 to 1: how wrong the frozen R is about a "
    "query, capped; with the relevance gate, 0 for a query whose S is too low.",
    "KL, entropy": "Distance of G from the generator it is anchored to, and the spread of its "
    "choice of the next token; an entropy that falls to zero is a collapse.",
    "cosine of S": "S in the retriever's place: the cosine of two embeddings, scaled to "
    "probabilities on the judged train pairs.",
}


def reason_words(reward: Mapping[str, Any]) -> dict[str, str]:
    """Return each reason of the acceptance filter in words, with the run's thresholds."""
    return {
        "": "accepted",
        "blank": "no word in it",
        "broken": "a word twice, or an unknown piece",
        "copy_of_title": "the whole title again",
        "unknown_word": "a word that neither the catalogue nor a train query has",
        "low_relevance": f"off topic: S below {number(reward.get('min_relevance'), 2)}",
        "low_word_relevance": "a word off topic: its own S below "
        f"{number(reward.get('min_word_relevance'), 2)}",
        "round_trip": f"not found again in BM25's top {reward.get('round_trip_top_k', 'k')}",
        "duplicate": "already accepted for this product",
        "overused": f"accepted for {reward.get('max_products_per_query', 'enough')} other products",
    }


def metric_name(key: str) -> str:
    """Return a metric's name for readers: "rerank/ndcg@10" is "nDCG@10 (reranked)"."""
    group, _, name = key.rpartition("/")
    written = NAMES.get(name, name)
    return f"{written} ({NAMES.get(group, group)})" if group else written


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, an en dash for None and NaN."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign (a true minus), an en dash for None and NaN."""
    if value is None or value != value:
        return "–"
    if not float(number(value, digits)):
        return number(0.0, digits)
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Return a share in [0, 1] as percent with one decimal, an en dash for None and NaN."""
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def count(value: int | None) -> str:
    """Return a count with thousands apart, an en dash for None."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """Return seconds for readers: 45 s, 12 min 5 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def visible(text: str) -> str:
    """Return a text with control and bidirectional-override characters written out: [U+202E].

    Else they would change how the rest of the page reads. Line breaks become spaces; markup, which
    is ours, is left alone.
    """
    if isinstance(text, Markup):
        return text
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp"):
        return character
    return " " if character.isspace() else f"[U+{ord(character):04X}]"
