"""The report of a small run folder in the real file formats, read back as HTML."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from agr_trl.charts import Line, line_chart, ticks
from agr_trl.errors import UserError
from agr_trl.report import sample_rows, summary_table, write_report
from agr_trl.report_text import duration, metric_name, number, percent, signed, visible
from agr_trl.runtime import read_json, write_json

HOSTILE = "<script>alert(1)</script> lamp"
BIDI = "oak \u202etable\u202c\x07 desk"
VOID = {"meta", "link", "img", "br", "hr", "input", "line", "circle", "path"}


class Page(HTMLParser):
    """What a test asks of a page: text, tags, ids, attributes, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.rows and self.rows[-1] and ({"td", "th"} & set(self.open)):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def row(self, start: str) -> list[str]:
        """The cells of the first table row whose first cell starts so."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows if row]
        return next(row for row in rows if row[0].startswith(start))


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


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page
