"""What recipes/validate_data.py says of a data set, counted by hand."""

import json
import logging
from dataclasses import replace

import pandas as pd
import pytest

from agr_trl.data import RelevanceDataset, load_relevance_dataset
from agr_trl.data.validation import describe_dataset, format_description, readers_warnings

PRODUCTS = [
    ("p0", "oak desk", "solid <b>oak</b>"),
    ("p1", "Oak Desk", "solid <b>oak</b>"),  # p0's text, in another case
    ("p2", "desk lamp", ""),
    ("p3", "", "a very long text of many words"),
]
QUERIES = [
    ("q0", "oak desk"),
    ("q1", "desk lamps"),
    ("q2", "Desk-Lamp"),  # q1 in another spelling
    ("q3", "never judged"),
    ("q4", "OAK desk"),  # q0 in another case
    ("q5", "sofa"),
]
JUDGEMENTS = [
    ("q0", "p0", 2, "train"),
    ("q0", "p1", 0, "train"),  # the same text is relevant and is not
    ("q1", "p2", 1, "train"),
    ("q5", "p3", 0, "train"),
    ("q2", "p2", 2, "dev"),
    ("q2", "p0", 1, "dev"),
]


def dataset(judgements=JUDGEMENTS, products=PRODUCTS, queries=QUERIES):
    judged = pd.DataFrame(judgements, columns=["query_id", "product_id", "grade", "split"])
    return RelevanceDataset(
        pd.DataFrame(products, columns=["product_id", "title", "description"]),
        pd.DataFrame(queries, columns=["query_id", "query"]),
        judged.assign(label=(judged["grade"] >= 1).astype(float)),
        has_ids=True,
        max_grade=2,
    )


def test_counts():
    facts = describe_dataset(dataset(), max_pair_tokens=6, max_prompt_tokens=11)
    assert facts["products"] == {
        "count": 4,
        "judged": 4,
        "without_title": 1,
        "without_description": 1,
        "repeat_of_another_text": 1,
        "repeated_text": "Oak Desk solid <b>oak</b>",
        "with_html": 2,
        "text_with_html": "oak desk solid <b>oak</b>",
    }
    assert facts["queries"] == {
        "count": 6,
        "judged": 4,
        "repeat_of_another_text": 1,
        "repeated_text": "OAK desk",
    }
    assert facts["relevant"] == "grades of 1 or more (they go from 0 to 2)"
    assert facts["splits"]["train"] == {
        "queries": 3,
        "queries_without_relevant": 1,
        "judgements": 4,
        "relevant": 2,
        "grades": {"0": 2, "1": 1, "2": 1},
        "labels": {"0": 2, "1": 2},
    }
    assert list(facts["splits"]) == ["train", "dev"]
    # Documents have 4, 4, 2 and 7 words; prompts 3 more ("Title:", "-", "Description:").
    assert facts["lengths"]["document"] == {
        "median": 4.0, "percentile_95": pytest.approx(6.55), "longest": 7,
    }  # fmt: skip
    assert facts["lengths"]["documents_cut"] == 1
    assert facts["lengths"]["prompts_cut"] == 0
    assert facts["variants_in_two_splits"] == [{"train": "desk lamps", "dev": "Desk-Lamp"}]
    assert facts["judged_both_ways"] == [
        {"query": "oak desk", "document": "oak desk solid <b>oak</b>"}
    ]


def test_every_problem_is_said_once():
    problems = describe_dataset(dataset(), max_pair_tokens=6, max_prompt_tokens=9)["problems"]
    expected = [
        "1 products have the text of another, such as 'Oak Desk solid",
        "1 pairs of the same texts are judged both relevant and not, such as 'oak desk' with",
        "1 products have no title",
        "2 products have HTML in their text, such as 'oak desk solid <b>oak</b>'",
        "1 queries have the text of another, such as 'OAK desk'",
        "2 queries have no judgement",
        "1 queries are in two splits in another spelling, such as 'desk lamps' (train) and "
        "'Desk-Lamp' (dev)",
        "at least 1 documents are cut at max_pair_tokens 6",
        "at least 1 prompts are cut at max_prompt_tokens 9",
        "1 of 3 queries of train have no relevant product",
        "all 2 judgements of dev are relevant",
        "dev has 1 queries with a relevant product",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_pairs_have_no_rankings_that_could_leave_queries_out():
    problems = describe_dataset(replace(dataset(), has_ids=False))["problems"]
    assert not any("rankings" in problem for problem in problems)
    assert any(problem.startswith("dev has 1 queries with a relevant") for problem in problems)


def test_a_clean_data_set_has_no_problem():
    queries = [(f"q{n}", f"thing number {n}") for n in range(40)]
    judgements = [
        (f"q{n}", product, grade, "dev" if n < 30 else "train")
        for n in range(40)
        for product, grade in (("p0", 1), ("p2", 0))
    ]
    products = [("p0", "oak desk", "R&D & <5 kg"), ("p2", "lamp", "size <M>")]
    facts = describe_dataset(dataset(judgements, products, queries))
    assert facts["problems"] == []
    assert "what looks wrong:\n  - nothing\n" in format_description(facts)
    assert "left out" not in format_description(facts)


def test_a_missing_split_is_a_problem():
    only_test = [(*row[:3], "test") for row in JUDGEMENTS]
    problems = describe_dataset(dataset(only_test))["problems"]
    assert "there is no train split; nothing to learn from" in problems
    assert "there is no dev split; nothing to choose by" in problems
    only_train = [(*row[:3], "train") for row in JUDGEMENTS]
    (problem,) = [p for p in describe_dataset(dataset(only_train))["problems"] if "dev" in p]
    assert problem.endswith("nothing to choose by; `--dev_fraction 0.2` takes it from train")


def test_examples_are_what_the_models_read():
    examples = describe_dataset(dataset())["examples"]
    assert examples["prompts"] == [
        "Title: oak desk - Description: solid <b>oak</b>",
        "Title: desk lamp - Description:",
        "Title:  - Description: a very long text of many words",
    ]
    assert examples["pairs"] == [
        {"query": "oak desk", "document": "oak desk solid <b>oak</b>", "label": 1.0, "grade": 2},
        {"query": "desk lamps", "document": "desk lamp", "label": 1.0, "grade": 1},
        {"query": "oak desk", "document": "Oak Desk solid <b>oak</b>", "label": 0.0, "grade": 0},
    ]
    one = describe_dataset(dataset(JUDGEMENTS[:1], PRODUCTS[:1], QUERIES[:1]))["examples"]
    assert (len(one["prompts"]), len(one["pairs"])) == (1, 1)


def test_the_text_shows_the_facts():
    facts = {"readers_warnings": ["2 rows are gone"]} | describe_dataset(dataset())
    text = format_description(facts)
    assert "products   4, 4 of them judged; 1 (25%) without a description" in text
    assert "left out or odd:\n  - 2 rows are gone\n" in text
    assert "\n  desk lamps | desk lamp -> 1\n" in text
    row = next(line for line in text.splitlines() if line.startswith("train"))
    assert row.split() == ["train", "3", "1", "4", "50%", "0:", "2,", "1:", "1,", "2:", "1"]
    json.dumps(facts, allow_nan=False)


def test_pairs_show_labels_and_what_the_reader_counted_once(tmp_path):
    rows = ["lamp,desk,0.25", "lamp,red lamp,1", "lamp,desk,0.25"]
    (tmp_path / "train.csv").write_text("\n".join(["query,document,label", *rows]))
    level = logging.getLogger("agr_trl.data").level
    with readers_warnings() as warnings:
        facts = describe_dataset(load_relevance_dataset("pairs", tmp_path))
    assert [message.rpartition(": ")[2] for message in warnings] == [
        "1 repeated judgements count once"
    ]
    assert facts["splits"]["train"]["labels"] == {"0.2": 1, "1": 1}
    assert facts["relevant"].startswith("labels of .5 or more; there are no ids")
    assert "0.2: 1, 1: 1" in format_description(facts)
    source = logging.getLogger("agr_trl.data")
    assert (source.level, source.handlers) == (level, [])
