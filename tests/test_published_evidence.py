"""The evidence in docs/evidence/: made by the experiment, and the docs say nothing else.

A data set's main comparison, named as the data set, stands in README, others in experiments.md.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_runs import RECIPES, ROOT

from agr_trl.comparison_report import arms_picture
from agr_trl.config import ARMS
from agr_trl.evidence_tables import primary_table

EVIDENCE = ROOT / "docs" / "evidence"
README, EXPERIMENTS = ROOT / "README.md", ROOT / "docs" / "experiments.md"
FILES = sorted(EVIDENCE.glob("*.json"))
# Arms and seeds that a published comparison has not run, as docs/experiments.md says beside it.
ONE_REWARD = {"adversarial_no_relevance", "relevance_only"}
NOT_RUN = dict.fromkeys(
    ("wands_pairs_four_arms", "icecat_ungated", "icecat_longer_reading", "icecat_five_seeds"),
    ONE_REWARD,
)
FEWER_SEEDS = {
    "wands_pairs_ablations": 1,
    "wands_pairs_shorter_lesson": 2,
    "icecat_two_seeds": 2,
    "icecat_ungated": 1,
    "icecat_longer_reading": 2,
}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def published(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    return request.param, json.loads(request.param.read_text(encoding="utf-8"))


def test_there_is_evidence() -> None:
    assert FILES


def test_it_is_of_the_experiment_as_its_yaml_says(published: tuple[Path, dict[str, Any]]) -> None:
    file, evidence = published
    data = evidence["dataset"].replace("-", "_")
    arms = set(ARMS) - NOT_RUN.get(file.stem, set())
    settings = yaml.safe_load((RECIPES / data / "compare_arms.yaml").read_text())
    assert evidence["primary_metric"] == settings["primary_metric"]
    assert evidence["resamples"] == settings["resamples"]
    assert evidence["folds"] == settings["folds"] == 5
    assert settings["seeds"] == 5
    assert len(set(evidence["seeds"])) >= FEWER_SEEDS.get(file.stem, 5)
    assert list(evidence["arms"])[:2] == ["bm25", "cosine"]
    rows = set(evidence["arms"]) - {"round_0"}  # which older files lack
    assert rows == {"bm25", "cosine"} | arms | set(evidence["ablations"])
    assert set(evidence["tests"]) == arms - {"adversarial"}
    assert re.fullmatch("[0-9a-f]{12,40}", evidence["commit"]) and evidence["hardware"]


def test_differences_are_those_of_the_means(published: tuple[Path, dict[str, Any]]) -> None:
    """Holm's p is never below p; wins, losses and ties are the queries that have a value.

    For pairs that is the average precision of a query that has relevant and other products.
    """
    _, evidence = published
    means = {arm: own[evidence["primary_metric"]]["mean"] for arm, own in evidence["arms"].items()}
    for arm, test in evidence["tests"].items():
        assert test["difference"] == pytest.approx(means["adversarial"] - means[arm], abs=1e-9)
        assert 0 < test["p"] <= test["p_holm"] <= 1
    counts = {
        sum(test[n] for n in ("wins", "losses", "ties")) for test in evidence["tests"].values()
    }
    assert len(counts) == 1
    share = 0.3 if evidence["primary_metric"] == "pr_auc" else 0.8
    assert share * evidence["queries"] < counts.pop() <= evidence["queries"]


def test_texts_of_the_data_stay_where_they_are(published: tuple[Path, dict[str, Any]]) -> None:
    _, evidence = published
    assert "examples" not in evidence
    for rows in evidence.get("per_query", {}).values():
        assert all(row.keys() == {"adversarial", "control"} for row in rows)


def test_paired_values_are_those_of_the_tests(published: tuple[Path, dict[str, Any]]) -> None:
    _, evidence = published
    for arm, rows in evidence.get("per_query", {}).items():
        gains = [round(row["adversarial"] - row["control"], 9) for row in rows]
        test = evidence["tests"][arm]
        assert sum(gain > 0 for gain in gains) == test["wins"]
        assert sum(gain < 0 for gain in gains) == test["losses"]
        if evidence["primary_metric"] != "pr_auc":  # whose value is of all pairs together
            assert sum(gains) / len(gains) == pytest.approx(test["difference"], abs=1e-6)


def test_a_page_has_its_table_and_its_picture(published: tuple[Path, dict[str, Any]]) -> None:
    file, evidence = published
    page = README if (RECIPES / file.stem).is_dir() else EXPERIMENTS
    text = page.read_text(encoding="utf-8")
    assert primary_table(evidence) in text
    assert evidence["commit"][:7] in text
    assert f"]({file.with_suffix('.svg').relative_to(page.parent)})" in text
    picture = file.with_suffix(".svg").read_text(encoding="utf-8")
    assert picture == arms_picture(evidence)
