"""The retriever R: a cross-encoder, the log-odds that a product is relevant to a query."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from scipy.special import expit
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from agr_trl.adapters import below_adapter
from agr_trl.bad_numbers import BadNumbersCallback
from agr_trl.config import RetrieverArguments
from agr_trl.cores import side_by_side
from agr_trl.dropout import disable_dropout
from agr_trl.errors import UserError
from agr_trl.evaluation import PairMetrics, ranking_means, ranking_per_query
from agr_trl.float32_attention import float32_attention
from agr_trl.frozen_linear import frozen_linear
from agr_trl.loading import (
    load_config,
    load_model,
    load_tokenizer,
    resolve_model_name,
)
from agr_trl.losses import trainer_relevance_loss
from agr_trl.small_models import build_small_bert, number_of_heads
from agr_trl.terminal import progress

logger = logging.getLogger(__name__)

# Of batches that are scored side by side each holds Python's lock for 5 ms with MiniLM-L6, of the
# 175 ms that a core takes for 1,024 tokens: more workers would wait for each other. Less than so
# many tokens each are scored sooner by all cores together.
_MOST_WORKERS, _FEW_TOKENS = 16, 512

# Their layers are built like BERT's, and the heads of their classifiers read the first token.
_FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "electra")


def is_classifier(config: Any) -> bool:
    """Return whether a model's head has been trained to classify, as its config says."""
    return any("ForSequenceClassification" in name for name in config.architectures or [])


def trained_retriever(name_or_path: str, max_pair_tokens: int | None = None) -> "Retriever":
    """Load a retriever that is to be used as it is.

    Raises `UserError` for a model without a head, whose scores would be random.
    """
    if not is_classifier(load_config(resolve_model_name(name_or_path))):
        raise UserError(
            f"`{name_or_path}` has no head that says what is relevant; train one on it with "
            "recipes/train_retriever.py first"
        )
    return Retriever.from_pretrained(name_or_path, max_pair_tokens)


