"""The report of a small run folder in the real file formats, read back as HTML."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from html_pages import BIDI, HOSTILE, page_of

from agr_trl.charts import Line, line_chart, ticks
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json
from agr_trl.report import sample_rows, summary_table, write_report
from agr_trl.report_text import duration, metric_name, number, percent, signed, visible


def metrics_of(pr_auc: float, *, has_ids: bool = True, is_bm25: bool = False) -> dict[str, Any]:
    metrics: dict[str, Any] = {"roc_auc": pr_auc + 0.02, "pr_auc": pr_auc, "pairs": 1047}
    if not is_bm25:
        metrics |= {"f1": 0.7, "accuracy": 0.71, "log_loss": 1.2 - pr_auc, "ece": 0.08}
    if has_ids:
        metrics |= {"judged/ndcg@10": pr_auc + 0.1, "rerank/ndcg@10": pr_auc - 0.2}
        metrics |= {"bm25/ndcg@10": 0.51, "queries": 162, "queries_without_relevant": 3}
        if not is_bm25:
            metrics |= {"blend/ndcg@10": pr_auc - 0.1, "blend_weight": 0.65}
    return metrics | {"bm25/pr_auc": 0.61, "bm25/roc_auc": None}


def queries_frame(number_of_round: int, size: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(number_of_round)
    nouns = ["bistro set", "bathroom vanity", "velvet sofa", "oak coffee table", "floor lamp"]
    sizes = ["small", "grey", "outdoor", "mid century", "king size"]
    probability = rng.beta(2, 1 + number_of_round, size)
    reason = rng.choice(["", "", "", "low_relevance", "duplicate", "copy_of_title"], size)
    frame = pd.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(size)],
            "document": [f"{nouns[i % 5]} with a long description {i}" for i in range(size)],
            "title": [
                f"Harlow {sizes[i % 5]} {nouns[i % 5]} in weathered walnut, set of {i % 4 + 1}"
                for i in range(size)
            ],
            "product_index": range(size),
            "query": [f"{sizes[(i * 3) % 5]} {nouns[i % 5]}" for i in range(size)],
            "round": number_of_round,
            "probability": probability.astype(np.float32),
            "relevance": rng.uniform(0.55, 0.95, size).astype(np.float32),
            "reason": reason,
            "accepted": reason == "",
            "probability_after": np.clip(probability + 0.25, 0, 0.99).astype(np.float32),
        }
    )
    frame.loc[0, ["query", "title"]] = [HOSTILE, BIDI]
    frame.loc[0, ["accepted", "reason"]] = [True, ""]
    return frame


def query_metrics(queries: pd.DataFrame, *, is_demo: bool) -> dict[str, Any]:
    accepted = queries[queries["accepted"]]
    metrics = {
        "written": len(queries),
        "accepted": len(accepted),
        "acceptance_rate": len(accepted) / len(queries),
        "not_accepted": queries.loc[~queries["accepted"], "reason"].value_counts().to_dict(),
        "mean_probability": float(queries["probability"].mean()),
        "mean_relevance": float(queries["relevance"].mean()),
        "copy_rate": 0.04,
        "duplicate_rate": 0.125,
        "distinct_1": 0.3,
        "distinct_2": 0.62,
        "query_words": 3.4,
        "accepted_mean_probability": float(accepted["probability"].mean()),
    }
    return metrics | ({"truly_relevant_share": 0.875} if is_demo else {})


def generator_log(seed: int, steps: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    log: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": step / steps,
            "reward": 0.5,
            "rewards/retriever_loss/mean": 0.1 + 0.2 * step / steps + rng.normal(0, 0.02),
            "rewards/relevance/mean": 0.75 + rng.normal(0, 0.01),
            "rewards/accepted/mean": 0.3 + 0.3 * step / steps + rng.normal(0, 0.03),
            "kl": 0.02 * step / steps,
            "entropy": 3.8 - 0.7 * step / steps,
        }
        for step in range(2, steps + 1, 2)
    ]
    return [*log, {"step": steps, "epoch": 1.0, "train_loss": 0.01}]


def make_run(
    folder: Path, *, has_test: bool = True, has_ids: bool = True, is_demo: bool = True
) -> Path:
    """Write a run folder as the adversarial loop does: round 1 is kept, round 2 rolled back."""
    rounds = []
    for index, pr_auc in enumerate((0.712, 0.741, 0.733)):
        round_folder = folder / f"round_{index:02d}"
        round_folder.mkdir(parents=True)
        queries = queries_frame(index)
        queries.to_parquet(round_folder / "queries.parquet")
        log = generator_log(index) if index else [{"step": 10, "loss": 3.1}]
        write_json(round_folder / "generator_log.json", log)
        rounds.append(
            {
                "round": index,
                "kept": index < 2,
                "dev": metrics_of(pr_auc, has_ids=has_ids),
                "queries": query_metrics(queries, is_demo=is_demo),
            }
        )
        write_json(round_folder / "metrics.json", rounds[-1])
    baselines = {
        "bm25": metrics_of(0.611, has_ids=has_ids, is_bm25=True),
        "cosine": metrics_of(0.745, has_ids=has_ids),
    }
    metrics = {
        "dataset_format": "demo" if is_demo else "pairs",
        "dev_metric": "pr_auc",
        "best_round": 1,
        "rounds": rounds,
        "baselines": baselines,
        "dev": rounds[1]["dev"],
    }
    if has_test:
        metrics["test"] = baselines | {
            "supervised": metrics_of(0.701, has_ids=has_ids),
            "adversarial": metrics_of(0.7204, has_ids=has_ids),
        }
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "run.json", {"data_fingerprint": "f" * 64, "commit": "0123456789ab"})
    write_json(
        folder / "timings.json", {"round 0: warm up": 61.2, "round 0: train retriever": 3600.0}
    )
    config = {
        "dataset_format": metrics["dataset_format"],
        "seed": 0,
        "rounds": 2,
        "dev_metric": "pr_auc",
        "retriever": {"retriever_name_or_path": "new", "learning_rate": 5e-5},
        "warm_up": {"generator_name_or_path": "new"},
        "generator": {"beta": 0.05, "reward_weights": [1.0, 0.5, 0.0]},
        "reward": {"min_relevance": 0.7, "round_trip_top_k": 20, "relevance_model": "lsa"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_page_answers_first_and_has_every_round(tmp_path: Path) -> None:
    page = page_of(write_report, make_run(tmp_path / "demo"))
    assert page.text.index("Adversarial training raised PR-AUC on test") < page.text.index("Seed")
    # Test, not dev: .7204 - .701 = .0194; of the two baselines only the cosine is still better.
    assert page.row("adversarial (round 1)")[1:3] == ["0.720", "0.740"]
    assert page.row("change")[1] == "+0.019"
    assert "Still better without any retriever: cosine of S (0.745)." in page.text
    assert page.row("adversarial round 1")[1:4] == ["exported", "0.741", "+0.029"]
    # The bar of round 2 is round 1, the last kept.
    assert page.row("adversarial round 2")[1:4] == ["rolled back", "0.733", "−0.008"]
    for title in ("Warm-up (round 0)", "Round 1", "Round 2", "KL", "Entropy", "Rewards"):
        assert title in page.text
    assert "python recipes/train_adversarial.py --config demo/config.yaml" in page.text
    assert str(tmp_path) not in page.text
    assert "1 h 1 min" in page.text and "0123456789ab" in page.text


def test_page_asks_nobody_and_runs_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    page = page_of(write_report, folder)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    references = [
        value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")
    ]
    assert references == []
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in source and "https://" not in source
    assert "@import" not in source and "url(" not in source
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_queries_and_titles_are_harmless(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    frame = queries_frame(1, 3)
    frame.to_parquet(folder / "round_01" / "queries.parquet")
    page = page_of(write_report, folder)
    assert HOSTILE in page.text
    assert "oak [U+202E]table[U+202C][U+0007] desk" in page.text
    assert not set("\u202e\u202c\x07") & set((folder / "report.html").read_text(encoding="utf-8"))


def test_verdicts_are_in_words(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    frame = queries_frame(1, 4)
    frame["reason"] = ["", "low_relevance", "round_trip", "some_new_rule"]
    frame["accepted"] = frame["reason"] == ""
    frame.to_parquet(folder / "round_01" / "queries.parquet")
    text = page_of(write_report, folder).text
    for words in ("off topic: S below 0.70", "not found again in BM25's top 20", "some new rule"):
        assert words in text


def test_reason_counts_and_shares(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    metrics = read_json(folder / "metrics.json")
    for this, accepted in zip(metrics["rounds"], (3, 0, 1200), strict=True):
        this["queries"] |= {"accepted": accepted, "not_accepted": {"blank": 1} if accepted else {}}
    write_json(folder / "metrics.json", metrics)
    page = page_of(write_report, folder)
    assert page.row("no word in it") == ["no word in it", "125.0 %", "0–", "10.1 %"]
    assert page.row("accepted") == ["accepted", "375.0 %", "0–", "1,20099.9 %"]


def test_without_test_dev_warns(tmp_path: Path) -> None:
    page = page_of(write_report, make_run(tmp_path / "run", has_test=False))
    assert "Adversarial training raised PR-AUC on dev" in page.text
    assert "There is no test split: dev chose checkpoint, round and blend weight" in page.text
    assert page.row("change")[1] == "+0.029"


def test_without_ids_there_is_no_ranking(tmp_path: Path) -> None:
    page = page_of(
        write_report, make_run(tmp_path / "run", has_test=False, has_ids=False, is_demo=False)
    )
    assert all("judged pool" not in cell for row in page.rows for cell in row)
    assert page.row("BM25")[1:] == ["0.611", "0.631", "–", "–", "–"]
    assert all("truly relevant" not in cell for row in page.rows for cell in row)


def test_page_of_an_older_and_barer_run(tmp_path: Path) -> None:
    bare = {"pr_auc": None, "roc_auc": None, "f1": 0.5}
    metrics = {
        "dataset_format": "pairs",
        "dev_metric": "pr_auc",
        "best_round": 0,
        "rounds": [
            {"round": 0, "kept": True, "dev": bare},
            {"round": 1, "kept": False, "dev": bare},
        ],
        "dev": bare,
    }
    write_json(tmp_path / "metrics.json", metrics)
    text = page_of(write_report, tmp_path).text
    assert "No adversarial round was kept" in text
    assert "No log of an adversarial round was found" in text
    assert "adversarial round 1, rolled back" in summary_table(metrics)


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.json"):
        write_report(tmp_path)


def test_same_run_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_summary_table(tmp_path: Path) -> None:
    metrics = read_json(make_run(tmp_path / "run") / "metrics.json")
    lines = summary_table(metrics).splitlines()
    assert lines[0] == "test: its queries chose nothing"
    columns = ["pr_auc", "roc_auc", "judged/ndcg@10", "rerank/ndcg@10", "blend/ndcg@10"]
    assert lines[1].split() == columns
    assert lines[2].split() == ["BM25", "0.6110", "0.6310", "0.7110", "0.4110", "-"]
    assert lines[5].split()[-5:] == ["0.7204", "0.7404", "0.8204", "0.5204", "0.6204"]
    assert lines[7].startswith("dev: dev chose") and "optimistic" in lines[7]
    assert [line.split("  ")[0] for line in lines[9:14]] == [
        "BM25",
        "cosine of S",
        "supervised (round 0), start",
        "adversarial round 1, exported",
        "adversarial round 2, rolled back",
    ]
    assert lines[-1].endswith("round 0 87.5 %, round 1 87.5 %, round 2 87.5 %")
    assert len({len(line) for line in lines[1:6]}) == 1  # aligned


def test_summary_table_of_pairs_has_no_ranking(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", has_test=False, has_ids=False, is_demo=False)
    text = summary_table(read_json(run / "metrics.json"))
    assert "ndcg" not in text and "test" not in text and "truly" not in text


def test_sample_is_seeded_and_accepted_come_first_hardest_before() -> None:
    queries = queries_frame(1, 300)
    rows = sample_rows(queries, {"": "accepted"})
    assert rows == sample_rows(queries, {"": "accepted"})
    accepted = [row["accepted"] for row in rows]
    assert accepted == [True] * 28 + [False] * 12
    for part in (rows[:28], rows[28:]):
        probabilities = [row["before"] for row in part]
        assert probabilities == sorted(probabilities)
    assert len(sample_rows(queries[~queries["accepted"]], {})) == 40
    assert len(sample_rows(queries[queries["accepted"]].head(5), {})) == 5
    assert sample_rows(queries.head(0), {}) == []


def test_words_and_numbers() -> None:
    assert [number(0.12345), number(None), number(float("nan"))] == ["0.123", "–", "–"]
    assert [signed(0.0123), signed(-0.0123), signed(-0.0001)] == ["+0.012", "−0.012", "0.000"]
    assert [percent(0.125), percent(None)] == ["12.5 %", "–"]
    assert [duration(45.4), duration(725), duration(12_000)] == ["45 s", "12 min 5 s", "3 h 20 min"]
    assert metric_name("rerank/ndcg@10") == "nDCG@10 (reranked)"
    assert visible("a\nb\tc \u2066d\x00") == "a b c [U+2066]d[U+0000]"
    assert visible("naïve 東京 👩\u200d🔧") == "naïve 東京 👩\u200d🔧"


def test_axes_write_small_numbers_out() -> None:
    chart = line_chart("KL", [Line("", [(0, 0.0), (1, 6e-5)])])
    assert chart is not None
    texts = [mark.text for mark in chart.y_ticks]
    assert texts == ["0.00000", "0.00002", "0.00004", "0.00006"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.712, 0.741, [0.71, 0.72, 0.73, 0.74, 0.75]),
        (3, 97, [0, 25, 50, 75, 100]),
        (0.5, 0.5, [0.46, 0.48, 0.5, 0.52, 0.54]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_line_breaks_where_a_value_is_missing() -> None:
    chart = line_chart("t", [Line("a", [(0, 0.0), (1, None), (2, 1.0), (3, 0.5)])], limits=(0, 1))
    assert chart is not None
    path = chart.lines[0].path
    assert path.count("M") == 2 and path.count("L") == 1
    tops = [marker.y for marker in chart.lines[0].markers]
    assert tops == [chart.bottom, chart.top, (chart.bottom + chart.top) / 2]
    assert line_chart("t", [Line("a", [(0, None)])]) is None


def test_values_are_written_only_where_they_do_not_overlap() -> None:
    few, many = (line_chart("t", [Line("a", [(x, x) for x in range(n)])]) for n in (6, 7))
    assert few is not None and len(few.lines[0].markers) == 6
    assert many is not None and many.lines[0].markers == []
