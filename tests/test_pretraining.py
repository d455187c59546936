"""What a retriever learns before any judgement: words of titles, and S."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_shop import TITLES, build_dataset, weights_of

from agr_trl import pretraining
from agr_trl.config import RetrieverArguments
from agr_trl.errors import UserError
from agr_trl.losses import relevance_bce
from agr_trl.pretraining import (
    _near_misses,
    _teach,
    distillation_pairs,
    matching_pairs,
    new_or_loaded_retriever,
)
from agr_trl.retriever import load_retriever
from agr_trl.search import BM25Index


@pytest.fixture
def dataset():
    return build_dataset()


def settings(steps, **options):
    return RetrieverArguments(
        retriever_name_or_path="new",
        new_retriever_width=32,
        new_retriever_layers=1,
        new_retriever_steps=steps,
        max_pair_tokens=32,
        **options,
    )


def loss_of(retriever, pairs):
    log_odds = retriever.score(pairs["query"].tolist(), pairs["document"].tolist())
    labels = torch.tensor(pairs["label"].to_numpy(), dtype=torch.float32)
    return relevance_bce(torch.tensor(log_odds), labels).mean().item()


def test_matching_pairs_by_hand(dataset, monkeypatch):
    pseudo = pd.DataFrame({"product_id": ["p2", "p0"], "query": ["lamp", "red chair"]})
    monkeypatch.setattr(pretraining, "pseudo_queries", lambda *_: pseudo)
    shares = {  # of "lamp" and of "red chair", moved into [.05, .95]
        "red wooden chair": {"lamp": 0.05, "red chair": 0.95},
        "blue metal chair": {"lamp": 0.05, "red chair": 0.5},
        "red desk lamp": {"lamp": 0.95, "red chair": 0.5},
        "green floor lamp": {"lamp": 0.95, "red chair": 0.05},
        "oak dining table": {"lamp": 0.05, "red chair": 0.05},
        "glass coffee table 120cm": {"lamp": 0.05, "red chair": 0.05},
    }
    for seed in range(5):
        pairs = matching_pairs(dataset, 100, seed)
        assert sorted(pairs["query"]) == ["lamp", "lamp", "red chair", "red chair"]
        for query, document, label in pairs.itertuples(index=False):
            assert label == pytest.approx(shares[document][query])
        met = set(zip(pairs["query"], pairs["document"], strict=True))
        assert met > {("lamp", "red desk lamp"), ("red chair", "red wooden chair")}
    assert len(matching_pairs(dataset, 2, seed=0)) == 2


def test_matching_pairs_hold_the_products_own_words(dataset):
    titles = [title for title, _ in TITLES.values()]
    pairs = matching_pairs(dataset, 10_000, seed=0)
    assert len(pairs) == 2 * 10 * len(titles)
    assert pairs["label"].between(0.05 - 1e-9, 0.95 + 1e-9).all()
    matching = pairs[pairs["label"] > 0.94]
    assert len(matching) >= 10 * len(titles)  # each with its own title, and some fit another too
    for query, title in zip(matching["query"], matching["document"], strict=True):
        assert set(query.split()) <= set(title.split())
    assert pairs.equals(matching_pairs(dataset, 10_000, seed=0))
    assert not pairs.equals(matching_pairs(dataset, 10_000, seed=1))


def test_a_near_miss_holds_some_words_and_not_all(dataset):
    queries = pd.Series(["red lamp", "lamp", "velvet zebra sofa", "zebra"])
    titles = ["red chair", "blue lamp", "red lamp", "velvet sofa"]
    drawn = {tuple(_near_misses(queries, titles, np.random.default_rng(seed))) for seed in range(9)}
    # One word is there or not; of three the sofa has two; an unknown word has nothing near.
    assert drawn == {(0, -1, 3, -1), (1, -1, 3, -1)}


def test_near_misses_are_among_the_other_titles(dataset, monkeypatch):
    def near(share):
        monkeypatch.setattr(pretraining, "NEAR_MISSES", share)
        pairs = matching_pairs(dataset, 10_000, seed=0)
        return pairs["label"].between(0.06, 0.94).sum()  # some words and not all

    assert near(1.0) > 2 * near(0.0)


def test_titles_lesson_finds_the_match_of_words(dataset):
    pairs = matching_pairs(dataset, 10_000, seed=0)
    wide = replace(settings(200), new_retriever_width=64, new_retriever_layers=2)
    torch.manual_seed(0)
    before = loss_of(load_retriever(wide, dataset.documents), pairs)
    torch.manual_seed(0)
    retriever = new_or_loaded_retriever(wide, dataset, seed=0)
    assert before == pytest.approx(0.693, abs=0.01)  # ln 2: it knows nothing
    assert loss_of(retriever, pairs) < before - 0.2  # labels alone, at their mean, give .03


def test_without_steps_there_is_no_lesson(dataset):
    torch.manual_seed(0)
    plain = weights_of(load_retriever(settings(0), dataset.documents).model)
    torch.manual_seed(0)
    same = weights_of(new_or_loaded_retriever(settings(0), dataset, seed=0).model)
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_one_step_is_a_step_and_not_an_epoch(dataset, monkeypatch):
    taught = []
    make = pretraining.retriever_trainer
    monkeypatch.setattr(
        pretraining, "retriever_trainer", lambda *args: taught.append(make(*args)) or taught[-1]
    )
    new_or_loaded_retriever(settings(1), dataset, seed=0)
    assert [trainer.state.global_step for trainer in taught] == [1]


def test_a_loaded_retriever_gets_no_lesson(dataset, tmp_path, caplog):
    new_or_loaded_retriever(settings(0), dataset, seed=0).save(tmp_path / "retriever")
    path = str(tmp_path / "retriever")
    arguments = RetrieverArguments(retriever_name_or_path=path, max_pair_tokens=32)
    with caplog.at_level(logging.INFO, logger="agr_trl"):
        new_or_loaded_retriever(arguments, dataset, seed=0)
    assert "learns to match" not in caplog.text


class WordOverlap:
    """S that a reader can work out: the share of the query's words that the document holds."""

    def score(self, queries, documents):
        return np.array(
            [
                np.mean([word in document.split() for word in query.split()])
                for query, document in zip(queries, documents, strict=True)
            ]
        )


