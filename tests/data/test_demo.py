"""The demo shop: deterministic, safe to write, and graded exactly."""

import os
import subprocess
import sys

import pytest

from agr_trl.data import load_relevance_dataset
from agr_trl.data.demo import DemoOracle, load_demo_oracle, open_demo_shop, write_demo_shop
from agr_trl.data.demo_oracle import parse_query
from agr_trl.errors import UserError

FILES = ["product.csv", "query.csv", "label.csv"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return open_demo_shop(tmp_path_factory.mktemp("demo") / "shop")


@pytest.fixture(scope="module")
def dataset(shop):
    return load_relevance_dataset("demo", shop)


@pytest.fixture
def oracle():
    sofa = {"kind": ["sofa"], "colour": ["navy"], "material": ["velvet"], "room": ["living room"]}
    loveseat = {"kind": ["loveseat"], "colour": ["blue"], "feature": ["storage"], "inches": ["60"]}
    table = {"kind": ["coffee table"], "material": ["oak"], "series": ["hollis"]}
    return DemoOracle({"sofa": sofa, "loveseat": loveseat, "table": table})


@pytest.mark.parametrize(
    ("query", "product_id", "grade"),
    [
        ("couch", "sofa", 2),  # a synonym
        ("Couches", "loveseat", 2),  # a wider word, plural
        ("loveseat", "sofa", 0),  # the wider kind is not the narrower
        ("seating", "table", 0),
        ("blue velour settee", "sofa", 2),  # blue accepts navy
        ("navy couch", "loveseat", 0),  # navy does not accept blue; nothing else is named
        ("navy velvet table", "sofa", 0),  # the head fails
        ("navy linen couch", "sofa", 1),  # one of two holds
        ("navy linen couch for bedroom", "sofa", 0),  # one of three holds
        ("60 '' wide sofa", "loveseat", 2),
        ("61 inch sofa", "loveseat", 0),
        ("sofa with storage", "loveseat", 2),
        ("sofa with coffee table", "sofa", 0),  # the head is the sofa, but no table is there
        ("hollis wooden cocktail table", "table", 2),
        ("blue velvet", "sofa", 2),  # no kind named
        ("blue leather", "sofa", 1),
        ("leather", "sofa", 0),
        ("velvet sofa zzzz", "sofa", 1),  # an unknown word is met by no product
        ("sofa zzzz", "sofa", 0),
        ("zzzz yyyy", "sofa", None),
        ("with the", "sofa", None),
        ("", "sofa", None),
    ],
)
def test_oracle_grades_by_its_rule(oracle, query, product_id, grade):
    assert oracle.grade(query, product_id) == grade


def test_oracle_grades_many_and_knows_its_products(oracle):
    assert oracle.grade_many(["couch", "zzzz"], ["sofa", "table"]) == [2, None]
    with pytest.raises(UserError, match="no product 'lamp'"):
        oracle.grade("couch", "lamp")


def test_longest_phrase_is_read_first():
    assert [one.dimension for one in parse_query("faux leather office chair for office")] == [
        "material",
        "kind",
        "room",
    ]


def test_shop_has_the_promised_sizes(dataset):
    assert len(dataset.products) == 1500
    queries = dataset.judgements.groupby("split")["query_id"].nunique().to_dict()
    assert queries == {"train": 60, "dev": 60, "test": 102}
    pool = dataset.judgements.groupby("query_id").size()
    assert pool.between(20, 31).all()
    missing = (dataset.products["description"] == "").mean()
    assert 0.05 < missing < 0.15
    words = dataset.queries["query"].str.split().str.len()
    assert words.between(1, 6).all()
    assert dataset.documents == [text.lower() for text in dataset.documents]


def test_every_query_has_right_and_wrong_products(dataset):
    judged = dataset.judgements.groupby("query_id")
    assert (judged["grade"].max() == 2).all()
    assert (judged["grade"].min() == 0).all()


def test_labels_are_the_oracle_s(shop, dataset):
    oracle = load_demo_oracle(shop)
    for split in ("train", "dev", "test"):
        pairs = dataset.pairs(split)
        assert oracle.grade_many(pairs["query"], pairs["product_id"]) == pairs["grade"].tolist()


def test_every_title_is_exact_for_its_own_product(shop, dataset):
    oracle = load_demo_oracle(shop)
    grades = oracle.grade_many(dataset.products["title"], dataset.products["product_id"])
    assert set(grades) == {2}


def test_some_relevant_products_share_no_word_with_the_query(dataset):
    pairs = dataset.pairs("test")
    relevant = pairs[pairs["grade"] == 2]
    shared = [
        bool(set(query.split()) & set(document.split()))
        for query, document in zip(relevant["query"], relevant["document"], strict=True)
    ]
    assert 0.05 < 1 - sum(shared) / len(shared) < 0.6


def test_shop_is_the_same_in_another_process(shop, tmp_path):
    code = "import sys; from pathlib import Path; from agr_trl.data.demo import write_demo_shop; "
    code += "write_demo_shop(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (shop / name).read_bytes()


def test_another_seed_is_another_shop(shop, tmp_path):
    write_demo_shop(tmp_path, seed=1)
    assert (tmp_path / "product.csv").read_bytes() != (shop / "product.csv").read_bytes()


def test_shop_is_reused_and_nothing_else_is_overwritten(shop, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in shop.iterdir()}
    assert open_demo_shop(shop) == shop
    assert {path.name: path.stat().st_mtime_ns for path in shop.iterdir()} == before
    with pytest.raises(UserError, match="something else"):
        open_demo_shop(shop, seed=1)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        load_relevance_dataset("demo", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(UserError, match="is a file"):
        open_demo_shop(tmp_path / "letter.txt")


def test_without_a_path_the_shop_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = load_relevance_dataset("demo", split="dev")
    assert set(dataset.judgements["split"]) == {"dev"}
    folder = tmp_path / "agr_trl" / "demo-shop-v1-seed0"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "demo-shop.json"])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
