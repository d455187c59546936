"""The synthetic WANDS that benchmarks read has the real one's shape, at any size."""

import importlib.util
from pathlib import Path

import pytest

from agr_trl.data import load_relevance_dataset
from agr_trl.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_full_size_wands.py"


@pytest.fixture(scope="module")
def write():
    spec = importlib.util.spec_from_file_location("make_full_size_wands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_full_size_wands


def test_small_copy_has_the_stated_counts(write, tmp_path):
    write(tmp_path, products=300, queries=20, judgements=900)
    dataset = load_relevance_dataset("wands", tmp_path)
    assert (len(dataset.products), len(dataset.queries)) == (300, 20)
    assert len(dataset.judgements) == 900
    shares = dataset.judgements["grade"].value_counts(normalize=True)
    assert shares[1] == pytest.approx(0.628, abs=0.08)
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path)


def test_more_judgements_than_pairs_are_refused(write, tmp_path):
    with pytest.raises(UserError, match="have no 7 pairs"):
        write(tmp_path, products=3, queries=2, judgements=7)


@pytest.mark.slow
def test_full_size_is_read(write, tmp_path):
    write(tmp_path)
    dataset = load_relevance_dataset("wands", tmp_path)
    assert (len(dataset.products), len(dataset.queries)) == (42_994, 480)
    assert len(dataset.judgements) == 233_448