@dataclass
class Retriever:
    """A sequence classifier with one logit, its tokenizer and how many tokens of a pair it reads.

    `blend_weight` is the retriever's share when its score is mixed with BM25's (chosen on dev); it
    is kept in the model's config, so it travels with the weights. `batch_tokens` is the padded size
    of a batch that is scored; unless given 8,192, but about 1,024 on a CPU, whose caches hold no
    more and whose cores score a batch each. With `bfloat16` pairs are scored under autocast: up to
    twice as fast where the processor or GPU computes in it, and log-odds change in their second
    decimal.

    The model's last layer works only for what the head reads, see `_keep_first_token`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_pair_tokens: int
    batch_tokens: int | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        _keep_first_token(self.model)

    @classmethod
    def from_pretrained(cls, name_or_path: str, max_pair_tokens: int | None = None) -> "Retriever":
        """Load any encoder classifier; a base model gets a new head, two logits become one.

        Two logits load as logit[1] - logit[0], which gives the same probability. Weights become
        float32 whatever they are stored in. Raises `UserError` for a missing model, for a
        classifier with more than two classes and for more `max_pair_tokens` than fit.
        """
        path = resolve_model_name(name_or_path)
        config = load_config(path)
        has_head = is_classifier(config)
        labels = config.num_labels if has_head else 1
        if labels > 2:
            raise UserError(
                f"retriever `{name_or_path}` has {labels} classes; use a model with one or two"
            )
        model = load_model(
            AutoModelForSequenceClassification,
            path,
            with_new_head=not has_head,
            num_labels=labels,
        )
        if labels == 2:
            model = _one_logit_model(model)
        tokenizer = load_tokenizer(path, model)
        limit = _position_limit(model)
        _check_pair_tokens(max_pair_tokens or 0, limit, name_or_path)
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
        """Return the log-odds of "relevant" for aligned pairs, (N,) float32.

        Their sigmoid is the probability. Pairs are sorted by length and batched by tokens, so that
        little is spent on padding. Raises `UserError` for a model that answers NaN or infinity.
        """
        if not queries:
            return np.zeros(0, dtype=np.float32)
        encoded = self.encode(queries, documents)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        scores = np.empty(len(lengths), dtype=np.float32)
        device = self.model.device
        dtype = torch.bfloat16 if self.bfloat16 else torch.float32

        @torch.inference_mode()
        def score_batch(rows: np.ndarray) -> None:
            batch = self.tokenizer.pad(
                {name: [column[row] for row in rows] for name, column in encoded.items()},
                return_tensors="pt",
            ).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
                logits = self.model(**batch).logits
            scores[rows] = logits.reshape(-1).float().cpu().numpy()

        workers = _workers(int(lengths.sum())) if device.type == "cpu" else 1
        if self.batch_tokens or device.type != "cpu":
            batches = _batches_by_tokens(lengths, self.batch_tokens or 8_192)
        else:
            batches = _even_batches(lengths, workers)
        scored = side_by_side(score_batch, batches, workers)
        was_training = self.model.training
        self.model.eval()
        try:
            with _float32_logits(self.model), frozen_linear(self.model, dtype):
                for _ in progress(scored, "scoring", len(batches)):
                    pass
        finally:
            self.model.train(was_training)
        if not np.isfinite(scores).all():
            raise UserError(
                f"the retriever gives {(~np.isfinite(scores)).sum()} of {len(scores)} pairs no "
                "number; its weights are broken: train it again with a lower `learning_rate`"
            )
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
        self._merge_adapter()
        _as_relevance_model(self.model).save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    @torch.no_grad()
    def average(self, other: "Retriever", share: float) -> "Retriever":
        """Move all weights by `share`, in [0, 1], of the way to those of `other`, in place.

        Of a model before and after fine-tuning the average can be better than either (WiSE-FT,
        Wortsman et al., arXiv 2109.01903). Raises `KeyError` where `other` is built otherwise.
        """
        theirs = other.model.state_dict()
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(theirs[name].to(weight.device), share)
        return self

    def save_onnx(self, file: str | Path) -> None:
        """Write the model as one ONNX file, which scores without PyTorch.

        Its inputs are what the tokenizer returns for a padded batch, each (N, T) int64; its output
        `logits`, (N, 1) float32, holds the log-odds of "relevant". Raises `UserError` without
        the packages of the `onnx` extra.
        """
        if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
            raise UserError("an ONNX file needs more packages; run `pip install onnx onnxscript`")
        self._merge_adapter()
        batch = self.tokenizer(["a", "b c"], ["d e", "f"], padding=True, return_tensors="pt")
        free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
        was_training = self.model.training
        self.model.eval()
        try:
            torch.onnx.export(
                self.model,
                f=file,
                kwargs=dict(batch.to(self.model.device)),
                output_names=["logits"],
                dynamic_shapes={name: free for name in batch},
                external_data=False,
                verbose=False,
            )
        finally:
            self.model.train(was_training)

    def _merge_adapter(self) -> None:
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()


def load_retriever(args: RetrieverArguments, catalogue: Sequence[str]) -> Retriever:
    """Load the retriever that the settings name, or build a small one from the catalogue."""
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
    compute_metrics: Callable[[Any], dict[str, float]],
    *,
    lora_rank: int = 0,
    frozen_layers: int = 0,
    without_dropout: bool = False,
    early_stopping_patience: int = 0,
) -> Trainer:
    """Build HF's Trainer for L_R over pairs (columns query, document, label).

    With `lora_rank` an adapter of the encoder and the whole head are trained, the rest is frozen.
    With `frozen_layers` the embeddings and that many of the lowest layers are. Raises `UserError`
    for more layers than there are, and for early stopping that would not go back to the best
    checkpoint.
    """
    patience = early_stopping_patience
    _check_early_stopping(args, patience)
    if lora_rank:
        retriever.model = get_peft_model(retriever.model, _lora(retriever.model, lora_rank))
    if frozen_layers:
        _freeze_lowest_layers(retriever.model, frozen_layers)
    if without_dropout:
        disable_dropout(retriever.model)
    return _RetrieverTrainer(
        retriever,
        model=retriever.model,
        args=args,
        train_dataset=pair_dataset(retriever, train_pairs),
        eval_dataset=pair_dataset(retriever, dev_pairs),
        data_collator=DataCollatorWithPadding(retriever.tokenizer),
        compute_loss_func=trainer_relevance_loss,
        compute_metrics=compute_metrics,
        callbacks=[
            BadNumbersCallback(),
            *([EarlyStoppingCallback(patience)] if patience else []),
        ],
    )


class _RetrieverTrainer(Trainer):
    """Evaluate in the data set's order, and leave the retriever whole after sharded training."""

    def __init__(self, retriever: Retriever, **options: Any) -> None:
        super().__init__(**options)
        self._retriever = retriever
        self._whole = copy.deepcopy(retriever.model).cpu() if self.is_fsdp_enabled else None

    def train(self, *args: Any, **options: Any) -> Any:
        """Train; under FSDP the retriever gets its parameters back in one piece on each process.

        A sharded model needs all processes at every step; the main one alone scores and saves.
        """
        output = super().train(*args, **options)
        if self._whole is not None:
            state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
            self._whole.load_state_dict(state)
            self._retriever.model = self._whole
            self._retriever.to_device()
        return output

    def compute_loss_context_manager(self) -> ExitStack:
        """Enter autocast before the model's forward does, so that attention can be exchanged."""
        contexts = super().compute_loss_context_manager()
        contexts.enter_context(self.accelerator.autocast())
        contexts.enter_context(float32_attention(self._retriever.model))
        return contexts

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> None:
        # With `train_sampling_strategy: group_by_length` Trainer shuffles here too; `dev_metrics`
        # relies on the order. A DataLoader without a sampler goes from first to last.
        return None


