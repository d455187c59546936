"""Settings of the recipes: our dataclasses, and the one parser that reads YAML and command line.

A dataclass owns the name, type and help of a setting; a YAML file in `recipes/` owns the values of
a run; the command line overrides single values. `transformers.TrainingArguments` and
`trl.RLOOConfig` are used as they are, so the fields here are only what those lack.
"""

import difflib
import json
import os
import re
import sys
from argparse import Action
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from agr_trl.errors import UserError
from agr_trl.terminal import shows_progress

MAX_SEED = 2**31 - 1  # jobs count on from it, and NumPy takes none from 2**32 on
LIBRARIES = ("transformers.", "trl.")  # whose dataclasses of settings are used as they are

# What older versions wrote into config.yaml, section, setting and value, and never read.
WITHOUT_EFFECT = (("generator", "generator_name_or_path", "t5-base"),)
OF_THE_HUB = ("push_to_hub", "hub_")  # how settings begin that say what is published, and where

# Of a job of several stages; a stage's own library would take them too.
NEVER_IN_A_SECTION = (
    *("output_dir", "seed"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
)


def check_ranges(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raise `UserError` for a setting outside its (lowest, highest) value."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            allowed = f"at least {low}" if high == inf else f"from {low} to {high}"
            raise UserError(f"`{name}` is {value}; it must be {allowed}")


@dataclass
class RunArguments:
    """Where a run writes and what seeds it."""

    output_dir: str = field(metadata={"help": "Run folder; a rerun on it resumes"})
    seed: int = field(default=0, metadata={"help": "Seed of everything but the data split"})


@dataclass
class HubArguments:
    """Whether a job of several stages is published when it has ended; no part of its results."""

    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Publish the finished run, once; recipes/push_to_hub.py does so later, and "
            "has more settings"
        },
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "user/name, the beginning of the repositories' three names"}
    )
    hub_private_repo: bool = field(
        default=False, metadata={"help": "New repositories are private, public ones refused"}
    )


@dataclass
class DataArguments:
    """Which judgements and which catalogue."""

    dataset_format: Literal["wands", "esci", "beir", "pairs", "demo"] = field(
        default="demo",
        metadata={
            "help": "wands: WANDS' three files; esci: ESCI's two Parquet files; beir: BEIR folder; "
            "pairs: query,document,label"
        },
    )
    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or file. wands: downloaded when unset; demo: generated when unset"
        },
    )
    relevant_grade: int = field(
        default=1,
        metadata={
            "help": "A judgement of at least this grade is relevant (WANDS: 1 Partial, 2 Exact; "
            "ESCI: 1 Substitute, 3 Exact)"
        },
    )
    dev_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of queries for dev where the data has no splits (default: .2); of train "
            "queries where it has train and no dev (default: 0, for ESCI .2)"
        },
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of queries for test where the data has no splits (default: .2)"},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split by query"})
    esci_locale: Literal["us", "es", "jp"] | None = field(
        default=None, metadata={"help": "ESCI: whose queries and products (default: us)"}
    )
    esci_version: Literal["small", "large"] | None = field(
        default=None,
        metadata={
            "help": "ESCI: small has the harder queries (its ranking task), large has all "
            "(default: small)"
        },
    )


@dataclass
class RetrieverArguments:
    """The retriever, its negatives and how it is trained."""

    retriever_name_or_path: str = field(
        default="bert-large-uncased",
        metadata={"help": "Model or folder; 'new' builds a small BERT from the catalogue"},
    )
    max_pair_tokens: int = field(
        default=256,
        metadata={"help": "Tokens of query and document together; the longer is cut first"},
    )
    hard_negatives: int = field(
        default=1, metadata={"help": "BM25 negatives mined for each relevant training pair"}
    )
    random_negatives: int = field(
        default=1, metadata={"help": "Random negatives for each relevant training pair"}
    )
    negative_margin: float | None = field(
        default=None,
        metadata={
            "help": "How far a mined negative scores below the relevant product (default: .1 of S; "
            "half of BM25's score where there is no S)"
        },
    )
    retriever_lora_rank: int = field(
        default=0, metadata={"help": "LoRA rank; 0 trains all weights. The saved model is merged"}
    )
    frozen_layers: int = field(
        default=0,
        metadata={
            "help": "Leave the embeddings and so many of the lowest layers as they are: half of "
            "the layers save a third of the time; 0 trains all"
        },
    )
    disable_dropout: bool = field(
        default=False,
        metadata={"help": "Train without dropout, which takes a sixth to a fifth of a CPU's time"},
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={"help": "Evaluations without a better dev score before stopping; 0: never"},
    )
    new_retriever_width: int = field(default=128, metadata={"help": "Width of a 'new' BERT"})
    new_retriever_layers: int = field(default=3, metadata={"help": "Layers of a 'new' BERT"})
    new_retriever_steps: int = field(
        default=1_000,
        metadata={"help": "Self-supervised steps of a 'new' BERT before any judgement"},
    )

    def __post_init__(self) -> None:
        counts = (
            *("hard_negatives", "random_negatives", "retriever_lora_rank", "frozen_layers"),
            "new_retriever_steps",
        )
        check_ranges(
            self,
            max_pair_tokens=(1, inf),
            new_retriever_width=(1, inf),
            new_retriever_layers=(1, inf),
            negative_margin=(0, 0.99),
            early_stopping_patience=(0, inf),
            **dict.fromkeys(counts, (0, inf)),
        )
        if self.frozen_layers and self.retriever_lora_rank:
            raise UserError(
                "`frozen_layers` and `retriever_lora_rank` exclude each other; drop one"
            )


