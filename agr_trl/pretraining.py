"""What a retriever may learn before any judgement, from the catalogue's own words.

A retriever built from nothing: which product do these words come from? Any retriever: what does S
say of these words and this product?
"""

import logging
import tempfile

import numpy as np
import pandas as pd
from accelerate.state import AcceleratorState
from scipy.stats import bernoulli, rankdata
from transformers import TrainingArguments

from agr_trl.config import RetrieverArguments
from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.generator import pseudo_queries, title_spans
from agr_trl.negatives import mine_negatives
from agr_trl.relevance import RelevanceScorer
from agr_trl.retriever import Retriever, load_retriever, retriever_trainer
from agr_trl.search import BM25Index
from agr_trl.word_matches import words

logger = logging.getLogger(__name__)

LONG_LESSON = 500  # steps, in which the match of words is found
ATTEMPTS = 3
LESSON_BATCH = 64  # pairs
LESSON_LEARNING_RATE = 5e-4
# Nats of L_R above the least that the labels allow. Lessons that found the match end within .01 of
# it, those that found half of it at .03 to .08, chance is .37.
LEARNED = 0.03
# No label is nearer to 0 or 1. Surer than that, the tanh before BERT's head is saturated, and what
# follows the lesson has next to no gradient.
LABEL_MARGIN = 0.05
NEAR_MISSES = 0.7  # share of the queries that can have one
TITLES_OF_A_QUERY = 60  # BM25's best, among which a near miss is looked for
SPANS = 4  # queries of each title in a lesson from S
PAIRS_OF_A_QUERY = 4  # its own product, two of BM25's best and a random one


def new_or_loaded_retriever(
    args: RetrieverArguments, dataset: RelevanceDataset, seed: int
) -> Retriever:
    """Load the retriever that the settings name; a 'new' one first learns to match words.

    The lesson is self-supervised (as the inverse cloze task, Lee et al., arXiv 1906.00300): words
    of a product's title against its own title or another one. It sees no judgement, and stands in
    for the pretraining that any downloaded BERT has. Titles alone: in a few words the match is
    found sooner than in whole documents. It is found all at once, on the demo shop within 100 to
    300 steps, and mostly made whole within 1,000; a retriever that is stuck on the way gains
    nothing from longer lessons, so a long lesson that ends there is given again to one of other
    random weights, twice at the most.
    """
    retriever = load_retriever(args, dataset.documents)
    steps = args.new_retriever_steps
    if args.retriever_name_or_path != "new" or not steps:
        return retriever
    logger.info("a new retriever learns to match words, %d steps", steps)
    pairs = matching_pairs(dataset, steps * LESSON_BATCH, seed)
    for attempt in range(ATTEMPTS):
        lacking = _teach(retriever, pairs, steps, seed + attempt)
        if lacking < LEARNED or steps < LONG_LESSON:
            return retriever
        if attempt + 1 < ATTEMPTS:
            logger.warning("it ended %.2f nats above the least; another one learns", lacking)
            retriever = load_retriever(args, dataset.documents)
    logger.warning(
        "the new retriever matches words poorly after %d steps, %.2f nats above the least loss; "
        "raise `new_retriever_steps`, or start from pretrained weights",
        steps,
        lacking,
    )
    return retriever


