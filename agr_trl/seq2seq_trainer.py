"""Policy-gradient training of encoder-decoders: TRL's RLOO and GRPO trainers on two own seams.

TRL samples and scores `prompt + completion` as one sequence, which an encoder-decoder has not. One
mixin replaces how token ids are generated and how they are scored; groups, rewards, baselines, KL,
gathering, logging, checkpoints and resume stay TRL's. A third override cuts long prompts, which TRL
no longer does and which models with learned positions (BART: 1024) need; `train` saves casts under
bf16, and `log` keeps texts from giving orders to the terminal.

Left out, because the sampled distribution must be the scored one, in plain data-parallel training:
vLLM and continuous batching, top-k/top-p/min-p and penalties, images, chat and tools, sharded
parameters (FSDP, DeepSpeed). Each is a `ValueError` at construction.

Notation: B rows (prompts, each repeated for its group), P prompt tokens, D decoder prefix tokens,
C completion tokens, V vocabulary.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_peft_model, parse_flag_from_env
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad, selective_log_softmax_and_entropy

from agr_trl.adapters import below_adapter
from agr_trl.dropout import disable_dropout
from agr_trl.encode_once import Encoding, encode, encode_once, encoded_before
from agr_trl.errors import UserError
from agr_trl.float32_attention import float32_attention
from agr_trl.frozen_linear import frozen_linear
from agr_trl.head_gradients import (
    Drawn,
    HeadGradients,
    has_frozen_head,
    log_probabilities,
    without_head,
)
from agr_trl.report_text import visible
from agr_trl.sampling import GREEDY, is_recorded, mark_unknown_pieces, sample_completions
from agr_trl.token_scores import token_scores

logger = logging.getLogger(__name__)

# What changes the sampled distribution but not the scored one, with its neutral value.
_NEUTRAL_SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}

# Initialisations of LoRA that take the adapter's first value out of the weight below it.
_REWRITING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_UNSUPPORTED_ARGUMENTS = {
    "use_vllm": "vLLM has no encoder-decoder models",
    "use_transformers_continuous_batching": "it generates for decoder-only models",
    "use_liger_kernel": "its kernels replace the model's forward",
    "cast_lm_head_to_fp32": "it patches decoder-only models; logits are scored in float32 anyway",
    "router_aux_loss_coef": "mixture-of-experts losses are not computed",
    "sync_ref_model": "the KL anchor is the model that training starts from",
    "generation_kwargs": "they change what is sampled but not what is scored",
    "chat_template_kwargs": "prompts are plain text",
    "torch_compile": "the encoder is shared through hooks that a compiled model ignores",
}

_DRAWN = "drawn_"  # before the names, in a batch, of what the loss takes from sampling


@dataclass
class Seq2SeqGRPOConfig(GRPOConfig):
    """`GRPOConfig` with the KL anchor on, as in `RLOOConfig`: without it generators collapse."""

    beta: float = field(
        default=0.05, metadata={"help": "KL coefficient; 0 trains without an anchor."}
    )


def decoder_prefix(model: PreTrainedModel) -> list[int]:
    """Return the D tokens that every decoder input starts with: start token and any forced BOS.

    A forced first token (BART's `<s>`, the target language of mBART) is given, not sampled, so it
    belongs to the prefix and is not scored. Without `decoder_start_token_id` (T5Gemma) the start is
    BOS, as in `generate`. Raises `ValueError` where there is neither.
    """
    config = model.generation_config
    start = config.decoder_start_token_id
    if start is None:
        start = config.bos_token_id
    if start is None:
        raise UserError(
            f"{type(model).__name__} has neither `decoder_start_token_id` nor `bos_token_id`; "
            "set one in `model.generation_config`"
        )
    forced = config.forced_bos_token_id
    return [start] if forced is None else [start, forced]


@contextmanager
def _hidden_arguments(args: RLOOConfig | GRPOConfig, **hidden: Any) -> Iterator[None]:
    """Give `args` other values inside this context."""
    own = {name: vars(args)[name] for name in hidden}
    vars(args).update(hidden)
    try:
        yield
    finally:
        vars(args).update(own)


def _pad_right(prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move TRL's left padding of (B, P) to the right and cut what no row needs.

    Learned positions (BART) count from the left, padding included, so left padding would make a
    row's log-probability depend on the longest prompt beside it.
    """
    order = prompt_mask.argsort(dim=1, descending=True, stable=True)[:, : prompt_mask.sum(1).max()]
    return prompt_ids.gather(1, order), prompt_mask.gather(1, order)


def _until_end(tokens: Tensor, eos_token_ids: list[int]) -> list[list[int]]:
    """Cut each row of (B, C) after its first end token; a row has at least one token."""
    is_end = torch.isin(tokens, torch.tensor(eos_token_ids, device=tokens.device))
    is_before_end = is_end.cumsum(1) - is_end.long() == 0
    return [row[keep].tolist() for row, keep in zip(tokens.cpu(), is_before_end.cpu(), strict=True)]


def refuse_sharding(args: TrainingArguments | None = None) -> None:
    """Raise `ValueError` where FSDP or DeepSpeed is on, by `args` or by the launcher."""
    for name in ("fsdp", "deepspeed"):
        is_asked_for = args is not None and vars(args)[name]
        if is_asked_for or parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}"):
            raise UserError(
                f"`{name}` is not supported for encoder-decoders: generation needs whole "
                "parameters; use plain data parallelism, accelerate_configs/multi_gpu.yaml"
            )


