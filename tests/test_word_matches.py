import numpy as np
import pytest

from agr_trl import word_matches
from agr_trl.word_matches import WordMatches, read_words, telling_words, words


class Directions:
    """Embed texts as directions in degrees, so that cosines are known; count what is embedded."""

    degrees = {"sofa": 0, "couch": 60, "red": 90, "seat": 45, "12": 180, "13": 180}  # noqa: RUF012

    def __init__(self):
        self.embedded = []

    def __call__(self, texts):
        self.embedded.append(list(texts))
        angles = np.radians([self.degrees.get(text, 270) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_words():
    assert words("All-Clad 12'' SOFA!") == ["all", "clad", "12", "sofa"]
    assert telling_words("A red sofa for the hall") == ["red", "sofa", "hall"]
    assert read_words("A red sofa, a red") == ["a", "red", "sofa"]
    assert read_words("--") == []
    assert len(read_words(" ".join(f"w{number}" for number in range(100)))) == 60


def test_the_worst_answered_word_counts():
    matches = WordMatches(Directions())
    queries = ["sofa", "sofa", "red sofa", "the sofa", "the", "sofa", ""]
    documents = ["sofa", "couch", "sofa", "a couch", "couch", "seat", "couch"]
    # cosines: 1; cos 60 = .5; red to sofa 0; .5; nothing asked; cos 45; nothing asked
    expected = [1, 0.75, 0.5, 0.75, 1, (1 + 0.5**0.5) / 2, 1]
    got = matches(queries, documents)
    assert got.dtype == np.float32 and got == pytest.approx(expected, abs=1e-6)


def test_a_number_has_to_be_in_the_document():
    matches = WordMatches(Directions())
    assert matches(["12 sofa", "12 sofa", "13"], ["12 '' sofa", "13 '' sofa", "13"]) == (
        pytest.approx([1, 0, 1])
    )


def test_an_empty_document_answers_nothing():
    assert WordMatches(Directions())(["sofa", "the"], ["", ""]).tolist() == [0, 1]
    assert WordMatches(Directions())([], []).shape == (0,)


def test_each_word_is_embedded_once_until_there_are_too_many(monkeypatch):
    embed = Directions()
    matches = WordMatches(embed)
    matches(["sofa", "sofa"], ["red sofa", "couch"])
    matches(["red"], ["red sofa"])
    assert embed.embedded == [["sofa", "red", "couch"]]
    monkeypatch.setattr(word_matches, "KEPT_WORDS", 2)
    assert matches(["couch"], ["couch"]).tolist() == [1]
    assert embed.embedded[1:] == [["couch"]]