@dataclass
class PromptArguments:
    """How much of a product the generator reads."""

    max_prompt_tokens: int = field(
        default=128, metadata={"help": "Tokens of a prompt; the rest is cut"}
    )

    def __post_init__(self) -> None:
        check_ranges(self, max_prompt_tokens=(1, inf))


@dataclass
class GeneratorArguments(PromptArguments):
    """The generator and how much of a product it reads."""

    generator_name_or_path: str = field(
        default="t5-base",
        metadata={
            "help": "Model or folder; 'new' builds a small T5 from the catalogue (warm-up only)"
        },
    )


@dataclass
class WarmUpArguments(GeneratorArguments):
    """The supervised warm-up of the generator."""

    max_query_tokens: int = field(default=16, metadata={"help": "Tokens of a target query"})
    pseudo_queries_per_product: int = field(
        default=2, metadata={"help": "Self-supervised queries made from each product's own words"}
    )
    max_pseudo_queries: int = field(
        default=40_000,
        metadata={"help": "At most this many pseudo-queries (sampled with the seed)"},
    )
    gold_repeats: int = field(
        default=4,
        metadata={"help": "How often each judged query appears beside the pseudo-queries"},
    )
    new_generator_width: int = field(default=256, metadata={"help": "Width of a 'new' T5"})
    new_generator_layers: int = field(
        default=3, metadata={"help": "Encoder and decoder layers of a 'new' T5"}
    )
    new_vocabulary_size: int = field(default=4_000, metadata={"help": "Word pieces of a 'new' T5"})

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("pseudo_queries_per_product", "max_pseudo_queries", "gold_repeats")
        check_ranges(self, max_query_tokens=(1, inf), **dict.fromkeys(counts, (0, inf)))


@dataclass
class LoraArguments:
    """The adapter that the policy gradient trains."""

    lora_rank: int = field(
        default=16, metadata={"help": "LoRA rank of the generator; 0 trains all weights"}
    )
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is alpha / rank"})
    lora_modules: str = field(
        default="all-linear",
        metadata={"help": "Modules with an adapter: all-linear, or names with commas"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, lora_rank=(0, inf), lora_alpha=(1, inf))


@dataclass
class RewardArguments:
    """The rewards of the generator, and which of its queries are accepted."""

    relevance_model: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={
            "help": "Sentence-transformers model of S(q, d); 'lsa' fits TF-IDF + SVD on the data"
        },
    )
    loss_reward: Literal["bce", "uncertainty", "margin_band", "disagreement"] = field(
        default="bce", metadata={"help": "Shape of the retriever-loss reward"}
    )
    loss_reward_negatives: int = field(
        default=0,
        metadata={
            "help": "disagreement: so many of the query's best BM25 products, its own apart, count "
            "in the loss too"
        },
    )
    loss_cap_nats: float = field(
        default=4.0, metadata={"help": "Loss above this earns no more reward"}
    )
    band_low: float = field(
        default=0.3, metadata={"help": "margin_band: lowest retriever probability with full reward"}
    )
    band_high: float = field(
        default=0.8,
        metadata={"help": "margin_band: highest retriever probability with full reward"},
    )
    gate_loss_reward: bool = field(
        default=True,
        metadata={"help": "Give the loss reward only to queries that would be accepted"},
    )
    min_relevance: float = field(
        default=0.7, metadata={"help": "Lowest S in [0, 1] of an accepted query ((cosine + 1) / 2)"}
    )
    min_word_relevance: float = field(
        default=0.0,
        metadata={
            "help": "Lowest S of each single word of an accepted query but stop words: a wrong "
            "colour or brand hides in the S of the whole. With lsa S of the word and the document, "
            "about .58; with a sentence encoder of the word and the nearest word of the document, "
            "about .84. 0: no check"
        },
    )
    known_words_only: bool = field(
        default=False,
        metadata={
            "help": "Accept only words of the catalogue and the train queries, and stop words only "
            "of titles and these queries"
        },
    )
    round_trip_top_k: int = field(
        default=0,
        metadata={
            "help": "The product must be in BM25's top k for its query to be accepted; 0: no check"
        },
    )
    max_products_per_query: int = field(
        default=0,
        metadata={
            "help": "Of the products of one draw so many may have the same query accepted; 0: all"
        },
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            loss_cap_nats=(0.01, inf),
            band_low=(0.01, 0.99),
            band_high=(self.band_low, 0.99),
            min_relevance=(0, 1),
            min_word_relevance=(0, 1),
            round_trip_top_k=(0, inf),
            max_products_per_query=(0, inf),
            loss_reward_negatives=(0, inf),
        )
        if self.loss_reward_negatives and self.loss_reward != "disagreement":
            raise UserError("`loss_reward_negatives` needs `loss_reward: disagreement`")


