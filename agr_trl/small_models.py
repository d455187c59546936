"""Small BERT and T5 models with tokenizers made from a catalogue, for settings without downloads."""

from collections.abc import Iterable, Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)


def build_wordpiece_tokenizer(
    texts: Iterable[str], vocabulary_size: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's `[CLS] a [SEP] b [SEP]` layout."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocabulary_size, special_tokens=special, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_small_bert(
    texts: Sequence[str], *, width: int, layers: int, max_tokens: int, vocabulary_size: int = 4_000
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Return a randomly initialised one-logit BERT and a tokenizer trained on `texts`."""
    tokenizer = build_wordpiece_tokenizer(texts, vocabulary_size, max_tokens)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=max(max_tokens, 64),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    return BertForSequenceClassification(config), tokenizer


def build_small_t5(
    texts: Sequence[str], *, width: int, layers: int, vocabulary_size: int
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return a randomly initialised T5 (v1.1 shape) and a Unigram tokenizer trained on `texts`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=vocabulary_size,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = T5Config(
        vocab_size=len(fast),
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=max(1, width // 32),
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        decoder_start_token_id=fast.pad_token_id,
    )
    return T5ForConditionalGeneration(config), fast
