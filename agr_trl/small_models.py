"""Small BERT and T5 models with tokenizers made from a catalogue: nothing to download."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from agr_trl.errors import UserError

COPY_FACTOR = 4.0
WORD_NORM = 0.3  # of a word's vector, times the root of the width
SIDE_SHARE = 0.45  # norm of what tells query from document, as a share of a word's


def build_wordpiece_tokenizer(
    texts: Iterable[str], vocabulary_size: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's `[CLS] a [SEP] b [SEP]` layout.

    The same texts give the same tokenizer, in every process.
    """
    texts = list(texts)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    draft = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    draft.normalizer, draft.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the pieces inside of words ("##a") in the order of a hash map, and breaks
    # ties by number: two processes would learn different pieces. Naming them first fixes the order.
    letters = sorted(set("".join(map(normalizer.normalize_str, texts)).replace(" ", "")))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special + [f"##{letter}" for letter in letters],
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(draft.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = draft.normalizer, draft.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
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
    """Return a one-logit BERT that can learn to match from few pairs, and its tokenizer.

    From a plain random start a cross-encoder needs many thousand steps to find out that a word of
    the query standing in the document matters. Two starts make it two hundred: word vectors from
    latent semantic analysis of `texts`, and a first layer that attends to the same word on the
    other side (`_attend_across`). Raises `UserError` for a width that attention heads of 32 cannot
    share.
    """
    tokenizer = build_wordpiece_tokenizer(texts, vocabulary_size, max_tokens)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=number_of_heads(width),
        intermediate_size=4 * width,
        max_position_embeddings=max(max_tokens, 64),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        vectors = model.bert.embeddings.word_embeddings.weight
        vectors.copy_(_semantic_vectors(tokenizer, texts, width) * WORD_NORM * width**0.5)
        vectors[tokenizer.pad_token_id] = 0
    _attend_across(model)
    return model, tokenizer


@torch.no_grad()
def _attend_across(model: BertForSequenceClassification) -> None:
    """Let a token of the first layer attend to its like on the other side, else to itself.

    Keys equal to queries make tokens attend to their like (mimetic initialisation, Trockman and
    Kolter, arXiv 2305.09828), but a word of the query is its own like whether or not the document
    has it. So a direction tells query (+) from document (-), and keys are mirrored along it: the
    other side scores higher than the own. What a token attended to then stands in its output along
    that direction, its side's sign without a match and the other's with one; layers above begin by
    averaging it. At width 128 the same word on the other side has a logit of about 10, the token
    itself 7, another word of the other side 2.
    """
    width = model.config.hidden_size
    side = nn.functional.normalize(torch.randn(width), dim=0)
    types = model.bert.embeddings.token_type_embeddings.weight
    types.copy_(torch.stack([side, -side]) * SIDE_SHARE * WORD_NORM * width**0.5)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query.weight.normal_(0, 0.12)
    attention.key.weight.copy_(attention.query.weight @ _mirror(side))


def _mirror(direction: torch.Tensor) -> torch.Tensor:
    """Return the matrix, (W, W), that turns the sign of a unit vector's direction alone."""
    return torch.eye(len(direction)) - 2 * torch.outer(direction, direction)


def _semantic_vectors(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], width: int
) -> torch.Tensor:
    """Return a vector of norm about 1 for each word piece, (V, width): half LSA, half random."""
    pieces = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = np.repeat(np.arange(len(pieces)), [len(ids) for ids in pieces])
    columns = np.fromiter((piece for ids in pieces for piece in ids), dtype=np.int64)
    counts = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(pieces), len(tokenizer)))
    dimensions = max(1, min(64, width, len(pieces) - 1))
    svd = TruncatedSVD(dimensions, random_state=0)
    svd.fit(TfidfTransformer(sublinear_tf=True).fit_transform(counts))
    semantic = normalize(svd.components_.T * svd.singular_values_)  # (V, dimensions)
    spread = torch.randn(dimensions, width) / width**0.5
    noise = torch.randn(len(tokenizer), width) / width**0.5
    return 0.5**0.5 * (torch.from_numpy(semantic).float() @ spread + noise)


def build_small_t5(
    texts: Sequence[str], *, width: int, layers: int, vocabulary_size: int
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return a randomly initialised T5 (v1.1 shape) and a BPE tokenizer trained on `texts`.

    The same texts give the same tokenizer, in every process; training a Unigram one, as T5's own
    is, depends on the order of a hash map. Raises `UserError` for a width that attention heads of
    32 cannot share.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Signs are pieces of their own: a word is copied without the comma or bracket beside it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=["<pad>", "</s>", "<unk>"],
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
        num_heads=number_of_heads(width),
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        decoder_start_token_id=fast.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    _begin_by_copying(model)
    return model, fast


@torch.no_grad()
def _begin_by_copying(model: T5ForConditionalGeneration) -> None:
    """Let cross-attention pass what it reads straight to the output, which shares its embedding.

    An untrained decoder then favours the words of its prompt, which is where most words of a query
    come from (as in pointer networks, Vinyals et al., arXiv 1506.03134); from random weights a
    small T5 takes thousands of steps to find that out. The prompt's share of the first output is
    small, since attention begins by averaging it, hence the factor.
    """
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        nn.init.eye_(attention.v.weight)
        nn.init.eye_(attention.o.weight)
        attention.o.weight *= COPY_FACTOR


def number_of_heads(width: int) -> int:
    """Return the attention heads of a new model; raises `UserError` for a width that has none."""
    if width % 32 and width > 32:
        raise UserError(f"the width of a new model is {width}; it must be a multiple of 32")
    return max(1, width // 32)