@dataclass
class SamplingArguments:
    """How queries are written."""

    queries_per_product: int = field(default=4, metadata={"help": "Queries drawn for each product"})
    sampling_temperature: float = field(default=0.9, metadata={"help": "Softmax temperature"})
    sampling_batch_size: int = field(
        default=64, metadata={"help": "Products in one generate() call"}
    )
    max_query_tokens: int = field(default=16, metadata={"help": "Tokens of a generated query"})

    def __post_init__(self) -> None:
        counts = ("queries_per_product", "sampling_batch_size", "max_query_tokens")
        check_ranges(self, sampling_temperature=(0.01, inf), **dict.fromkeys(counts, (1, inf)))


@dataclass
class QueryFileArguments(GeneratorArguments, SamplingArguments):
    """Queries for a whole catalogue, and how the work is shared."""

    products: int = field(default=0, metadata={"help": "Only the first so many products; 0: all"})
    streaming: bool = field(
        default=False,
        metadata={"help": "beir, pairs: read product by product, for more than memory holds"},
    )
    num_shards: int = field(
        default=1, metadata={"help": "Jobs, each with its processes, that share the output folder"}
    )
    shard_index: int = field(default=0, metadata={"help": "Which of these jobs this is, from 0"})

    def __post_init__(self) -> None:
        GeneratorArguments.__post_init__(self)
        SamplingArguments.__post_init__(self)
        check_ranges(self, products=(0, inf), num_shards=(1, inf))
        check_ranges(self, shard_index=(0, self.num_shards - 1))