def check_arguments(
    args: RLOOConfig | GRPOConfig,
    other: dict[str, Any] | None = None,
    rewards: int | None = None,
) -> None:
    """Raise `ValueError` for what TRL offers and this module does not; before any model loads."""
    for name, value in (other or {}).items():
        if value is not None:
            raise UserError(f"`{name}` is not supported for encoder-decoders; leave it out")
    for name, neutral in _NEUTRAL_SAMPLING.items():
        if vars(args)[name] != neutral:
            raise UserError(
                f"`{name}` is {vars(args)[name]}, but completions are scored without it; "
                f"set it to {neutral}"
            )
    weights = args.reward_weights
    if rewards is not None and weights is not None and len(weights) != rewards:
        raise UserError(f"`reward_weights` is {weights}; there are {rewards} rewards to weigh")
    if args.temperature <= 0:
        raise UserError(f"`temperature` is {args.temperature}; sampling needs one above 0")
    refuse_sharding(args)
    for name, reason in _UNSUPPORTED_ARGUMENTS.items():
        if vars(args).get(name):
            raise UserError(f"`{name}` is not supported for encoder-decoders: {reason}")
    if not args.beta:
        logger.warning("`beta` is 0: nothing holds the generator near the model it starts from")


def check_prompts(args: RLOOConfig | GRPOConfig, count: int) -> None:
    """Raise `ValueError` for fewer prompts than a batch asks for.

    TRL drops a batch that is not full, and would then train no step, without a word.
    """
    asked = args.generation_batch_size // args.num_generations
    if count < asked:
        raise UserError(
            f"a batch of {args.generation_batch_size} queries asks for {asked} prompts, and there "
            f"are {count}; lower `per_device_train_batch_size`, or give more prompts"
        )


def _check_dataset(dataset: Any, name: str) -> None:
    """Raise `ValueError` unless `dataset` (or each in a dict) has plain text in column `prompt`."""
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            _check_dataset(part, f"{name}[{key!r}]")
        return
    row: dict[str, Any] = next(iter(dataset), {})
    if "prompt" not in row:
        raise UserError(f"`{name}` has the columns {list(row)}; it needs rows with a `prompt`")
    if not isinstance(row["prompt"], str):
        kind = type(row["prompt"]).__name__
        raise UserError(f"`prompt` of `{name}` is a {kind}; it must be plain text, not a chat")
    if {"image", "images"} & row.keys():
        raise UserError(f"`{name}` has a column of images, which are not supported; remove it")


def _check_adapter(config: PeftConfig, source: str, beta: float) -> None:
    """Raise `ValueError` unless the adapter is one for encoder-decoders, without virtual tokens.

    With a KL term it must also leave the model below it as it was, since that is the anchor.
    """
    if config.task_type != TaskType.SEQ_2_SEQ_LM:
        raise UserError(
            f"{source} has task type {config.task_type}, which the saved adapter would declare; "
            'use `task_type="SEQ_2_SEQ_LM"` (in YAML `lora_task_type: SEQ_2_SEQ_LM`)'
        )
    if config.is_prompt_learning:
        raise UserError(f"{source} is {config.peft_type}, which is not supported; use LoRA")
    start = str(getattr(config, "init_lora_weights", True))
    if beta and (getattr(config, "bias", "none") != "none" or start.startswith(_REWRITING_STARTS)):
        raise UserError(
            f"{source} has bias {config.bias!r} and init_lora_weights {start!r}, which change the "
            "model below it, the KL term's anchor; use 'none' and True, or `beta: 0`"
        )


