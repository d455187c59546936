import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from peft import PeftModel, get_peft_model
from seq2seq_models import build_model, build_tokenizer
from toy_shop import (
    JUDGEMENTS,
    PROMPTS,
    QUERIES,
    TITLES,
    build_dataset,
    build_generator,
    build_retriever,
    save_generator,
    training_options,
    weights_of,
)
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainingArguments

from agr_trl.config import LoraArguments, SamplingArguments, WarmUpArguments
from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.generator import (
    _title_words,
    dev_query_pairs,
    generator_lora,
    judged_query_pairs,
    load_generator,
    new_or_loaded_generator,
    pseudo_queries,
    sample_queries,
    save_merged_generator,
    title_spans,
    warm_up_pairs,
    warm_up_trainer,
    weights_fingerprint,
)
from agr_trl.small_models import build_small_t5

SAMPLING = SamplingArguments(queries_per_product=3, max_query_tokens=6, sampling_batch_size=4)
WARM_UP = WarmUpArguments(
    generator_name_or_path="new",
    new_generator_width=32,
    new_generator_layers=1,
    new_vocabulary_size=120,
)


def sample(model, tokenizer, prompts=PROMPTS, seed=0, settings=SAMPLING):
    torch.manual_seed(seed)
    return sample_queries(model, tokenizer, prompts, settings, max_prompt_tokens=20)


def save_adapter(base, path):
    """Write an adapter with random weights over the model in `base`."""
    model, tokenizer = load_generator(str(base))
    model = get_peft_model(model, generator_lora(LoraArguments(lora_rank=2)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# --- Writing queries -----------------------------------------------------------------------------


def test_every_prompt_is_encoded_once_and_gets_its_queries():
    model, tokenizer = build_generator()
    rows = []
    model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(output[0])), with_kwargs=True
    )
    queries = sample(model, tokenizer)
    assert [len(group) for group in queries] == [3] * 6
    assert rows == [4, 2]  # 6 prompts by 4, not 18
    assert any(len(set(group)) > 1 for group in queries)
    assert sample(model, tokenizer, []) == []


def test_prompts_of_like_length_are_written_for_together():
    model, tokenizer = build_generator()
    given = []
    model.encoder.register_forward_hook(
        lambda _, args, output: given.append(tuple(output[0].shape[:2]))
    )
    sample(model, tokenizer, [" ".join(["oak"] * words) for words in (8, 1, 2, 7, 4, 3)])
    assert given == [(4, 5), (2, 9)]  # a prompt has an end token; without order two batches of 9


def test_the_seed_decides_and_the_model_stays_as_it_was():
    model, tokenizer = build_generator()
    model.train()
    own, before = model.generation_config, weights_of(model)
    first = sample(model, tokenizer)
    assert first == sample(model, tokenizer) != sample(model, tokenizer, seed=1)
    assert model.training and model.generation_config is own
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_queries_follow_their_prompts_whatever_the_order_of_lengths(tmp_path):
    # Taught to write one word for each prompt, and drawn almost without chance.
    model, tokenizer = build_generator()
    prompts = ["lamp", "glass coffee table oak chair", "red chair"]
    pairs = pd.DataFrame({"prompt": prompts, "query": ["lamp", "oak", "red"]})
    args = Seq2SeqTrainingArguments(
        **training_options(tmp_path, max_steps=60, learning_rate=1e-2, logging_steps=60)
    )
    warm_up_trainer(model, tokenizer, args, WARM_UP, pairs, None).train()
    cold = SamplingArguments(
        queries_per_product=2, sampling_temperature=0.01, max_query_tokens=4, sampling_batch_size=2
    )
    assert sample(model, tokenizer, prompts, settings=cold) == [
        ["lamp", "lamp"],
        ["oak", "oak"],
        ["red", "red"],
    ]


def test_the_checkpoints_generation_settings_are_hidden():
    # This BART brings 4 beams, a minimum length and a forced first token.
    model, tokenizer = build_model("bart"), build_tokenizer()
    own = model.generation_config.to_dict()
    with torch.no_grad():
        model.final_logits_bias.zero_()
        model.final_logits_bias[0, tokenizer.eos_token_id] = 1e4
    started = []
    model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: started.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    queries = sample_queries(model, tokenizer, ["w4 w5", "w6"], SAMPLING, 8)
    assert queries == [[""] * 3] * 2  # ended at once, which min_length would forbid
    assert started == [[[tokenizer.eos_token_id, tokenizer.bos_token_id]] * 6]  # start, forced BOS
    assert model.generation_config.to_dict() == own

    model.model.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_queries(model, tokenizer, ["w4"], SAMPLING, 8)
    assert model.generation_config.to_dict() == own


