"""BM25 against values worked by hand and a naive second implementation; the blend; the search."""

import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agr_trl import search as search_module
from agr_trl.data import RelevanceDataset, document_text
from agr_trl.errors import UserError
from agr_trl.search import BM25Index, ProductSearch, blend, load_index, score_distinct

DOCUMENTS = [
    "oak bed",  # 0
    "oak oak table",  # 1
    "velvet sofa",  # 2
    "pine bed frame bed",  # 3
    "",  # 4
    "velvet sofa",  # 5: the same text as 2
]


def naive_bm25(query: str, documents: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Score by the formula: idf * tf / (tf + k1 * (1 - b + b * length / mean length))."""
    bags = [Counter(document.split()) for document in documents]
    mean_length = sum(bag.total() for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in query.split():
            holders = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - holders + 0.5) / (holders + 0.5))
            norm = k1 * (1 - b + b * bag.total() / mean_length)
            score += idf * bag[word] / (bag[word] + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["oak", "oak bed", "bed bed", "velvet sofa frame", "lamp oak"])
def test_scores_equal_the_formula(query: str) -> None:
    index = BM25Index(DOCUMENTS)
    scores = index.score([query] * len(DOCUMENTS), np.arange(len(DOCUMENTS)))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive_bm25(query, DOCUMENTS), atol=1e-6)


def test_score_worked_by_hand() -> None:
    # Two documents of one word each: idf = ln(1 + 1.5 / 1.5) = ln 2, tf part = 1 / (1 + 1.2).
    scores = BM25Index(["oak", "pine"]).score(["oak", "oak"], np.array([0, 1]))
    np.testing.assert_allclose(scores, [math.log(2) / 2.2, 0.0], atol=1e-7)


def test_text_is_lower_cased_stemmed_and_keeps_single_characters() -> None:
    index = BM25Index(["Xbox One S", "xbox one x", "tables"])
    indices, scores = index.top(["XBOX one s", "Table"], 1)
    assert indices.tolist() == [[0], [2]]
    assert (scores > 0).all()


def test_words_are_numbered_as_bm25s_numbers_them() -> None:
    documents = [*DOCUMENTS, "Tables, table & TABLE's", "Bär bären 12\u2033", "\u00c9tag\u00e8re"]
    index = BM25Index(documents)
    ids, vocabulary = index._numbered_words(documents)
    word_of = {number: word for word, number in vocabulary.items()}
    assert sorted(word_of) == list(range(len(word_of)))
    assert [[word_of[number] for number in row] for row in ids] == index._tokenize(documents)
    # The vocabulary that is looked up in must not grow by the words of queries.
    index.score(["settee"], np.array([0]))
    assert "settee" not in index._model.vocab_dict


def test_top_agrees_with_score_and_breaks_ties_by_catalogue_order() -> None:
    index = BM25Index(DOCUMENTS)
    indices, scores = index.top(["velvet sofa", "bed", "velvet sofa"], 6)
    assert indices.tolist() == [[2, 5, 0, 1, 3, 4], [3, 0, 1, 2, 4, 5], [2, 5, 0, 1, 3, 4]]
    flat = index.score(np.repeat(["velvet sofa", "bed", "velvet sofa"], 6), indices.ravel())
    np.testing.assert_array_equal(scores.ravel(), flat)
    # Also at the cut: of the two equal ones the first stays.
    assert index.top(["velvet sofa"], 1)[0].tolist() == [[2]]


def test_top_equals_a_full_sort_on_random_text() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    documents = [" ".join(generator.choice(words, size=4)) for _ in range(200)]
    index = BM25Index(documents)
    everything = index.score(["w1 w2"] * 200, np.arange(200))
    expected = sorted(range(200), key=lambda i: (-everything[i], i))
    for k in (1, 7, 199, 200, 500):
        assert index.top(["w1 w2"], k)[0][0].tolist() == expected[:k]


def test_k_is_clipped_and_unknown_words_score_zero() -> None:
    index = BM25Index(DOCUMENTS)
    indices, scores = index.top(["zzz", ""], 99)
    assert indices.shape == scores.shape == (2, len(DOCUMENTS))
    assert indices[0].tolist() == list(range(6))
    assert not scores.any()
    assert index.top([], 3)[0].shape == (0, 3)
    assert index.score([], np.array([])).shape == (0,)


@pytest.mark.parametrize("documents", [[], ["", " - "]])
def test_a_catalogue_without_words_is_refused(documents: list[str]) -> None:
    with pytest.raises(UserError, match="no word"):
        BM25Index(documents)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="`k` is 0"):
        BM25Index(DOCUMENTS).top(["oak"], 0)


def test_score_distinct_asks_once_per_pair_and_keeps_the_order() -> None:
    calls = []

    def scorer(queries: list[str], documents: list[str]) -> np.ndarray:
        calls.append(list(zip(queries, documents, strict=True)))
        return np.array([float(len(q) * 10 + len(d)) for q, d in calls[-1]], dtype=np.float32)

    scores = score_distinct(scorer, ["b", "aa", "b", "b"], ["xx", "y", "y", "xx"])
    assert calls == [[("b", "xx"), ("aa", "y"), ("b", "y")]]
    assert scores.tolist() == [12.0, 21.0, 11.0, 12.0]
    assert score_distinct(scorer, [], []).shape == (0,)
    assert len(calls) == 1


def test_score_distinct_refuses_wrong_scores() -> None:
    with pytest.raises(UserError, match="one finite score"):
        score_distinct(lambda q, d: np.zeros(1), ["a", "b"], ["x", "x"])
    with pytest.raises(UserError, match="1 values that are not finite"):
        score_distinct(lambda q, d: np.array([np.nan, 1.0]), ["a", "b"], ["x", "x"])


def test_blend_worked_by_hand() -> None:
    retriever = np.array([-2.0, 0.0, 2.0])  # min-max: 0, .5, 1
    bm25 = np.array([8.0, 6.0, 4.0])  # min-max: 1, .5, 0
    np.testing.assert_allclose(blend(retriever, bm25, 0.25), [0.75, 0.5, 0.25])
    np.testing.assert_allclose(blend(retriever, bm25, 1.0), [0, 0.5, 1])
    np.testing.assert_allclose(blend(retriever, bm25, 0.0), [1, 0.5, 0])
    np.testing.assert_allclose(blend(np.full(3, 7.0), bm25, 0.5), [0.5, 0.25, 0])
    assert blend(np.array([]), np.array([]), 0.5).shape == (0,)
    with pytest.raises(UserError, match="blend_weight"):
        blend(retriever, bm25, 1.5)


def shop() -> RelevanceDataset:
    products = pd.DataFrame(
        {
            "product_id": ["p1", "p2", "p3", "p4"],
            "title": ["oak bed", "oak table", "pine bed", "lamp"],
            "description": ["", "solid", "", ""],
        }
    )
    queries = pd.DataFrame({"query_id": ["q"], "query": ["oak bed"]})
    judgements = pd.DataFrame(
        {"query_id": ["q"], "product_id": ["p1"], "grade": [1], "label": [1.0], "split": ["dev"]}
    )
    return RelevanceDataset(products, queries, judgements, has_ids=True, max_grade=1)


def prefer_tables(queries: list[str], documents: list[str]) -> np.ndarray:
    return np.array([3.0 if "table" in document else -1.0 for document in documents])


def test_search_ranks_candidates_by_the_retriever() -> None:
    dataset = shop()
    assert dataset.documents[1] == document_text("oak table", "solid")
    search = ProductSearch(dataset, BM25Index(dataset.documents), prefer_tables)
    found = search.search("oak bed")
    assert found.columns.tolist() == [
        "rank",
        "product_id",
        "title",
        "score",
        "bm25_score",
        "probability",
    ]
    # The lamp shares no word with the query; p1 and p3 tie and keep BM25's order.
    assert found["product_id"].tolist() == ["p2", "p1", "p3"]
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["score"].tolist() == found["probability"].tolist()
    assert found["probability"][0] == pytest.approx(1 / (1 + math.exp(-3)))
    assert found["bm25_score"][1] == found["bm25_score"].max()
    assert search.search("oak bed", k=1)["product_id"].tolist() == ["p2"]
    # More results than candidates asked for: the pool grows.
    assert len(search.search("oak bed", k=3, candidates=1)) == 3


def test_search_blends() -> None:
    dataset = shop()
    index = BM25Index(dataset.documents)
    by_bm25 = ProductSearch(dataset, index, prefer_tables, blend_weight=0.0).search("oak bed")
    assert by_bm25["product_id"][0] == "p1"
    assert by_bm25["score"].tolist()[0] == 1.0
    by_retriever = ProductSearch(dataset, index, prefer_tables, blend_weight=1.0).search("oak bed")
    assert by_retriever["product_id"].tolist() == ["p2", "p1", "p3"]


def test_probabilities_that_round_to_one_still_rank_by_log_odds() -> None:
    dataset = shop()

    def sure(queries: list[str], documents: list[str]) -> np.ndarray:
        return np.array([50.0 + len(document) for document in documents])

    found = ProductSearch(dataset, BM25Index(dataset.documents), sure).search("oak bed")
    assert found["probability"].tolist() == [1.0, 1.0, 1.0]
    assert found["product_id"].tolist() == ["p2", "p3", "p1"]


def test_search_of_unknown_words_is_empty_and_of_nothing_is_refused() -> None:
    dataset = shop()
    index = BM25Index(dataset.documents)
    search = ProductSearch(dataset, index, prefer_tables, blend_weight=0.5)
    assert search.search("zzz").empty
    with pytest.raises(UserError, match="blank"):
        search.search("  ")
    with pytest.raises(UserError, match="build it with"):
        ProductSearch(dataset, BM25Index(["one"]), prefer_tables)


# --- An index on disk ---------------------------------------------------------------------------


def test_an_index_on_disk_is_mapped_and_gives_the_same(tmp_path) -> None:
    folder = tmp_path / "index"
    built = BM25Index(DOCUMENTS)
    opened = load_index(DOCUMENTS, str(folder))
    assert isinstance(opened._model.scores["data"], np.memmap)
    assert isinstance(opened._model.scores["indices"], np.memmap)
    queries = ["velvet sofa", "oak bed", "beds", "zzz", ""]
    for ours, theirs in zip(opened.top(queries, 4), built.top(queries, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    flat = np.repeat(queries, len(DOCUMENTS)), np.tile(np.arange(len(DOCUMENTS)), len(queries))
    np.testing.assert_array_equal(opened.score(*flat), built.score(*flat))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(load_index(DOCUMENTS, str(folder))) == len(DOCUMENTS)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "index.partial").exists()


def test_an_index_of_something_else_is_refused(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "index"
    load_index(DOCUMENTS, str(folder))
    for other in (DOCUMENTS[::-1], DOCUMENTS[:-1], [*DOCUMENTS[:-1], "velvet couch"]):
        with pytest.raises(UserError, match="of another catalogue"):
            load_index(other, str(folder))
    monkeypatch.setitem(search_module.BM25_SETTINGS, "k1", 1.5)
    with pytest.raises(UserError, match="another version"):
        load_index(DOCUMENTS, str(folder))
    with pytest.raises(UserError, match="holds no BM25 index"):
        load_index(DOCUMENTS, str(tmp_path))


def test_a_job_waits_for_the_index_that_another_builds(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "new" / "index"
    save, saved = BM25Index.save, []

    def save_slowly(index, *where):
        saved.append(where)
        if len(saved) == 1:  # the other job comes while this one writes
            other.start()
            time.sleep(0.5)
        save(index, *where)

    monkeypatch.setattr(BM25Index, "save", save_slowly)
    opened = []
    other = threading.Thread(
        target=lambda: opened.append(load_index(DOCUMENTS, str(folder))), daemon=True
    )
    opened.append(load_index(DOCUMENTS, str(folder)))
    other.join(timeout=60)
    assert [len(index) for index in opened] == [len(DOCUMENTS)] * 2
    assert len(saved) == 1


def test_a_build_that_was_stopped_leaves_no_index(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "index"

    def full(path, content):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "write_json", full)
        with pytest.raises(OSError, match="no space"):
            load_index(DOCUMENTS, str(folder))
    assert not folder.exists()
    assert len(load_index(DOCUMENTS, str(folder))) == len(DOCUMENTS)


def test_jax_is_not_started_where_it_is_installed(tmp_path: Path) -> None:
    """It would take three quarters of a GPU's memory; who asks for it later still gets it."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was started')\n")
    script = "import agr_trl.search, sys; assert 'jax' not in sys.modules; import jax; print('ok')"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "ok", done.stderr