def _check_model(
    model: PreTrainedModel | PeftModel,
    args: RLOOConfig | GRPOConfig,
    max_prompt_tokens: int | None,
) -> None:
    """Raise `ValueError` for models that cannot be trained here, or not with these lengths."""
    if not model.config.is_encoder_decoder:
        raise UserError(f"{type(model).__name__} is no encoder-decoder; use TRL's own trainer")
    if model.config.model_type == "prophetnet":
        # It asks its config for the rate in each forward pass, past what `disable_dropout` sets.
        raise UserError("ProphetNet's dropout cannot be switched off; use T5, BART or their kin")
    if {"num_experts", "num_local_experts"} & model.config.to_dict().keys():
        # Switch's router adds noise in training, and an expert's room is shared by the batch.
        raise UserError("a mixture of experts scores otherwise than it samples; use a dense model")
    if "t5" in model.config.model_type and (args.fp16 or model.dtype == torch.float16):
        raise UserError("T5 overflows in fp16; set `fp16: false` and use bf16 or fp32")
    positions = model.config.to_dict().get("max_position_embeddings")
    forced = len(decoder_prefix(below_adapter(model))) - 1  # tokens before the first that is drawn
    limits = {
        "max_prompt_tokens": (max_prompt_tokens, 0),
        "max_completion_length": (args.max_completion_length, forced),
    }
    for name, (limit, more) in limits.items():
        if positions is not None and (limit is None or limit + more > positions):
            room = positions - more
            raise UserError(f"`{name}` is {limit}, but the model has {room} positions for it")
    if is_peft_model(model):
        if set(model.peft_config) != {"default"}:
            raise UserError(f"the PeftModel has adapters {[*model.peft_config]}; load `default`")
        _check_adapter(model.peft_config["default"], "the PeftModel's adapter", args.beta)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("the adapter is frozen; load it with `is_trainable=True`")


