"""Settings of our own: dataclasses, each the only place of a setting's name, type and help.

`transformers.TrainingArguments` and `trl.RLOOConfig` are used as they are, so the fields here are
only what those lack.
"""

import json
import re
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from agr_trl.errors import UserError


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
