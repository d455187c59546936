"""Tiny random encoder classifiers of several families, each with a tokenizer of its own kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from toy_shop import WORDS
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from agr_trl.small_models import build_wordpiece_tokenizer

MAX_TOKENS = 40
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def wordpiece() -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab=build_wordpiece_tokenizer(WORDS, 200, MAX_TOKENS).get_vocab())


def byte_pieces(special: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE on the toy shop's words; `special` tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def roberta_pieces() -> PreTrainedTokenizerBase:
    model = json.loads(byte_pieces(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def modernbert_pieces() -> PreTrainedTokenizerBase:
    tokenizer = byte_pieces(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def unigram_pieces(special: Sequence[str]) -> list[tuple[str, float]]:
    """Return the toy shop's words and letters as SentencePiece has them, `special` ones first."""
    words = sorted({word for text in WORDS for word in text.lower().split()})
    letters = sorted(set("".join(words)))
    return [
        *((token, 0.0) for token in special),
        *((f"▁{word}", -4.0) for word in words),
        *((letter, -9.0) for letter in ["▁", *letters]),
    ]


def xlm_roberta_pieces() -> PreTrainedTokenizerBase:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return XLMRobertaTokenizer(vocab=[*unigram_pieces(special), ("<mask>", 0.0)])


def deberta_pieces() -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    return DebertaV2Tokenizer(vocab=[*unigram_pieces(special), ("[MASK]", 0.0)], unk_id=3)


# What a family's published configs say, as far as it changes what is computed.
ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
    "pooler_hidden_act": "gelu",
    "pad_token_id": 0,
}
MODERNBERT = {
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "classifier_pooling": "mean",
    "pad_token_id": 3,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
POSITIONS = {"max_position_embeddings": MAX_TOKENS}
MORE_POSITIONS = {"max_position_embeddings": MAX_TOKENS + 2}  # RoBERTa's begin after its padding id
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], Any]] = {
    "bert": (BertConfig, POSITIONS, wordpiece),
    "minilm": (BertConfig, {**POSITIONS, "num_attention_heads": 4}, wordpiece),
    "roberta": (RobertaConfig, ROBERTA | MORE_POSITIONS, roberta_pieces),
    "xlm-roberta": (XLMRobertaConfig, ROBERTA | MORE_POSITIONS, xlm_roberta_pieces),
    "electra": (ElectraConfig, {**POSITIONS, "embedding_size": 16}, wordpiece),
    "deberta-v3": (DebertaV2Config, DEBERTA_V3 | POSITIONS, deberta_pieces),
    "modernbert": (ModernBertConfig, MODERNBERT | POSITIONS, modernbert_pieces),
}


def save_checkpoint(
    path: Path, family: str = "bert", labels: int | None = 2, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Write a random classifier with a wide head, or with `labels` None a model without a head.

    Its tokenizer does not know its length, as that of many a published model.
    """
    torch.manual_seed(1)
    config_class, own, build_tokenizer = FAMILIES[family]
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = int(1e30)
    settings = SIZES | own | {"vocab_size": len(tokenizer)} | options
    if labels is None:
        model = AutoModel.from_config(config_class(**settings))
    else:
        config = config_class(**settings, num_labels=labels)
        model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            torch.nn.init.normal_(parameter)
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer
