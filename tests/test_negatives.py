"""Negatives: the margin rules, what may never be a negative, and determinism."""

import logging

import numpy as np
import pandas as pd
import pytest

from agr_trl.errors import UserError
from agr_trl.negatives import mine_negatives
from agr_trl.search import BM25Index

DOCUMENTS = [
    "oak bed",  # 0: positive
    "oak table",  # 1
    "oak bed",  # 2: the positive's text again
    "oak bed frame",  # 3
    "lamp",  # 4
    "rug",  # 5
]
INDEX = BM25Index(DOCUMENTS)


def mine(queries: list[str], positives: list[int], **options: object) -> pd.DataFrame:
    settings: dict = {"num_hard": 0, "num_random": 0, "margin": 0.0} | options
    return mine_negatives(queries, positives, INDEX, DOCUMENTS, **settings)


def products_of(negatives: pd.DataFrame, kind: str, row: int = 0) -> set[int]:
    chosen = negatives[(negatives["kind"] == kind) & (negatives["row"] == row)]
    assert not chosen["product_index"].duplicated().any()
    return set(chosen["product_index"])


def test_hard_negatives_share_a_word_and_are_not_the_positive_or_its_copy() -> None:
    found = mine(["oak bed"], [0], num_hard=10)
    assert found.columns.tolist() == ["row", "product_index", "kind"]
    assert products_of(found, "hard") == {1, 3}


def test_bm25_margin_is_relative_to_the_positive() -> None:
    positive, table, frame = INDEX.score(["oak bed"] * 3, np.array([0, 1, 3]))
    assert table < frame < positive
    just_above = 1 - frame / positive + 1e-3  # asks a little more than "oak bed frame" leaves
    assert products_of(mine(["oak bed"], [0], num_hard=5, margin=just_above), "hard") == {1}
    just_below = just_above - 2e-3
    assert products_of(mine(["oak bed"], [0], num_hard=5, margin=just_below), "hard") == {1, 3}


def test_hard_negatives_are_drawn_from_the_best_of_a_pool() -> None:
    documents = ["oak bed", *(f"oak {'w ' * length}" for length in range(1, 60))]
    index = BM25Index(documents)
    best = set(index.top(["oak bed"], 3)[0][0].tolist())
    assert 0 in best
    drawn = set()
    for seed in range(20):
        found = mine_negatives(
            ["oak bed"], [0], index, documents, num_hard=1, num_random=0, any_candidate=True,
            pool_size=3, seed=seed,
        )  # fmt: skip
        drawn |= products_of(found, "hard")
    assert drawn == best - {0}


def test_default_margins_are_wide() -> None:
    frame, table = INDEX.score(["oak bed"] * 2, np.array([3, 1])) / INDEX.score(
        ["oak bed"] * 2, np.array([0, 0])
    )
    assert table < 0.5 < frame
    assert products_of(mine(["oak bed"], [0], num_hard=5, margin=None), "hard") == {1}


def test_scorer_margin_is_absolute() -> None:
    judge = {"oak bed": 0.9, "oak table": 0.84, "oak bed frame": 0.86}

    def scorer(queries: list[str], documents: list[str]) -> np.ndarray:
        assert len(set(zip(queries, documents, strict=True))) == len(queries)
        return np.array([judge[document] for document in documents])

    # 0.84 <= 0.9 - 0.05 passes, 0.86 does not; with margin 0.01 both do.
    chosen = mine(["oak bed"], [0], num_hard=5, scorer=scorer, margin=0.05)
    assert products_of(chosen, "hard") == {1}
    chosen = mine(["oak bed"], [0], num_hard=5, scorer=scorer, margin=0.01)
    assert products_of(chosen, "hard") == {1, 3}


def test_a_positive_without_shared_words_gets_no_hard_negatives_from_bm25() -> None:
    assert mine(["oak"], [4], num_hard=5).empty


def test_judged_products_and_their_copies_are_excluded_from_every_kind() -> None:
    options = {"num_hard": 5, "num_random": 5, "excluded": [{3}, {5}]}
    found = mine(["oak bed", "lamp"], [0, 4], **options)
    assert products_of(found, "hard") == {1}
    assert products_of(found, "random") == {4, 5}
    assert products_of(found, "random", row=1) <= {0, 1, 2, 3}
    # Of two equal documents only one comes, in any kind.
    assert len({0, 2} & products_of(found, "random", row=1)) == 1


def test_positives_of_the_same_query_in_other_rows_are_excluded() -> None:
    found = mine(["oak bed", "oak bed"], [0, 3], num_hard=5, num_random=5)
    for row in (0, 1):
        assert products_of(found, "hard", row) == {1}
        assert products_of(found, "random", row) == {4, 5}


def test_in_batch_negatives_are_positives_of_other_queries() -> None:
    queries, positives = ["oak bed", "lamp", "rug", "oak bed"], [0, 4, 5, 3]
    found = mine(queries, positives, num_in_batch=9)
    assert products_of(found, "in_batch", 0) == {4, 5}
    assert products_of(found, "in_batch", 1) == {0, 3, 5}
    assert mine(["lamp"], [4], num_in_batch=3).empty
    assert mine(queries, positives, num_in_batch=1).groupby("row").size().tolist() == [1] * 4


def test_no_document_comes_twice_for_a_row() -> None:
    queries, positives = ["oak", "oak bed", "table", "lamp"], [1, 0, 1, 4]
    found = mine(queries, positives, num_hard=2, num_in_batch=2, num_random=6)
    texts = found["product_index"].map(DOCUMENTS.__getitem__)
    assert not pd.DataFrame({"row": found["row"], "text": texts}).duplicated().any()
    assert found["row"].is_monotonic_increasing


def test_same_seed_same_negatives_on_a_larger_catalogue() -> None:
    generator = np.random.default_rng(3)
    words = [f"w{i}" for i in range(30)]
    documents = [" ".join(generator.choice(words, size=5, replace=False)) for _ in range(400)]
    index = BM25Index(documents)
    queries = [" ".join(document.split()[:2]) for document in documents[:50]]

    def run(seed: int) -> pd.DataFrame:
        return mine_negatives(
            queries,
            range(50),
            index,
            documents,
            num_hard=2,
            num_random=3,
            num_in_batch=1,
            margin=0.2,
            seed=seed,
        )

    first = run(0)
    pd.testing.assert_frame_equal(first, run(0))
    assert not first.equals(run(1))
    counts = first.groupby("kind").size()
    assert counts["random"] == 150
    assert counts["in_batch"] == 50
    assert 0 < counts["hard"] <= 100
    hard = first[first["kind"] == "hard"]
    asked = [queries[row] for row in hard["row"]]
    own = index.score(queries, np.arange(50))[hard["row"]]
    assert (index.score(asked, hard["product_index"].to_numpy()) <= 0.8 * own).all()


def test_missing_negatives_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="agr_trl.negatives"):
        mine(["oak bed"], [0], num_hard=5)
    assert "2 of 5 hard negatives found" in caplog.text


def test_nothing_asked_nothing_found() -> None:
    assert mine(["oak bed"], [0]).empty
    assert mine([], [], num_hard=2, num_random=2, num_in_batch=2).empty


@pytest.mark.parametrize(
    ("queries", "positives", "options", "message"),
    [
        (["oak"], [0, 1], {}, "as many positives"),
        (["oak"], [6], {}, "the catalogue has 0..5"),
        (["oak"], [0], {"excluded": []}, "as many `excluded`"),
        (["oak"], [0], {"excluded": [{-1}]}, "product indices"),
        (["oak"], [0], {"margin": 1.0}, "`margin`"),
        (["oak"], [0], {"pool_size": 0}, "`pool_size`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    queries: list[str], positives: list[int], options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mine(queries, positives, num_hard=1, **options)


def test_an_index_of_other_documents_is_refused() -> None:
    with pytest.raises(UserError, match="build the index from these documents"):
        mine_negatives(["oak"], [0], INDEX, DOCUMENTS[:2], num_hard=1, num_random=0)
