"""Every broken input ends a job with one line that names it, before anything is trained."""

import re
import sys

import pytest
import torch
from bad_inputs import CASES, Place
from reliability_page import PAGE, page
from toy_runs import load_recipe, titles, write_beir, write_pairs
from transformers import Trainer

from agr_trl.retriever import Retriever, _as_relevance_model
from agr_trl.runtime import run_recipe
from agr_trl.small_models import build_small_bert, build_small_t5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Inputs without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    write_beir(folder / "beir")
    write_pairs(folder / "pairs")
    wands = folder / "wands"
    wands.mkdir()
    (wands / "query.csv").write_text("query_id\tquery\tquery_class\n0\tsofa\tSofas\n1\tbed\tBeds\n")
    (wands / "product.csv").write_text(
        "product_id\tproduct_name\tproduct_class\tproduct_description\tproduct_features\n"
        "0\tred sofa\tSofas\tsoft\tcolor:red\n1\toak bed\tBeds\t\t\n"
    )
    (wands / "label.csv").write_text(
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t0\tExact\n1\t0\t1\tPartial\n2\t1\t1\tExact\n"
    )
    torch.manual_seed(0)
    bert, tokenizer = build_small_bert(titles(), width=32, layers=1, max_tokens=32)
    Retriever(_as_relevance_model(bert), tokenizer, 32).save(folder / "retriever")
    t5, tokenizer = build_small_t5(titles(), width=32, layers=1, vocabulary_size=120)
    t5.save_pretrained(folder / "generator")
    tokenizer.save_pretrained(folder / "generator")
    return folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_input_is_named_in_one_line(case, whole, tmp_path, monkeypatch, capsys):
    def train(*args, **kwargs):
        raise AssertionError("a broken input was trained on")

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    words = [str(word) for word in case.words(Place(tmp_path, whole))]
    monkeypatch.setattr(sys, "argv", [f"{case.job}.py", *words])
    with pytest.raises(SystemExit) as end:
        run_recipe(load_recipe(case.job).main)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and re.search(re.escape(case.says), line), line
    assert len(line) < 600


def test_the_page_lists_the_cases():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/reliability_page.py`"
    assert len({str(case) for case in CASES}) == len(CASES) >= 60
