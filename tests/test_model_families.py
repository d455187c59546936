"""Model families from loading to use: encoders as retrievers, encoder-decoders as generators."""

import pandas as pd
import pytest
import torch
from encoder_models import FAMILIES as ENCODERS
from encoder_models import MAX_TOKENS, save_checkpoint
from peft import LoraConfig, PeftModel
from scipy.special import expit
from sentence_transformers import CrossEncoder
from seq2seq_models import FAMILIES as SEQ2SEQ
from seq2seq_models import build_byt5, build_model, build_tokenizer, build_trainer, parameters_of
from toy_shop import DOCUMENTS, training_options, weights_of
from transformers import ByT5Tokenizer, TrainingArguments

from agr_trl.config import SamplingArguments
from agr_trl.generator import load_generator, sample_queries, save_merged_generator
from agr_trl.retriever import Retriever, dev_metrics, retriever_trainer

QUERIES = ["wooden chair", "metal chair", "reading lamp", "lamp", "oak table", "table"]
PAIRS = pd.DataFrame({"query": QUERIES, "document": DOCUMENTS, "label": [1.0, 0.0] * 3})


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_loaded_trained_saved_and_served(family, tmp_path):
    save_checkpoint(tmp_path / "published", family, labels=None)
    retriever = Retriever.from_pretrained(str(tmp_path / "published"))
    assert retriever.max_pair_tokens == MAX_TOKENS
    before, weights = retriever.score(QUERIES, DOCUMENTS), weights_of(retriever.model)
    args = TrainingArguments(
        **training_options(tmp_path / "run", max_steps=1, learning_rate=1e-2),
        per_device_train_batch_size=6,
    )
    trainer = retriever_trainer(retriever, args, PAIRS, PAIRS, dev_metrics(PAIRS, False))
    trainer.train()
    scores = retriever.score(QUERIES, DOCUMENTS)
    assert abs(scores - before).max() > 1e-3
    moved = {
        name
        for name, value in weights_of(retriever.model).items()
        if not value.equal(weights[name])
    }
    assert any("embeddings" in name for name in moved)  # the whole of it learns, not the head alone
    assert any(name.startswith("classifier") for name in moved)

    retriever.save(tmp_path / "saved")
    again = Retriever.from_pretrained(str(tmp_path / "saved"))
    assert again.score(QUERIES, DOCUMENTS) == pytest.approx(scores, abs=1e-5)
    served = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    probabilities = served.predict([*zip(QUERIES, DOCUMENTS, strict=True)], show_progress_bar=False)
    assert probabilities == pytest.approx(expit(scores), abs=1e-5)
    long = " ".join(["wooden"] * 100)
    cut = expit(retriever.score([long], [long]))  # by all alike
    assert served.predict([(long, long)], show_progress_bar=False) == pytest.approx(cut, abs=1e-5)


@pytest.mark.parametrize("family", [*SEQ2SEQ, "byt5"])
def test_an_encoder_decoder_is_loaded_sampled_trained_and_saved(family, tmp_path):
    is_byt5 = family == "byt5"
    for part in (
        (build_byt5(), ByT5Tokenizer()) if is_byt5 else (build_model(family), build_tokenizer())
    ):
        part.save_pretrained(tmp_path / "published")
    model, tokenizer = load_generator(str(tmp_path / "published"))
    prompts = ["w4 w5", "w7 w8 w9"]
    settings = SamplingArguments(queries_per_product=3, max_query_tokens=6)

    def sample(model):
        torch.manual_seed(0)
        return sample_queries(model, tokenizer, prompts, settings, 16)

    rows: list[int] = []
    hook = model.get_encoder().register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(output[0])), with_kwargs=True
    )
    written = sample(model)
    assert [len(queries) for queries in written] == [3, 3] and len(
        {q for group in written for q in group}
    ) > 1
    assert rows == [2]  # each product once
    hook.remove()

    adapter = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules="all-linear")
    trainer = build_trainer(
        model,
        tmp_path / "run",
        options={"processing_class": tokenizer, "peft_config": adapter},
        max_steps=1,
    )
    before = parameters_of(trainer.model)
    first_layer = next(
        part for name, part in trainer.model.get_encoder().named_modules() if name.endswith(".0")
    )
    rows.clear()
    first_layer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    trainer.train()
    # 8 rows of 2 prompts: for sampling, old scores and the loss, and for the anchor's scores.
    assert rows == [2, 2]
    logged = trainer.state.log_history[0]
    assert logged["clip_ratio/region_mean"] == 0 and logged["kl"] == pytest.approx(0, abs=1e-5)
    moved = {n for n, p in trainer.model.named_parameters() if not p.equal(before[n])}
    assert moved and all("lora_" in name for name in moved)

    trainer.save_model(str(tmp_path / "adapter"))
    loaded, _ = load_generator(str(tmp_path / "adapter"))
    assert isinstance(loaded, PeftModel)
    save_merged_generator(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = load_generator(str(tmp_path / "merged"))
    assert len(sample(loaded)) == len(sample(merged)) == 2
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = [
            each.eval()(input_ids=ids, decoder_input_ids=ids).logits
            for each in (trainer.model, loaded, merged)
        ]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-4, rtol=0)
