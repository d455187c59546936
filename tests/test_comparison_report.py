"""The report of a comparison, from evidence made by hand, read back as HTML."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from html_pages import BIDI, HOSTILE, page_of

from agr_trl.comparison_charts import Estimate, arm_charts, difference_bars, forest
from agr_trl.comparison_report import (
    extreme_queries,
    headline,
    interval,
    sentences,
    shortened,
    strongest_control,
    tone,
    verdict_groups,
    write_comparison_report,
)
from agr_trl.errors import UserError
from agr_trl.files import write_json

CONTROLS = (
    "supervised",
    "random_crops",
    "warm_up_generator",
    "adversarial_no_relevance",
    "relevance_only",
)
SYNTHETIC = ("random_crops", "warm_up_generator", "adversarial", *CONTROLS[3:])


def make_test(difference: float, p_holm: float) -> dict[str, Any]:
    return {
        "difference": difference,
        "low": difference - 0.008,
        "high": difference + 0.009,
        "p": p_holm / 5,
        "p_holm": p_holm,
        "effect_size": difference * 12,
        "detectable": 0.0121,
        "wins": 130,
        "losses": 81,
        "ties": 29,
    }


def _without_holm(test: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in test.items() if key != "p_holm"}


def make_rows(difference: float, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    control = rng.uniform(0.2, 0.8, 240)
    change = np.where(rng.random(240) < 0.12, 0.0, rng.normal(difference, 0.06, 240))
    return [
        {"query": f"query {i}", "adversarial": float(c + d), "control": float(c)}
        for i, (c, d) in enumerate(zip(control, change, strict=True))
    ]


def make_evidence(
    differences: tuple[float, ...] = (0.061, 0.034, 0.011, 0.004, -0.021),
    p_holm: tuple[float, ...] = (0.0025, 0.008, 0.0412, 0.61, 0.03),
) -> dict[str, Any]:
    """Return evidence of pairs: adversarial 0.741, three controls below it, one open, one above."""
    means = {"bm25": 0.611, "cosine": 0.745, "round_0": 0.69, "adversarial": 0.741}
    means |= {arm: 0.741 - change for arm, change in zip(CONTROLS, differences, strict=True)}
    order = ("bm25", "cosine", "round_0", *CONTROLS[:3], "adversarial", *CONTROLS[3:])
    arms: dict[str, Any] = {}
    for arm in order:
        mean = means[arm]
        metrics = {"pr_auc": mean, "roc_auc": mean + 0.05}
        metrics |= {} if arm == "bm25" else {"ece": 0.8 - mean, "log_loss": 1.2 - mean}
        arms[arm] = {
            key: {"mean": value, "low": value - 0.022, "high": value + 0.024}
            for key, value in metrics.items()
        }
    audits = {
        arm: {
            "written": 12_000,
            "accepted": 9000 - 1000 * index,
            "acceptance_rate": 0.75 - index / 12,
            "reasons": {"low_relevance": 2000 + 1000 * index, "duplicate": 1000},
            "copy_rate": 0.31 - index / 50,
            "distinct_1": 0.21,
            "distinct_2": 0.62,
            "mean_words": 3.42,
            "probability": 0.71 - index / 10,
            "relevance": 0.78,
            "second_judge": 0.55,
            "truly_relevant_share": 0.93,
        }
        for index, arm in enumerate(SYNTHETIC)
    }
    rounds = {
        arm: [
            {"round": k, "dev": 0.69 + (means[arm] - 0.69) * k / 3, "kept": 1.0 - k / 10}
            for k in range(1 if arm == "supervised" else 4)
        ]
        for arm in order[3:]
    }
    tests = {
        arm: make_test(change, p)
        for arm, change, p in zip(CONTROLS, differences, p_holm, strict=True)
    }
    per_query = {
        arm: make_rows(change, seed)
        for seed, (arm, change) in enumerate(zip(CONTROLS, differences, strict=True))
    }
    examples = [
        {
            "query": "chairs for small balcony",
            "document": "Folding bistro chair, set of two, weatherproof steel. " * 8,
            "label": 1.0,
            "before": 0.12,
            "after": 0.81,
            "arm": "adversarial",
        },
        {
            "query": "king bed frame",
            "document": "King size sheet set, cotton",
            "label": 0.0,
            "before": 0.91,
            "after": 0.07,
            "arm": "adversarial",
        },
    ]
    return {
        "dataset": "wands_pairs",
        "primary_metric": "pr_auc",
        "seeds": [0, 1, 2],
        "folds": 5,
        "commit": "0123456789ab",
        "queries": 240,
        "pairs": 1893,
        "resamples": 2000,
        "minutes": 200.0,
        "hardware": "2 CPU cores",
        "arms": arms,
        "tests": tests,
        "references": {"cosine": _without_holm(make_test(-0.004, 0.2))},
        "ablations": {},
        "hard_queries": {
            "queries": 80,
            "of": 240,
            "arms": {arm: mean - 0.2 for arm, mean in means.items()},
            "tests": tests,
        },
        "beside_s": {
            "arms": {
                arm: {
                    "pr_auc": {"mean": mean + 0.1, "low": mean + 0.05, "high": mean + 0.15},
                    "roc_auc": {"mean": mean + 0.15, "low": mean, "high": 1.0},
                }
                for arm, mean in means.items()
                if arm != "bm25"
            },
            "tests": tests,
        },
        "rounds": rounds,
        "audits": audits,
        "disagreement": {"pairs": 30, "share": 0.3, "s_right": 0.52},
        "alarms": [
            "adversarial: S rises over the warm-up generator's while the second judge falls"
        ],
        "per_query": per_query,
        "examples": examples,
    }


def make_folder(folder: Path, evidence: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evidence.json", evidence)
    config = {"dataset_format": "pairs", "seeds": 3, "reward": {"min_relevance": 0.7}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_page_answers_first_and_shows_the_numbers(tmp_path: Path) -> None:
    page = page_of(write_comparison_report, make_folder(tmp_path / "wands_pairs", make_evidence()))
    answer = "Of 5 controls, adversarial is above 3, below 1 and not distinguishable from 1"
    assert page.text.index(answer) < page.text.index("What was compared")
    assert "Above supervised, random crops, warm-up generator" in page.text
    assert "Below relevance only" in page.text
    assert "strongest control: relevance only [0.740, 0.786]" in page.text
    assert "240 judged queries with 1,893 pairs, 3 seeds, 5 folds" in page.text
    assert "smallest difference that could have been seen is 0.012 (80 % power" in page.text
    assert "Better on average without any retriever: cosine of S (0.745)." in page.text
    # .741 - .022 and .741 + .024 beside the mean; ROC-AUC, ECE and log loss follow.
    row = page.row("adversarialG rewarded")
    assert row[1:] == ["0.741", "[0.719, 0.765]", "0.791", "0.059", "0.459"]
    assert page.row("BM25")[4:] == ["–", "–"]
    assert page.row("below")[1:] == [
        "[−0.029, −0.012]",
        "−0.021",
        "0.0060",
        "0.0300",
        "−0.25",
        "130",
        "81",
        "29",
        "0.012",
    ]
    for words in ("0123456789ab", "2 CPU cores", "3 h 20 min", "130 won, 81 lost, 29 even"):
        assert words in page.text
    assert "python recipes/compare_arms.py --config wands_pairs/config.yaml" in page.text
    assert str(tmp_path) not in page.text


def test_second_questions_have_tables_where_the_evidence_has_them(tmp_path: Path) -> None:
    evidence = make_evidence()
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    assert "On the 80 queries of 240 that R of round 0 ranks worst" in page.text
    assert ["R of round 0", "0.490", "–", "–", "–", "–"] in page.rows  # .69 - .2
    row = next(row for row in page.rows if row[1:3] == ["0.480", "+0.061"])  # .741 - .061 - .2
    assert row == ["supervised", "0.480", "+0.061", "[+0.053, +0.070]", "0.0005", "0.0025"]
    # S and R together: .745 + .1, and .741 - .061 + .1 with .05 on both sides.
    assert page.row("S alone")[1:] == ["0.845", "[0.795, 0.895]", "–", "–", "–", "–", "0.895"]
    row = next(row for row in page.rows if row[:2] == ["supervised", "0.780"])
    assert row[2:-1] == ["[0.730, 0.830]", "+0.061", "[+0.053, +0.070]", "0.0005", "0.0025"]
    del evidence["hard_queries"], evidence["beside_s"]  # published before there were any
    page = page_of(write_comparison_report, make_folder(tmp_path / "older", evidence))
    assert "ranks worst" not in page.text and "S and R together" not in page.text


def test_rounds_audits_alarms_and_examples(tmp_path: Path) -> None:
    evidence = make_evidence()
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows if row]
    # .69 + (.741 - .69) * k / 3; supervised has one round.
    assert ["adversarial", "0.690", "0.70790.0 %", "0.72480.0 %", "0.74170.0 %"] in rows
    assert ["supervised", "0.690", "–", "–", "–"] in rows
    audit = next(row for row in rows if row[:2] == ["adversarial", "12,000"])
    assert audit[2:6] == ["7,000", "58.3 %", "27.0 %", "0.210"]
    assert audit[7:] == ["3.4", "0.510", "0.780", "0.550", "93.0 %"]
    assert page.row("off topic: S below 0.70")[1] == "2,00016.7 %"
    assert page.text.count(evidence["alarms"][0]) == 2  # at the top and beside the audits
    example = page.row("king bed frame")
    assert example[1:4] == ["irrelevant", "0.91", "0.07"]
    assert "Smaller ones may be there unseen" in page.text


def test_page_where_no_alarm_was_raised(tmp_path: Path) -> None:
    evidence = make_evidence() | {"alarms": []}
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    assert "No alarm was raised" in page.text
    del evidence["audits"]["warm_up_generator"]
    page = page_of(write_comparison_report, make_folder(tmp_path / "alone", evidence))
    assert "No alarm was raised" not in page.text


def test_page_without_alarms_examples_config_and_half_of_the_audits(tmp_path: Path) -> None:
    evidence = make_evidence() | {"alarms": [], "examples": []}
    for audit in evidence["audits"].values():
        del audit["truly_relevant_share"]
        audit["second_judge"] = None
    for test in evidence["tests"].values():
        test |= {"low": None, "high": None, "effect_size": None, "detectable": None}
    folder = make_folder(tmp_path / "run", evidence)
    (folder / "config.yaml").unlink()
    page = page_of(write_comparison_report, folder)
    assert "No alarm was raised" not in page.text and "Alarm:" not in page.text  # nobody looked
    assert "There is no held-out pair" in page.text
    assert "compare_arms.py" not in page.text and "smallest difference that" not in page.text
    assert page.row("Arm")[-1] == "S"
    assert page.row("below")[1:] == ["–", "−0.021", "0.0060", "0.0300", "–", "130", "81", "29", "–"]


def test_an_ablation_has_its_row_but_no_verdict(tmp_path: Path) -> None:
    evidence = make_evidence()
    evidence["arms"]["no_gate"] = evidence["arms"]["random_crops"]
    test = _without_holm(make_test(0.004, 0.2))
    changes = {"reward.gate_loss_reward": False, "reward.min_relevance": 0.6}
    evidence["ablations"] = {"no_gate": test | {"changes": changes}}
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    note = "reward.gate_loss_reward False, reward.min_relevance 0.6"
    assert page.row(f"no gate{note}")[1] == "+0.004"
    row = next(row for row in page.rows if row[1:2] == ["−0.004"])
    assert row == ["cosine of Sno retriever training", "−0.004", "[−0.012, +0.005]", "0.0400"]
    assert headline(evidence) == headline(make_evidence())  # it is no control


def test_page_without_controls(tmp_path: Path) -> None:
    evidence = make_evidence() | {"tests": {}, "per_query": {}}
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    assert "Adversarial in PR-AUC, without a control to compare it with" in page.text
    assert "strongest control" not in page.text and "Query by query" not in page.text


def test_page_of_ranked_data_has_its_metric_first(tmp_path: Path) -> None:
    evidence = make_evidence() | {"primary_metric": "judged/ndcg@10"}
    del evidence["beside_s"]  # of PR-AUC
    for metrics in evidence["arms"].values():
        metrics["judged/ndcg@10"] = metrics["pr_auc"]
        metrics["rerank/ndcg@10"] = {"mean": 0.4321, "low": None, "high": None}
    page = page_of(write_comparison_report, make_folder(tmp_path / "run", evidence))
    assert headline(evidence).endswith("from 1 in nDCG@10 (judged pool)")
    row = page.row("adversarialG rewarded")
    assert row[1:] == ["0.741", "[0.719, 0.765]", "0.741", "0.791", "0.059", "0.459", "0.432"]


def test_comparison_page_asks_nobody_and_runs_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", make_evidence())
    page = page_of(write_comparison_report, folder)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name in ("href", "src", "xlink:href")]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in source and "https://" not in source
    assert "@import" not in source and "url(" not in source


def test_the_picture_of_the_arms_stands_alone(tmp_path: Path) -> None:
    """As well-formed XML with both forests, their marks inside, and no word of another file."""
    write_comparison_report(make_folder(tmp_path / "run", make_evidence()))
    picture = ElementTree.parse(tmp_path / "run" / "arms.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert "adversarial 0.741 [0.719, 0.765]" in picture.findtext(f"{space}title", "")
    groups = picture.findall(f"{space}g")
    arms, differences = (group.find(f"{space}svg") for group in groups)
    assert len(arms.findall(f"{space}circle")) == 9
    assert len(differences.findall(f"{space}circle")) == 5
    for group, panel in zip(groups, (arms, differences), strict=True):
        (left,) = re.findall(r"translate\((\d+) 0\)", group.get("transform", ""))
        for start, size in ((left, "width"), (panel.get("y", ""), "height")):
            end = float(start) + float(panel.get(size, ""))
            assert end <= float(picture.get(size, ""))
    text = (tmp_path / "run" / "arms.svg").read_text()
    assert "var(--" not in text and "href" not in text and "<script" not in text


def test_every_chart_has_its_text(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", make_evidence())
    labels = [
        value
        for tag, name, value in page_of(write_comparison_report, folder).attributes
        if (tag, name) == ("svg", "role")
    ]
    assert labels == ["img"] * 12  # two forests, five controls' queries, five controls' rounds
    source = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "PR-AUC of each arm: BM25 0.611 [0.589, 0.635]; cosine of S 0.745",
        "Adversarial − control in PR-AUC: supervised +0.061 [+0.053, +0.070]; ",
        "Against random crops: 130 won, 81 lost, 29 even; the largest win is +0.",
        "Against random crops: adversarial ends at 0.741, random crops ends at 0.707",
    ):
        assert text in source


def test_hostile_texts_are_harmless(tmp_path: Path) -> None:
    evidence = make_evidence()
    evidence["examples"][0] |= {"query": HOSTILE, "document": BIDI}
    evidence["per_query"]["supervised"][0] = {"query": HOSTILE, "adversarial": 1.0, "control": 0.0}
    evidence["alarms"] = [HOSTILE]
    evidence |= {"dataset": HOSTILE, "hardware": HOSTILE, "commit": HOSTILE}
    evidence["audits"]["adversarial"]["reasons"] = {HOSTILE: 3}
    folder = make_folder(tmp_path / "run", evidence)
    page = page_of(write_comparison_report, folder)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8
    assert "oak [U+202E]table[U+202C][U+0007] desk" in page.text
    assert not set("\u202e\u202c\x07") & set((folder / "report.html").read_text(encoding="utf-8"))


def test_same_evidence_same_page(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", make_evidence())
    first = write_comparison_report(folder).read_bytes()
    assert write_comparison_report(folder).read_bytes() == first


def test_folder_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no evidence\.json"):
        write_comparison_report(tmp_path)


@pytest.mark.parametrize(
    ("differences", "p_holm", "expected"),
    [
        ([0.02] * 5, [0.01] * 5, "Adversarial is above each of 5 controls in PR-AUC"),
        ([-0.02] * 5, [0.01] * 5, "Adversarial is below each of 5 controls in PR-AUC"),
        (
            [0.02, -0.02, 0.01, 0.0, 0.1],
            [0.05, 0.051, 0.2, 1.0, 0.06],
            "Adversarial is not distinguishable from any of 5 controls in PR-AUC",
        ),
        (
            [0.02, -0.02, 0.01, 0.0, 0.1],
            [0.0499, 0.2, 0.3, 1.0, 0.001],
            "Of 5 controls, adversarial is above 2 and not distinguishable from 3 in PR-AUC",
        ),
    ],
)
def test_headline(differences: list[float], p_holm: list[float], expected: str) -> None:
    assert headline(make_evidence(tuple(differences), tuple(p_holm))) == expected


def test_headline_of_one_control_names_it() -> None:
    evidence = make_evidence() | {"tests": {"random_crops": make_test(0.02, 0.01)}}
    assert headline(evidence) == "Adversarial is above random crops in PR-AUC"


def test_verdict_needs_holm_and_the_sign() -> None:
    assert [tone(make_test(d, p)) for d, p in ((0.1, 0.04), (-0.1, 0.04), (0.1, 0.05))] == [
        "good",
        "bad",
        "",
    ]
    assert tone(make_test(0.1, 0.04) | {"p_holm": None}) == ""
    tests = {"supervised": make_test(0.1, 0.9), "some_new_arm": make_test(0.1, 0.9)}
    assert verdict_groups(tests) == {"": ["supervised", "some new arm"]}


def test_strongest_control_is_the_one_with_the_highest_mean() -> None:
    strongest = strongest_control(make_evidence())
    assert strongest is not None
    # .741 + .021, and adversarial is below it with p = .03.
    assert (strongest["name"], strongest["tone"]) == ("relevance only", "bad")
    assert strongest["value"]["mean"] == pytest.approx(0.762)


def test_detectable_is_a_range_where_controls_differ() -> None:
    evidence = make_evidence()
    evidence["tests"]["supervised"]["detectable"] = 0.031
    assert "is 0.012 to 0.031, depending on the control (80 % power" in sentences(evidence)[1]


def test_whether_s_is_a_judge_to_learn_from_is_said() -> None:
    said = [text for text in sentences(make_evidence()) if "people side with S" in text]
    assert len(said) == 1
    assert "differ widely on 30.0 % of the judged pairs; people side with S in 52.0 %" in said[0]
    nowhere = make_evidence() | {"disagreement": {"pairs": 0, "share": 0.0, "s_right": None}}
    assert not any("people side" in text for text in sentences(nowhere))


def test_extreme_queries_are_wins_then_losses() -> None:
    rows = [
        {"query": str(change), "adversarial": 0.5 + change / 100, "control": 0.5}
        for change in (0, 7, -3, 1, 5, 9, 2, 8, -1)
    ]
    assert [row["query"] for row in extreme_queries(rows)] == ["9", "8", "7", "5", "2", "-1", "-3"]


def test_words_of_intervals_and_documents() -> None:
    assert interval(0.1, 0.25) == "[0.100, 0.250]"
    assert interval(-0.1, 0.25, is_signed=True) == "[−0.100, +0.250]"
    assert interval(None, 0.25) == ""
    assert shortened("a short text") == "a short text"
    assert shortened("word, " * 100) == "word, " * 35 + "word …"
    assert shortened("x" * 500) == "x" * 220 + " …"


def test_forest_places_values_on_its_axis() -> None:
    rows = [Estimate("a", 0.5, 0.25, 1.0, "0.500"), Estimate("b", 0.0, None, None, "0", "bad", 0.1)]
    drawn = forest("t", "n", rows, 0.25)
    # The axis goes from 0 at 2 % to 1 at 98 % of the width.
    assert [mark.text for mark in drawn.ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [(row.low, row.x, row.high) for row in drawn.rows] == [
        (26.0, 50.0, 98.0),
        (None, 2.0, None),
    ]
    assert drawn.reference == 26.0
    assert drawn.rows[0].band is None
    assert drawn.rows[1].band == pytest.approx((16.4, 19.2))  # .25 - .1 to .25 + .1
    assert drawn.summary == "a 0.500; b 0"


def test_bars_are_sorted_and_split_at_zero() -> None:
    rows = [{"adversarial": value, "control": 0.5} for value in (0.3, 0.5, 0.9, 0.7)]
    drawn = difference_bars("random crops", rows, {"wins": 2, "losses": 1, "ties": 1}, 0.6)
    assert drawn.wins.count("M") == 2 and drawn.losses.count("M") == 1
    # Of the largest win, at the left: from zero to the top of .9 - .5.
    top = next(mark.y for mark in drawn.y_ticks if mark.text == "0.4")
    assert drawn.wins.startswith(f"M{drawn.left:.2f} {drawn.zero}V{top}h")
    assert drawn.summary == (
        "2 won, 1 lost, 1 even; the largest win is +0.400, the largest loss −0.200"
    )


def test_round_charts_share_their_axes() -> None:
    rounds = {
        arm: [{"round": k, "dev": value} for k, value in enumerate(values)]
        for arm, values in {
            "adversarial": [0.5, 0.6],
            "random_crops": [0.5, 0.9],
            "supervised": [0.5],
        }.items()
    }
    names = {arm: arm for arm in rounds}
    charts = arm_charts(rounds, names, "adversarial")
    assert [chart.title for chart in charts] == ["Against random_crops", "Against supervised"]
    assert charts[0].y_ticks == charts[1].y_ticks and charts[0].x_ticks == charts[1].x_ticks
    assert charts[0].lines[0] == charts[1].lines[0]
    assert charts[1].lines[1].path.count("M") == 1 and "L" not in charts[1].lines[1].path
    assert arm_charts({"supervised": rounds["supervised"]}, names, "adversarial") == []