# --- Saving and loading --------------------------------------------------------------------------


def test_adapters_and_full_models_load_to_be_trained(tmp_path):
    base = save_generator(tmp_path / "base")
    full, tokenizer = load_generator(str(base))
    assert not isinstance(full, PeftModel)
    adapter, _ = load_generator(str(save_adapter(base, tmp_path / "adapter")))
    assert isinstance(adapter, PeftModel)
    trained = {name for name, p in adapter.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["task_type"] == "SEQ_2_SEQ_LM"
    with adapter.disable_adapter():  # the anchor is the model below
        assert sample(adapter, tokenizer) == sample(full, tokenizer)
    full.to(torch.bfloat16).save_pretrained(base)
    assert load_generator(str(base))[0].dtype == torch.float32


def test_a_merged_generator_writes_what_the_adapter_writes(tmp_path):
    base = save_generator(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter")
    save_merged_generator(tmp_path / "adapter", tmp_path / "merged")
    adapter, tokenizer = load_generator(str(tmp_path / "adapter"))
    merged, _ = load_generator(str(tmp_path / "merged"))
    assert not isinstance(merged, PeftModel)
    assert sample(merged, tokenizer) == sample(adapter, tokenizer)
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    start = torch.zeros((6, 1), dtype=torch.long)
    plain = AutoModelForSeq2SeqLM.from_pretrained(base)
    with torch.no_grad():
        logits = [
            model.eval()(**batch, decoder_input_ids=start).logits
            for model in (adapter, merged, plain)
        ]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)


def test_an_adapters_base_is_found_in_a_moved_run_or_named(tmp_path):
    base = save_generator(tmp_path / "run" / "round_00" / "generator")
    save_adapter(base, tmp_path / "run" / "round_01" / "generator")
    expected = sample(*load_generator(str(tmp_path / "run" / "round_01" / "generator")))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "round_01" / "generator"
    assert sample(*load_generator(str(moved))) == expected
    shutil.rmtree(tmp_path / "moved" / "round_00")
    with pytest.raises(UserError) as caught:
        load_generator(str(moved))
    assert f"`{moved}` is gone" in str(caught.value) and f"`{base}`" in str(caught.value)


def test_a_copied_run_keeps_to_its_own_base(tmp_path):
    base = save_generator(tmp_path / "run" / "round_00" / "generator")
    save_adapter(base, tmp_path / "run" / "round_01" / "generator")
    expected = sample(*load_generator(str(tmp_path / "run" / "round_01" / "generator")))
    copied = shutil.copytree(tmp_path / "run", tmp_path / "copy") / "round_01" / "generator"
    model, _ = load_generator(str(base))
    torch.nn.init.normal_(model.shared.weight)
    model.save_pretrained(base)  # the run is made anew
    assert sample(*load_generator(str(copied))) == expected
    assert sample(*load_generator(str(tmp_path / "run" / "round_01" / "generator"))) != expected


def test_weights_are_told_apart_by_content_and_by_what_is_below(tmp_path):
    base = save_generator(tmp_path / "run" / "round_00" / "generator")
    adapter = save_adapter(base, tmp_path / "run" / "round_01" / "generator")
    before = weights_fingerprint(str(base)), weights_fingerprint(str(adapter))
    assert before[0] != before[1]
    moved = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert weights_fingerprint(str(moved / "round_01" / "generator")) == before[1]
    model, _ = load_generator(str(base))
    torch.nn.init.normal_(model.shared.weight)
    model.save_pretrained(base)
    assert weights_fingerprint(str(base)) != before[0]
    assert weights_fingerprint(str(adapter)) != before[1]


def test_every_end_token_of_a_model_ends_a_query():
    model, tokenizer = build_model("t5"), build_tokenizer()

    def queries():
        rows = sample(model, tokenizer, ["w4", "w5", "w6", "w7"] * 20)
        return [query for row in rows for query in row]

    assert any("w5 " in query for query in queries())
    end = tokenizer.convert_tokens_to_ids("w5")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    ended = queries()
    assert any(query.endswith("w5") for query in ended)
    assert not any("w5 " in query for query in ended)


def test_the_base_beside_is_not_taken_for_another_model(tmp_path):
    save_generator(tmp_path / "round_00" / "generator")
    base = save_generator(tmp_path / "other" / "model")
    adapter = save_adapter(base, tmp_path / "round_01" / "generator")
    shutil.rmtree(base)
    with pytest.raises(UserError, match="is gone"):
        load_generator(str(adapter))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"base_model_name_or_path": ', "is not valid JSON"),
        ('{"base_model_name_or_path": null}', "names no base model"),
        ("[]", "names no base model"),
    ],
)
def test_a_damaged_adapter_is_named(text, says, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    for read in (load_generator, weights_fingerprint):
        with pytest.raises(UserError, match=f"{tmp_path}/adapter_config.json` {says}"):
            read(str(tmp_path))


def test_what_is_no_generator_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_generator(str(tmp_path))
    build_retriever().save(tmp_path / "bert")
    with pytest.raises(UserError, match="no encoder-decoder"):
        load_generator(str(tmp_path / "bert"))


def test_lora_settings():
    assert generator_lora(LoraArguments(lora_rank=0)) is None
    config = generator_lora(LoraArguments(4, 8, "q, v"))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q", "v"})
    assert config.task_type == "SEQ_2_SEQ_LM"


# --- Warm-up -------------------------------------------------------------------------------------


def test_pseudo_queries_hold_words_of_their_title_in_its_order():
    pseudo = pseudo_queries(build_dataset(), per_product=20, seed=0)
    assert len(pseudo) == 6 * 20
    for product_id, query in pseudo.itertuples(index=False):
        title = re.findall("[a-z]+", TITLES[product_id][0].replace("120cm", ""))
        positions = [title.index(word) for word in query.split()]
        assert positions == sorted(set(positions)) and 1 <= len(positions) <= 4
    again = pseudo_queries(build_dataset(), per_product=20, seed=0)
    assert again.equals(pseudo) and not pseudo_queries(build_dataset(), 20, 1).equals(pseudo)


def test_model_codes_give_no_words():
    titles = ["XB12CD-40", "42 7", "Sony WH-1000XM4 head-phones", "lamp"]
    products = pd.DataFrame({"product_id": list("abcd"), "title": titles, "description": ""})
    dataset = build_dataset()
    dataset = RelevanceDataset(products, dataset.queries, dataset.judgements, True, 2)
    pseudo = pseudo_queries(dataset, per_product=30, seed=0)
    assert set(pseudo["product_id"]) == {"c", "d"}  # the others have no usable word
    assert {word for query in pseudo["query"] for word in query.split()} == {
        "sony", "head", "phones", "lamp"
    }  # fmt: skip


def test_numbers_take_their_units_with_them():
    titles = [
        "Ink 363XL 1 pc(s)",
        "Processor 3.6 GHz 4 MB L2",
        "5 - light chandelier",
        "3 piece set",
    ]
    words = [set(_title_words(title)) for title in titles]
    assert words == [{"ink"}, {"processor"}, {"light", "chandelier"}, {"piece", "set"}]


def test_pseudo_queries_do_not_cut_what_belongs_together():
    woods = ["oak", "pine", "teak", "ash", "elm", "walnut", "maple", "cherry", "birch", "cedar"]
    products = pd.DataFrame(
        {"product_id": woods, "title": [f"{wood} end table" for wood in woods], "description": ""}
    )
    toy = build_dataset()
    dataset = RelevanceDataset(products, toy.queries, toy.judgements, True, 2)
    queries = pseudo_queries(dataset, per_product=40, seed=0)["query"]
    assert queries.str.endswith(" end").mean() < 0.02  # weighs (1 / 11) ** 2
    assert (queries == "end").mean() < 0.02
    assert {"end table", "oak end table", "oak"} <= set(queries)


def test_title_spans_are_unbroken_runs_of_1_to_4_words():
    titles = ["red oak side table with drawer", "lamp", "?"]
    drawn = title_spans(titles, 600, seed=0)
    assert [len(spans) for spans in drawn] == [600] * 3
    runs = {
        " ".join(titles[0].split()[begin : begin + length])
        for length in (1, 2, 3, 4)
        for begin in range(7 - length)
    }
    assert set(drawn[0]) == runs  # all 18 of them
    assert set(drawn[1]) == {"lamp"} and set(drawn[2]) == {""}
    assert title_spans(titles, 600, seed=0) == drawn != title_spans(titles, 600, seed=1)


def test_warm_up_pairs_are_gold_repeated_and_pseudo():
    args = WarmUpArguments(gold_repeats=2, pseudo_queries_per_product=3, max_pseudo_queries=10)
    pairs = warm_up_pairs(build_dataset(), args, seed=0)
    gold = pairs[pairs["kind"] == "gold"]
    prompt_of = dict(zip(TITLES, PROMPTS, strict=True))
    relevant = [
        (prompt_of[product], QUERIES[query])
        for query, product, grade, split in JUDGEMENTS
        if grade and split == "train"
    ]
    assert len(relevant) == 3
    assert sorted(zip(gold["prompt"], gold["query"], strict=True)) == sorted(relevant * 2)
    assert (pairs["kind"] == "pseudo").sum() == 10
    assert warm_up_pairs(build_dataset(), args, seed=0).equals(pairs)
    assert list(judged_query_pairs(build_dataset(), "dev")["query"]) == ["oak table"] * 2
    only_pseudo = WarmUpArguments(gold_repeats=0, pseudo_queries_per_product=1)
    assert set(warm_up_pairs(build_dataset(), only_pseudo, 0)["kind"]) == {"pseudo"}
    nothing = WarmUpArguments(gold_repeats=0, pseudo_queries_per_product=0)
    with pytest.raises(UserError, match="has no pairs"):
        warm_up_pairs(build_dataset(), nothing, 0)


def test_a_dev_split_without_relevant_pairs_is_named_or_done_without():
    whole = build_dataset()
    assert list(dev_query_pairs(whole)["query"]) == ["oak table"] * 2
    judgements = whole.judgements.copy()
    judgements.loc[judgements["split"] == "dev", ["label", "grade"]] = 0
    dataset = replace(whole, judgements=judgements)
    with pytest.raises(UserError, match="split 'dev' has no relevant pair, so the warm-up cannot"):
        dev_query_pairs(dataset)
    assert dev_query_pairs(dataset, is_evaluated=False) is None


def test_a_new_generators_pieces_know_no_query_of_dev_or_test(tmp_path):
    dataset = build_dataset()
    hidden = dataset.queries["query_id"].isin(dataset.pairs("dev")["query_id"])
    queries = dataset.queries.assign(query=dataset.queries["query"].mask(hidden, "zzzz xxxx"))
    args = WarmUpArguments(generator_name_or_path="new", new_generator_width=32)
    pieces = [
        new_or_loaded_generator(args, replace(dataset, queries=rows))[1].get_vocab()
        for rows in (dataset.queries, queries)
    ]
    assert pieces[0] == pieces[1]


def test_a_new_generator_begins_by_copying_its_prompt():
    model, tokenizer = build_generator()
    start = torch.tensor([[model.config.decoder_start_token_id]])
    lifts = []
    for prompt in PROMPTS:
        encoded = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            likely = model(**encoded, decoder_input_ids=start).logits[0, -1].softmax(-1)
        lifts.append(likely[encoded["input_ids"].unique()].mean().item() * len(likely))
    assert sum(lifts) / len(lifts) > 1.5  # 1: no likelier than any other word


def test_a_new_generator_reads_signs_as_pieces_of_their_own():
    text = "cat.6 s/ftp cable (10-ft), white"
    _, tokenizer = build_small_t5([text] * 3, width=32, layers=1, vocabulary_size=200)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert {"(", ")", ",", "ft"} <= set(pieces)
    assert not [piece for piece in pieces[:-1] if re.search(r"\w[^\w\s]|[(,/.-]\w", piece)]


def test_a_warm_up_of_a_new_generator_lowers_its_loss(tmp_path):
    torch.manual_seed(0)
    dataset = build_dataset()
    model, tokenizer = new_or_loaded_generator(WARM_UP, dataset)
    assert new_or_loaded_generator(WARM_UP, dataset)[1].get_vocab() == tokenizer.get_vocab()
    pairs = warm_up_pairs(dataset, WARM_UP, seed=0)
    args = Seq2SeqTrainingArguments(
        **training_options(tmp_path, max_steps=40, learning_rate=1e-2),
        per_device_train_batch_size=16,
    )
    dev = judged_query_pairs(dataset, "dev")
    trainer = warm_up_trainer(model, tokenizer, args, WARM_UP, pairs, dev)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    # What it writes now reads like the catalogue.
    words = {word for title, _ in TITLES.values() for word in title.split()}
    written = [query for group in sample(model, tokenizer) for query in group]
    assert sum(bool(set(query.split()) & words) for query in written) > len(written) / 2


def test_a_warm_up_can_start_from_an_adapter(tmp_path):
    base = save_generator(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    model, _ = new_or_loaded_generator(
        WarmUpArguments(generator_name_or_path=str(adapter)), build_dataset()
    )
    assert not isinstance(model, PeftModel)
    assert not any("lora" in name for name, _ in model.named_parameters())