class _Seq2SeqMixin:
    """The two seams, for `RLOOTrainer` and `GRPOTrainer` alike.

    Takes TRL's constructor and `max_prompt_tokens`: longer prompts lose their end (None: no limit).
    The data set needs a `prompt` column of plain text. `model` may be a name or path (loaded in
    float32 with `AutoModelForSeq2SeqLM`), a model, or a PeftModel with one trainable adapter.

    The KL anchor is what `model` was at construction: a frozen copy in full fine-tuning; with LoRA
    the model with its adapter switched off, so training that continues from a saved adapter stays
    anchored to the model below it. `beta=0` goes without. Dropout is switched off in the given
    model, in place. Raises `ValueError` for everything that is not supported, with the remedy.
    """

    _config_class: type[RLOOConfig] | type[GRPOConfig]
    _sampled_logps: Tensor | None = None  # (B, C) of what was just sampled, where they are wanted
    _encoding: Encoding | None = None  # of what was just sampled for, where the loss can use it
    _drawn: Drawn | None = None  # of what was just sampled, then of what is scored for the loss
    _old_logps: Tensor | None = None  # (B,) of the loss, where its own pass is to write them
    _entropy_bonus_enabled = False  # GRPO sets it per run: only then does entropy need gradients

    # What TRL's constructor sets.
    _logs: dict[str, Any]
    _name: str
    _tokenizer: PreTrainedTokenizerBase
    accelerator: Any
    args: Any
    eos_token_ids: list[int]
    generation_config: GenerationConfig
    model: Any
    model_wrapped: Any
    num_iterations: int
    pad_to_multiple_of: int | None
    processing_class: PreTrainedTokenizerBase
    temperature: float

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any,
        args: RLOOConfig | GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: None = None,
        peft_config: PeftConfig | None = None,
        *,
        max_prompt_tokens: int | None = 512,
        **other: Any,
    ) -> None:
        name = model if isinstance(model, str) else model.config._name_or_path
        args = args or self._config_class(f"{name.split('/')[-1]}-{self._name}")
        rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        unsupported = {"quantization_config": quantization_config, **other}
        check_arguments(args, unsupported, rewards=len(rewards))
        _check_dataset(train_dataset or [], "train_dataset")
        if isinstance(train_dataset, Dataset):
            check_prompts(args, len(train_dataset))
        _check_dataset(eval_dataset or {}, "eval_dataset")
        if peft_config is not None:
            _check_adapter(peft_config, "`peft_config`", args.beta)
        trust = {"trust_remote_code": args.trust_remote_code}
        if isinstance(model, str):
            options = {"dtype": "float32"} | trust | (args.model_init_kwargs or {})
            model = AutoModelForSeq2SeqLM.from_pretrained(name, **options)
        _check_model(model, args, max_prompt_tokens)
        if processing_class is None:
            given = args.model_init_kwargs or {}
            revision = {"revision": given["revision"]} if "revision" in given else {}
            processing_class = AutoTokenizer.from_pretrained(name, **trust, **revision)
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            kind = type(processing_class).__name__
            raise UserError(f"`processing_class` is a {kind}; pass a tokenizer")
        if processing_class.eos_token_id is None:
            raise UserError("the tokenizer has no end token; set its `eos_token`")

        base = below_adapter(model)
        disable_dropout(model)
        # TRL would load the reference by name: as the class that the checkpoint's config names
        # (BartModel for facebook/bart-base) and blind to weights changed in memory. With `beta`
        # hidden from it, it builds none.
        is_anchored_by_copy = args.beta and model is base and peft_config is None
        reference = (
            copy.deepcopy(model).eval().requires_grad_(False) if is_anchored_by_copy else None
        )
        own_forward = vars(base).get("forward")
        with _hidden_arguments(args, beta=0.0, model_init_kwargs=None):
            super().__init__(  # type: ignore[call-arg]
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        # TRL's fused forward is not used here; later copies of the model would inherit it, still
        # bound to this one.
        vars(base).pop("forward", None)
        if own_forward is not None:
            base.forward = own_forward
        disable_dropout(self.model)  # once more for the new adapter's own
        # RLOOTrainer adds a frozen copy of a given adapter as KL anchor, and saves it too. Without
        # it TRL anchors to the model with its adapter switched off.
        if is_peft_model(self.model) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")
        self.beta = args.beta
        if reference is not None:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.max_prompt_tokens = max_prompt_tokens
        self._decoder_prefix = decoder_prefix(base)
        self.generation_config.decoder_start_token_id = self._decoder_prefix[0]
        self.generation_config.update(**GREEDY)  # tokens are drawn by `Sampler`

    def train(self, *args: Any, **options: Any) -> Any:
        """Train as TRL does, with frozen weights below an adapter that are cast and packed once.

        Not those of a model that is trained without one: its checkpoints hold them.
        """
        is_bfloat16 = self.accelerator.mixed_precision == "bf16"
        dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        with frozen_linear(self.model, dtype) if is_peft_model(self.model) else nullcontext():
            return super().train(*args, **options)  # type: ignore[misc]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with control characters of the texts written out: rich prints them."""
        if self.args.log_completions:
            for column in ("prompt", "completion"):
                texts = self._logs[column]
                texts.extend([visible(texts.popleft()) for _ in range(len(texts))])
        super().log(logs, start_time)  # type: ignore[misc]

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[str],
        completions: list[str],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Reward as TRL does what was sampled, not what decoding makes of it."""
        completions = mark_unknown_pieces(completions, completion_ids_list, self._tokenizer)
        own = super()._calculate_rewards  # type: ignore[misc]
        rewards: Tensor = own(inputs, prompts, completions, completion_ids_list)
        return rewards

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenize B prompts, each cut to `max_prompt_tokens` with its end token kept."""
        prompt_ids = self.processing_class(
            text=prompts,
            truncation=self.max_prompt_tokens is not None,
            max_length=self.max_prompt_tokens,
        )["input_ids"]
        if not all(prompt_ids):
            raise UserError(f"prompt {prompts[prompt_ids.index([])]!r} has no tokens; drop it")
        return prompt_ids, None, {}

    def _sample(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], Tensor]:
        """Sample a completion for each of B prompts: at most C token ids, end token included.

        Also returns their log-probabilities (B, C).
        """
        padding = {"padding_side": "right", "pad_to_multiple_of": self.pad_to_multiple_of}
        rows = [torch.tensor(ids, device=self.accelerator.device) for ids in prompt_ids]
        input_ids = pad(rows, padding_value=self._tokenizer.pad_token_id, **padding)  # (B, P)
        attention_mask = pad([torch.ones_like(row) for row in rows], padding_value=0, **padding)
        prefix = input_ids.new_tensor(self._decoder_prefix).expand(len(rows), -1)  # (B, D)
        is_encoded_for_loss = self._is_encoded_for_loss  # asked before checkpointing is paused
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self.accelerator.autocast(),  # sampled in the precision that it is scored in
        ):
            with float32_attention(model):  # as the loss, which takes it
                self._encoding = (
                    encode(model, input_ids, attention_mask) if is_encoded_for_loss else None
                )
            head = HeadGradients() if self._is_drawn_for_loss and not is_recorded(model) else None
            with encoded_before(model, self._encoding):
                tokens, logps = sample_completions(
                    model,
                    input_ids,
                    attention_mask,
                    prefix,
                    self.generation_config,
                    self.temperature,
                    head,
                )
        self._drawn = head.of(logps) if head else None
        return _until_end(tokens, self.eos_token_ids), logps

    @property
    def _is_encoded_for_loss(self) -> bool:
        """Whether the loss takes what sampling encoded, with its gradients, and encodes nothing.

        Weights do not change between the two where a batch is sampled for one batch of the loss.
        Checkpointed activations are not to be kept so long.
        """
        own = self.accelerator.unwrap_model(self.model)
        is_alone = self.model.training and self.args.steps_per_generation == 1
        return is_alone and torch.is_grad_enabled() and not own.is_activation_checkpointing

    @property
    def _is_full_precision(self) -> bool:
        return self.model.dtype == torch.float32 and self.accelerator.mixed_precision == "no"

    @property
    def _is_on_policy(self) -> bool:
        """Whether no sample is used after a step of the optimizer; TRL's own rule in GRPO."""
        uses = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % uses == 0

    @property
    def _is_drawn_for_loss(self) -> bool:
        """Whether the loss takes log-probabilities and the head's gradients from sampling.

        Weights do not change before a sample's first use where a batch is sampled for one step of
        the optimizer. Below float32 a pass of its own, as the old scores are where samples are used
        again, rounds otherwise.
        """
        own = self.accelerator.unwrap_model(self.model)
        is_before_step = self.args.gradient_accumulation_steps % self.args.steps_per_generation == 0
        return (
            self.model.training
            and torch.is_grad_enabled()
            and is_before_step
            and (self._is_full_precision or self._is_on_policy)
            and not self._entropy_bonus_enabled
            and has_frozen_head(own)
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and reward as TRL does; what the loss takes from sampling goes with the rows."""
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self._drawn is not None:
            drawn = self._drawn.of_length(batch["completion_ids"].size(1))
            batch |= {_DRAWN + name: part for name, part in drawn._asdict().items()}
            self._drawn = None
        return batch

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Compute TRL's loss; of samples that are used again the first use takes what is drawn."""
        if _DRAWN + "logps" in inputs:
            self._drawn = Drawn(*(inputs.pop(_DRAWN + name) for name in Drawn._fields))
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._drawn = None

    def _encoding_for(self, model: PreTrainedModel | PeftModel) -> Encoding | None:
        """Return what sampling encoded, where the model that is to score encodes the same.

        That is the loss, once: then weights change. And the KL anchor, if the encoder has no part
        in training.
        """
        encoding = self._encoding
        if torch.is_grad_enabled():
            self._encoding = None
        elif encoding is not None:
            parts = model.get_encoder().modules()
            is_adapted = any(isinstance(part, BaseTunerLayer) for part in parts)
            if encoding.hidden.requires_grad or is_adapted:
                return None
        return encoding

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Score completions: log-probabilities and entropies in nats, each (B, C), 0 where masked.

        `input_ids` and `attention_mask` are (B, P + C): left-padded prompts beside right-padded
        completions of C = `logits_to_keep` tokens. `batch_size` rows are scored at a time.
        """
        if self._sampled_logps is not None:
            sampled, self._sampled_logps = self._sampled_logps, None
            missing = max(0, logits_to_keep - sampled.size(1))  # with `pad_to_multiple_of`
            sampled = nn.functional.pad(sampled, (0, missing))[:, :logits_to_keep]
            return sampled * attention_mask[:, -logits_to_keep:], None, None
        prompt_tokens = input_ids.size(1) - logits_to_keep
        rows = torch.stack([input_ids, attention_mask], dim=1)  # (B, 2, P + C)
        own = self.accelerator.unwrap_model(model)
        with (
            self.accelerator.autocast(),
            float32_attention(own),
            encoded_before(own, self._encoding_for(own)),
            encode_once(own),
        ):
            scores = []
            drawn = self._drawn if torch.is_grad_enabled() else None
            for chunk in rows.split(batch_size or len(rows)):
                prompts, completions = chunk.tensor_split([prompt_tokens], dim=2)
                scores.append(self._score(model, prompts, completions, compute_entropy, drawn))
        logps, entropies = zip(*scores, strict=True)
        if self._old_logps is not None:  # TRL reads them after this pass
            self._old_logps.copy_(torch.cat(logps).detach().sum(1))
            self._old_logps = None
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _score(
        self,
        model: nn.Module,
        prompts: Tensor,
        completions: Tensor,
        compute_entropy: bool,
        drawn: Drawn | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score (B, 2, P) and (B, 2, C), each ids and mask, through the model's own forward.

        Only the model knows what it does to its logits: T5 scales them, BART adds a bias. With
        what is `drawn` of them the model makes none.
        """
        prompt_ids, prompt_mask = _pad_right(*prompts.unbind(1))
        completion_ids, completion_mask = completions.unbind(1)
        prefix = completion_ids.new_tensor(self._decoder_prefix).expand(len(completion_ids), -1)
        decoder_input_ids = torch.cat([prefix, completion_ids[:, :-1]], dim=1)
        is_bonus = compute_entropy and self._entropy_bonus_enabled
        states: list[Tensor] = []  # the decoder's last, where the head is left out

        def score(module: nn.Module, args: Any, output: Any) -> Any:
            """Put log-probabilities and entropies, (2, B, C), in the place of logits."""
            if drawn is not None:
                logps = log_probabilities(drawn, states[0][:, prefix.size(1) - 1 :])
                output.logits = torch.stack([logps, drawn.entropies])
                return output
            logits = output.logits
            if prefix.size(1) > 1:  # a slice of all costs a copy backward
                logits = logits[:, prefix.size(1) - 1 :]  # (B, C, V)
            if logits.is_cuda or is_bonus:  # TRL's kernel for a GPU; gradients of the entropy
                scores = selective_log_softmax_and_entropy(
                    logits.float(), completion_ids, is_bonus, self.temperature, completion_mask
                )
            else:
                scores = token_scores(logits, completion_ids, self.temperature)
            output.logits = torch.stack(scores)
            return output

        # accelerate writes a float32 copy of what the model it has wrapped returns under bf16
        # (`convert_outputs_to_fp32`): of logits, with their gradient, a sixth of a step on a CPU.
        # PEFT's inner model is not wrapped.
        own = self.accelerator.unwrap_model(model)
        hook = (own.base_model if is_peft_model(own) else own).register_forward_hook(score)
        try:
            # A mask of ones, as in sampling: what follows the end token cannot reach what precedes
            # it, and a pad token sampled before the end was seen by the tokens after it. Without a
            # mask T5Gemma hides every pad token.
            with without_head(own, states) if drawn is not None else nullcontext():
                logps, entropies = model(
                    input_ids=prompt_ids,
                    attention_mask=prompt_mask,
                    decoder_input_ids=decoder_input_ids,
                    decoder_attention_mask=torch.ones_like(decoder_input_ids),
                    use_cache=False,
                ).logits
        finally:
            hook.remove()
        mask = completion_mask.bool()
        return logps.where(mask, 0), entropies.where(mask, 0) if compute_entropy else None


class Seq2SeqRLOOTrainer(_Seq2SeqMixin, RLOOTrainer):
    """`trl.RLOOTrainer` for any encoder-decoder that `AutoModelForSeq2SeqLM` loads.

    TRL scores fresh samples once more for their old log-probabilities, before anything else is
    scored; it needs them for the KL penalty and for the ratios of the loss. Sampling has met them
    already, and that pass is saved. Below float32 decoding token by token rounds otherwise than
    the pass of the loss, and ratios would not start at 1: there the pass is saved only where each
    sample is used once, before its policy changes, so that its ratio is 1 whatever was rounded.
    """

    _config_class = RLOOConfig

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, multimodal_fields: dict[str, Any]
    ) -> list[list[int]]:
        completions, logps = self._sample(prompt_ids)
        if self._is_full_precision or self._is_on_policy:
            self._sampled_logps = logps
        return completions

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if self._is_on_policy and not self._is_full_precision:
            self._old_logps = inputs["old_logps"]
        return super()._compute_loss(model, inputs)


class Seq2SeqGRPOTrainer(_Seq2SeqMixin, GRPOTrainer):
    """`trl.GRPOTrainer` for any encoder-decoder that `AutoModelForSeq2SeqLM` loads.

    `GRPOConfig` has no KL anchor by default (`beta` 0); `Seq2SeqGRPOConfig`, the default, has.
    """

    _config_class = Seq2SeqGRPOConfig

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], None]:
        return self._sample(prompt_ids)[0], None