def matching_pairs(dataset: RelevanceDataset, size: int, seed: int) -> pd.DataFrame:
    """Return at most `size` pairs, columns query, document, label, in random order.

    Pseudo-queries, ten of a product at the most, each with its product's title and with another
    title. The other is a near miss, which holds some of the query's words and not all, for
    `NEAR_MISSES` of the queries that have one among BM25's best titles; else a random one. The
    label is the share of the query's words that the title holds, moved into [`LABEL_MARGIN`,
    1 - `LABEL_MARGIN`]. Raises `UserError` where no title has a word.
    """
    titles = dataset.products["title"].tolist()
    pseudo = pseudo_queries(dataset, 10, seed)
    if pseudo.empty:
        raise UserError("no title has a word for `new_retriever_steps` to teach; set it to 0")
    pseudo = pseudo.sample(min(len(pseudo), size // 2), random_state=seed, ignore_index=True)
    positions = pd.Index(dataset.products["product_id"]).get_indexer(pseudo["product_id"])
    generator = np.random.default_rng(seed)
    others = generator.integers(len(titles), size=len(pseudo))
    missed = _near_misses(pseudo["query"], titles, generator)
    is_near = (missed >= 0) & (generator.random(len(pseudo)) < NEAR_MISSES)
    others[is_near] = missed[is_near]
    pairs = pd.DataFrame(
        {
            "query": [*pseudo["query"], *pseudo["query"]],
            "document": [titles[row] for row in (*positions, *others)],
        }
    ).sample(frac=1, random_state=seed, ignore_index=True)
    texts = zip(pairs["query"].map(words), pairs["document"].map(words), strict=True)
    shares = np.array([_share(set(wanted), set(held)) for wanted, held in texts])
    return pairs.assign(label=LABEL_MARGIN + (1 - 2 * LABEL_MARGIN) * shares)


def _share(wanted: set[str], held: set[str]) -> float:
    return len(wanted & held) / len(wanted)


def _near_misses(
    queries: pd.Series, titles: list[str], generator: np.random.Generator
) -> np.ndarray:
    """Return for each query the place of a title with some of its words and not all, or -1."""
    distinct = queries.unique().tolist()
    best = BM25Index(titles).top(distinct, TITLES_OF_A_QUERY)[0]
    title_words = {place: set(words(titles[place])) for place in np.unique(best)}
    near = {}
    for query, places in zip(distinct, best, strict=True):
        wanted = set(words(query))
        near[query] = places[[0 < _share(wanted, title_words[place]) < 1 for place in places]]
    return np.array([generator.choice(near[q]) if len(near[q]) else -1 for q in queries], dtype=int)


def _teach(retriever: Retriever, pairs: pd.DataFrame, steps: int, seed: int) -> float:
    """Train on the pairs; return how far L_R of the last steps is above its least, in nats.

    The least is the entropy of the labels, what a retriever that knows them would still have.
    """
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            seed=seed,
            learning_rate=LESSON_LEARNING_RATE,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=60,
            max_steps=steps,
            per_device_train_batch_size=LESSON_BATCH,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            logging_steps=max(n for n in range(1, 101) if steps % n == 0),  # the last steps too
        )
        trainer = retriever_trainer(retriever, args, pairs, pairs.head(64), lambda _: {})
        trainer.train()
        # Logged losses are means over processes, so all decide alike.
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        # For the precision of the training that follows, as each new TrainingArguments does.
        AcceleratorState._reset_state()
        return float(logged[-1] - bernoulli(pairs["label"]).entropy().mean())


def distillation_pairs(
    dataset: RelevanceDataset, index: BM25Index, relevance: RelevanceScorer, size: int, seed: int
) -> pd.DataFrame:
    """Return at most `size` pairs labelled by S, columns query, document, label, in random order.

    Queries are runs of title words; each meets its own product, two of BM25's best fifty and a
    random one. The label is the rank of S among these pairs, in (0, 1): the order is what is to
    be learned, and S itself moves within a small part of its range. No judgement is read. Raises
    `UserError` where no title has a word.
    """
    titles = dataset.products["title"]
    spans = pd.DataFrame({"query": title_spans(titles, SPANS, seed)}).explode("query")
    spans = spans.reset_index(names="product_index").drop_duplicates()
    spans = spans[spans["query"] != ""]
    if spans.empty:
        raise UserError("no title has a word for `distillation_steps` to teach; set it to 0")
    spans = spans.sample(min(len(spans), size // PAIRS_OF_A_QUERY), random_state=seed)
    queries, own = spans["query"].to_numpy(), spans["product_index"].to_numpy()
    mined = mine_negatives(
        queries.tolist(),
        own,
        index,
        dataset.documents,
        num_hard=2,
        num_random=1,
        any_candidate=True,
        seed=seed,
    )
    positions = np.concatenate([own, mined["product_index"]])
    pairs = pd.DataFrame(
        {
            "query": np.concatenate([queries, queries[mined["row"]]]),
            "document": [dataset.documents[position] for position in positions],
        }
    )
    scores = relevance.score(pairs["query"].tolist(), pairs["document"].tolist())
    pairs["label"] = (rankdata(scores) - 0.5) / len(pairs)
    return pairs.sample(frac=1, random_state=seed, ignore_index=True)
