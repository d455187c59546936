from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from toy_shop import DOCUMENTS, build_dataset

from agr_trl.config import LoopArguments, RetrieverArguments
from agr_trl.relevance import Teacher
from agr_trl.search import BM25Index
from agr_trl.training_pairs import COLUMNS, gold_pairs, mix, synthetic_pairs

INDEX = BM25Index(DOCUMENTS)


class Shared:
    """S: a tenth for each word that query and document share."""

    def score(self, queries, documents):
        pairs = zip(queries, documents, strict=True)
        return np.array([len(set(q.split()) & set(d.split())) / 10 for q, d in pairs])


def gold(hard=0, random=0, dataset=None, seed=0):
    args = RetrieverArguments(hard_negatives=hard, random_negatives=random, negative_margin=0.05)
    return gold_pairs(dataset or build_dataset(), INDEX, args, None, seed)


def synthetic(seed=0, **settings):
    queries = pd.DataFrame({"query": ["green lamp", "coffee table"], "product_index": [3, 5]})
    teacher = Teacher(Shared().score).fit(
        ["oak table"] * 4, ["oak table", "table", "desk", "bed"], np.array([1, 1, 0, 0])
    )
    args = LoopArguments(**settings)
    frame = synthetic_pairs(queries, build_dataset(), INDEX, args, 0.05, Shared(), teacher, seed)
    return frame, teacher


def test_gold_pairs_are_the_judged_ones_of_train():
    frame = gold()
    assert list(frame.columns) == COLUMNS
    assert frame.values.tolist() == [
        ["wooden chair", DOCUMENTS[0], 1.0, "gold"],
        ["wooden chair", DOCUMENTS[1], 1.0, "gold"],
        ["wooden chair", DOCUMENTS[3], 0.0, "gold"],
        ["reading lamp", DOCUMENTS[2], 1.0, "gold"],
        ["reading lamp", DOCUMENTS[4], 0.0, "gold"],
    ]


def test_negatives_are_never_relevant_and_come_once():
    frame = gold(hard=2, random=3)
    mined = frame[frame["source"] != "gold"]
    assert set(mined["source"]) <= {"gold_hard", "gold_random"} and len(mined) >= 5
    assert (mined["label"] == 0).all()
    assert not mined.duplicated(["query", "document"]).any()
    relevant = {
        ("wooden chair", DOCUMENTS[0]),
        ("wooden chair", DOCUMENTS[1]),
        ("reading lamp", DOCUMENTS[2]),
    }
    assert not relevant & set(zip(mined["query"], mined["document"], strict=True))
    # "reading lamp" shares "lamp" with the green one, which is its hard negative.
    hard = mined[mined["source"] == "gold_hard"]
    assert ["reading lamp", DOCUMENTS[3]] in hard[["query", "document"]].values.tolist()
    assert gold(hard=2, random=3).equals(frame) and not gold(2, 3, seed=1).equals(frame)


def test_a_pair_with_a_label_above_0_is_no_negative():
    dataset = build_dataset()
    # Soft labels: "reading lamp" and the green floor lamp were judged .3.
    extra = {"query_id": "q1", "product_id": "p3", "grade": 0, "label": 0.3, "split": "train"}
    judgements = pd.concat([dataset.judgements, pd.DataFrame([extra])], ignore_index=True)
    dataset = type(dataset)(dataset.products, dataset.queries, judgements, True, 2)
    frame = gold(hard=5, random=6, dataset=dataset)
    both = frame[(frame["query"] == "reading lamp") & (frame["document"] == DOCUMENTS[3])]
    assert both["label"].tolist() == [0.3]


def test_synthetic_pairs_with_hard_labels():
    frame, _ = synthetic(soft_labels=False)
    assert list(frame.columns) == COLUMNS
    positives = frame[frame["source"] == "synthetic"]
    assert positives["document"].tolist() == [DOCUMENTS[3], DOCUMENTS[5]]
    assert (positives["label"] == 1).all()
    negatives = frame[frame["source"] != "synthetic"]
    assert set(negatives["source"]) == {"synthetic_hard", "synthetic_random"}
    assert (negatives["label"] == 0).all()
    hard = negatives[negatives["source"] == "synthetic_hard"]
    # The other lamp, and the other table: both share one word and so have S .1, below .2 - .05.
    assert hard["document"].tolist() == [DOCUMENTS[2], DOCUMENTS[4]]