def test_distillation_pairs_are_labelled_by_the_rank_of_s(dataset):
    index, titles = BM25Index(dataset.documents), [title for title, _ in TITLES.values()]
    pairs = distillation_pairs(dataset, index, WordOverlap(), 1_000, seed=0)
    scores = WordOverlap().score(pairs["query"], pairs["document"])
    order = pairs.assign(s=scores).sort_values("s", kind="stable")
    assert (order.groupby("s")["label"].nunique() == 1).all()  # equal S, equal label
    assert order["label"].is_monotonic_increasing
    assert pairs["label"].mean() == pytest.approx(0.5)
    assert pairs["label"].between(0, 1, inclusive="neither").all()
    assert set(pairs["document"]) <= set(dataset.documents)
    assert all(any(f" {query} " in f" {title} " for title in titles) for query in pairs["query"])
    assert {0.0, 1.0} <= set(scores)  # own products, and products that have nothing of the query


def test_distillation_pairs_are_as_many_as_the_steps_need(dataset):
    index = BM25Index(dataset.documents)
    few = distillation_pairs(dataset, index, WordOverlap(), 20, seed=0)
    assert few["query"].nunique() <= 5 and len(few) <= 20
    assert few.equals(distillation_pairs(dataset, index, WordOverlap(), 20, seed=0))
    assert not few.equals(distillation_pairs(dataset, index, WordOverlap(), 20, seed=1))


def test_titles_without_words_teach_nothing(dataset):
    blank = replace(dataset, products=dataset.products.assign(title="!!"))
    index = BM25Index(blank.documents)
    with pytest.raises(UserError, match="`distillation_steps`"):
        distillation_pairs(blank, index, WordOverlap(), 20, seed=0)
    with pytest.raises(UserError, match="`new_retriever_steps`"):
        new_or_loaded_retriever(settings(1), blank, seed=0)


def test_a_lesson_tells_how_far_it_is_above_the_entropy_of_its_labels(dataset):
    pairs = pd.DataFrame({"query": "red lamp", "document": TITLES["p0"][0], "label": [0.05] * 64})
    torch.manual_seed(0)
    retriever = load_retriever(settings(0), dataset.documents)
    # Before its first step it says .5: ln 2 - (-.05 ln .05 - .95 ln .95) = .6931 - .1985
    assert _teach(retriever, pairs, 1, seed=0) == pytest.approx(0.4946, abs=0.01)
    torch.manual_seed(0)
    retriever = load_retriever(settings(0), dataset.documents)
    assert _teach(retriever, pairs.assign(label=0.5), 1, seed=0) == pytest.approx(0, abs=0.01)


def test_a_long_lesson_that_is_stuck_is_given_to_another_retriever(dataset, monkeypatch, caplog):
    lacking, taught = iter([0.07, 0.01]), []

    def teach(retriever, pairs, steps, seed):
        taught.append((weights_of(retriever.model), seed))
        return next(lacking)

    monkeypatch.setattr(pretraining, "_teach", teach)
    retriever = new_or_loaded_retriever(settings(500), dataset, seed=7)
    (first, _), (second, _) = taught
    assert [seed for _, seed in taught] == [7, 8]
    assert any(not first[name].equal(second[name]) for name in first)
    assert all(value.equal(second[name]) for name, value in weights_of(retriever.model).items())
    assert "it ended 0.07 nats above the least; another one learns" in caplog.text

    caplog.clear()
    lacking = iter([0.07])  # a short one is not expected to find it
    new_or_loaded_retriever(settings(499), dataset, seed=7)
    assert "matches words poorly" not in caplog.text and "another one" not in caplog.text
    lacking = iter([0.07] * 3)
    new_or_loaded_retriever(settings(500), dataset, seed=7)
    assert next(lacking, None) is None
    assert "matches words poorly after 500 steps, 0.07 nats above the least loss" in caplog.text
    assert "raise `new_retriever_steps`" in caplog.text
