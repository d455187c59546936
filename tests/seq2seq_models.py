"""Tiny random encoder-decoders of several families, their tokenizer, and a trainer around them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from trl import RLOOConfig

from agr_trl.seq2seq_trainer import (
    Seq2SeqGRPOConfig,
    Seq2SeqGRPOTrainer,
    Seq2SeqRLOOTrainer,
)

PAD, EOS, UNK, BOS = range(4)
WORDS = [f"w{number}" for number in range(4, 24)]  # token w7 has id 7
PROMPTS = ["w4 w5", "w6", "w7 w8 w9 w10 w11 w12 w13 w14", "w4 w15"]
SPECIAL = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}


TRAINERS = {
    "rloo": (Seq2SeqRLOOTrainer, RLOOConfig),
    "grpo": (Seq2SeqGRPOTrainer, Seq2SeqGRPOConfig),
}


def lora(**options: Any) -> LoraConfig:
    defaults = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}
    return LoraConfig(task_type="SEQ_2_SEQ_LM", **(defaults | options))


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
    )


def _t5(config_class: Any, model_class: Any, **options: Any) -> PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = config_class(
        vocab_size=24, decoder_start_token_id=PAD, dropout_rate=0.1, **sizes, **SPECIAL, **options
    )
    return model_class(config)


def _long_t5(attention: str) -> PreTrainedModel:
    return _t5(
        LongT5Config,
        LongT5ForConditionalGeneration,
        encoder_attention_type=attention,
        local_radius=3,
        global_block_size=4,
        tie_word_embeddings=False,
        initializer_factor=0.3,
    )


def _bart(config_class: Any, model_class: Any, **options: Any) -> PreTrainedModel:
    sides = {"layers": 2, "attention_heads": 2, "ffn_dim": 32, "layerdrop": 0.3}
    sizes = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sides.items()}
    dropout = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    config = config_class(
        vocab_size=24,
        d_model=16,
        max_position_embeddings=32,
        init_std=0.2,
        **(sizes | dropout | SPECIAL | options),
    )
    model = model_class(config)
    model.final_logits_bias.normal_()
    model.final_logits_bias[0, EOS] = 1.0
    # What BART's checkpoints bring; none of it may reach sampling.
    model.generation_config.update(
        num_beams=4, no_repeat_ngram_size=3, min_length=5, forced_eos_token_id=EOS
    )
    if config.decoder_start_token_id is not None:  # BART; mBART, like T5Gemma, declares none
        model.generation_config.forced_bos_token_id = BOS
    return model


def _t5gemma() -> PreTrainedModel:
    side = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "attention_dropout": 0.1,
        **SPECIAL,
    }
    config = T5GemmaConfig(encoder=dict(side), decoder=dict(side), vocab_size=24, **SPECIAL)
    return T5GemmaForConditionalGeneration(config)


FAMILIES = {
    "t5": lambda: _t5(T5Config, T5ForConditionalGeneration, initializer_factor=0.5),
    "flan-t5": lambda: _t5(
        T5Config,
        T5ForConditionalGeneration,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=0.4,
    ),
    "longt5-local": lambda: _long_t5("local"),
    "longt5-global": lambda: _long_t5("transient-global"),
    "mt5": lambda: _t5(MT5Config, MT5ForConditionalGeneration, initializer_factor=0.4),
    "bart": lambda: _bart(BartConfig, BartForConditionalGeneration, decoder_start_token_id=EOS),
    "mbart": lambda: _bart(MBartConfig, MBartForConditionalGeneration),
    "t5gemma": _t5gemma,
}


def build_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return FAMILIES[family]()


def build_byt5(seed: int = 0) -> PreTrainedModel:
    """Return a T5 over bytes: 3 special ids, 256 bytes and 125 extra ids."""
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=384,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=PAD,
            tie_word_embeddings=False,
            initializer_factor=0.4,
        )
    )


def share_of_odd_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Reward: the share of odd ids among a completion's C tokens. Range [0, 1]."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


def sample_the_same(prompt_ids: list[list[int]]) -> tuple[list[list[int]], None]:
    """Stand in for a trainer's `_sample`: completions made from prompt and place in the group."""
    completions = [
        [4 + (ids[0] + 3 * place * (place + number % 4)) % 20 for place in range(3)] + [EOS]
        for number, ids in enumerate(prompt_ids)
    ]
    return completions, None


def build_trainer(
    model: Any,
    output_dir: Path,
    trainer_class: Any = Seq2SeqRLOOTrainer,
    config_class: Any = RLOOConfig,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Return a trainer of 2 prompts x 4 completions a step; `options` go to its constructor."""
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "max_completion_length": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "temperature": 0.7,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    given = {
        "reward_funcs": share_of_odd_tokens,
        "train_dataset": Dataset.from_dict({"prompt": PROMPTS}),
        "processing_class": build_tokenizer(),
        "max_prompt_tokens": 16,
        **(options or {}),
    }
    args = config_class(output_dir=str(output_dir), **(defaults | arguments))
    return trainer_class(model=model, args=args, **given)


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}