def dev_metrics(
    dev_pairs: pd.DataFrame, has_ids: bool, relevant_grade: int = 1
) -> Callable[[Any], dict[str, float]]:
    """Return the `compute_metrics` of the retriever's Trainer: pair metrics of the dev pairs.

    Where judgements have ids, also `ndcg@10` over each query's judged products. Predictions must be
    in the order of `dev_pairs`. What is not defined (areas of one class) is left out.
    """

    def compute(prediction: Any) -> dict[str, float]:
        logits = np.asarray(prediction.predictions).reshape(-1).astype(np.float64)
        metrics = PairMetrics(keep_in_memory=True).compute(
            predictions=expit(logits), references=dev_pairs["label"].to_numpy()
        )
        if has_ids:
            scores = dev_pairs.assign(score=logits)
            per_query = ranking_per_query(scores, dev_pairs, relevant_grade)
            metrics["ndcg@10"] = ranking_means(per_query, dev_pairs["query_id"].nunique())[
                "ndcg@10"
            ]
        return {name: value for name, value in metrics.items() if value is not None}

    return compute


def check_architecture(settings: RetrieverArguments) -> None:
    """Raise `UserError` where the model that the settings name is too small for what they ask.

    Reads its configuration alone, so that a job of several stages can ask before the first one.
    """
    name = settings.retriever_name_or_path
    if name == "new":
        number_of_heads(settings.new_retriever_width)
        layers, positions = settings.new_retriever_layers, settings.max_pair_tokens
    else:
        config = load_config(resolve_model_name(name)).to_dict()
        layers = config.get("num_hidden_layers") or settings.frozen_layers
        positions = config.get("max_position_embeddings") or settings.max_pair_tokens
    _check_frozen_layers(settings.frozen_layers, layers)
    _check_pair_tokens(settings.max_pair_tokens, positions, name)


def _check_frozen_layers(count: int, layers: int) -> None:
    if count > layers:
        raise UserError(f"`frozen_layers` is {count}; the retriever has {layers} layers")


def _check_pair_tokens(tokens: int, limit: int, name: str) -> None:
    if tokens > limit:
        raise UserError(f"`max_pair_tokens` is {tokens}; `{name}` reads at most {limit}")


def _check_early_stopping(args: TrainingArguments, patience: int) -> None:
    if patience and not args.load_best_model_at_end:
        raise UserError("`early_stopping_patience` needs `load_best_model_at_end: true`")


def check_training(
    args: TrainingArguments,
    dev_pairs: pd.DataFrame,
    has_ids: bool,
    relevant_grade: int = 1,
    early_stopping_patience: int = 0,
) -> None:
    """Raise `UserError` for what `retriever_trainer` could not do, before anything is trained.

    For label smoothing, which L_R does not know, early stopping that would not go back to the best
    checkpoint, and a `metric_for_best_model` that the dev pairs cannot give: Trainer looks for it
    when it first saves a checkpoint.
    """
    _check_early_stopping(args, early_stopping_patience)
    if args.label_smoothing_factor:
        raise UserError("`label_smoothing_factor` has no effect on the retriever; leave it out")
    wanted = (args.metric_for_best_model or "loss").removeprefix("eval_")
    some = SimpleNamespace(predictions=np.zeros(len(dev_pairs)))
    known = ["loss", *dev_metrics(dev_pairs, has_ids, relevant_grade)(some)]
    if wanted not in known:
        raise UserError(
            f"`metric_for_best_model` is {wanted}, which these dev pairs do not have; take one of "
            f"{', '.join(known)}"
        )


def pair_dataset(retriever: Retriever, pairs: pd.DataFrame) -> datasets.Dataset:
    """Tokenize pairs once; rows hold input_ids, labels (float) and length for grouped batches."""
    encoded = retriever.encode(pairs["query"].tolist(), pairs["document"].tolist())
    lengths = [len(ids) for ids in encoded["input_ids"]]
    labels = pairs["label"].astype("float32").tolist()
    return datasets.Dataset.from_dict({**encoded, "labels": labels, "length": lengths})


