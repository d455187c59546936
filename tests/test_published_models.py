"""Models that others have published load as they are: their files, shrunk, with random weights.

Each folder is written by hand in the form in which the original lies on the Hub, old fields, old
weight files and all, so that nothing here depends on what today's `save_pretrained` writes.
"""

import json

import pytest
import torch
from encoder_models import unigram_pieces
from scipy.special import expit
from sentence_transformers import CrossEncoder
from toy_shop import DOCUMENTS, PROMPTS, WORDS, build_dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from agr_trl.config import SamplingArguments, WarmUpArguments
from agr_trl.errors import UserError
from agr_trl.generator import (
    load_generator,
    new_or_loaded_generator,
    sample_queries,
    save_merged_generator,
)
from agr_trl.loading import load_tokenizer
from agr_trl.retriever import Retriever
from agr_trl.small_models import build_wordpiece_tokenizer

QUERIES = ["wooden chair", "metal chair", "reading lamp", "lamp", "oak table", "table"]
BERT = {  # of bert-base-uncased's descendants, smaller
    "architectures": ["BertForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.2,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 48,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
}
TWO_LOGITS = {  # prhegde/query-product-relevance-model-ecommerce
    "_name_or_path": "bert-base-uncased",
    "problem_type": "single_label_classification",
    "torch_dtype": "float32",
    "transformers_version": "4.35.0",
}
RANKER = {  # cross-encoder/ms-marco-MiniLM-L6-v2, since sentence-transformers 4
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "sentence_transformers": {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "version": "4.1.0.dev0",
    },
    "transformers_version": "4.52.0.dev0",
}
OLD_RANKER = {  # the same before
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    "transformers_version": "4.24.0",
}
T5_BASE = {  # prhegde/search-query-generator-ecommerce, a full T5
    "_name_or_path": "t5-base",
    "architectures": ["T5ForConditionalGeneration"],
    "classifier_dropout": 0.0,
    "d_ff": 64,
    "d_kv": 8,
    "d_model": 32,
    "decoder_start_token_id": 0,
    "dense_act_fn": "relu",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "initializer_factor": 0.3,
    "is_encoder_decoder": True,
    "is_gated_act": False,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_layers": 2,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {
        "summarization": {"early_stopping": True, "num_beams": 4, "prefix": "summarize: "}
    },
    "torch_dtype": "float32",
    "transformers_version": "4.35.0",
    "use_cache": True,
}


def write_bert(folder, config):
    """Write a classifier as of old: a pickled state, a list of words, and no tokenizer.json."""
    folder.mkdir()
    words = build_wordpiece_tokenizer(WORDS, 200, 48).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
    tokenizer = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settings = BERT | config | {"vocab_size": len(words)}
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(2)
    model = BertForSequenceClassification(BertConfig.from_dict(settings)).eval()
    # A buffer that old checkpoints hold, and today's classes do not.
    positions = {"bert.embeddings.position_ids": torch.arange(48)[None]}
    torch.save(model.state_dict() | positions, folder / "pytorch_model.bin")
    return model


