import numpy as np
import pytest
from toy_shop import DOCUMENTS, TITLES, WordOverlap, build_dataset

from agr_trl.acceptance import (
    AcceptanceFilter,
    copy_rate,
    distinct_n,
    duplicate_rate,
    independent_scores,
    is_copy,
    query_statistics,
)
from agr_trl.config import RewardArguments
from agr_trl.errors import UserError
from agr_trl.search import BM25Index
from agr_trl.stages import acceptance_filter

ALL_TITLES = [title for title, _ in TITLES.values()]


def reasons(queries, products, relevance=None, **settings):
    relevance = np.ones(len(queries)) if relevance is None else np.array(relevance)
    rules = RewardArguments(**settings)
    acceptance = AcceptanceFilter(rules, BM25Index(DOCUMENTS), scorer=WordOverlap())
    titles = [ALL_TITLES[product] for product in products]
    documents = [DOCUMENTS[product] for product in products]
    return acceptance.reasons(queries, documents, titles, np.array(products), relevance)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("red chair", ""),
        ("", "blank"),
        (" - ! ", "blank"),
        ("chair chair", "broken"),
        ("Chair chair", "broken"),
        ("chair red chair", "broken"),
        ("e332, e332, chair", "broken"),
        ("4 x 4 chair", ""),
        ("red <unk> chair", "broken"),
        ("red ch�ir", "broken"),
    ],
)
def test_reasons_of_the_text(query, reason):
    assert reasons([query], [0]) == [reason]


def test_the_whole_title_is_a_copy_from_four_words_on():
    assert reasons(["Glass coffee table, 120cm"], [5]) == ["copy_of_title"]
    assert reasons(["glass coffee table"], [5]) == [""]  # a part
    assert reasons(["red wooden chair"], [0]) == [""]  # three words are what a shopper types


def test_low_relevance_is_below_the_bound_or_not_a_number():
    queries = ["red chair", "wooden chair", "oak chair"]
    got = reasons(queries, [0] * 3, [0.69, 0.7, np.nan], min_relevance=0.7)
    assert got == ["low_relevance", "", "low_relevance"]


def test_every_word_must_be_relevant():
    # The red chair is of wood.
    queries = ["red chair", "red steel chair", "wooden chair"]
    got = reasons(queries[:3], [0] * 3, min_word_relevance=0.5)
    assert got == ["", "low_word_relevance", ""]
    assert reasons(queries[:3], [0] * 3) == ["", "", ""]
    with pytest.raises(UserError, match="`min_word_relevance` needs S"):
        AcceptanceFilter(RewardArguments(min_word_relevance=0.5))


def test_stop_words_of_descriptions_are_not_known():
    rules = RewardArguments(known_words_only=True, min_relevance=0)
    acceptance = acceptance_filter(rules, BM25Index(DOCUMENTS), build_dataset(), WordOverlap())
    # "solid" and "for reading" stand in descriptions only, "reading" in a train query as well.
    queries = ["solid table", "table for reading", "reading table", "velvet table"]
    got = acceptance.reasons(queries, DOCUMENTS[:4], ALL_TITLES[:4], np.arange(4), np.ones(4))
    assert got == ["", "unknown_word", "", "unknown_word"]


def test_the_product_must_come_back_in_the_round_trip():
    queries = ["wooden chair", "lamp", "wooden chair", "unheard"]
    # For "lamp" BM25 has the shorter "green floor lamp" (3) first, "red desk lamp ..." second.
    products = [0, 2, 3, 0]
    assert reasons(queries, products, round_trip_top_k=1) == ["", *["round_trip"] * 3]
    # A query of unknown words returns nothing, although every row of BM25's answer is filled.
    got = reasons(queries, products, round_trip_top_k=6)
    assert got == ["", "", "round_trip", "round_trip"]
    assert reasons(queries, products) == [""] * 4
    with pytest.raises(UserError, match="needs a BM25 index"):
        AcceptanceFilter(RewardArguments(round_trip_top_k=5))


def test_a_pair_is_accepted_once():
    queries = ["red chair", "Red  chair!", "red chair", "red chair"]
    got = reasons(queries, [0, 0, 1, 0], [0.1, 0.9, 0.9, 0.9])
    # The first was not accepted, so the second is the first of its pair.
    assert got == ["low_relevance", "", "", "duplicate"]


def test_a_query_is_accepted_for_so_many_products():
    queries = ["chair", "chair", "Chair", "chair", "red chair"]
    got = reasons(queries, [0, 0, 1, 3, 3], max_products_per_query=2)
    assert got == ["", "duplicate", "", "overused", ""]
    assert reasons(queries, [0, 0, 1, 3, 3]) == ["", "duplicate", "", "", ""]


def test_the_first_rule_names_the_reason():
    got = reasons(["", "lamp lamp", "lamp"], [0] * 3, [0.0] * 3, round_trip_top_k=1)
    assert got == ["blank", "broken", "low_relevance"]


def test_a_costly_rule_is_asked_about_what_is_left():
    class Asked(WordOverlap):
        def weakest_word(self, queries, documents):
            assert queries == ["red chair", "red steel chair"]
            assert documents == [DOCUMENTS[0], DOCUMENTS[0]]
            return super().weakest_word(queries, documents)

    class AskedIndex(BM25Index):
        def top(self, queries, limit):
            assert queries == ["red chair"]
            return super().top(queries, limit)

    settings = RewardArguments(min_relevance=0.5, min_word_relevance=0.5, round_trip_top_k=3)
    acceptance = AcceptanceFilter(settings, AskedIndex(DOCUMENTS), scorer=Asked())
    queries = ["lamp lamp", "red chair", "chair", "red steel chair"]
    products, relevance = np.zeros(4, int), np.array([1, 1, 0.4, 0.9])
    got = acceptance.reasons(queries, [DOCUMENTS[0]] * 4, [ALL_TITLES[0]] * 4, products, relevance)
    assert got == ["broken", "", "low_relevance", "low_word_relevance"]
    assert reasons([], [], min_word_relevance=0.5, round_trip_top_k=3) == []


def test_statistics_by_hand():
    assert is_copy("Wooden chair", "red wooden chair") and not is_copy(
        "red chair", "red wooden chair"
    )
    assert not is_copy("air", "red chair") and not is_copy("", "red chair")
    queries = ["red chair", "red  Chair", "lamp", ""]
    documents = ["red chair", "red wooden chair", "desk lamp", "desk"]
    assert copy_rate(queries, documents) == 0.5  # the first and the third
    assert duplicate_rate(queries) == 0.25  # the second repeats the first
    assert distinct_n(queries, 1) == 3 / 5  # red, chair, lamp of 5 words
    assert distinct_n(queries, 2) == 1 / 2  # "red chair" twice
    assert query_statistics(queries, documents) == {
        "copy_rate": 0.5,
        "duplicate_rate": 0.25,
        "distinct_1": 0.6,
        "distinct_2": 0.5,
        "query_words": 5 / 4,
    }
    assert set(query_statistics([], []).values()) == {0.0}


def test_blank_queries_have_no_relevance():
    class Half:
        def score(self, queries, documents):
            return np.full(len(queries), 0.5)

    scores = independent_scores(Half(), ["", "a", " ?"], ["x"] * 3)
    assert scores.tolist() == [0, 0.5, 0] and scores.dtype == np.float32
    assert independent_scores(WordOverlap(), [], []).shape == (0,)