@dataclass
class SearchArguments:
    """How many products a search reads and shows, and how it ranks them."""

    top_k: int = field(default=10, metadata={"help": "Products to print"})
    candidates: int = field(
        default=100, metadata={"help": "BM25 products that the retriever reads"}
    )
    blend_weight: float | None = field(
        default=None,
        metadata={"help": "Retriever's share beside BM25; default: the model's own, else 1"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, top_k=(1, inf), candidates=(1, inf), blend_weight=(0, 1))


@dataclass
class LoopArguments(SamplingArguments):
    """The rounds, and what the retriever learns from in each."""

    query_source: Literal["adversarial", "warm_up", "random_crops", "none"] = field(
        default="adversarial",
        metadata={
            "help": "Who writes a round's queries: the generator that attacks, the generator as "
            "warmed up, crops of titles, or nobody (judged pairs alone); the last three are "
            "controls"
        },
    )
    synthetic_queries_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Use so many accepted queries of a round; products_per_round products at a "
            "time are drawn to find them (default: all of one draw)"
        },
    )
    max_draws: int = field(
        default=4,
        metadata={"help": "With synthetic_queries_per_round: make do after so many draws"},
    )
    hardest_of: int = field(
        default=1,
        metadata={
            "help": "With synthetic_queries_per_round: draw so many times as many accepted queries "
            "and use those that the retriever is most wrong about; 1: a random choice"
        },
    )
    rounds: int = field(
        default=2, metadata={"help": "Adversarial rounds after the supervised round 0"}
    )
    kept_models: int | None = field(
        default=None,
        metadata={
            "help": "Rounds, the last ones, whose models stay on the disk beside those of round 0 "
            "and of the best round (default: all)"
        },
    )
    attacked_retrievers: int = field(
        default=1,
        metadata={
            "help": "The generator attacks so many retrievers at once, the best so far and those "
            "of the kept rounds before it: its loss reward is their mean"
        },
    )
    weight_averaging: float = field(
        default=0.0,
        metadata={
            "help": "A round's retriever ends with this share of the weights that it began the "
            "round with; 0.5: the mean of the two, 0: none"
        },
    )
    lesson_averaging: float = field(
        default=0.0,
        metadata={
            "help": "Every round's retriever, round 0's too, ends with this share of the weights "
            "that it had before any judgement; for one that ranks already then, as after "
            "`distillation_steps`; 0: none"
        },
    )
    prompts_per_round: int = field(
        default=2_000, metadata={"help": "Products that the generator is trained on in a round"}
    )
    products_per_round: int = field(
        default=2_000, metadata={"help": "Products that queries are written for in a round"}
    )
    max_synthetic_share: float = field(
        default=0.6,
        metadata={"help": "Largest share of synthetic pairs in a round's training pairs"},
    )
    gold_repeats_per_round: int = field(
        default=1, metadata={"help": "How often each gold pair is seen in a round's training pairs"}
    )
    synthetic_hard_negatives: int = field(
        default=1, metadata={"help": "BM25 negatives a synthetic query"}
    )
    synthetic_negative_pool: int = field(
        default=50,
        metadata={"help": "They are drawn from so many of the query's best BM25 products"},
    )
    synthetic_random_negatives: int = field(
        default=1, metadata={"help": "Random negatives for each synthetic query"}
    )
    soft_labels: bool = field(
        default=True,
        metadata={
            "help": "Label synthetic pairs with the teacher's probability instead of 1 and 0"
        },
    )
    teacher: Literal["relevance", "ensemble"] = field(
        default="relevance",
        metadata={
            "help": "Who gives soft labels: S calibrated on train pairs, or S, its opinion of the "
            "query's weakest word and the attacked retriever together, weighed on dev pairs, which "
            "that retriever has not learned"
        },
    )
    distillation_steps: int = field(
        default=0,
        metadata={
            "help": "Before any judged pair the retriever learns S on words of titles, for so many "
            "steps of all its layers"
        },
    )
    continue_generator: bool = field(
        default=True,
        metadata={"help": "Start from the last kept generator; else from the warm-up each time"},
    )
    keep_old_queries: bool = field(
        default=True, metadata={"help": "Train also on the accepted queries of earlier kept rounds"}
    )
    dev_metric: str = field(
        default="pr_auc", metadata={"help": "Dev metric that decides whether a round is kept"}
    )
    max_dev_drop: float = field(
        default=0.0,
        metadata={"help": "A round is kept if the dev metric falls by no more than this"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            synthetic_queries_per_round=(1, inf),
            max_draws=(1, inf),
            hardest_of=(1, inf),
            rounds=(0, inf),
            kept_models=(1, inf),
            attacked_retrievers=(1, inf),
            weight_averaging=(0, 1),
            lesson_averaging=(0, 1),
            prompts_per_round=(1, inf),
            products_per_round=(1, inf),
            max_synthetic_share=(0, 1),
            gold_repeats_per_round=(1, inf),
            synthetic_hard_negatives=(0, inf),
            synthetic_negative_pool=(1, inf),
            synthetic_random_negatives=(0, inf),
            distillation_steps=(0, inf),
            max_dev_drop=(0, inf),
        )
        if self.hardest_of > 1 and self.synthetic_queries_per_round is None:
            raise UserError("`hardest_of` needs `synthetic_queries_per_round`")


PRIMARY_METRICS = ("pr_auc", "judged/ndcg@10", "rerank/ndcg@10")
REFERENCES = ("bm25", "cosine", "round_0")  # rows that are no arm; round_0: R as all arms get it
ARMS = (
    "supervised",
    "random_crops",
    "warm_up_generator",
    "adversarial",
    "adversarial_no_relevance",
    "relevance_only",
)


@dataclass
class ComparisonArguments:
    """The controls, and how often everything is repeated."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}"}
    )
    ablations: str = field(
        default="{}",
        metadata={
            "help": "Further rows, the adversarial arm with other settings, as a mapping of a name "
            'to {"SECTION.SETTING": value, ...}'
        },
    )
    seeds: int = field(default=5, metadata={"help": "Repetitions, from `seed` on"})
    folds: int = field(default=5, metadata={"help": "Folds of the judged queries"})
    choosing_fraction: float = field(
        default=0.25,
        metadata={"help": "Share of a fold's training queries that choose (dev) and do not teach"},
    )
    primary_metric: str = field(
        default="pr_auc",
        metadata={
            "help": "The metric that is tested: pr_auc, with ids also judged/ndcg@10, or where "
            "hardly anything irrelevant is judged rerank/ndcg@10"
        },
    )
    shared_warm_up_steps: int = field(
        default=0,
        metadata={
            "help": "Steps of the generator on pseudo-queries of the catalogue, once a seed, "
            "before each fold's own warm-up; needs data with ids"
        },
    )
    resamples: int = field(
        default=2_000, metadata={"help": "Resamples of each interval and each test"}
    )
    workers: int = field(
        default=1, metadata={"help": "Folds that run at a time, each on its share of the cores"}
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            seeds=(1, inf),
            folds=(2, inf),
            choosing_fraction=(0.01, 0.9),
            shared_warm_up_steps=(0, inf),
            resamples=(100, inf),
            workers=(1, inf),
        )
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"`arms` names `{arm}`; known are {', '.join(ARMS)}")
        if "adversarial" not in self.arms:
            raise UserError(
                f"`arms` is {', '.join(self.arms)}; it must have adversarial, which is tested"
            )
        for name, changes in self.ablation_changes.items():
            is_free = name not in (*ARMS, *REFERENCES, "shared")
            if not (is_free and re.fullmatch(r"\w+", name) and isinstance(changes, dict)):
                raise UserError(
                    f"`ablations` has `{name}: {changes}`; give a new name of letters, digits and "
                    "`_`, and `SECTION.SETTING: value` below it"
                )
        if self.primary_metric not in PRIMARY_METRICS:
            raise UserError(
                f"`primary_metric` is {self.primary_metric}; it must be one of "
                f"{', '.join(PRIMARY_METRICS)}"
            )

    @property
    def ablation_changes(self) -> dict[str, dict[str, Any]]:
        """Name of each ablation -> "SECTION.SETTING", or "SETTING" of none -> value."""
        return _read_mapping("ablations", self.ablations)


@dataclass
class SweepArguments:
    """Which settings of the attack are tried, and what makes one better."""

    space: str = field(
        default="{}",
        metadata={
            "help": "What is tried, as a mapping of generator.SETTING or reward.SETTING to "
            '{"log": [low, high]}, {"uniform": [low, high]} or a list of values'
        },
    )
    objective: str = field(
        default="dev_metric",
        metadata={
            "help": "What is made large: dev_metric, of the retriever that the attack taught, or a "
            "number that the generator's training logs, such as rewards/retriever_loss/mean, "
            "which ends a trial when the generator is trained"
        },
    )
    trials: int = field(default=20, metadata={"help": "Trials in all; more may be asked for later"})

    def __post_init__(self) -> None:
        check_ranges(self, trials=(1, inf))

    @property
    def choices(self) -> dict[str, Any]:
        """Setting -> its range or its values."""
        choices = _read_mapping("space", self.space)
        if self.objective == "reward" and "generator.reward_weights" in choices:
            raise UserError(
                "`objective: reward` is the weighted sum, which differs with `reward_weights`; use "
                "dev_metric or one reward, such as rewards/retriever_loss/mean"
            )
        return choices


def _read_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        mapping = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"`{name}` is no mapping: {error}") from error
    if not isinstance(mapping, dict):
        raise UserError(f"`{name}` is {text}; it must map names to settings")
    return mapping


def _check_trackers(report_to: str | list[str] | None) -> None:
    """Raise `UserError` for a tracker that Trainer does not know or that is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    names = [name for name in names if name not in ("none", "all")]
    if not names:
        return
    from transformers.integrations.integration_utils import (  # torch
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(["none", *sorted(INTEGRATION_TO_CALLBACK)])
            raise UserError(f"`report_to` names `{name}`; known are {known}")
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"`report_to` names `{name}`, which is not installed; run `pip install {name}`, "
                "or use `none`"
            )


def tracked_name(output_dir: str) -> str:
    """Return what trackers call a training, from where it writes: `demo/round_01/retriever`.

    Left to itself a tracker makes a name up, and another for the evaluation after the training.
    """
    return "/".join(Path(output_dir).absolute().parts[-3:]).removesuffix("_checkpoints")


class _RecipeParser(HfArgumentParser):
    """HF's parser, which knows how dataclass types become arguments, with errors of one line."""

    def __init__(self, dataclass_types: Sequence[type], section: str) -> None:
        self.section = section
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)
        # argparse before Python 3.14 takes -1e-4 for the name of a setting.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        for action in self._actions:
            if action.dest == "report_to":  # one or several, which HF's parser takes for one
                action.nargs = "+"

    def error(self, message: str) -> NoReturn:
        """Raise the message as `UserError` instead of printing a page of usage."""
        where = f" in section `{self.section}`" if self.section else ""
        raise UserError(f"{message}{where}; `--help` lists the settings")

    def settings(self) -> list[Action]:
        """Return one action a setting: those of a section leave out what belongs to the whole job.

        A true boolean has a second one, `--no_NAME`, which stands for the same setting.
        """
        hidden = NEVER_IN_A_SECTION if self.section else ()
        by_name = {action.dest: action for action in reversed(self._actions)}
        return [action for name, action in reversed(by_name.items()) if name not in hidden]

    def setting(self, word: str) -> Action:
        """Return the setting that `--name` or `--name=value` sets; an unknown one is an error."""
        name = word.split("=")[0]
        action = self._option_string_actions.get(name)
        if action is None:
            known = [action.dest for action in self.settings()]
            close = difflib.get_close_matches(name.lstrip("-"), known, n=3, cutoff=0.4)
            self.error(f"unknown setting `{name}` (known: {', '.join(close) or 'none like it'})")
        if self.section and action.dest in NEVER_IN_A_SECTION:
            is_token = action.dest == "hub_token"
            whole = "run `hf auth login`" if is_token else f"use `--{action.dest}`"
            raise UserError(
                f"`{self.section}.{action.dest}` cannot be set for one stage; {whole}, for the "
                "whole job"
            )
        return action

    def words(self, values: dict[str, Any]) -> list[str]:
        """Write YAML values as command-line words, so that both pass through the same checks."""
        words: list[str] = []
        for key, value in values.items():
            action = self.setting(f"--{key}")
            if isinstance(value, list) and action.nargs != "+":
                self.error(f"`{key}` is {value}; it must be one value")
            if value is None:
                if action.default is not None:
                    self.error(f"`{key}` has no value; give it one or leave the line out")
            elif isinstance(value, list):
                words += [f"--{key}", *map(str, value)]
            elif isinstance(value, dict):
                words.append(f"--{key}={json.dumps(value)}")
            else:
                words.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
        return words

    def read(self, words: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the value of every setting, and the names of those that the words set."""
        given = {self.setting(word).dest for word in words if word.startswith("--")}
        namespace, left_over = self.parse_known_args(words)
        if left_over:
            self.error(f"`{left_over[0]}` belongs to no setting")
        values = vars(namespace)
        for name, value in values.items():
            # Trainer takes it for the home folder, and Path does not.
            if isinstance(value, str) and value.startswith("~/"):
                values[name] = os.path.expanduser(value)
        if values.get("resume_from_checkpoint"):
            self.error(
                "`resume_from_checkpoint` is not needed: the same command goes on from the last "
                "checkpoint of its output_dir; leave it out"
            )
        if isinstance(trackers := values.get("report_to"), list):
            _check_trackers(trackers)
            values["report_to"] = trackers if len(trackers) > 1 else trackers[0]
        return values, sorted(given)


@dataclass
class Stage:
    """The checked settings of one stage, built into dataclasses when the stage starts.

    Building late matters: two `TrainingArguments` with different precision in one process raise
    "AcceleratorState already initialized" when both are built before the first trainer.
    """

    dataclass_types: tuple[type, ...]
    values: dict[str, Any]
    given: list[str]

    def build(self, **overrides: Any) -> list[Any]:
        """Return one instance for each dataclass type; `overrides` replace parsed values.

        Raises `UserError` for values that do not fit together.
        """
        values = self.values | overrides
        if values.get("disable_tqdm", 0) is None:
            # Trainer would go by the log level, and `start` lets only errors of libraries through.
            values["disable_tqdm"] = not shows_progress()
        if values.get("run_name", 0) is None:
            values["run_name"] = tracked_name(values["output_dir"])
        try:
            return [
                dataclass_type(**{f.name: values[f.name] for f in fields(dataclass_type) if f.init})
                for dataclass_type in self.dataclass_types
            ]
        except UserError:
            raise
        except ValueError as error:  # the libraries' own checks
            raise UserError(str(error)) from error

    def resolved(self) -> dict[str, Any]:
        """Return all our settings and the given ones of the libraries.

        But those of the Hub: who repeats a run does not want to publish it again, whoever publishes
        a finished one changes none of its results, and a token is never written down.
        """
        shown = set(self.given)
        for dataclass_type in self.dataclass_types:
            if not dataclass_type.__module__.startswith(LIBRARIES):
                shown |= {f.name for f in fields(dataclass_type)}
        return {
            name: value
            for name, value in sorted(self.values.items())
            if name in shown and value is not None and not name.startswith(OF_THE_HUB)
        }


@dataclass
class Recipe:
    """Parsed settings: stages by section name, '' for the flat ones, and the file they are from."""

    stages: dict[str, Stage]
    config_file: Path

    def __getitem__(self, section: str) -> Stage:
        return self.stages[section]

    def replaced(self, changes: dict[str, dict[str, Any]]) -> "Recipe":
        """Return the same recipe with other values: section -> setting -> value, checked."""
        unknown = [name for name in changes if name not in self.stages]
        if unknown:
            raise UserError(f"`{unknown[0]}` is no section (known: {', '.join(self.stages)})")
        stages = {}
        for name, stage in self.stages.items():
            parser = _RecipeParser(stage.dataclass_types, name)
            required = {a.dest: stage.values[a.dest] for a in parser.settings() if a.required}
            wanted = changes.get(name, {})
            values, given = parser.read(parser.words(required | wanted))
            given = sorted({*given, *wanted})  # a None is no word
            new = {setting: values[setting] for setting in given}
            stages[name] = Stage(
                stage.dataclass_types, stage.values | new, sorted({*stage.given, *given})
            )
        return Recipe(stages, self.config_file)

    def without(self, dataclass_type: type) -> "Recipe":
        """Return the same recipe without the flat settings of one dataclass."""
        flat, names = self.stages[""], {f.name for f in fields(dataclass_type)}
        types = tuple(kind for kind in flat.dataclass_types if kind is not dataclass_type)
        values = {name: value for name, value in flat.values.items() if name not in names}
        stage = Stage(types, values, [name for name in flat.given if name not in names])
        return Recipe(self.stages | {"": stage}, self.config_file)

    def resolved(self) -> dict[str, Any]:
        """Return the settings as a YAML file would hold them; reading it gives them again."""
        sections = {name: stage.resolved() for name, stage in self.stages.items()}
        return sections.pop("", {}) | sections

    def defaults(self) -> dict[str, Any]:
        """Return what `resolved` would have of each setting that nobody gave."""
        sections = {
            name: {
                setting.dest: setting.default
                for setting in _RecipeParser(stage.dataclass_types, name).settings()
            }
            for name, stage in self.stages.items()
        }
        return sections.pop("", {}) | sections

    @property
    def is_demo(self) -> bool:
        """Whether the embedded demo data is used, where a missing earlier stage is made first."""
        return self.stages[""].values["dataset_format"] == "demo"


def parse_recipe(
    sections: dict[str, Sequence[type]],
    recipe_file: str,
    argv: Sequence[str] | None = None,
    first_word: str | None = None,
) -> Recipe:
    """Read `--config FILE.yaml` (or the recipe's demo YAML) and the command line into stages.

    `sections` maps a section name to its dataclasses; the key "" holds flat settings. Settings of a
    section are written `section:` in YAML and `--section.name value` on the command line. Unknown
    keys, abbreviations and bad types raise `UserError` before anything else happens. With
    `first_word` a bare word that stands first is the value of that flat setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if first_word and arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--{first_word}={arguments[0]}"
    parsers = {name: _RecipeParser(types, name) for name, types in sections.items()}
    if "--help" in arguments or "-h" in arguments:
        _print_help(parsers, recipe_file)
    config_file, arguments = _take_config(arguments, recipe_file)
    in_file = _values_by_section(_read_yaml(config_file), sections)
    for section, name, value in WITHOUT_EFFECT:
        if in_file.get(section, {}).get(name) == value:
            del in_file[section][name]
    on_line = _words_by_section(arguments, sections)
    stages = {
        name: Stage(
            tuple(sections[name]), *parser.read(parser.words(in_file[name]) + on_line[name])
        )
        for name, parser in parsers.items()
    }
    flat = stages[""].values
    if "output_dir" in flat and not flat["output_dir"]:
        raise UserError("`output_dir` is not set; name the folder to write to")
    if not 0 <= flat.get("seed", 0) <= MAX_SEED:
        raise UserError(f"`seed` is {flat['seed']}; it must be from 0 to {MAX_SEED}")
    if output_dir := flat.get("output_dir"):
        _check_output(Path(output_dir), "output_dir")
    if (index_dir := flat.get("index_dir")) and not Path(index_dir).is_dir():
        _check_output(Path(index_dir), "index_dir")
    if output_file := flat.get("output_file"):
        if Path(output_file).is_dir():
            raise UserError(f"`{output_file}` is a folder; name a file in it as --output_file")
        _check_output(Path(output_file).parent, "output_file")
    return Recipe(stages, config_file)


def _check_output(folder: Path, setting: str) -> None:
    """Raise `UserError` where a job could not write, which else shows when it has ended."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"`{there}` is a file; name another --{setting} than `{folder}`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"`{there}` may not be written to; name another --{setting}")


def _take_config(arguments: list[str], recipe_file: str) -> tuple[Path, list[str]]:
    recipe = Path(recipe_file)
    config_file = recipe.parent / "demo" / f"{recipe.stem}.yaml"
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == "--config":
            position += 1
            if position == len(arguments):
                raise UserError("`--config` needs a YAML file after it")
            config_file = Path(arguments[position])
        elif argument.startswith("--config="):
            config_file = Path(argument.removeprefix("--config="))
        else:
            rest.append(argument)
        position += 1
    if not config_file.is_file():
        raise UserError(
            f"config file `{config_file}` does not exist; give one with `--config FILE.yaml`"
        )
    return config_file, rest


# What PyYAML raises for files that it cannot read: its own errors, those of Python's conversions
# (2001-13-45 is no date, too long an integer), and of a nesting that is too deep.
MAX_NESTING = 50  # of YAML, whose parser takes time by the square of it
MAX_VALUES = 100_000  # of YAML, those behind aliases counted wherever they are used
YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError)


def _read_yaml(config_file: Path) -> dict[str, Any]:
    try:
        text = config_file.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                raise ValueError(f"it is nested more than {MAX_NESTING} times")
        document = yaml.compose(text, yaml.SafeLoader)
        if _count_values(document, {}) > MAX_VALUES:
            raise ValueError(f"it stands for more than {MAX_VALUES:,} values")
        _refuse_repeated_keys(document, set())
        values = yaml.safe_load(text)
        json.dumps(values, default=str)  # a number may have more digits than Python writes
    except YAML_ERRORS as error:
        problem = " ".join(str(error).split())
        raise UserError(f"`{config_file}` is not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"`{config_file}` holds a {type(values).__name__}; it must hold `key: value` lines"
        )
    return values


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Return how many values a document stands for: a few aliases of aliases can fill any memory.

    `counts` remembers the nodes that were seen, 0 while inside. Raises `ValueError` for a value
    that holds itself.
    """
    if id(node) not in counts:
        counts[id(node)] = 0
        inside: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inside for part in (entry if type(entry) is tuple else [entry])]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    elif not counts[id(node)]:
        raise ValueError("a value holds an alias of itself")
    return counts[id(node)]


def _refuse_repeated_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """Raise `ValueError` for a key that stands twice, of which YAML drops the first."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        _refuse_repeated_keys(value, seen)
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"`{key.value}` stands in line {lines[key.value]} and {line}")
            lines[key.value] = line


def as_yaml(values: dict[str, Any]) -> str:
    """Return settings as YAML, in their order; a list that stands twice is written twice."""
    return yaml.dump(values, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True)


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _values_by_section(
    values: dict[str, Any], sections: dict[str, Sequence[type]]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, value in values.items():
        if key and key in sections:
            if not isinstance(value, dict | None):
                raise UserError(f"`{key}` is a section; its settings stand indented below it")
            groups[key] = value or {}
        else:
            groups[""][key] = value
    return groups


def _words_by_section(
    arguments: list[str], sections: dict[str, Sequence[type]]
) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in sections}
    current = ""
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, dot, rest = argument[2:].partition(".")
            current = name if dot and name in sections else ""
            groups[current].append(f"--{rest}" if current else argument)
        elif position == 0:
            raise UserError(f"`{argument}` is not a setting; settings are written `--name value`")
        else:
            groups[current].append(argument)
    return groups


def _print_help(parsers: dict[str, _RecipeParser], recipe_file: str) -> NoReturn:
    write = sys.stdout.write
    name = Path(recipe_file).name
    write(f"{name} [--config FILE.yaml] [--NAME VALUE | --SECTION.NAME VALUE] ...\n")
    for section, parser in parsers.items():
        prefix = f"{section}." if section else ""
        for action in parser.settings():
            text = " ".join(str(action.help or "").split())
            write(f"  --{prefix}{action.dest} (default: {action.default})\n      {text}\n")
    raise SystemExit(0)