def logits_of(model, retriever):
    batch = retriever.tokenizer(QUERIES, DOCUMENTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture(autouse=True)
def trusted(tmp_path, monkeypatch):
    """Ask for the published weights, which are pickles, by name."""
    monkeypatch.setenv("AGR_TRL_PICKLE_WEIGHTS", f"another/model,{tmp_path / 'published'}")


def test_a_two_logit_product_relevance_model(tmp_path):
    model = write_bert(tmp_path / "published", TWO_LOGITS)
    assert model.config.num_labels == 2
    retriever = Retriever.from_pretrained(str(tmp_path / "published"))
    assert retriever.max_pair_tokens == 48  # what the model has, not the 512 of its tokenizer
    expected = logits_of(model, retriever).softmax(dim=1)[:, 1].numpy()
    assert expected.std() > 0.01
    scores = retriever.score(QUERIES, DOCUMENTS)
    assert expit(scores) == pytest.approx(expected, abs=1e-5)
    retriever.save(tmp_path / "saved")
    served = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    pairs = [*zip(QUERIES, DOCUMENTS, strict=True)]
    assert served.predict(pairs, show_progress_bar=False) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("config", [RANKER, OLD_RANKER], ids=["new", "old"])
def test_a_cross_encoder_of_the_ms_marco_family(config, tmp_path):
    model = write_bert(tmp_path / "published", config)
    retriever = Retriever.from_pretrained(str(tmp_path / "published"), max_pair_tokens=32)
    scores = retriever.score(QUERIES, DOCUMENTS)
    assert scores == pytest.approx(logits_of(model, retriever)[:, 0].numpy(), abs=1e-5)
    pairs = [*zip(QUERIES, DOCUMENTS, strict=True)]
    published = CrossEncoder(str(tmp_path / "published"), device="cpu")  # gives logits
    assert published.predict(pairs, show_progress_bar=False) == pytest.approx(scores, abs=1e-5)
    # What we save gives probabilities, as every retriever of ours.
    retriever.save(tmp_path / "saved")
    served = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    probabilities = served.predict(pairs, show_progress_bar=False)
    assert probabilities == pytest.approx(expit(scores), abs=1e-5)


def test_a_tokenizer_that_is_a_sentencepiece_file_alone(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "spiece.model").write_bytes(b"no SentencePiece model")
    with monkeypatch.context() as patch:
        patch.setattr("agr_trl.loading.is_sentencepiece_available", lambda: False)
        with pytest.raises(UserError, match="run `pip install sentencepiece protobuf`"):
            load_tokenizer(str(tmp_path))

    spm = pytest.importorskip("sentencepiece", reason="the sentencepiece extra is not installed")
    pytest.importorskip("google.protobuf", reason="the sentencepiece extra is not installed")
    with pytest.raises(ValueError, match="tiktoken"):  # a broken file stays what it is
        load_tokenizer(str(tmp_path))
    (tmp_path / "texts.txt").write_text("\n".join(WORDS * 20))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=50,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    ids = load_tokenizer(str(tmp_path))("red chair")["input_ids"]
    own = spm.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert ids == [*own.encode("red chair"), 1]


def test_a_full_t5_that_writes_queries(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    tokenizer = T5Tokenizer(vocab=unigram_pieces(["<pad>", "</s>", "<unk>"]), extra_ids=100)
    tokenizer.save_pretrained(published)
    # As in T5's own checkpoints there are more ids than the tokenizer knows: 32,128 for 32,100.
    settings = T5_BASE | {"vocab_size": len(tokenizer) + 28}
    (published / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config.from_dict(settings)).eval()
    torch.save(model.state_dict(), published / "pytorch_model.bin")

    loaded, tokenizer = load_generator(str(published))
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert inputs["input_ids"][0, -1] in (0, 1) and tokenizer.unk_token_id == 2
    start = torch.zeros((len(PROMPTS), 1), dtype=torch.long)
    with torch.no_grad():
        own, other = (each.eval()(**inputs, decoder_input_ids=start) for each in (model, loaded))
    torch.testing.assert_close(own.logits, other.logits)

    settings = SamplingArguments(queries_per_product=8, max_query_tokens=12)
    torch.manual_seed(0)
    queries = sample_queries(loaded, tokenizer, PROMPTS, settings, max_prompt_tokens=32)
    assert [len(group) for group in queries] == [8] * len(PROMPTS)
    save_merged_generator(published, tmp_path / "saved")
    again, tokenizer = load_generator(str(tmp_path / "saved"))
    torch.manual_seed(0)
    assert sample_queries(again, tokenizer, PROMPTS, settings, max_prompt_tokens=32) == queries
    # It can also be warmed up further.
    further, _ = new_or_loaded_generator(
        WarmUpArguments(generator_name_or_path=str(published)), build_dataset()
    )
    assert further.config.vocab_size == len(tokenizer) + 28