def test_hard_negatives_keep_the_margin_in_s_unless_a_teacher_labels_them():
    def judge(queries, documents):  # the other chair is as relevant as the query's own
        return np.array([0.1 if document == DOCUMENTS[0] else 0.2 for document in documents])

    queries = pd.DataFrame({"query": ["one wooden chair"], "product_index": [0]})
    scorer = SimpleNamespace(score=judge)
    teacher = SimpleNamespace(probability=judge)
    sources = {}
    for is_soft in (False, True):
        args = LoopArguments(soft_labels=is_soft, synthetic_random_negatives=0)
        frame = synthetic_pairs(
            queries, build_dataset(), INDEX, args, 0.05, scorer, teacher, seed=0
        )
        sources[is_soft] = frame["source"].tolist()
    assert sources == {False: ["synthetic"], True: ["synthetic", "synthetic_hard"]}


@pytest.mark.parametrize("is_soft", [False, True])
def test_what_people_judged_is_not_labelled_again(is_soft):
    scorer = SimpleNamespace(score=lambda queries, documents: np.zeros(len(queries)))
    teacher = SimpleNamespace(probability=lambda queries, documents: np.full(len(queries), 0.5))
    args = LoopArguments(soft_labels=is_soft, synthetic_hard_negatives=2)
    # Of the train query "wooden chair" people judged products 0 and 1 relevant, and 3 not.
    queries = pd.DataFrame({"query": ["Wooden chair", "wooden chair"], "product_index": [3, 4]})
    frame = synthetic_pairs(queries, build_dataset(), INDEX, args, 0.0, scorer, teacher, seed=0)
    assert frame.loc[frame["source"] == "synthetic", "document"].tolist() == [DOCUMENTS[4]]
    assert not set(frame["document"]) & {DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[3]}
    assert len(frame) > 1


def test_hard_negatives_of_judged_pairs_keep_the_margin_in_s():
    args = RetrieverArguments(hard_negatives=1, random_negatives=0, negative_margin=0.05)

    def mined(scorer):
        frame = gold_pairs(build_dataset(), INDEX, args, scorer, 0)
        return frame.loc[frame["source"] == "gold_hard", ["query", "document"]].values.tolist()

    assert mined(None) == [["reading lamp", DOCUMENTS[3]]]
    assert mined(lambda queries, documents: np.ones(len(queries))) == []


def test_soft_labels_are_the_teachers_probabilities():
    frame, teacher = synthetic(soft_labels=True)
    expected = teacher.probability(frame["query"].tolist(), frame["document"].tolist())
    assert frame["label"].tolist() == pytest.approx(expected.tolist())
    positives = frame[frame["source"] == "synthetic"]["label"]
    assert (positives > 0.5).all() and (frame["label"] < 1).all()
    assert synthetic(soft_labels=True)[0].equals(frame)
    alone, _ = synthetic(synthetic_hard_negatives=0, synthetic_random_negatives=0)
    assert set(alone["source"]) == {"synthetic"}


@pytest.mark.parametrize(
    ("share", "repeats", "expected"),
    [
        (0.6, 1, 150),  # 150 / 250, although .6 / .4 * 100 is 149.99… in floating point
        (0.6, 2, 300),
        (0.5, 1, 100),
        (0.0, 1, 0),
        (0.999, 1, 400),  # all there are
        (1.0, 1, 400),
    ],
)
def test_the_synthetic_share_is_capped(share, repeats, expected):
    gold_frame = pd.DataFrame({"query": [f"g{n}" for n in range(100)], "source": "gold"})
    written = pd.DataFrame({"query": [f"s{n}" for n in range(400)], "source": "synthetic"})
    args = LoopArguments(max_synthetic_share=share, gold_repeats_per_round=repeats)
    mixed = mix(gold_frame, written, args, seed=0)
    assert (mixed["source"] == "synthetic").sum() == expected
    counts = mixed.loc[mixed["source"] == "gold", "query"].value_counts()
    assert len(counts) == 100 and (counts == repeats).all()
    assert mix(gold_frame, written, args, seed=0).equals(mixed)
    assert mixed["query"].tolist() != mix(gold_frame, written, args, seed=1)["query"].tolist()