@contextmanager
def _float32_logits(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Compute the last linear layer in float32, inside this context, whatever autocast says.

    bfloat16 knows no number between 6 and 6.03: a logit rounded to it ties with its neighbours, and
    a ranking's first places are where logits are large.
    """
    heads = _heads(below_adapter(model)).values()
    last = [part for head in heads for part in head.modules() if isinstance(part, nn.Linear)][-1]

    def forward(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return nn.functional.linear(states.float(), last.weight, last.bias)

    last.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del last.forward


def _workers(tokens: int) -> int:
    """Return how many batches a CPU scores side by side."""
    return max(1, min(torch.get_num_threads(), _MOST_WORKERS, tokens // _FEW_TOKENS))


def _even_batches(lengths: np.ndarray, workers: int) -> list[np.ndarray]:
    """Split rows, longest first, into batches of about 1,024 tokens, as many for each worker.

    Batches hold as many tokens, to half a row at either end; one that padding would make twice as
    large is split again.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens = lengths[order]
    turns = math.ceil(tokens.sum() / (1_024 * workers))
    middles = (np.cumsum(tokens) - tokens / 2) / tokens.sum()  # in (0, 1)
    batch_of = np.floor(middles * turns * workers)
    even = np.split(order, np.flatnonzero(np.diff(batch_of)) + 1)
    return [rows[part] for rows in even for part in _batches_by_tokens(lengths[rows], 2_048)]


def _batches_by_tokens(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split rows, longest first, into batches whose padded size is at most `batch_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, batch_tokens // int(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def _lora(model: PreTrainedModel, rank: int) -> LoraConfig:
    """Adapt every linear layer of the encoder and train what lies beside it, the head."""
    encoder = f"{model.base_model_prefix}."
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[name for name in linear if name.startswith(encoder)],
        modules_to_save=list(_heads(model)),
    )


def _heads(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return what lies beside the encoder and has weights, by name."""
    return {
        name: part
        for name, part in model.named_children()
        if name != model.base_model_prefix and any(True for _ in part.parameters())
    }


def _keep_first_token(model: PreTrainedModel) -> None:
    """Let the last layer of a BERT work on the first token alone, the only one that the head reads.

    Of the other tokens that layer makes the keys and values which the first one attends to. The
    rest, five sixths of a layer, is left out for them, in scoring as in training, so the last
    hidden state has one token. Log-odds are those without it to rounding. Other families stay as
    they are, and a second call changes nothing.
    """
    if model.config.model_type in _FIRST_TOKEN_FAMILIES:
        attention: Any = _encoder_layers(model)[-1].get_submodule("attention")
        if model.config._attn_implementation == "sdpa":
            # A partial is copied with its model and pickled; a closure would keep the first model.
            attention.self.forward = partial(_attend_from_first_token, attention.self)
        attention.output.register_forward_pre_hook(_first_token)


def _attend_from_first_token(
    attention: Any, states: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, None]:
    """Attend from the first of T tokens to all, (B, T, width) to (B, 1, width)."""

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

    attended = nn.functional.scaled_dot_product_attention(
        heads(attention.query(states[:, :1])),
        heads(attention.key(states)),
        heads(attention.value(states)),
        None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if attention.training else 0.0,
        scale=attention.scaling,
    )
    return attended.transpose(1, 2).flatten(2), None


def _first_token(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut what attention gave and what it was given, each (B, T, width), to (B, 1, width)."""
    return tuple(state[:, :1] for state in states)


def _encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    return next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))


def _freeze_lowest_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze the encoder's embeddings and its first `count` layers."""
    encoder = model.base_model
    layers = _encoder_layers(model)
    _check_frozen_layers(count, len(layers))
    for part in (encoder.embeddings, *layers[:count]):
        part.requires_grad_(False)


def _position_limit(model: PreTrainedModel) -> int:
    """Return how many tokens fit; RoBERTa's table of positions begins with some for padding."""
    limits = [model.config.to_dict().get("max_position_embeddings") or 512]
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            first = 0 if table.padding_idx is None else table.padding_idx + 1
            limits.append(table.num_embeddings - first)
    return min(limits)


def _as_relevance_model(model: PreTrainedModel) -> PreTrainedModel:
    # Cross-encoders published for ranking tell sentence-transformers to leave the sigmoid out.
    for name in ("sentence_transformers", "sbert_ce_default_activation_function"):
        vars(model.config).pop(name, None)
    # Float labels in a forward pass set "regression"; pipelines would then return raw logits.
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
